"""A check that a loaded engine has the tensors of this project."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mssts.contract import TensorSpec
from mssts.errors import MsstsError


def check_contract(
    path: Path, kind: str, found: Iterable[tuple[str, str, int]], expected: Sequence[TensorSpec]
) -> None:
    """Checks that the tensors of a loaded engine are those of `mssts.contract`.

    Args:
        path: the engine's file, for the message.
        kind: input or output, as well.
        found: name, numpy's name of the type, and rank of each.
        expected: those of `mssts.contract`.

        Raises:
            MsstsError: they are not.
    """
    found_set = {f"{name} {dtype} of rank {rank}" for name, dtype, rank in found}
    expected_set = {f"{spec.name} {spec.dtype} of rank {len(spec.shape)}" for spec in expected}
    if found_set != expected_set:
        raise MsstsError(
            f"{path}: not an engine of this project: its {kind}s are {', '.join(sorted(found_set))}; expected "
            f"{', '.join(sorted(expected_set))}; export the model with `mssts export`"
        )
