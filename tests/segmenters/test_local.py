"""Several clips in flight through a local engine."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from support.serving import assert_same, clip_with_rectangles
from support.toy_engine import write_toy_engine

from mssts.errors import MsstsError
from mssts.segmenters.local import LocalSegmenter


@pytest.fixture
def local(tmp_path):
    with LocalSegmenter(write_toy_engine(tmp_path / "toy"), 1) as segmenter:
        yield segmenter


def clips(count: int) -> list[np.ndarray]:
    return [clip_with_rectangles(2 + i % 4, 64 + 16 * (i % 3), 192) for i in range(count)]


def test_results_come_in_order_and_few_clips_are_taken_ahead(local):
    taken = []

    def source():
        for i, clip in enumerate(clips(5)):
            taken.append(i)
            yield clip

    for i, (found, clip) in enumerate(zip(local.segment_many(source(), 0.5), clips(5), strict=True)):
        assert_same(found, local.segment(clip, 0.5))
        assert len(taken) <= i + 3
    assert local.stage_seconds()["engine"] > 0


def test_the_next_clip_is_decoded_while_the_engine_runs(local, monkeypatch):
    """The engine waits for the next clip, which never came if they took turns."""
    decoded, infer, decode = [threading.Event() for _ in range(3)], local._infer, local._decode
    at = {"decode": 0, "engine": 0}

    def decode_and_tell(clip):
        found = decode(clip)
        decoded[at["decode"]].set()
        at["decode"] += 1
        return found

    def infer_after_the_next(*before):
        at["engine"] += 1
        assert at["engine"] == 3 or decoded[at["engine"]].wait(10)
        return infer(*before)

    monkeypatch.setattr(local, "_decode", decode_and_tell)
    monkeypatch.setattr(local, "_infer", infer_after_the_next)
    assert len(list(local.segment_many(clips(3)))) == 3


def test_an_engine_that_takes_two_clips_gets_two_at_once(local, monkeypatch):
    """Each waits for the other, which never came if they took turns.

    Results stay in order.
    """
    expected = [local.segment(clip, 0.5) for clip in clips(4)]
    monkeypatch.setattr(type(local._runner), "in_flight", 2)
    both, infer = threading.Barrier(2), local._infer

    def infer_together(*arguments):
        both.wait(20)
        return infer(*arguments)

    monkeypatch.setattr(local, "_infer", infer_together)
    for found, right in zip(local.segment_many(clips(4), 0.5), expected, strict=True):
        assert_same(found, right)
    assert local.in_flight == 2


def test_an_error_comes_in_its_place_and_ends_the_results(local):
    bad = np.zeros((2, 8, 8), np.uint8)
    before = threading.active_count()
    results = local.segment_many([clips(1)[0], bad, clips(1)[0], clips(1)[0]])
    assert_same(next(results), local.segment(clips(1)[0]))
    with pytest.raises(MsstsError, match="a clip must be RGB uint8 frames"):
        next(results)
    assert list(results) == []
    assert threading.active_count() == before


def test_a_caller_that_stops_early_leaves_no_thread(local):
    before = threading.active_count()
    results = local.segment_many(clips(5))
    next(results)
    results.close()
    assert threading.active_count() == before
    local.segment(clips(1)[0])
