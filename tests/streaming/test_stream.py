"""Streams: results in order, in time, final, and the same as those of `predict`."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.media_files import write_video
from support.streams import PATIENCE, SIZE, Collected, ColourSegmenter, HandSource, picture, sized
from support.toy_engine import CATEGORIES

import mssts
from mssts.errors import MsstsError
from mssts.prediction.predictor import PredictOptions
from mssts.streaming.options import StreamOptions
from mssts.streaming.sources import Gap
from mssts.streaming.stream import Stream


def promise(clip_frames: int, stride: int) -> int:
    """The most frames that come between a frame and its result."""
    return max(stride, -(-(clip_frames + stride) // 2) - 1)


@pytest.fixture
def hand():
    """Starts a stream on a source that the test feeds.

    Returns (source, results, stream, what was said).
    """
    opened = []

    def start(segmenter=None, live=True, **options):
        source, said = HandSource(live), []
        stream = Stream(
            source.source,
            segmenter or ColourSegmenter(),
            StreamOptions(**{"score_threshold": 0, **options}),
            said.append,
        )
        opened.append((source, stream))
        source.stream = stream
        return source, Collected(stream), stream, said

    yield start
    for source, stream in opened:
        source.end()
        stream.close()


# --- the promise --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("live", [True, False], ids=["live", "every frame"])
@pytest.mark.parametrize(("clip_frames", "stride"), [(5, 4), (5, 3), (5, 1), (5, 5), (8, 3), (1, 1)])
def test_a_frame_comes_within_the_promise(hand, clip_frames, stride, live) -> None:
    source, results, _, _ = hand(ColourSegmenter(clip_frames, 0), live, stride=stride)
    due = 0
    for number in range(4 * clip_frames):
        source.give(number)
        # The first window cannot be earlier than its last frame.
        while number >= clip_frames - 1 and number - due >= promise(clip_frames, stride):
            assert results.next(1) == [due]
            due += 1
    source.end()
    assert [result.frame for result in results.rest()] == list(range(due, 4 * clip_frames))


def test_what_is_left_comes_at_once_when_the_source_is_lost(hand) -> None:
    source, results, stream, said = hand()
    source.give(*range(7))
    source.give(Gap("camera: lost"))
    assert results.next(7) == list(range(7))
    assert said == ["camera: lost"] and stream.lines() == ("camera: lost",)
    source.give(Gap("camera: back", is_back=True), 7, 8, 9, 10, 11)
    after = results.next_results(5)
    assert [result.frame for result in after] == [7, 8, 9, 10, 11]
    assert stream.figures().reconnections == 1


def test_identities_go_on_over_a_gap(hand) -> None:
    source, results, _, _ = hand()
    source.give(*range(5), Gap("lost"), *range(5, 10))
    red = {item.track for result in results.next_results(10) for item in result.instances if item.name == "red"}
    assert red == {1}


def test_a_slow_engine_gets_the_newest_frames_and_drops_are_counted(hand) -> None:
    gate = threading.Semaphore(0)
    segmenter = ColourSegmenter(gate=gate)
    source, results, stream, _ = hand(segmenter)
    source.give(*range(5))
    assert segmenter.started.acquire(timeout=PATIENCE)
    source.give(*range(5, 20), settle=False)  # while the first window is in work
    gate.release(2)
    assert results.next(10) == [0, 1, 2, 3, 4, 15, 16, 17, 18, 19]
    assert stream.figures().dropped == 10
    # A little too slow: the windows become wider apart, and nothing is dropped.
    assert segmenter.started.acquire(timeout=PATIENCE)
    source.give(*range(20, 24))
    assert segmenter.started.acquire(timeout=PATIENCE)
    source.give(*range(24, 29), settle=False)
    gate.release(2)
    assert results.next(9) == list(range(20, 29))
    assert stream.figures().dropped == 10
    assert stream.figures().frames == 19


def test_every_frame_waits_for_a_slow_engine_and_holds_little(hand) -> None:
    gate = threading.Semaphore(0)
    source, results, stream, _ = hand(ColourSegmenter(gate=gate), live=False)
    source.give(*range(40), wait=False)
    source.end()
    assert results.results.empty()
    gate.release(20)
    assert [result.frame for result in results.rest()] == list(range(40))
    assert stream.figures().dropped == 0


def test_several_windows_are_in_flight_and_results_stay_in_order(hand) -> None:
    class Parallel(ColourSegmenter):
        in_flight = 3

    segmenter = Parallel(seconds=0.02)
    source, results, _, _ = hand(segmenter, live=False)
    source.give(*range(80), wait=False)
    source.end()
    assert [result.frame for result in results.rest()] == list(range(80))
    assert segmenter.most == 3


# --- the same as predict ------------------------------------------------------------------------------------------


def tracks_of(results, length: int) -> dict[tuple[int, int], list]:
    """Masks by (track, category)."""
    found: dict[tuple[int, int], list] = {}
    for result in results:
        for item in result.instances:
            found.setdefault((item.track, item.category_id), [None] * length)[result.frame] = item.segmentation
    return found


def test_a_file_gives_what_predict_gives(tmp_path: Path) -> None:
    length = 47
    path = write_video(tmp_path / "scene.mp4", [picture(number) for number in range(length)], rate=12)
    segmenter = ColourSegmenter()
    mssts.predict(path, segmenter, tmp_path / "out", PredictOptions(pictures=0), progress=False)
    with mssts.stream(path, segmenter, StreamOptions(score_threshold=0)) as stream:
        results = list(stream)
    assert [result.frame for result in results] == list(range(length))
    assert [result.time for result in results] == pytest.approx([t / 12 for t in range(length)], abs=1e-4)
    entries = json.loads((tmp_path / "out" / "results.json").read_text())
    predicted = sorted(repr((entry["category_id"], entry["segmentations"])) for entry in entries)
    streamed = sorted(repr((category, masks)) for (_, category), masks in tracks_of(results, length).items())
    assert streamed == predicted


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 6), st.data())
def test_each_frame_of_a_video_has_one_result(length: int, clip_frames: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, clip_frames))
    source = HandSource(is_live=False)
    source.give(*range(length), wait=False)
    source.end()
    with Stream(
        source.source, ColourSegmenter(clip_frames, 0), StreamOptions(stride=stride, score_threshold=0)
    ) as stream:
        results = list(stream)
    assert [result.frame for result in results] == list(range(length))
    for result in results:  # each has the masks of its own frame
        truth = (picture(result.frame) == (255, 0, 0)).all(axis=-1)
        (mask,) = [item.mask for item in result.instances if item.name == "red"]
        np.testing.assert_array_equal(mask, truth)


def test_a_result_has_the_fields_of_the_schema() -> None:
    source = HandSource(is_live=False)
    source.give(12, wait=False)
    source.end()
    with Stream(source.source, ColourSegmenter(), StreamOptions(images=True, score_threshold=0)) as stream:
        (result,) = stream
    assert result.time == 1.0 and result.frame == 0
    red, blue = result.instances
    assert (red.track, red.category_id, red.name) == (1, CATEGORIES[0].id, "red")
    assert 0 < red.score <= 0.9
    assert red.bbox == (16, 8, 20, 20) and blue.bbox == (60, 24, 20, 20)
    assert red.segmentation["size"] == list(SIZE)
    np.testing.assert_array_equal(result.image, picture(12))


def test_results_hold_no_pictures_unless_asked() -> None:
    source = HandSource(is_live=False)
    source.give(1, wait=False)
    source.end()
    with Stream(source.source, ColourSegmenter(), StreamOptions()) as stream:
        assert [result.image for result in stream] == [None]


# --- ends, errors and changes -------------------------------------------------------------------------------------


def test_a_change_of_size_is_said_and_the_stream_goes_on(hand) -> None:
    source, results, _, said = hand()
    larger = (64, 128)
    source.give(*range(5))
    source.give(*(sized(number, larger) for number in range(5, 10)))
    before, after = results.next_results(5), results.next_results(5)
    assert [item.track for item in before[-1].instances] == [1]
    assert [(item.track, item.segmentation["size"]) for item in after[0].instances] == [(2, list(larger))]
    (line,) = said
    assert "128×64 from frame 5 on, 96×48 before" in line


def test_an_error_of_the_source_comes_after_its_results(hand) -> None:
    source, results, _, _ = hand()
    source.give(*range(5))
    source.give(MsstsError("camera: lost"), wait=False)
    assert results.next(5) == list(range(5))
    with pytest.raises(MsstsError, match="camera: lost"):
        results.rest()


def test_an_error_of_the_segmenter_ends_the_stream(hand) -> None:
    class Broken(ColourSegmenter):
        def segment(self, frames_THWC, score_threshold=0.0):
            raise MsstsError("the server is gone")

    source, results, _, _ = hand(Broken())
    source.give(*range(5), wait=False)
    with pytest.raises(MsstsError, match="the server is gone"):
        results.rest()


def test_stop_gives_the_results_of_what_was_read(hand) -> None:
    source, results, stream, _ = hand()
    source.give(*range(7))
    stream.stop()
    assert [result.frame for result in results.rest()] == list(range(7))


def test_close_does_not_wait_for_a_source_that_hangs() -> None:
    source = HandSource()
    with Stream(source.source, ColourSegmenter(), StreamOptions()) as stream:
        results = Collected(stream)
        source.stream = stream
        source.give(*range(7))
        assert results.next(5) == list(range(5))
    source.end()


def test_coroutines_get_the_same_results() -> None:
    source = HandSource(is_live=False)
    source.give(*range(23), wait=False)
    source.end()

    async def numbers() -> list[int]:
        async with Stream(source.source, ColourSegmenter(), StreamOptions()) as stream:
            return [result.frame async for result in stream]

    assert asyncio.run(numbers()) == list(range(23))


def test_memory_of_identities_is_bounded() -> None:
    source = HandSource(is_live=False)
    source.give(*range(400), wait=False)
    source.end()
    with Stream(source.source, ColourSegmenter(), StreamOptions()) as stream:
        held = []
        linking = None
        for _ in stream:
            linking = linking or stream._results.gi_frame.f_locals["linking"]
            tracks = linking._linker._tracks
            held.append(sum(len(track.rles) + len(track.boxes) for track in tracks) + len(linking._waiting))
    assert max(held[200:]) <= max(held[:200]) <= 60


@pytest.mark.parametrize(
    ("options", "line"),
    [({"stride": 6}, "would leave out frames"), ({"stride": 0}, "at least 1 frame"), ({"timeout": 0}, "above 0 s")],
)
def test_impossible_options_are_refused(options, line: str) -> None:
    with pytest.raises(MsstsError, match=line):
        Stream(HandSource().source, ColourSegmenter(), StreamOptions(**options))
