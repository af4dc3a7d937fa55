"""What the engines of a run load: exports, quantised files and plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mssts.artefact import Kind
from mssts.bench.fps.engines import (
    MEASURED,
    Candidate,
    build,
    check_names,
    export,
    quantise,
    saved_random_checkpoint,
    why_not_installed,
)
from mssts.errors import MsstsError
from mssts.model.config import BASELINE, Switches, preset


class Exports:
    """The exports and plans of a run, each made once, plans for one input shape."""

    def __init__(self, folder: Path, shape: str) -> None:
        self._folder, self._shape = folder, shape
        self._made: dict[tuple[str, str], Path | MsstsError] = {}

    def with_what_it_loads(self, candidate: Candidate) -> Candidate:
        """The candidate with the path of what its runner loads, made if need be.

        Raises:
            MsstsError: it cannot run here, or it could not be made; the message says why.
        """
        measured = MEASURED[candidate.runner]
        if candidate.precision not in measured.precisions:
            where = "a processor" if measured.device == "cpu" else "a GPU"
            raise MsstsError(f"it has no {candidate.precision} on {where}")
        missing = why_not_installed(candidate.runner)  # before minutes go into an export for it
        if missing:
            raise MsstsError(missing)
        if measured.takes is Kind.CHECKPOINT:
            return candidate
        made = self._export(candidate)
        if measured.takes is Kind.PLAN:
            print(f"building {candidate} (minutes the first time)", flush=True)
            made = build(made, candidate.runner, self._shape)
        return replace(candidate, path=str(made))

    def _export(self, candidate: Candidate) -> Path:
        key = candidate.path, candidate.precision
        if key not in self._made:
            print(f"exporting {candidate.variant} in {candidate.precision} (minutes the first time)", flush=True)
            try:
                if candidate.precision == "int8":
                    self._made[key] = quantise(self._export(replace(candidate, precision="fp32")))
                else:
                    self._made[key] = export(Path(candidate.path), candidate.precision, self._folder)
            except MsstsError as error:  # kept: the next runner that wants it would wait minutes to hear the same
                self._made[key] = error
        made = self._made[key]
        if isinstance(made, MsstsError):
            raise made
        return made


def random_checkpoints(name: str, switches: Sequence[str], cache: Path) -> dict[str, Path]:
    """Random weights of a preset, by variant: with the switches off, or all on.

    Raises:
        MsstsError: there is no such preset or variant.
    """
    variants = {"baseline": BASELINE, "all": Switches()}
    check_names("switches", switches, list(variants))
    chosen = preset(name)
    return {
        variant: saved_random_checkpoint(
            replace(chosen, model=replace(chosen.model, switches=variants[variant])), cache
        )
        for variant in switches
    }
