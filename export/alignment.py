"""Weights of an ONNX file at addresses where an engine can use them in place (`mssts.runners.onnx_weights`)."""

from __future__ import annotations

import onnx

from mssts.runners.onnx_weights import ALIGNMENT, SMALLEST, spans

_ROUNDS = 4


def align_weights(model: onnx.ModelProto) -> bytes:
    """The model's bytes, with large weights (but the first) at multiples of `ALIGNMENT`.

    What fills the gaps is the `doc_string` of the weight before, which is written behind that one's values. The same
    model gives the same bytes, and so does one that was aligned before.
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
