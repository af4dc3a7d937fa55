"""Serving: the real tritonserver on an exported engine. `mssts.client` talks to it."""
