"""The association of tracks, on videos drawn by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mssts.evaluation import evaluate
from mssts.evaluation.association import association

SIZE = (8, 20)
FRAMES = 4


def box(left: int, width: int = 6) -> dict[str, Any]:
    mask = np.zeros(SIZE, np.uint8, order="F")
    mask[:, left : left + width] = 1
    return {"size": list(SIZE), "counts": coco_mask.encode(mask)["counts"].decode()}


LEFT, RIGHT = box(0), box(12)


def truth(*tracks: tuple[int, list[Any]]) -> dict[str, Any]:
    names = [f"{t}.jpg" for t in range(FRAMES)]
    return {
        "videos": [{"id": 1, "height": SIZE[0], "width": SIZE[1], "length": FRAMES, "file_names": names}],
        "categories": [{"id": 1, "name": "ape"}, {"id": 2, "name": "bee"}],
        "annotations": [
            {"id": i, "video_id": 1, "category_id": category, "iscrowd": 0, "segmentations": masks}
            for i, (category, masks) in enumerate(tracks, 1)
        ],
    }


def predicted(category: int, masks: list[Any], score: float = 0.9) -> dict[str, Any]:
    return {"video_id": 1, "category_id": category, "score": score, "segmentations": masks}


TWO = truth((1, [LEFT] * 4), (2, [RIGHT] * 4))


def test_perfect_tracks_switch_never() -> None:
    found = association(TWO, [predicted(1, [LEFT] * 4), predicted(2, [RIGHT] * 4)])
    assert (found.ap, found.identity_switches) == (pytest.approx(1), 0)
    assert found.matched_frames == found.object_frames == 8


def test_tracks_that_change_objects_are_two_switches() -> None:
    results = [predicted(1, [LEFT, LEFT, RIGHT, RIGHT]), predicted(2, [RIGHT, RIGHT, LEFT, LEFT])]
    found = association(TWO, results)
    assert (found.identity_switches, found.matched_frames) == (2, 8)
    assert found.ap < 0.1


def test_an_object_that_comes_back_as_another_track_is_a_switch() -> None:
    one = truth((1, [LEFT, None, None, LEFT]), (2, [RIGHT] * 4))
    results = [predicted(1, [LEFT, None, None, None]), predicted(1, [None, None, None, LEFT])]
    found = association(one, results)
    assert (found.identity_switches, found.matched_frames, found.object_frames) == (1, 2, 6)


def test_classes_do_not_count() -> None:
    results = [predicted(2, [LEFT] * 4), predicted(1, [RIGHT] * 4)]
    assert evaluate(TWO, results).ap < 0.1
    assert association(TWO, results).ap == pytest.approx(1)


def test_lesser_hypotheses_of_an_object_do_not_count() -> None:
    results = [predicted(1, [LEFT] * 4, 0.9), predicted(2, [LEFT] * 4, 0.8), predicted(2, [RIGHT] * 4, 0.7)]
    found = association(TWO, results)
    assert (found.ap, found.identity_switches, found.matched_frames) == (pytest.approx(1), 0, 8)


def test_nothing_predicted_is_nothing_found() -> None:
    found = association(TWO, [])
    assert (found.ap, found.identity_switches, found.matched_frames, found.object_frames) == (0, 0, 0, 8)
