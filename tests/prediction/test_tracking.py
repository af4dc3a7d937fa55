"""Windows cover a video exactly, and identities survive them."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from mssts.errors import MsstsError
from mssts.manifest import Category
from mssts.prediction.results import submission_entries
from mssts.prediction.tracking import Linker, LinkOptions, Track
from mssts.prediction.windowing import windows
from mssts.segmenters.base import Instances

SIZE = (60, 120)
Masks = Sequence["np.ndarray | None"]  # one a frame


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.data())
def test_windows_cover_every_frame(length: int, clip_frames: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, clip_frames - 1))
    cut = list(windows(iter(range(length)), clip_frames, overlap))
    assert sorted({frame for _, frames in cut for frame in frames}) == list(range(length))
    for start, frames in cut:
        assert frames == list(range(start, start + len(frames)))
        assert len(frames) == min(clip_frames, length)
    for (start, _), (following, _) in itertools.pairwise(cut[:-1]):
        assert following == start + clip_frames - overlap
    if len(cut) > 1:  # the last one ends with the video, and shares at least as many frames
        assert cut[-1][0] + clip_frames == length
        assert cut[-2][0] < cut[-1][0] <= cut[-2][0] + clip_frames - overlap


def test_windows_ask_for_a_frame_only_when_it_is_needed() -> None:
    taken = []
    cut = windows((taken.append(i) or i for i in range(100)), 5, 2)
    assert next(cut) == (0, [0, 1, 2, 3, 4])
    assert taken == [0, 1, 2, 3, 4]
    assert next(cut) == (3, [3, 4, 5, 6, 7])
    assert taken[-1] == 7


@pytest.mark.parametrize("overlap", [-1, 5, 6])
def test_an_impossible_overlap_is_refused(overlap: int) -> None:
    with pytest.raises(MsstsError, match="5 frames cannot overlap"):
        next(windows([1], 5, overlap))


# --- the linker ---------------------------------------------------------------------------------------------------


def square(x: int, y: int = 20, side: int = 20) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[max(y, 0) : max(y + side, 0), max(x, 0) : max(x + side, 0)] = 1
    return mask


def encode(mask: np.ndarray | None) -> bytes | None:
    return None if mask is None or not mask.any() else coco_mask.encode(np.asfortranarray(mask))["counts"]


def extent(mask: np.ndarray | None) -> tuple[int, int, int, int]:
    """x1, y1, x2, y2 of a mask's pixels."""
    if mask is None or not mask.any():
        return 0, 0, 0, 0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def found(start: int, end: int, objects: Sequence[tuple[int, float, Masks]]) -> Instances:
    """A perfect engine's findings in frames start … end − 1, best first.

    Objects are (label, score, masks).

    As an engine, it does not know its earlier answers: the order tells nothing of identity.
    """
    ordered = sorted((item for item in objects if any(m is not None for m in item[2][start:end])), key=lambda i: -i[1])
    return Instances(
        scores=np.array([score for _, score, _ in ordered], np.float32),
        labels=np.array([label for label, _, _ in ordered], np.int32),
        boxes=np.array([[extent(mask) for mask in masks[start:end]] for _, _, masks in ordered], np.float32).reshape(
            len(ordered), end - start, 4
        ),
        rles=tuple(tuple(encode(mask) for mask in masks[start:end]) for _, _, masks in ordered),
        size=SIZE,
    )


def link(length: int, clip_frames: int, overlap: int, objects: Sequence[tuple[int, float, Masks]]) -> list[Track]:
    """Tracks in the order in which they appear.

    Scores alternate, so that the best is now one, now another.
    """
    linker = Linker()
    for index, (start, frames) in enumerate(windows(range(length), clip_frames, overlap)):
        shuffled = [(label, score if index % 2 else 1 - score, masks) for label, score, masks in objects]
        linker.add(start, len(frames), found(start, start + len(frames), shuffled))
    return sorted(linker.tracks(), key=lambda track: track.id)


def assert_follows(track: Track, masks: Masks) -> None:
    assert list(track.rles) == [encode(mask) for mask in masks]


