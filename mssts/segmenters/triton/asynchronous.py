"""The same client for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.segmenters.base import Instances
from mssts.segmenters.triton.addresses import parse_urls
from mssts.segmenters.triton.failures import failure_of
from mssts.segmenters.triton.options import ClientOptions
from mssts.segmenters.triton.retries import CONNECT_SECONDS, Attempts, Pool, Server, connect_error
from mssts.segmenters.triton.statistics import StageTime, stage_times

if TYPE_CHECKING:
    from typing_extensions import Self

    Clip = np.ndarray | Sequence[bytes]


class AsyncTritonSegmenter:
    """What `TritonSegmenter` is, for coroutines of one event loop.

        async with AsyncTritonSegmenter("grpc://a:8001,b:8001") as segmenter:
            found = await segmenter.segment(frames)

    Entering the block connects.

    Args:
        urls: `grpc://host:port`, or several with commas between; `grpcs://` for TLS.
        options: `ClientOptions()` if None.

    Raises:
        MsstsError: a URL is not of that form.
    """

    def __init__(self, urls: str, options: ClientOptions | None = None) -> None:
        try:
            import tritonclient.grpc  # noqa: F401
        except ImportError:
            raise MsstsError("the gRPC client is not installed: `pip install 'mssts[client]'`") from None
        self._addresses = parse_urls(urls)
        self._options = options or ClientOptions()
        if self._options.shared_memory:
            raise MsstsError("shared memory is not for asyncio; use mssts.load")
        self._pool = Pool([])
        self._manifest: Manifest | None = None
        self._resizes = options is None or options.resize

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine that the servers run, once the block is entered."""
        if self._manifest is None:
            raise MsstsError("not connected; use the segmenter in `async with`")
        return self._manifest

    async def __aenter__(self) -> Self:
        """Connects.

        Raises:
            MsstsError: no server answers, or it does not serve an engine of this project.
        """
        import tritonclient.grpc.aio as triton

        self._exception = triton.InferenceServerException
        # A channel belongs to the event loop in which it is made.
        self._pool = Pool(
            [
                Server(address, triton.InferenceServerClient(**address.channel_arguments(self._options)))
                for address in self._addresses
            ]
        )
        errors = []
        try:
            for server in self._pool.servers:
                try:
                    await self._learn(server)
                except self._exception as error:
                    errors.append(connect_error(server.address, failure_of(error)))
            if self._manifest is None:
                raise errors[0]
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections.

        Requests in flight fail.
        """
        for server in self._pool.servers:
            await server.client.close()

    async def segment(self, frames_THWC: Clip, score_threshold: float = 0.0) -> Instances:
        """Finds the instances of a clip, see `TritonSegmenter.segment`.

        Cancelling it cancels the request.
        """
        from mssts.segmenters.triton.messages import read_instances, request_inputs

        manifest = self.manifest
        resize_for = manifest if self._resizes else None
        inputs = await asyncio.to_thread(request_inputs, frames_THWC, score_threshold, self._options, resize_for)
        return read_instances(await self._infer(inputs), manifest)

    async def segment_many(
        self, clips: Iterable[Clip] | AsyncIterable[Clip], score_threshold: float = 0.0
    ) -> AsyncIterator[Instances]:
        """The instances of each clip, in their order, see `TritonSegmenter.segment_many`."""
        in_flight = self._options.in_flight or 2 * len(self._addresses)
        sent: deque[asyncio.Task[Instances]] = deque()
        try:
            async for clip in _each(clips):
                sent.append(asyncio.ensure_future(self.segment(clip, score_threshold)))
                if len(sent) == in_flight:
                    yield await sent.popleft()
            while sent:
                yield await sent.popleft()
        finally:
            for task in sent:
                task.cancel()
            await asyncio.gather(*sent, return_exceptions=True)

    async def statistics(self) -> dict[str, StageTime]:
        """Time that servers have spent in the ensemble and in each model, by name.

        Raises:
            MsstsError: a server does not answer.
        """
        answers = []
        for server in self._pool.servers:
            try:
                answers.append(await server.client.get_inference_statistics(client_timeout=CONNECT_SECONDS))
            except self._exception as error:
                raise connect_error(server.address, failure_of(error)) from None
        return stage_times(answers)

    async def _learn(self, server: Server, seconds: float = CONNECT_SECONDS) -> None:
        from mssts.segmenters.triton.messages import check_same_engine, read_manifest, takes_resized

        answer = await server.client.get_model_config(contract.ENSEMBLE, client_timeout=seconds)
        manifest = read_manifest(answer, server.address)
        self._manifest = self._manifest or manifest
        check_same_engine(manifest, self._manifest, server.address)
        self._resizes = self._resizes and takes_resized(answer)
        server.is_known = True

    async def _infer(self, inputs: list[Any]) -> Any:
        attempts = Attempts(self._pool, self._options.timeout, self._options.reconnect)
        while True:
            server, wait = attempts.take()
            if wait:
                await asyncio.sleep(wait)
                continue
            try:
                if not server.is_known:
                    await self._learn(server, min(self._options.keepalive, attempts.remaining))
                result = await server.client.infer(contract.ENSEMBLE, inputs, client_timeout=attempts.remaining)
            except self._exception as error:
                failure = failure_of(error)
            except BaseException:
                attempts.succeeded(server)  # nothing is known against it
                raise
            else:
                attempts.succeeded(server)
                return result
            attempts.failed(server, failure)


async def _each(clips: Iterable[Clip] | AsyncIterable[Clip]) -> AsyncIterator[Clip]:
    """The clips of an iterable of either kind."""
    if isinstance(clips, AsyncIterable):
        async for clip in clips:
            yield clip
    else:
        for clip in clips:
            yield clip
