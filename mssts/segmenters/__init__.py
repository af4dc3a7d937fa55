"""Segmenters: frames of a clip in, instances out."""
