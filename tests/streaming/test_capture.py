"""Sources: what can be opened, what cannot in one line, and the times of frames."""

from __future__ import annotations

import http.server
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import av.error
import numpy as np
import pytest
from support.media_files import set_display_matrix, write_video
from support.streams import SIZE, Collected, ColourSegmenter, picture

from mssts.errors import MsstsError
from mssts.media.sources import open_source
from mssts.streaming.capture import LiveCapture
from mssts.streaming.options import RawFormat, StreamOptions
from mssts.streaming.rtsp_login import PasswordRefusedError
from mssts.streaming.source_clock import SourceClock
from mssts.streaming.sources import Gap, SizedFrame, open_stream_source, public_name
from mssts.streaming.stream import Stream

QUICK = StreamOptions(timeout=1, reconnect=2)


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# --- times --------------------------------------------------------------------------------------------------------


def test_times_are_those_of_the_source() -> None:
    clock = FakeTime()
    times = SourceClock(clock)
    for shown, arrived in ((7.0, 0.0), (7.1, 0.05), (7.2, 0.3)):
        clock.now = 100 + arrived
        assert times.time(shown) == (pytest.approx(shown - 7), "")


def test_times_go_on_by_arrival_when_the_source_begins_again() -> None:
    clock = FakeTime()
    times = SourceClock(clock)
    times.time(50.0)
    clock.now += 4
    times.reconnected()
    assert times.time(0.0) == (pytest.approx(4), "")
    clock.now += 9
    assert times.time(0.1) == (pytest.approx(4.1), "")


def test_a_jump_of_the_sources_clock_is_said_and_passed_over() -> None:
    clock = FakeTime()
    times = SourceClock(clock)
    times.time(1.0)
    clock.now += 0.1
    seconds, line = times.time(5000.0)
    assert seconds == pytest.approx(0.1) and "jumps" in line
    clock.now += 0.1
    assert times.time(5000.2) == (pytest.approx(0.3), "")
    seconds, line = times.time(3.0)
    assert seconds > 0.3 - 1e-9 and "jumps" in line


def test_a_long_pause_is_no_jump() -> None:
    clock = FakeTime()
    times = SourceClock(clock)
    times.time(1.0)
    clock.now += 60
    assert times.time(61.0) == (pytest.approx(60), "")


def test_frames_without_times_get_those_of_their_arrival() -> None:
    clock = FakeTime()
    times = SourceClock(clock)
    lines = []
    for number in range(30):
        seconds, line = times.time(None)
        assert seconds == pytest.approx(number / 2)
        lines += [line] if line else []
        clock.now += 0.5
    (line,) = lines
    assert "without times" in line


def test_a_first_frame_without_a_time_is_nothing_to_speak_of() -> None:
    """So begin many RTSP sessions."""
    clock = FakeTime()
    times = SourceClock(clock)
    assert times.time(None) == (0, "")
    clock.now += 0.1
    assert times.time(0.08) == (pytest.approx(0.1), "")
    clock.now += 0.3
    assert times.time(0.16) == (pytest.approx(0.18), "")


# --- losing and finding -------------------------------------------------------------------------------------------


class FakeConnection:
    """Gives frames and then fails, or ends."""

    fps = 12.0

    def __init__(self, frames: int, failure: Exception | None = None, ends: bool = False) -> None:
        self._frames, self._failure, self.ends = frames, failure, ends
        self.is_closed = False

    def frames(self) -> Iterator[tuple[np.ndarray, float]]:
        for number in range(self._frames):
            yield picture(number), number / 12
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        self.is_closed = True


class Still(threading.Event):
    """An event that is never set, and whose waits move a clock instead of taking time."""

    def __init__(self, clock: FakeTime) -> None:
        super().__init__()
        self.clock, self.waits = clock, []

    def wait(self, timeout: float | None = None) -> bool:
        self.waits.append(timeout)
        self.clock.now += timeout or 0.0
        return False


def captured(
    clock: FakeTime, *connections: FakeConnection | Exception, reconnect: float = 60
) -> tuple[LiveCapture, list]:
    waiting, opened = list(connections), []

    def connect() -> FakeConnection:
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, Exception):
            raise found
        opened.append(found)
        return found

    return LiveCapture("camera", connect, StreamOptions(timeout=1, reconnect=reconnect), clock), opened


