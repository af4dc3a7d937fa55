"""Streams: live video in, tracked masks out as they come."""
