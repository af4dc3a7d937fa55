"""TensorRT plans from an exported model."""
