"""Clients of several servers with several clips in flight, threads and asyncio."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.proxy import SilentProxy
from support.serving import Served, assert_same, clip_with_rectangles, needs_server, slow_down
from support.toy_engine import write_toy_engine

import mssts
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.segmenters.base import ServerHealth
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import AsyncTritonSegmenter, ClientOptions, TritonSegmenter
from mssts.serving.repository import model_repository
from mssts.serving.server import TritonServer


@pytest.fixture(scope="module")
def second(engine: Path) -> Iterator[TritonServer]:
    with model_repository(engine, threads=1) as repository, TritonServer(repository) as running:
        yield running


def clips(count: int) -> list[np.ndarray]:
    return [clip_with_rectangles(2 + i % 4, 64 + 16 * (i % 3), 192) for i in range(count)]


@needs_server
def test_results_come_in_order_and_clips_are_taken_as_needed(server: TritonServer, local: LocalSegmenter) -> None:
    taken = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal taken
        for clip in clips(12):
            taken += 1
            yield clip

    with mssts.load(server.grpc_url, client=ClientOptions(in_flight=3)) as segmenter:
        results = segmenter.segment_many(source())
        for i, clip in enumerate(clips(12)):
            assert_same(next(results), local.segment(clip))
            assert taken <= i + 3
        assert next(results, None) is None
        # A caller that has enough leaves nothing running.
        for _ in segmenter.segment_many(source()):
            break
        assert_same(segmenter.segment(clips(1)[0]), local.segment(clips(1)[0]))


@needs_server
def test_a_refused_clip_ends_the_results_in_its_place(server: TritonServer) -> None:
    bad = np.zeros((65, 8, 8, 3), np.uint8)
    with mssts.load(server.grpc_url) as segmenter:
        results = segmenter.segment_many([clips(1)[0], bad, clips(1)[0]])
        assert next(results).size == (64, 192)
        with pytest.raises(MsstsError, match="1 to 64 frames, not 65"):
            next(results)


@needs_server
def test_a_local_engine_has_the_same_method(local: LocalSegmenter) -> None:
    for found, clip in zip(local.segment_many(clips(3)), clips(3), strict=True):
        assert_same(found, local.segment(clip))


@needs_server
@pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])
def test_a_machine_that_falls_silent_costs_seconds(
    server: TritonServer, second: TritonServer, local: LocalSegmenter, asynchronous: bool
) -> None:
    """Its connections stay open, so TCP alone would wait for a quarter of an hour."""
    options = ClientOptions(in_flight=4, keepalive=0.5)
    with SilentProxy(int(server.grpc_url.rpartition(":")[2])) as proxy:
        urls = f"grpc://127.0.0.1:{proxy.port},{second.grpc_url}"

        def source() -> Iterator[np.ndarray]:
            for i, clip in enumerate(clips(10)):
                if i == 4:
                    proxy.freeze()
                yield clip

        async def ask() -> list[mssts.Instances]:
            async with AsyncTritonSegmenter(urls, options) as segmenter:
                return [found async for found in segmenter.segment_many(source())]

        start = time.monotonic()
        if asynchronous:
            results = asyncio.run(ask())
        else:
            with mssts.load(urls, client=options) as segmenter:
                results = list(segmenter.segment_many(source()))
    assert time.monotonic() - start < 30
    for found, clip in zip(results, clips(10), strict=True):
        assert_same(found, local.segment(clip))


@needs_server
def test_health_says_which_servers_answer(server: TritonServer, second: TritonServer) -> None:
    """A silent one is not waited for: its connection stays open."""
    with SilentProxy(int(server.grpc_url.rpartition(":")[2])) as proxy:
        names = [f"127.0.0.1:{proxy.port}", second.grpc_url.removeprefix("grpc://")]
        with TritonSegmenter(f"grpc://{','.join(names)}") as both:
            assert both.health() == (ServerHealth(names[0], True), ServerHealth(names[1], True))
            proxy.freeze()
            start = time.monotonic()
            assert both.health() == (ServerHealth(names[0], False), ServerHealth(names[1], True))
            assert time.monotonic() - start < 10
        assert not any(each.is_ready for each in both.health())  # closed


@needs_server
def test_signs_of_life_do_not_end_a_long_clip(engine: Path, local: LocalSegmenter) -> None:
    """Triton's own settings end a connection with the third ping while it computes."""
    with model_repository(engine, threads=1) as repository:
        slow_down(repository, 4.5)
        with TritonServer(repository) as running:
            options = ClientOptions(timeout=10, reconnect=0, keepalive=1)
            with mssts.load(running.grpc_url, client=options) as segmenter:
                assert_same(segmenter.segment(clips(1)[0]), local.segment(clips(1)[0]))


@needs_server
def test_two_servers_share_the_work(server: TritonServer, second: TritonServer, local: LocalSegmenter) -> None:

    with TritonSegmenter(server.grpc_url) as one, TritonSegmenter(second.grpc_url) as other:
        for client in (one, other):  # the first clip of a size takes longer, and the other server takes the rest
            list(client.segment_many(clips(12)))
        before = [client.statistics()["mssts_vis"].count for client in (one, other)]
        urls = f"{server.grpc_url},{second.grpc_url.removeprefix('grpc://')}"
        with mssts.load(urls) as both:
            for found, clip in zip(both.segment_many(clips(16)), clips(16), strict=True):
                assert_same(found, local.segment(clip))
        counts = [c.statistics()["mssts_vis"].count - b for c, b in zip((one, other), before, strict=True)]
    assert min(counts) >= 2


