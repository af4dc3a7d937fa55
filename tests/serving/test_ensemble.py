"""The ensemble on the real tritonserver: what it answers, refuses and counts."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from support.media_files import with_exif
from support.serving import (
    BLUE,
    RED,
    assert_same,
    clip_with_rectangles,
    encoded,
    needs_server,
    processes_of,
)

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.segmenters.local import LocalSegmenter
from mssts.segmenters.triton import StageTime, TritonSegmenter
from mssts.serving.model_config import MODELS, STAGES
from mssts.serving.server import TritonServer


@needs_server
@pytest.mark.parametrize("size", [(128, 192), (61, 47), (720, 1280)])  # the toy engine's short edge is 64
def test_server_answers_as_the_local_pipeline(
    client: TritonSegmenter, local: LocalSegmenter, size: tuple[int, int]
) -> None:
    clip_THWC = clip_with_rectangles(4, *size)
    for clip in (clip_THWC, encoded(clip_THWC), encoded(clip_THWC, ".png")):
        assert_same(client.segment(clip), local.segment(clip))


@needs_server
@pytest.mark.parametrize(("tag", "quarter_turns"), [(3, 2), (6, 1)])
def test_server_decodes_frames_as_displayed(client: TritonSegmenter, tag: int, quarter_turns: int) -> None:
    clip_THWC = clip_with_rectangles()
    stored_THWC = np.ascontiguousarray(np.rot90(clip_THWC, quarter_turns, axes=(1, 2)))
    turned = [with_exif(frame, tag) for frame in encoded(stored_THWC, ".png")]
    assert_same(client.segment(turned), client.segment(clip_THWC))


@needs_server
def test_server_finds_what_was_drawn(client: TritonSegmenter) -> None:
    clip_THWC = clip_with_rectangles()
    for clip in (clip_THWC, encoded(clip_THWC)):
        found = client.segment(clip, score_threshold=0.1)
        assert found.labels.tolist() == [BLUE, RED]  # the larger first; no green
        assert found.size == (128, 192)
        assert [rle is None for rle in found.rles[0]] == [True, False, False]
        np.testing.assert_allclose(found.boxes[1, 0], [24, 16, 64, 40], atol=1e-3)
        np.testing.assert_allclose(found.boxes[0, 2], [80, 56, 160, 104], atol=1e-3)
        drawn = np.zeros((128, 192), np.uint8)
        drawn[16:40, 24:64] = 1
        mask = coco_mask.decode({"size": [128, 192], "counts": found.rles[1][0]})
        # The engine sees half the resolution, and its logits are steeper inside than outside, so a border may move by
        # two pixels: (44 · 28) / (40 · 24) = 1.28.
        assert np.logical_and(mask, drawn).sum() / np.logical_or(mask, drawn).sum() > 1 / 1.28


@needs_server
def test_a_clip_without_instances(client: TritonSegmenter) -> None:
    found = client.segment(clip_with_rectangles(), score_threshold=1.5)
    assert len(found) == 0 and found.boxes.shape == (0, 3, 4) and found.rles == ()


@needs_server
def test_client_learns_the_manifest(client: TritonSegmenter, server: TritonServer, engine: Path) -> None:
    assert client.manifest == Manifest.read(engine)
    assert re.fullmatch(r"\d+\.\d+\.\d+", server.version)
    assert client.server_version == server.version


def corrupt(frames: list[bytes]) -> list[bytes]:
    return [frames[0], frames[1][: len(frames[1]) // 2], *frames[2:]]


@needs_server
@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        (corrupt(encoded(clip_with_rectangles())), "^frame 1: a truncated JPEG"),
        ([b"\xff\xd8\xff\xe0 nonsense \xff\xd9"] * 2, "^frame 0: a .*JPEG"),
        ([b"not an image"], "^frame 0: not a JPEG or PNG"),
        ([*encoded(clip_with_rectangles(1)), *encoded(clip_with_rectangles(1, 64, 64))], "^frame 1 is 64×64"),
        ([], "1 to 64 frames, not 0"),
        (np.zeros((65, 8, 8, 3), np.uint8), "1 to 64 frames, not 65"),
        (np.zeros((1, 2161, 3841, 3), np.uint8), "over the limit of 8294400 pixels"),
        (encoded(np.zeros((1, 2161, 3841, 3), np.uint8), ".png"), "over the limit of 8294400 pixels"),
        (encoded(np.zeros((8, 2160, 3840, 3), np.uint8)), "over the limit of 58982400 pixels a clip"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"^unexpected shape for input 'frames_raw'"),
        (np.zeros((8, 8, 3), np.uint8), r"^unexpected shape for input 'frames_raw'"),
        (np.zeros((1, 8, 8, 3), np.float32), "^frames must be uint8, not float32"),
    ],
    ids=[
        "truncated", "corrupt", "no-image", "sizes-differ", "empty", "many-frames", "large-frame", "large-png",
        "large-clip", "four-channels", "no-time", "floats",
    ],
)  # fmt: skip
def test_a_bad_request_is_refused_and_the_next_succeeds(
    client: TritonSegmenter, local: LocalSegmenter, clip: np.ndarray | list[bytes], expected: str
) -> None:
    with pytest.raises(MsstsError, match=expected) as caught:
        client.segment(clip)
    assert "\n" not in str(caught.value)
    good = clip_with_rectangles()
    assert_same(client.segment(good), local.segment(good))


@needs_server
@pytest.mark.parametrize(("given", "expected"), [(("raw", "jpeg"), "holds both"), ((), "holds neither")])
def test_frames_come_in_exactly_one_form(server: TritonServer, given: tuple[str, ...], expected: str) -> None:
    import tritonclient.grpc as triton

    clip_THWC = clip_with_rectangles()
    raw = triton.InferInput("frames_raw", clip_THWC.shape, "UINT8").set_data_from_numpy(clip_THWC)
    jpeg = triton.InferInput("frames_jpeg", [3], "BYTES").set_data_from_numpy(np.array(encoded(clip_THWC), object))
    tensors = {"raw": raw, "jpeg": jpeg}
    with (
        triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain,
        pytest.raises(triton.InferenceServerException, match=expected),
    ):
        plain.infer(contract.ENSEMBLE, [tensors[name] for name in given])


@needs_server
def test_threads_may_share_a_client(client: TritonSegmenter, local: LocalSegmenter) -> None:
    clips = [clip_with_rectangles(frames) for frames in (2, 3, 4, 5)] * 3
    expected = [local.segment(clip) for clip in clips]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(client.segment, clips), expected, strict=True):
            assert_same(found, wanted)


def settled_statistics(client: TritonSegmenter) -> dict[str, StageTime]:
    """Triton counts a request a moment after it has answered it."""
    previous = client.statistics()
    while True:
        time.sleep(0.1)
        statistics = client.statistics()
        if statistics == previous:
            return statistics
        previous = statistics


@needs_server
def test_statistics_tell_where_the_time_went(client: TritonSegmenter) -> None:
    clip = encoded(clip_with_rectangles())
    before = settled_statistics(client)
    start = time.perf_counter_ns()
    for _ in range(3):
        client.segment(clip)
    latency_ns = time.perf_counter_ns() - start
    spent = {name: after - before[name] for name, after in settled_statistics(client).items()}
    assert {name: time_of.count for name, time_of in spent.items()} == dict.fromkeys(MODELS, 3)
    ensemble = spent[contract.ENSEMBLE]
    assert all(spent[name].compute_ns > 0 for name in STAGES)
    assert sum(spent[name].compute_ns for name in STAGES) == ensemble.compute_ns
    # The server's clock runs on until it has tidied up, so its total may exceed what the client saw, but not by much.
    assert 0.1 < ensemble.total_ns / latency_ns < 1.5


@needs_server
def test_models_run_on_this_environments_packages(server: TritonServer) -> None:
    stubs = 0
    for pid in processes_of(server.log_path.parent.name):
        maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
        if "/_multiarray_umath" in maps:
            stubs += 1
            assert f"{Path(np.__file__).parent}/" in maps
    assert stubs == len(STAGES)


@needs_server
def test_server_listens_on_loopback_only(server: TritonServer) -> None:
    sockets = set()
    for pid in processes_of(server.log_path.parent.name):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()))
            if match:
                sockets.add(match[1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in sockets:  # 0A: listening
                listening.append(fields[1].partition(":")[0])
    # 127.0.0.1, as the kernel writes it, for gRPC, HTTP and metrics; gRPC's socket is an IPv6 one (::ffff:127.0.0.1).
    assert [address.removeprefix("0000000000000000FFFF0000") for address in listening] == ["0100007F"] * 3


@needs_server
def test_clients_cannot_reach_beyond_their_requests(server: TritonServer) -> None:
    import tritonclient.grpc as triton
    import tritonclient.http as triton_http

    with triton.InferenceServerClient(server.grpc_url.removeprefix("grpc://")) as plain:
        for reach in (
            lambda: plain.register_system_shared_memory("region", "/any", 64),
            lambda: plain.unload_model("engine"),
            lambda: plain.update_log_settings({"log_verbose_level": 1}),
            lambda: plain.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        ):
            with pytest.raises(triton.InferenceServerException, match="restricted"):
                reach()
    with (
        triton_http.InferenceServerClient(server.http_url.removeprefix("http://")) as plain,
        pytest.raises(triton_http.InferenceServerException, match="restricted"),
    ):
        plain.register_system_shared_memory("region", "/any", 64)