@pytest.mark.parametrize(("clip_frames", "overlap"), [(5, 0), (5, 1), (5, 2), (5, 4), (8, 3), (40, 1)])
def test_crossing_objects_keep_their_identities(clip_frames: int, overlap: int) -> None:
    length = 30
    right = [square(3 * t, y=15) for t in range(length)]
    left = [square(90 - 3 * t, y=25) for t in range(length)]
    tracks = link(length, clip_frames, overlap, [(0, 0.9, right), (0, 0.8, left)])
    assert len(tracks) == 2
    first, second = sorted(tracks, key=lambda track: track.rles[0] != encode(right[0]))
    assert_follows(first, right)
    assert_follows(second, left)


@pytest.mark.parametrize("by", ["colours", "classes"])
def test_another_object_in_the_same_place_is_another(by: str) -> None:
    """By its colours, or by its class where that is never in doubt."""
    first, second = [square(10)] * 5, [None] * 5 + [square(10)] * 5
    shades = np.eye(256, dtype=np.float32)[[3, 200 if by == "colours" else 3]]
    linker = Linker(options=LinkOptions(class_doubt=0 if by == "classes" else 1))
    linker.add(0, 5, found(0, 5, [(0, 0.9, first)]), shades[:1])
    linker.add(5, 5, found(5, 10, [(1, 0.8, second)]), shades[1:])
    tracks = linker.tracks()
    assert [track.label for track in tracks] == [0, 1]
    assert_follows(tracks[0], first + [None] * 5)
    assert_follows(tracks[1], second)


def test_in_grey_pictures_classes_tell_which_object_came_back() -> None:
    """Two of one shade pass each other behind a third."""
    left, right = [square(20)] * 6, [square(60)] * 6
    hidden = [None] * 6
    first, second = [*left, *hidden, *right], [*right, *hidden, *left]
    grey = np.eye(256, dtype=np.float32)[[36, 36]]
    linker = Linker()
    for start in (0, 6, 12):
        objects = found(start, start + 6, [(0, 0.9, first), (1, 0.8, second)])
        linker.add(start, 6, objects, grey[: len(objects)])
    tracks = linker.tracks()
    assert [track.label for track in tracks] == [0, 1]
    assert_follows(tracks[0], first)
    assert_follows(tracks[1], second)


def test_an_object_that_is_taken_for_another_class_stays_the_same() -> None:
    masks = [square(10)] * 9
    linker = Linker()
    linker.add(0, 5, found(0, 5, [(0, 0.9, masks)]))
    linker.add(4, 5, found(4, 9, [(1, 0.4, masks)]))
    (track,) = linker.tracks()
    assert_follows(track, masks)
    assert track.label == 0


def test_a_new_object_starts_a_track_and_a_gone_one_ends() -> None:
    staying = [square(10)] * 20
    coming = [None] * 9 + [square(80)] * 11
    going = [square(45)] * 8 + [None] * 12
    tracks = link(20, 5, 1, [(0, 0.9, staying), (0, 0.8, coming), (0, 0.7, going)])
    assert len(tracks) == 3
    for masks in (staying, coming, going):
        assert [encode(mask) for mask in masks] in [list(track.rles) for track in tracks]


@pytest.mark.parametrize("gap", [(3, 6), (4, 5), (5, 8), (6, 9), (3, 8)])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_an_occluded_object_keeps_its_identity(gap: tuple[int, int], overlap: int) -> None:
    masks = [None if gap[0] <= t < gap[1] else square(10 + 2 * t) for t in range(20)]
    tracks = link(20, 5, overlap, [(2, 0.9, masks)])
    assert len(tracks) == 1
    assert_follows(tracks[0], masks)


def test_an_object_that_appears_long_after_another_left_is_another() -> None:
    for hidden, identities in ((20, 1), (40, 2)):  # an object may be out of sight for 30 frames
        masks: list[np.ndarray | None] = [square(10)] * 3 + [None] * hidden + [square(10)] * 7
        assert len(link(hidden + 10, 5, 1, [(0, 0.9, masks)])) == identities


