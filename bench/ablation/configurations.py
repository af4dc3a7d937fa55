"""The rows of the table: which of the paper's parts a model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mssts.errors import MsstsError

# As `mssts train --switches` names them, by a short name.
PARTS = {
    "intra": "intra-scale",
    "inter": "inter-scale",
    "temporal": "temporal-decoder",
    "discriminator": "discriminator",
}

# The baseline, each part alone, and all; then all but one.
TABLE: dict[str, tuple[str, ...]] = {
    "baseline": (),
    **{name: (switch,) for name, switch in PARTS.items()},
    "all": tuple(PARTS.values()),
}
LEAVE_ONE_OUT: dict[str, tuple[str, ...]] = {
    f"no-{name}": tuple(switch for switch in PARTS.values() if switch != left_out) for name, left_out in PARTS.items()
}
CONFIGURATIONS = {**TABLE, **LEAVE_ONE_OUT}


@dataclass(frozen=True)
class Run:
    """A training: a configuration and a seed."""

    configuration: str
    seed: int

    @property
    def switches(self) -> tuple[str, ...]:
        """The parts that are on, as `mssts train --switches` names them."""
        return CONFIGURATIONS[self.configuration]

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.configuration}-seed{self.seed}"


def ordered_runs(configurations: Sequence[str], seeds: Sequence[int]) -> list[Run]:
    """The runs in the order in which they are done.

    The table comes first, whole for one seed after another, so that it can be read early; all but one come last.

    Raises:
        MsstsError: there is no such configuration.
    """
    for name in configurations:
        if name not in CONFIGURATIONS:
            raise MsstsError(f"unknown configuration {name!r}; expected some of: {', '.join(CONFIGURATIONS)}")
    return [
        Run(name, seed)
        for group in (TABLE, LEAVE_ONE_OUT)
        for seed in seeds
        for name in group
        if name in configurations
    ]
