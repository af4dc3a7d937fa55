"""8-bit versions of an exported model."""