def test_the_better_of_two_hypotheses_continues_the_better() -> None:
    good, poor = [square(10)] * 9, [square(15)] * 9  # IoU 0.6: too little to be one object for sure
    linker = Linker()
    linker.add(0, 5, found(0, 5, [(0, 0.9, good), (0, 0.2, poor)]))
    linker.add(4, 5, found(4, 9, [(0, 0.8, poor), (0, 0.1, good)]))
    best, worst = linker.tracks()
    assert best.score == pytest.approx((5 * 0.9 + 4 * 0.8) / 9)
    assert worst.score == pytest.approx((5 * 0.2 + 4 * 0.1) / 9)


def test_no_object_is_lost_to_a_neighbour_that_fits_its_masks_better() -> None:
    """The later window sees the left one nearer to where the right one was."""
    linker = Linker()
    linker.add(0, 5, found(0, 5, [(0, 0.9, [square(10)] * 5), (0, 0.8, [square(24)] * 5)]))
    linker.add(4, 5, found(4, 9, [(0, 0.9, [square(19)] * 9), (0, 0.8, [square(33)] * 9)]))
    left, right = sorted(linker.tracks(), key=lambda track: track.id)
    assert (left.rles[8], right.rles[8]) == (encode(square(19)), encode(square(33)))


def test_hypotheses_of_one_object_are_one_track_of_several_classes() -> None:
    """One query under two classes, and another query with almost the same masks."""
    masks, almost = [square(10)] * 9, [square(11)] * 9
    linker = Linker()
    linker.add(0, 5, found(0, 5, [(0, 0.5, masks), (1, 0.4, masks), (1, 0.45, almost), (0, 0.1, almost)]))
    linker.add(4, 5, found(4, 9, [(0, 0.3, masks), (1, 0.6, masks)]))
    assert [instance.label for instance in linker.visible(8)] == [1]
    (track,) = linker.tracks()
    assert_follows(track, masks)
    expected = {0: (5 * 0.5 + 4 * 0.3) / 9, 1: (5 * 0.45 + 4 * 0.6) / 9}
    assert track.class_scores == pytest.approx(expected)
    assert (track.label, track.score) == (1, pytest.approx(expected[1]))
    assert track.certainty == pytest.approx(9 / 11)


def test_an_object_comes_back_under_its_own_colours() -> None:
    """Two objects of one class go behind a third and come out on each other's side."""
    length = 24
    hidden = range(10, 16)
    right = [None if t in hidden else square(4 * t, y=20) for t in range(length)]
    left = [None if t in hidden else square(95 - 4 * t, y=20) for t in range(length)]
    shades = {0.9: np.eye(256, dtype=np.float32)[3], 0.8: np.eye(256, dtype=np.float32)[200]}
    linker = Linker()
    for start, frames in windows(range(length), 6, 2):
        objects = found(start, start + len(frames), [(0, 0.9, right), (0, 0.8, left)])
        colours = np.array([shades[round(float(score), 1)] for score in objects.scores]).reshape(-1, 256)
        linker.add(start, len(frames), objects, colours)
    first, second = sorted(linker.tracks(), key=lambda track: track.rles[0] != encode(right[0]))
    assert_follows(first, right)
    assert_follows(second, left)


