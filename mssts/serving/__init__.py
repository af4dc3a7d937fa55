"""Serving: the real tritonserver on an exported engine.

`mssts.segmenters.triton` talks to it.
"""

LOOPBACK = "127.0.0.1"  # where a server listens unless `--host` says otherwise
# Values of `mssts serve --warm` beside a shape.
USUAL = "usual"  # the shape that most clips will have
NONE = "none"
