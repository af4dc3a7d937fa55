"""Alignment of the weights in an ONNX file, so that engines use them in place.

The reader is `mssts.runners.onnx_weights`."""

from __future__ import annotations

import onnx

from mssts.runners.onnx_weights import ALIGNMENT, SMALLEST, spans

_ROUNDS = 4


def align_weights(model: onnx.ModelProto) -> bytes:
    """The model's bytes, with all large weights but the first aligned.

    The `doc_string` of a weight, which is written after its values, fills the gap to the next. The same model gives the
    same bytes, and so does one that was aligned before.
    """
    weights = model.graph.initializer
    for weight in weights:
        weight.doc_string = " "
    # A filling may lengthen a length that is written before it, and so move what follows once more: look again.
    for _ in range(_ROUNDS):
        data = model.SerializeToString(deterministic=True)
        moved = 0
        changed = False
        for before, span in zip(weights, spans(data)[1:], strict=False):
            missing = -(span.start + moved) % ALIGNMENT
            if missing and span.end - span.start >= SMALLEST:
                length = len(before.doc_string)
                before.doc_string = " " * ((length + missing - 1) % ALIGNMENT + 1)
                moved += len(before.doc_string) - length
                changed = True
        if not changed:
            break
    return data
