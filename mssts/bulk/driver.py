"""The driver: gives videos to workers, and sees to it that each is done or named.

Nothing here knows Ray. A worker has one video at a time, so a worker that is lost takes one video along, and which is
known. A video whose worker was lost is tried again when all others are done, a few times: one that kills its process
every time costs no other video anything.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mssts.bulk.options import BulkOptions
from mssts.bulk.worker import Outcome, Started
from mssts.errors import MsstsError, first_line
from mssts.media.sources import VideoItem

_WAIT_SECONDS = 1.0  # for an answer, and between two looks at the times
_LOOK_SECONDS = 5.0  # between two looks at the machines
_START_LOSSES = 3  # of one machine, before none is started there any more
_PATIENCE_SECONDS = 600.0  # without a worker at work: loading an engine over a network may take minutes


class WorkerLost(Exception):
    """A worker's process or machine is gone, and the message says which."""


class Cluster(Protocol):
    """Machines on which workers can be started.

    Nodes are their names, and references are answers to come.
    """

    def room(self) -> dict[str, int]:
        """How many workers each node that is alive can hold, running ones included."""

    def start(self, node: str) -> tuple[Any, Hashable]:
        """Starts a worker, and returns it with the reference to its `Started`."""

    def predict(self, worker: Any, index: int, item: VideoItem) -> Hashable:
        """Gives a worker a video, and returns the reference to its `Outcome`."""

    def wait(self, references: Sequence[Hashable], seconds: float) -> list[Any]:
        """The references that have an answer, if one has within so many seconds."""

    def result(self, reference: Any) -> Any:
        """The answer.

        Raises:
            WorkerLost: there will be none.
        """

    def kill(self, worker: Any) -> None:
        """Ends a worker's process, whatever it does."""


@dataclass
class WorkerRecord:
    """What a worker has done.

    Attributes:
        node: where it ran.
        host: that machine's name.
        pid: its process there.
        start_seconds: to load the engine.
        videos: that it finished.
        frames: of those.
        busy_seconds: that it spent on videos, failed ones included.
        lost: why it ended before its time, None if it did not.
    """

    node: str
    host: str = ""
    pid: int = 0
    start_seconds: float = 0.0
    videos: int = 0
    frames: int = 0
    busy_seconds: float = 0.0
    lost: str | None = None


@dataclass(frozen=True)
class Failure:
    """A video without a result: why, and how often it was tried."""

    reason: str
    attempts: int


@dataclass
class _Worker:
    handle: Any
    record: WorkerRecord
    index: int | None = None  # the video it is at
    since: float = 0.0