def test_a_lost_source_is_tried_again_with_longer_pauses_and_then_given_up() -> None:
    clock = FakeTime()
    refused = ConnectionRefusedError(111, "Connection refused")
    capture, opened = captured(clock, FakeConnection(2), refused)
    stopped = Still(clock)
    items = capture.items(stopped, True)
    assert [type(next(items)) for _ in range(3)] == [SizedFrame, SizedFrame, Gap]
    with pytest.raises(MsstsError, match="not back after 60 s: nothing listens"):
        next(items)
    assert stopped.waits[:6] == [0.5, 1, 2, 4, 8, 10]
    assert 60 <= clock.now - 100 <= 70
    assert opened[0].is_closed


@pytest.mark.parametrize(
    "refusal", [PasswordRefusedError(), av.error.HTTPUnauthorizedError(401, "Server returned 401 Unauthorized")]
)
def test_a_password_that_was_right_is_tried_a_few_times_in_minutes(refusal: Exception) -> None:
    """Cameras lock an account after some five wrong tries."""
    clock = FakeTime()
    capture, _ = captured(clock, FakeConnection(1), refusal, reconnect=300)
    stopped = Still(clock)
    items = capture.items(stopped, True)
    assert [type(next(items)) for _ in range(2)] == [SizedFrame, Gap]
    with pytest.raises(MsstsError, match="not back after 300 s: refuses the user or the password"):
        next(items)
    assert len(stopped.waits) <= 4  # a try after each
    assert 300 <= clock.now - 100 <= 310


def test_a_source_that_is_back_is_said_and_its_times_go_on() -> None:
    clock = FakeTime()
    capture, opened = captured(
        clock, FakeConnection(2), TimeoutError(110, "x"), FakeConnection(2, TimeoutError(110, "x"))
    )
    items = capture.items(Still(clock), True)
    found = [next(items) for _ in range(6)]
    lines = [item.line for item in found if isinstance(item, Gap)]
    assert lines == ["camera: lost: the connection ended; trying again for 60 s", "camera: back after 1.5 s"]
    assert [item.is_back for item in found if isinstance(item, Gap)] == [False, True]
    times = [item.frame.time for item in found if isinstance(item, SizedFrame)]
    assert times == pytest.approx([0, 1 / 12, 1 / 12 + 1.5, 2 / 12 + 1.5])
    assert next(items).line.startswith("camera: lost: nothing came for 1 s")
    assert all(connection.is_closed for connection in opened)


def test_a_recording_ends_and_is_not_tried_again() -> None:
    clock = FakeTime()
    capture, _ = captured(clock, FakeConnection(3, ends=True))
    assert len(list(capture.items(Still(clock), True))) == 3
    capture, _ = captured(clock, FakeConnection(3, OSError(5, "Input/output error"), ends=True))
    with pytest.raises(MsstsError, match="camera: broke off: there is no such host, or the connection broke"):
        list(capture.items(Still(clock), True))


# --- real sources -------------------------------------------------------------------------------------------------


def numbers(source: str | Path, options: StreamOptions = QUICK) -> list[int]:
    with Stream(open_stream_source(source, options), ColourSegmenter(), options) as stream:
        return [result.frame for result in stream]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address at which the test's folder is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_recording_over_http_is_read_to_its_end(tmp_path: Path, web: str) -> None:
    write_video(tmp_path / "scene.mp4", [picture(number) for number in range(17)], rate=12)
    assert not open_stream_source(f"{web}/scene.mp4", QUICK).is_live
    assert numbers(f"{web}/scene.mp4") == list(range(17))
    with pytest.raises(MsstsError, match="there is no such stream"):
        open_stream_source(f"{web}/absent.mp4", QUICK)


def test_a_recording_over_http_is_upright_and_in_square_pixels(tmp_path: Path, web: str) -> None:
    path = write_video(tmp_path / "scene.mp4", [picture(number) for number in range(5)], rate=12, aspect=Fraction(4, 3))
    set_display_matrix(path, (0, 1, -1, 0))
    stored = [frame.rgb_HWC for frame in open_source(path).videos[0].frames()]
    assert stored[0].shape == (128, 48, 3)
    options = StreamOptions(images=True)
    with Stream(open_stream_source(f"{web}/scene.mp4", options), ColourSegmenter(), options) as stream:
        np.testing.assert_array_equal([result.image for result in stream], stored)


