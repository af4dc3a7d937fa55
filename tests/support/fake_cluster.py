"""Machines in memory with a clock of their own, for tests of the driver."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mssts.bulk.driver import WorkerLost
from mssts.bulk.worker import Outcome, Started
from mssts.media.sources import VideoItem


@dataclass(frozen=True)
class FakeItem(VideoItem):
    """A video that takes its length in seconds."""

    length: float = 1.0

    def weight(self) -> float:
        return self.length


def items(lengths: Sequence[float]) -> list[FakeItem]:
    return [FakeItem(n, f"video{n}", Path(f"video{n}"), length=length) for n, length in enumerate(lengths, 1)]


@dataclass
class FakeWorker:
    node: str
    number: int
    busy: bool = False
    alive: bool = True


@dataclass
class FakeCluster:
    """A cluster whose workers take a video's length in seconds.

    Attributes:
        slots: how many workers a node holds.
        kills: video index → how many workers it kills.
        broken: video index → what is wrong with it.
        unable: node → why its workers cannot start.
        dies: node → when it dies.
        joins: node → when it joins.
        full_after: videos that can be written; None for all.
        given: videos in the order in which they were given.
    """

    slots: dict[str, int]
    kills: Counter[int] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)
    unable: dict[str, str] = field(default_factory=dict)
    dies: dict[str, float] = field(default_factory=dict)
    joins: dict[str, float] = field(default_factory=dict)
    full_after: int | None = None
    given: list[int] = field(default_factory=list)
    now: float = 0.0
    started: list[FakeWorker] = field(default_factory=list)
    _events: list[tuple[float, int]] = field(default_factory=list)
    _answers: dict[int, tuple[FakeWorker, object]] = field(default_factory=dict)
    _references: int = 0

    def clock(self) -> float:
        return self.now

    def _alive(self, node: str) -> bool:
        return self.joins.get(node, 0) <= self.now < self.dies.get(node, float("inf"))

    def room(self) -> dict[str, int]:
        return {node: slots for node, slots in self.slots.items() if self._alive(node)}

    def start(self, node: str) -> tuple[FakeWorker, Hashable]:
        worker = FakeWorker(node, len(self.started))
        self.started.append(worker)
        assert sum(w.alive and w.node == node for w in self.started) <= self.slots[node] or len(self.started) > 100
        return worker, self._later(worker, 1.0, Started(node, worker.number, 1.0, self.unable.get(node), {}))

    def predict(self, worker: FakeWorker, index: int, item: VideoItem) -> Hashable:
        assert worker.alive and not worker.busy, "a worker has one video at a time"
        worker.busy = True
        self.given.append(index)
        seconds = item.weight()
        answer: object = Outcome(seconds, frames=10, error=self.broken.get(index))
        if self.kills[index] > 0:
            self.kills[index] -= 1
            answer = WorkerLost("its process died")
        elif self.full_after is not None and len(self.given) > self.full_after:
            answer = Outcome(seconds, unwritable="out: the disk is full")
        return self._later(worker, seconds, answer)

    def _later(self, worker: FakeWorker, seconds: float, answer: object) -> int:
        self._references += 1
        at = min(self.now + seconds, max(self.dies.get(worker.node, float("inf")), self.now))
        if at < self.now + seconds:
            answer = WorkerLost("its machine is gone")
        heapq.heappush(self._events, (at, self._references))
        self._answers[self._references] = (worker, answer)
        return self._references

    def wait(self, references: Sequence[Hashable], seconds: float) -> list[int]:
        until = self.now + seconds
        while self._events and self._events[0][1] not in self._answers:
            heapq.heappop(self._events)  # of a worker that was killed
        if not self._events or self._events[0][0] > until:
            self.now = until
            return []
        self.now = max(self.now, self._events[0][0])
        ready = []
        while self._events and self._events[0][0] <= self.now:
            reference = heapq.heappop(self._events)[1]
            if reference in self._answers:
                ready.append(reference)
        assert set(ready) <= set(references)
        return ready

    def result(self, reference: int) -> object:
        worker, answer = self._answers.pop(reference)
        worker.busy = False
        if isinstance(answer, Exception):
            worker.alive = False
            raise answer
        return answer

    def kill(self, worker: FakeWorker) -> None:
        worker.alive = False
        self._answers = {r: (w, a) for r, (w, a) in self._answers.items() if w is not worker}