def test_a_stream_without_an_end_keeps_what_may_be_continued_alone() -> None:
    linker = Linker()
    sizes = []
    for start in range(0, 1200, 3):
        here = [square(10 + (start // 60 * 30) % 80)] * (start + 6)  # another place every 20 windows
        linker.add(start, 6, found(start, start + 6, [(start // 60 % 3, 0.9, here)]))
        linker.forget(start)
        sizes.append(len(pickle.dumps(linker)))
    assert linker.known >= 15
    assert max(sizes[200:]) <= 1.1 * max(sizes[:200])
    assert len(linker.tracks()) <= 3


def test_shared_frames_are_split_between_the_windows() -> None:
    earlier, later = [square(10)] * 10, [square(12)] * 10
    linker = Linker()
    linker.add(0, 6, found(0, 6, [(0, 0.9, earlier)]))
    linker.add(2, 6, found(2, 8, [(0, 0.6, later)]))
    (track,) = linker.tracks()
    assert_follows(track, earlier[:4] + later[4:8])
    assert track.score == pytest.approx((6 * 0.9 + 4 * 0.6) / 10)  # the later one contributed frames 4 to 7
    np.testing.assert_array_equal(track.boxes_T4[:, 0], [10] * 4 + [12] * 4)


def test_a_mask_that_one_window_lacks_is_taken_from_the_other() -> None:
    masks = [square(10)] * 9
    blind_at_its_end = [*masks[:4], None, *masks[5:]]
    linker = Linker()
    linker.add(0, 5, found(0, 5, [(0, 0.9, blind_at_its_end)]))
    linker.add(4, 5, found(4, 9, [(0, 0.9, masks)]))
    (track,) = linker.tracks()
    assert_follows(track, masks)


def test_what_is_visible_before_the_next_window_is_final() -> None:
    """A picture drawn while the video streams shows what the tracks hold in the end."""
    length = 37
    objects = [
        (0, 0.9, [square(3 * t, y=15) for t in range(length)]),
        (0, 0.8, [square(100 - 3 * t, y=25) for t in range(length)]),
        (1, 0.7, [None if t % 11 > 7 else square(2 * t, y=35) for t in range(length)]),
    ]
    linker = Linker()
    drawn: dict[int, set[tuple[int, bytes]]] = {}

    def draw(frames: range) -> None:
        for t in frames:
            drawn[t] = {(instance.track_id, instance.rle) for instance in linker.visible(t)}

    previous = 0
    for start, frames in windows(range(length), 6, 2):
        draw(range(previous, start))
        linker.add(start, len(frames), found(start, start + len(frames), objects))
        previous = start
    draw(range(previous, length))
    tracks = linker.tracks()
    for t in range(length):
        assert drawn[t] == {(track.id, track.rles[t]) for track in tracks if track.rles[t] is not None}


def test_windows_without_instances_and_instances_without_masks() -> None:
    linker = Linker()
    linker.add(0, 5, found(0, 5, []))
    linker.add(4, 5, found(4, 9, [(0, 0.5, [square(10)] * 6 + [None] * 3)]))
    linker.add(
        8,
        5,
        Instances(np.ones(1, np.float32), np.zeros(1, np.int32), np.zeros((1, 5, 4), np.float32), ((None,) * 5,), SIZE),
    )
    (track,) = linker.tracks()
    assert_follows(track, [None] * 4 + [square(10)] * 2 + [None] * 7)
    assert np.isnan(track.boxes_T4[:4]).all()
    assert np.isfinite(track.boxes_T4[4:9]).all()


def test_a_gap_between_windows_is_a_mistake() -> None:
    linker = Linker()
    linker.add(0, 5, found(0, 5, []))
    for start, frames in ((6, 5), (0, 5)):
        with pytest.raises(ValueError, match="does not continue"):
            linker.add(start, frames, found(start, start + frames, []))


def test_instances_of_a_whole_video_are_kept_as_they_are() -> None:
    """No hypothesis is put together, no score is changed, as in the released code."""
    masks, almost = [square(10)] * 9, [square(11)] * 9
    linker = Linker(options=LinkOptions(same_object_iou=None, score_prior_frames=0))
    linker.add(0, 9, found(0, 9, [(0, 0.5, masks), (1, 0.4, masks), (0, 0.3, almost)]))
    entries = submission_entries(1, SIZE, linker.tracks(), [Category(1, "one"), Category(2, "two")])
    assert [entry["category_id"] for entry in entries] == [1, 2, 1]
    assert [entry["score"] for entry in entries] == pytest.approx([0.5, 0.4, 0.3])


def test_a_submission_ranks_what_was_seen_for_long_first() -> None:
    linker = Linker()
    linker.add(0, 6, found(0, 6, [(0, 0.9, [square(10)] * 30)]))
    for start in range(3, 24, 3):
        here = [(0, 0.9, [square(10)] * 30)] + [(1, 0.9, [square(70)] * 30)] * (start == 9)
        linker.add(start, 6, found(start, start + 6, here))
    first, second = submission_entries(1, SIZE, linker.tracks(), [Category(1, "one"), Category(2, "two")])
    assert (first["category_id"], second["category_id"]) == (1, 2)
    assert first["score"] == pytest.approx(0.9 * 34 / 36)  # 6 frames, then the last 4 of 7 windows
    assert second["score"] == pytest.approx(0.9 * 6 / 8)
