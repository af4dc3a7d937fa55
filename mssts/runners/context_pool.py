"""Execution contexts that threads take and give back, two at most."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from mssts.errors import MsstsError
from mssts.runners.cuda import CudaError

_LOG = logging.getLogger(__name__)
# Each holds the activations of a clip. Two clips of one shape run at once, or two shapes are kept.
_MOST = 2

Shape = tuple[int, ...]
Context = TypeVar("Context")


class MemoryShort(MsstsError):
    """Too little memory on the GPU for one more context."""


class ContextPool(Generic[Context]):
    """At most two contexts, each of which one thread uses at a time.

    A thread that finds none of its shape free makes one, in the place of a free one of another shape if there are two,
    and waits where both are in use. Where memory does not suffice for a second, there is one.

    Args:
        name: of the engine, for messages.
        create: makes a context of a shape. It may raise `MemoryShort` or `CudaError` where memory is short.
        release: frees one.
        at_once: threads that may use one.
    """

    def __init__(
        self, name: str, create: Callable[[Shape], Context], release: Callable[[Context], None], at_once: int = _MOST
    ) -> None:
        self._name, self._create, self._release = name, create, release
        self._most, self._at_once = _MOST, at_once
        self._free: list[tuple[Shape, Context]] = []  # used last comes last
        self._busy = 0
        self._changed = threading.Condition(threading.RLock())

    @property
    def at_once(self) -> int:
        """Threads that may use a context at the same time."""
        return min(self._at_once, self._most)

    @contextmanager
    def hold(self, shape: Shape) -> Iterator[Context]:
        """A context of a shape, of which nobody else has use meanwhile.

        Raises:
            MsstsError: as `create`, where there is no other context to wait for or to free.
        """
        context = self._take(shape)
        try:
            yield context
        finally:
            with self._changed:
                self._busy -= 1
                self._free.append((shape, context))
                self._changed.notify_all()

    def _take(self, shape: Shape) -> Context:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._busy < self.at_once)
                found = next((one for one in self._free if one[0] == shape), None)  # in turn
                self._busy += 1
                if found is not None:
                    self._free.remove(found)
                    return found[1]
                others = self._busy - 1
                # Oldest first.
                surplus = [
                    self._free.pop(0) for _ in range(min(len(self._free), others + len(self._free) + 1 - self._most))
                ]
            try:
                for _, context in surplus:
                    self._release(context)
                return self._create(shape)
            except BaseException as error:
                with self._changed:
                    self._busy -= 1
                    self._changed.notify_all()
                    if not isinstance(error, MemoryShort | CudaError) or not self._make_room(str(error)):
                        raise

    def _make_room(self, reason: str) -> bool:
        """Whether another try makes sense, with one context less or in turns."""
        if self._free:
            self._release(self._free.pop(0)[1])
            return True
        if not self._busy or self._most == 1:
            return False
        self._shorten(reason)
        return True

    def _shorten(self, reason: str) -> None:
        self._most = 1
        _LOG.warning("%s: runs one clip at a time, memory is short for a second context (%s)", self._name, reason)

    def fill(self, shape: Shape) -> None:
        """Makes a context of a shape for each thread, before any is in use.

        Raises:
            MsstsError: as `create`, for the first.
        """
        with self._changed:
            self.close()
            for _ in range(self.at_once - self._busy):
                try:
                    self._free.append((shape, self._create(shape)))
                except (MemoryShort, CudaError) as error:
                    if not self._free:
                        raise
                    self._shorten(str(error))
                    return

    def close(self) -> None:
        """Frees what no thread uses."""
        with self._changed:
            while self._free:
                self._release(self._free.pop()[1])