@needs_server
def test_one_of_two_servers_dies_and_nothing_waits_for_it(
    serve: Callable[..., Served], engine: Path, server: TritonServer, local: LocalSegmenter
) -> None:
    served = serve(engine)
    with mssts.load(f"{served.grpc},{server.grpc_url}") as both:
        for i, (found, clip) in enumerate(zip(both.segment_many(clips(16)), clips(16), strict=True)):
            if i == 4:
                served.process.kill()  # and with it its server, for good
                os.kill(served.server, signal.SIGKILL)
            assert_same(found, local.segment(clip))
    served.process.communicate()
    # What is dead from the start is left out too.
    with mssts.load(f"{served.grpc},{server.grpc_url}") as both:
        assert_same(both.segment(clips(1)[0]), local.segment(clips(1)[0]))


@needs_server
def test_servers_of_different_engines_are_not_mixed(server: TritonServer, tmp_path: Path) -> None:
    other = write_toy_engine(tmp_path, FixedShape(1, 4, 64, 128)).parent
    with (
        model_repository(other, threads=1) as repository,
        TritonServer(repository) as running,
        pytest.raises(MsstsError, match="serves another engine"),
    ):
        mssts.load(f"{server.grpc_url},{running.grpc_url}")


@needs_server
def test_asyncio(server: TritonServer, second: TritonServer, local: LocalSegmenter) -> None:
    async def source() -> AsyncIterator[np.ndarray]:
        for clip in clips(8):
            await asyncio.sleep(0)
            yield clip

    async def run() -> None:
        async with AsyncTritonSegmenter(f"{server.grpc_url},{second.grpc_url}") as segmenter:
            assert segmenter.manifest.preset == "toy"
            found = await asyncio.gather(*(segmenter.segment(clip) for clip in clips(8)))
            for instances, clip in zip(found, clips(8), strict=True):
                assert_same(instances, local.segment(clip))
            for given in (clips(8), source()):
                expected = iter(clips(8))
                async for instances in segmenter.segment_many(given):
                    assert_same(instances, local.segment(next(expected)))
                assert next(expected, None) is None
            with pytest.raises(MsstsError, match="1 to 64 frames, not 65"):
                await segmenter.segment(np.zeros((65, 8, 8, 3), np.uint8))
            task = asyncio.ensure_future(segmenter.segment(clips(1)[0]))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert_same(await segmenter.segment(clips(1)[0]), local.segment(clips(1)[0]))

    asyncio.run(run())


def test_asyncio_without_a_server() -> None:
    async def run() -> None:
        async with AsyncTritonSegmenter("grpc://127.0.0.1:1"):
            pass

    with pytest.raises(MsstsError, match="no Triton server answers there"):
        asyncio.run(run())
    with pytest.raises(MsstsError, match="use the segmenter in `async with`"):
        _ = AsyncTritonSegmenter("grpc://127.0.0.1:1").manifest


@needs_server
def test_raw_frames_as_jpeg(server: TritonServer, local: LocalSegmenter) -> None:
    clip = clip_with_rectangles()
    with mssts.load(server.grpc_url, client=ClientOptions(jpeg_quality=95)) as segmenter:
        found, expected = segmenter.segment(clip, 0.1), local.segment(clip, 0.1)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=8)  # JPEG blurs borders by up to a cell of the engine


@needs_server
@pytest.mark.parametrize("size", [(128, 192), (720, 1280), (101, 333), (61, 47), (64, 112)])
@pytest.mark.parametrize("resize", [True, False], ids=["resized here", "as they are"])
def test_frames_resized_by_the_client_have_the_same_result(
    server: TritonServer, local: LocalSegmenter, size: tuple[int, int], resize: bool
) -> None:
    clip = clip_with_rectangles(3, *size)
    with mssts.load(server.grpc_url, client=ClientOptions(resize=resize)) as segmenter:
        assert_same(segmenter.segment(clip), local.segment(clip))


@needs_server
@pytest.mark.parametrize(
    ("frame_size", "said"),
    [
        ([128, 200], r"frames of 200×128 are 104×64 for this engine, and the ones that were sent are 96×64"),
        ([0, 5], "must have pixels, not 5×0"),
        ([-128, 192], "must have pixels, not 192×-128"),
        ([2**31 - 1, 2**31 - 1], "over the limit of 8294400 pixels"),
    ],
)
def test_a_size_that_does_not_go_with_the_frames_is_refused(
    server: TritonServer, frame_size: list[int], said: str
) -> None:
    import tritonclient.grpc as triton

    frames = np.zeros((3, 64, 96, 3), np.uint8)
    inputs = [
        triton.InferInput("frames_raw", frames.shape, "UINT8").set_data_from_numpy(frames),
        triton.InferInput("frame_size", [2], "INT32").set_data_from_numpy(np.array(frame_size, np.int32)),
    ]
    with (
        triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain,
        pytest.raises(triton.InferenceServerException, match=said),
    ):
        plain.infer("mssts_vis", inputs)


@needs_server
def test_five_frames_of_720p_are_few_bytes(server: TritonServer) -> None:
    from mssts.segmenters.triton.messages import request_inputs

    frames = np.random.default_rng(0).integers(0, 256, (5, 90, 160, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    with mssts.load(server.grpc_url) as segmenter:
        raw = request_inputs(frames, 0.0, ClientOptions(), segmenter.manifest)
        assert [tensor.name() for tensor in raw] == ["frames_raw", "score_threshold", "frame_size"]
        assert len(raw[0]._get_content()) == 5 * 64 * 112 * 3
        jpeg = request_inputs(frames, 0.0, ClientOptions(jpeg_quality=95))
        assert len(jpeg[0]._get_content()) < 2_000_000
