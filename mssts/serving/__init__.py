"""Serving: the real tritonserver on an exported engine. `mssts.segmenters.triton` talks to it."""
