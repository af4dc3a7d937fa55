"""Stage 1: data → checkpoint."""
