"""Several sources of clips trained on as one."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from mssts.data.clips import Clip, ClipSource


class JointClips:
    """Every clip of every source once an epoch, source after source, as released.

    What shuffles the indices mixes the sources, each in proportion to its length. Labels must mean the same in all.
    """

    def __init__(self, sources: Sequence[ClipSource]) -> None:
        self.sources = tuple(sources)
        self._ends = tuple(accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def sample(self, index: int, epoch: int) -> Clip:
        """Clip `index`, counted through the sources, of `epoch`."""
        which = bisect_right(self._ends, index)
        start = self._ends[which] - len(self.sources[which])
        return self.sources[which].sample(index - start, epoch)
