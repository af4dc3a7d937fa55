"""Benchmark of growth."""
