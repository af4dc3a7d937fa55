"""Benchmark of the two custom ops."""
