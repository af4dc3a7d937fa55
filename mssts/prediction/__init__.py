"""Whole videos: windows are segmented, linked to tracks, drawn and written."""
