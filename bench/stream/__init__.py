"""Benchmark of streams."""