def test_mpeg_ts_over_udp_is_live_and_its_end_is_a_loss() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = threading.Event()

    def send() -> None:
        with av.open(f"udp://127.0.0.1:{port}?pkt_size=1316", "w", format="mpegts") as container:
            stream = container.add_stream("libx264", rate=25, options={"tune": "zerolatency", "g": "5"})
            stream.height, stream.width, stream.pix_fmt = SIZE[0], SIZE[1], "yuv420p"
            for number in range(1000):
                if done.wait(0.04):
                    return
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    options = StreamOptions(timeout=5, reconnect=60)
    said: list[str] = []
    try:
        source = open_stream_source(f"udp://127.0.0.1:{port}", options)
        assert source.is_live
        with Stream(source, ColourSegmenter(), options, said.append) as stream:
            results = Collected(stream)
            found = results.next_results(20)
            times = np.diff([result.time for result in found])
            assert np.median(times) == pytest.approx(0.04, abs=2e-3)
            assert {item.track for result in found for item in result.instances if item.name == "red"} == {1}
    finally:
        done.set()
        sender.join(5)


def test_a_file_under_live_is_played_at_its_own_speed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "scene.mp4", [picture(number) for number in range(13)], rate=24)
    start = time.monotonic()
    assert numbers(path, StreamOptions(live=True))[-1] == 12
    assert time.monotonic() - start >= 0.5


def test_frames_without_a_container_come_from_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"".join(picture(number).tobytes() for number in range(7)) + b"rest"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    options = StreamOptions(raw=RawFormat.parse("96x48@12"))
    said: list[str] = []
    with Stream(open_stream_source("-", options), ColourSegmenter(), options, said.append) as stream:
        results = list(stream)
    assert [result.time for result in results] == pytest.approx([t / 12 for t in range(7)], abs=1e-6)
    assert said == ["stdin: ends within frame 7: 4 of its 13824 bytes; it is left out"]


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("rtsp://user:secret@127.0.0.1:1/cam?password=secret", r"rtsp://127\.0\.0\.1:1/cam: nothing listens"),
        ("http://user:secret@127.0.0.1:1/secret=secret", "nothing listens at that address"),
        ("rtsp://user:secret@nohost.invalid/x", "there is no such host"),
        ("ftp://user:secret@host/x", "ftp:// is not read; expected a video file"),
        ("97", "webcam 97: there is no /dev/video97"),
        ("absent.mp4", "absent.mp4: no such file"),
    ],
)
def test_what_cannot_be_opened_is_one_line_without_secrets(source: str, line: str) -> None:
    with pytest.raises(MsstsError, match=line) as error:
        open_stream_source(source, QUICK)
    text = str(error.value).replace("/secret=", "")  # a name, whose value is what is secret
    assert "\n" not in text and "secret" not in text


def test_a_source_that_never_answers_is_left_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        with pytest.raises(MsstsError, match="nothing"):
            open_stream_source(f"rtsp://127.0.0.1:{silent.getsockname()[1]}/camera", QUICK)
        assert time.monotonic() - start < 5


def test_a_folder_has_no_times_to_be_played_by(tmp_path: Path) -> None:
    import cv2

    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(number)[..., ::-1])
    assert numbers(tmp_path) == [0, 1, 2]
    with pytest.raises(MsstsError, match="no times to be played by"):
        numbers(tmp_path, StreamOptions(live=True))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("rtsp://u:p@host:554/a/b?token=1", "rtsp://host:554/a/b"),
        ("rtsp://host/user=admin&password=x&channel=1/", "rtsp://host/user=…&password=…&channel=…/"),
        ("http://u:p@h", "http://h"),
        ("rtsp://u:p@ss@h/a", "rtsp://h/a"),
        ("rtsp://u:pa/ss@h/a", "rtsp://…"),  # a / or ? of a password should be written %2F or %3F; some are not
        ("rtsp://u:p@a/s?s@h/a", "rtsp://…"),
        ("udp://@:5000?fifo_size=1", "udp://:5000"),
        ("https://h?key=1", "https://h"),
        ("video.mp4", "video.mp4"),
    ],
)
def test_names_of_sources_have_no_secrets(url: str, name: str) -> None:
    assert public_name(url) == name


@pytest.mark.parametrize("text", ["96", "96x", "0x10", "axb", "96x48@0", "96x48@"])
def test_a_raw_format_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        RawFormat.parse(text)
