"""Benchmark of whole engines."""
