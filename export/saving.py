"""An ONNX model as files: one, or two where protobuf's limit of 2 GB asks for it."""

from __future__ import annotations

from pathlib import Path

import onnx

from mssts.export.alignment import align_weights

LARGEST_FILE = onnx.checker.MAXIMUM_PROTOBUF


def save_model(model: onnx.ModelProto, path: Path, largest: int = LARGEST_FILE) -> None:
    """Writes `path`, with weights in a second file if they do not fit.

    They go to `path` + ".data" if the whole is over `largest` bytes.

    The same model gives the same bytes.
    """
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx would add to it
    if model.ByteSize() <= largest:
        path.write_bytes(align_weights(model))
        return
    moved = onnx.ModelProto()
    moved.CopyFrom(model)  # what is saved this way loses its weights
    onnx.save_model(moved, path, save_as_external_data=True, location=data.name, size_threshold=1024)
    onnx.checker.check_model(path)