class Driver:
    """One run over the videos that are not done.

    Args:
        cluster: where workers run.
        items: the videos of the source.
        todo: indices into them.
        options: retries, timeout and number of workers count here.
        on_start: called with the answer of each worker that can work.
        on_video: called with the frames of each video that is done, and with None for one that failed.
        clock: of seconds.

    Attributes:
        failures: of videos, by index.
        records: of all workers, lost ones included.
        left_out: nodes where no worker can work, with host and reason.
        retries: how often a video was tried again.
    """

    def __init__(
        self,
        cluster: Cluster,
        items: Sequence[VideoItem],
        todo: Iterable[int],
        options: BulkOptions,
        on_start: Callable[[Started], object] = lambda started: None,
        on_video: Callable[[int | None], object] = lambda frames: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._items = items
        self._options = options
        self._on_start, self._on_video = on_start, on_video
        self._clock = clock
        # Longest first: a long one that came last would keep one worker at work while all others are idle.
        self._todo = deque(sorted(todo, key=lambda index: (-items[index].weight(), index)))
        self._again: deque[int] = deque()
        self._attempts: Counter[int] = Counter()
        self._waiting: dict[Hashable, _Worker] = {}  # by the reference to the next answer
        self._idle: list[_Worker] = []
        self._on: Counter[str] = Counter()  # workers by node
        self._start_losses: Counter[str] = Counter()
        self._at_work = 0  # workers with a video
        self._next_look = self._next_check = 0.0
        self._worked = clock()  # when a worker was last seen at work
        self.failures: dict[int, Failure] = {}
        self.records: list[WorkerRecord] = []
        self.left_out: dict[str, tuple[str, str]] = {}
        self.retries = 0

    def run(self) -> None:
        """Runs until each video is done or has failed.

        Raises:
            MsstsError: no machine can load the engine, all are gone, or results cannot be written. What is done stays.
        """
        while self._todo or self._again or self._at_work:
            self._look_at_machines()
            self._give_videos()
            for reference in self._cluster.wait(list(self._waiting), _WAIT_SECONDS):
                self._take(reference)
            self._end_endless()
        for worker in [*self._waiting.values(), *self._idle]:
            self._cluster.kill(worker.handle)

    def _look_at_machines(self) -> None:
        now = self._clock()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        room = self._cluster.room()
        count = len(self._waiting) + len(self._idle)
        useful = len(self._todo) + len(self._again) + self._at_work
        wanted = min(useful, self._options.workers or useful) - count
        if wanted > 0:
            # The emptiest machines first.
            places = sorted(
                (place, node)
                for node, slots in room.items()
                if node not in self.left_out
                for place in range(self._on[node], slots)
            )
            for _, node in places[:wanted]:
                self._start(node)
        if self._at_work:
            self._worked = now
        self._check_hope(room, now)

    def _check_hope(self, room: dict[str, int], now: float) -> None:
        if self._waiting or self._idle:
            if now - self._worked > _PATIENCE_SECONDS:
                raise MsstsError(
                    f"no worker was ready within {_PATIENCE_SECONDS:.0f} seconds; is the cluster busy with other work? "
                    "What is done is kept: go on with --resume"
                )
            return
        usable = {node for node, slots in room.items() if slots > 0}
        if usable and self.left_out.keys() >= usable:
            host, problem = next(iter(self.left_out.values()))
            more = f" (and {len(self.left_out) - 1} more machines cannot either)" if len(self.left_out) > 1 else ""
            raise MsstsError(f"no machine can work: {host}: {problem}{more}")
        if not usable and now - self._worked > _PATIENCE_SECONDS:
            raise MsstsError(
                "no machine has room for a worker, or all are gone; see --threads and --gpus. What is done is kept: go "
                "on with --resume"
            )

    def _start(self, node: str) -> None:
        handle, reference = self._cluster.start(node)
        record = WorkerRecord(node)
        self.records.append(record)
        self._waiting[reference] = _Worker(handle, record)
        self._on[node] += 1

    def _give_videos(self) -> None:
        while self._idle and (self._todo or self._again):
            index = (self._todo or self._again).popleft()
            worker = self._idle.pop()
            worker.index, worker.since = index, self._clock()
            self._at_work += 1
            self._waiting[self._cluster.predict(worker.handle, index, self._items[index])] = worker

    def _take(self, reference: Hashable) -> None:
        worker = self._waiting.pop(reference)
        try:
            answer = self._cluster.result(reference)
        except WorkerLost as error:
            self._lose(worker, str(error))
        except Exception as error:  # a bug, or a device that is broken for good: neither may be the end of all
            self._lose(worker, f"{type(error).__name__}: {first_line(error)}")
        else:
            if isinstance(answer, Started):
                self._started(worker, answer)
            else:
                self._finished(worker, answer)

    def _started(self, worker: _Worker, started: Started) -> None:
        record = worker.record
        record.host, record.pid, record.start_seconds = started.host, started.pid, started.seconds
        if started.error is not None:
            self.left_out[record.node] = (started.host, started.error)
            self._remove(worker, started.error)
            return
        self._start_losses[record.node] = 0
        self._worked = self._clock()
        self._on_start(started)
        self._idle.append(worker)

    def _finished(self, worker: _Worker, outcome: Outcome) -> None:
        if outcome.unwritable is not None:
            raise MsstsError(f"{outcome.unwritable}. What is done is kept: go on with --resume")
        assert worker.index is not None
        index, worker.index = worker.index, None
        self._at_work -= 1
        worker.record.busy_seconds += outcome.seconds
        if outcome.error is not None:
            self._fail(index, outcome.error, self._attempts[index] + 1)
        else:
            worker.record.videos += 1
            worker.record.frames += outcome.frames
            self._on_video(outcome.frames)
        self._idle.append(worker)

    def _lose(self, worker: _Worker, why: str) -> None:
        node, index = worker.record.node, worker.index
        self._remove(worker, why)
        if index is None:
            self._start_losses[node] += 1
            if self._start_losses[node] >= _START_LOSSES:
                self.left_out[node] = (
                    worker.record.host or node,
                    f"workers are lost while they load the engine: {why}",
                )
            return
        self._attempts[index] += 1
        if self._attempts[index] > self._options.retries:
            self._fail(index, f"lost its worker each time: {why}", self._attempts[index])
        else:
            self.retries += 1
            self._again.append(index)

    def _end_endless(self) -> None:
        limit = self._options.video_timeout
        if limit is None:
            return
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + _WAIT_SECONDS
        for reference, worker in list(self._waiting.items()):
            if worker.index is not None and now - worker.since > limit:
                del self._waiting[reference]
                worker.record.busy_seconds += now - worker.since
                self._fail(
                    worker.index,
                    f"not done within {limit:g} seconds (--video-timeout)",
                    self._attempts[worker.index] + 1,
                )
                self._remove(worker, f"ended, as video {self._items[worker.index].name} took too long")

    def _remove(self, worker: _Worker, why: str) -> None:
        worker.record.lost = why
        self._cluster.kill(worker.handle)
        self._at_work -= worker.index is not None
        self._on[worker.record.node] -= 1
        self._next_look = 0.0  # there is room for another

    def _fail(self, index: int, why: str, attempts: int) -> None:
        self.failures[index] = Failure(why, attempts)
        self._on_video(None)
