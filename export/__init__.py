"""Stage 2: checkpoint → model.onnx + manifest.json, provably the same."""
