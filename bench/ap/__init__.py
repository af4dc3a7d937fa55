"""Benchmark of accuracy."""
