"""The queue of windows: what is cut, what is dropped, and how much is held."""

from __future__ import annotations

import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from mssts.streaming.buffer import WindowBuffer


@settings(deadline=None)
@given(st.integers(1, 6), st.lists(st.sampled_from(["frame"] * 6 + ["take", "break"]), max_size=60), st.data())
def test_live_windows_are_whole_newest_and_counted(clip_frames: int, steps: list[str], data: st.DataObject) -> None:
    """A frame lies in a window, waits for one, or is counted, whatever happens."""
    overlap = data.draw(st.integers(0, clip_frames - 1))
    buffer: WindowBuffer[int] = WindowBuffer(clip_frames, overlap, live=True)
    number, broken_at, taken, windows = 0, [0], 0, []
    for step in steps:
        if step == "frame":
            buffer.put(number)
            number += 1
        elif step == "break":
            buffer.break_off()
            broken_at.append(number)
        elif buffer._closed or buffer._cutter.is_ready:
            windows.append((buffer.take(), number))
            taken += windows[-1][0].new
        assert len(buffer._closed) <= 1 and buffer._cutter.new <= clip_frames
    buffer.end()
    while (window := buffer.take()) is not None:
        windows.append((window, number))
        taken += window.new
    assert taken + buffer.dropped == number
    last = -1
    for window, newest in windows:
        if not window.frames:
            continue
        first = window.frames[0]
        assert window.frames == list(range(first, first + len(window.frames)))  # no frame is missing inside
        assert not any(first < place <= window.frames[-1] for place in broken_at)  # none goes over a break
        assert window.frames[-window.new] > last
        last = window.frames[-1]
        if not window.is_last:
            assert len(window.frames) == clip_frames and last == newest - 1
    starts = [window.end - window.new for window, _ in windows]
    assert starts == sorted(starts)


def test_every_frame_is_waited_for() -> None:
    buffer: WindowBuffer[int] = WindowBuffer(5, 1, live=False)
    thread = threading.Thread(target=lambda: ([buffer.put(number) for number in range(40)], buffer.end()), daemon=True)
    thread.start()
    thread.join(0.2)
    assert thread.is_alive()  # one window waits, the next is full
    windows = []
    while (window := buffer.take()) is not None:
        windows.append(window.frames)
    assert windows[:2] == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]] and windows[-1][-1] == 39
    assert buffer.dropped == 0


def test_the_end_is_not_waited_for() -> None:
    """A handler of signals ends the stream in the very thread that uses its results."""
    buffer: WindowBuffer[int] = WindowBuffer(2, 0, live=False)
    buffer.put(0)
    buffer.put(1)
    thread = threading.Thread(target=lambda: [buffer.put(number) for number in (2, 3, 4)], daemon=True)
    thread.start()
    thread.join(0.1)
    buffer.end()
    thread.join(5)
    assert not thread.is_alive()
    assert [window.frames for window in iter(buffer.take, None)] == [[0, 1], [2, 3]]
    assert buffer.put(9) is False


def test_an_abandoned_stream_has_no_more_windows() -> None:
    buffer: WindowBuffer[int] = WindowBuffer(2, 0, live=True)
    buffer.put(0)
    buffer.put(1)
    buffer.abandon()
    assert buffer.take() is None
