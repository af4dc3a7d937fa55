"""Benchmark of the parts of a model."""
