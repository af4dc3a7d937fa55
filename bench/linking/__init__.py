"""Benchmark of linking."""
