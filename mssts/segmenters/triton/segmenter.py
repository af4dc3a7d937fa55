"""A segmenter whose engine runs on Triton servers, over gRPC."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.segmenters.base import Instances, Segmenter, ServerHealth
from mssts.segmenters.triton.addresses import parse_urls
from mssts.segmenters.triton.failures import failure_of
from mssts.segmenters.triton.options import ClientOptions
from mssts.segmenters.triton.retries import CONNECT_SECONDS, Attempts, Pool, Server, connect_error
from mssts.segmenters.triton.shared_memory import Region, Regions, check_allowed
from mssts.segmenters.triton.statistics import StageTime, stage_seconds, stage_times

_HEALTH_SECONDS = 2.0  # within which a healthy server says so


class TritonSegmenter(Segmenter):
    """The ensemble of one server, or of several with the same engine.

    Safe to share between threads.

    A clip that a server refuses because it is full, or loses because it dies, is sent again, to another server where
    there is one, until its deadline. A request leaves nothing behind on a server, so each clip has exactly one result.

    Args:
        urls: `grpc://host:port`, or several with commas between; `grpcs://` for TLS.
        options: `ClientOptions()` if None.

    Raises:
        MsstsError: a URL is not of that form, no server answers, or it does not serve an engine of this project.
    """

    def __init__(self, urls: str, options: ClientOptions | None = None) -> None:
        try:
            import tritonclient.grpc as triton
        except ImportError:
            raise MsstsError("the gRPC client is not installed: `pip install 'mssts[client]'`") from None
        self._options = options or ClientOptions()
        self._exception = triton.InferenceServerException
        self._request_seconds = 0.0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._pool = Pool(
            [
                Server(address, triton.InferenceServerClient(**address.channel_arguments(self._options)))
                for address in parse_urls(urls)
            ]
        )
        self._manifest: Manifest | None = None
        self._resizes = options is None or options.resize
        self._regions = Regions() if self._options.shared_memory else None
        try:
            self._connect()
            if self._regions is not None:
                check_allowed(self._pool.servers, self._exception)
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine that the servers run."""
        assert self._manifest is not None
        return self._manifest

    @property
    def server_version(self) -> str:
        """The first server's own version, as 2.51.0."""
        return str(
            self._ask_any(lambda server: server.client.get_server_metadata(client_timeout=CONNECT_SECONDS)).version
        )

    @property
    def in_flight(self) -> int:
        """Clips that are sent at once, see `ClientOptions.in_flight`."""
        return self._options.in_flight or 2 * len(self._pool.servers)

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """Finds the instances of a clip, see `Segmenter.segment`.

        Raises:
            MsstsError: a server refused the clip (its own line says why), all of them stayed full or absent, or none
                answered in time.
        """
        from mssts.segmenters.triton.messages import read_instances, request_inputs

        start = time.perf_counter()
        resize_for = self.manifest if self._resizes else None
        shared: list[Region] = []  # the one of this clip, if it uses any

        def region_for(size: int) -> Region:
            assert self._regions is not None
            shared.append(self._regions.take(size))
            return shared[0]

        try:
            place = None if self._regions is None else region_for
            inputs = request_inputs(frames_THWC, score_threshold, self._options, resize_for, place)
            found = read_instances(self._infer(inputs, shared), self.manifest)
        finally:
            if self._regions is not None:
                self._regions.give_back(shared)
        with self._lock:
            self._request_seconds += time.perf_counter() - start
        return found

    def segment_many(
        self, clips: Iterable[np.ndarray | Sequence[bytes]], score_threshold: float = 0.0
    ) -> Iterator[Instances]:
        """The instances of each clip, in order, with several clips in flight.

        No more clips are taken from `clips` than are in flight, see `ClientOptions.in_flight`.
        """
        in_flight = self.in_flight
        pool = ThreadPoolExecutor(in_flight, thread_name_prefix="mssts-client")
        sent: deque[Future[Instances]] = deque()
        try:
            for clip in clips:
                sent.append(pool.submit(self.segment, clip, score_threshold))
                if len(sent) == in_flight:
                    yield sent.popleft().result()
            while sent:
                yield sent.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def describe(self) -> dict[str, Any]:
        """The server's version and the engine's precision."""
        return {"name": "triton", "version": self.server_version, "precision": self.manifest.precision}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds by stage, in the servers and in `transfer`.

        The servers' are `decode`, `engine`, `postprocess` and `overhead` (queues, copies between models). `transfer` is
        the rest of what this client's requests took: network, serialisation, sending again.

        A server counts on its own clock since its start, what it did for others included, and a model may start while
        the one before tidies up: a difference may come out a little below zero. With several clips in flight the
        stages overlap, and come to more than the time that passed.
        """
        times = self.statistics()
        with self._lock:
            return stage_seconds(times, self._request_seconds)

    def statistics(self) -> dict[str, StageTime]:
        """Time that the servers that answer have spent in the ensemble and in each model."""
        answers = []
        last: MsstsError | None = None
        for server in self._pool.servers:
            try:
                answers.append(
                    self._ask(server, lambda one: one.client.get_inference_statistics(client_timeout=CONNECT_SECONDS))
                )
            except MsstsError as error:
                last = error
        if not answers and last is not None:
            raise last
        return stage_times(answers)

    def health(self) -> tuple[ServerHealth, ...]:
        """Whether each server answers and has the ensemble ready."""
        found = []
        for server in self._pool.servers:
            try:
                ready = bool(server.client.is_model_ready(contract.ENSEMBLE, client_timeout=_HEALTH_SECONDS))
            except (self._exception, ValueError):  # gRPC's ValueError: the channel is closed
                ready = False
            found.append(ServerHealth(str(server.address), ready))
        return tuple(found)

    def close(self) -> None:
        """Closes the connections.

        Requests in flight fail.
        """
        self._closed.set()
        if self._regions is not None:
            self._regions.close(self._pool.servers, self._exception)
        for server in self._pool.servers:
            server.client.close()

    def _connect(self) -> None:
        """Reads the manifest of every server that answers.

        One must.
        """
        errors = []
        for server in self._pool.servers:
            try:
                self._learn(server)
            except self._exception as error:
                errors.append(connect_error(server.address, failure_of(error)))
        if self._manifest is None:
            raise errors[0]

    def _learn(self, server: Server, seconds: float = CONNECT_SECONDS) -> None:
        """Reads a server's manifest, which must be that of the others."""
        from mssts.segmenters.triton.messages import check_same_engine, read_manifest, takes_resized

        answer = server.client.get_model_config(contract.ENSEMBLE, client_timeout=seconds)
        manifest = read_manifest(answer, server.address)
        with self._lock:
            if self._manifest is None:
                self._manifest = manifest
        check_same_engine(manifest, self.manifest, server.address)
        self._resizes = self._resizes and takes_resized(answer)
        server.is_known = True

    def _infer(self, inputs: list[Any], shared: Sequence[Region]) -> Any:
        attempts = Attempts(self._pool, self._options.timeout, self._options.reconnect)
        while True:
            server, wait = attempts.take()
            if wait:
                if self._closed.wait(wait):
                    raise MsstsError("the client was closed")
                continue
            try:
                if not server.is_known:
                    self._learn(server, min(self._options.keepalive, attempts.remaining))
                for region in shared:
                    region.register(server)
                result = server.client.infer(contract.ENSEMBLE, inputs, client_timeout=attempts.remaining)
            except self._exception as error:
                failure = failure_of(error)
            except BaseException:
                attempts.succeeded(server)  # nothing is known against it
                raise
            else:
                attempts.succeeded(server)
                return result
            attempts.failed(server, failure)

    def _ask(self, server: Server, question: Callable[[Server], Any]) -> Any:
        """The answer to a small question, asked once."""
        try:
            return question(server)
        except self._exception as error:
            raise connect_error(server.address, failure_of(error)) from None

    def _ask_any(self, question: Callable[[Server], Any]) -> Any:
        """The answer of the first server that gives one."""
        errors = []
        for server in self._pool.servers:
            try:
                return self._ask(server, question)
            except MsstsError as error:
                errors.append(error)
        raise errors[0]
