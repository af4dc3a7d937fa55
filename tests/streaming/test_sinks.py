"""Where results go: JSON lines, webhooks and overlays, and their failures."""

from __future__ import annotations

import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.streams import ColourSegmenter, HandSource, picture
from support.toy_engine import CATEGORIES

from mssts.errors import MsstsError
from mssts.media.sources import open_source
from mssts.media.video import Frame
from mssts.prediction.exports import CocoWriter
from mssts.streaming.exports import Export
from mssts.streaming.jsonl import JsonlFile
from mssts.streaming.options import StreamOptions
from mssts.streaming.overlay import OverlayVideo
from mssts.streaming.results import FrameInstance, FrameResult
from mssts.streaming.running import run_stream
from mssts.streaming.sinks import Sink
from mssts.streaming.stream import Stream
from mssts.streaming.webhook import Webhook


def result(number: int, *instances: FrameInstance, image: bool = False) -> FrameResult:
    return FrameResult(number, number / 12, instances, Frame(picture(number)) if image else None)


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["frame"] for line in path.read_text().splitlines()]


# --- JSON lines ---------------------------------------------------------------------------------------------------


def test_lines_are_there_as_soon_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "tracks.jsonl"
    sink = JsonlFile(path, 10_000)
    sink.open(None)
    for number in range(3):
        sink.write(result(number))
        assert numbers(path) == list(range(number + 1))
    sink.close()


def test_files_are_rotated_by_size_and_none_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "tracks.jsonl"
    line = len(result(10).to_line())
    for run in range(2):
        sink = JsonlFile(path, 4 * line)
        sink.open(None)
        for number in range(10, 20):
            sink.write(result(number))
        sink.close()
        assert numbers(path) == [18, 19]
        first = 1 + 3 * run
        assert numbers(tmp_path / f"tracks.{first}.jsonl") == [10, 11, 12, 13]
        assert numbers(tmp_path / f"tracks.{first + 1}.jsonl") == [14, 15, 16, 17]
    assert numbers(tmp_path / "tracks.3.jsonl") == [18, 19]  # what the first run had left


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "tracks.jsonl"
    sink = JsonlFile(path, 1, keep=2)
    sink.open(None)
    for number in range(8):
        sink.write(result(number))
    sink.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["tracks.6.jsonl", "tracks.7.jsonl", "tracks.jsonl"]
    assert numbers(path) == [7] and numbers(tmp_path / "tracks.7.jsonl") == [6]


def test_a_full_disk_is_said_once_and_lines_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tracks.jsonl"
    sink = JsonlFile(path, 10_000)
    sink.open(None)
    write, room = os.write, [10_000]

    def limited(handle: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = write(handle, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", limited)
    sink.write(result(0))
    room[0] = 5  # a part of the next line
    with pytest.raises(MsstsError, match=r"disk is full.*left out from frame 1 on"):
        sink.write(result(1))
    sink.write(result(2))  # is left out as well, without a word
    assert numbers(path) == [0]
    room[0] = 10_000
    with pytest.raises(MsstsError, match="again from frame 3 on, 2 lines were left out"):
        sink.write(result(3))
    sink.write(result(4))
    sink.close()
    assert numbers(path) == [0, 3, 4]


def test_a_file_that_cannot_be_renamed_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a full disk may have no room for another name."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "tracks.jsonl"
    sink = JsonlFile(path, 2 * len(result(10).to_line()))
    sink.open(None)
    sink.write(result(10))
    sink.write(result(11))
    with monkeypatch.context() as limited:
        limited.setattr(Path, "rename", full)
        with pytest.raises(MsstsError, match="disk is full"):
            sink.write(result(12))
        sink.write(result(13))
        assert numbers(path) == [10, 11]
    with pytest.raises(MsstsError, match="again from frame 14 on, 2 lines were left out"):
        sink.write(result(14))
    sink.close()
    assert (numbers(tmp_path / "tracks.1.jsonl"), numbers(path)) == ([10, 11], [14])


def test_a_full_disk_is_named_under_what_cannot_be_cut_as_well() -> None:
    sink = JsonlFile(Path("/dev/full"), 10_000)
    sink.open(None)
    with pytest.raises(MsstsError, match="/dev/full: cannot be written: the disk is full"):
        sink.write(result(0))
    sink.close()


def test_a_full_disk_under_an_export_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    sink = Export(tmp_path, "coco", CATEGORIES, "scene")
    sink.open(None)
    monkeypatch.setattr(CocoWriter, "add", full)
    with pytest.raises(MsstsError, match=r"coco\.json: cannot be written: the disk is full.*; it ends before frame 3"):
        sink.write(result(3, image=True))
    sink.write(result(4, image=True))
    sink.close()


def test_a_file_that_cannot_be_written_is_refused_before_the_stream(tmp_path: Path) -> None:
    with pytest.raises(MsstsError, match="is a folder"):
        JsonlFile(tmp_path, 10).open(None)
    (tmp_path / "file").touch()
    with pytest.raises(MsstsError, match="cannot be written"):
        JsonlFile(tmp_path / "file" / "x.jsonl", 10).open(None)


# --- webhooks -----------------------------------------------------------------------------------------------------


class Receiver:
    """A server that takes posts.

    `answers` says how: a status a request, the last one for ever.
    """

    def __init__(self) -> None:
        self.answers = [200]
        self.delay = 0.0
        self.location = ""
        self.posts: list[tuple[dict[str, str], list[int]]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(receiver.delay)
                status = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                if status < 300:
                    receiver.posts.append((dict(self.headers), [frame["frame"] for frame in content["frames"]]))
                self.send_response(status)
                self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://user:secret@127.0.0.1:{self.server.server_port}/hook?token=hidden"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def numbers(self) -> list[int]:
        return [number for _, post in self.posts for number in post]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def write_all(sink: Sink, count: int) -> list[str]:
    said = []
    for number in range(count):
        try:
            sink.write(result(number))
        except MsstsError as error:
            said.append(str(error))
    return said


def test_results_are_posted_in_order_and_in_batches(receiver: Receiver) -> None:
    sink = Webhook(receiver.url, batch=8, seconds=0)
    sink.open(None)
    assert write_all(sink, 50) == []
    sink.close()
    assert receiver.numbers == list(range(50))
    assert all(len(post) <= 8 for _, post in receiver.posts)
    headers = receiver.posts[0][0]
    assert headers["Content-Type"] == "application/json"
    assert headers["Authorization"] == "Basic dXNlcjpzZWNyZXQ="  # user:secret


def test_a_batch_that_failed_is_sent_again(receiver: Receiver) -> None:
    receiver.answers = [503, 200]
    sink = Webhook(receiver.url, seconds=0)
    sink.open(None)
    sink.write(result(0))
    sink.close()
    assert receiver.numbers == [0]


def test_a_slow_receiver_never_holds_up_the_video(receiver: Receiver) -> None:
    receiver.delay = 0.2
    sink = Webhook(receiver.url, batch=2, seconds=0, most_waiting=10, timeout=1)
    sink.open(None)
    start = time.monotonic()
    write_all(sink, 100)
    assert time.monotonic() - start < 0.2
    with pytest.raises(MsstsError, match=r"\d+ frames were not posted") as error:
        sink.close()
    assert "secret" not in str(error.value) and "hidden" not in str(error.value)
    assert receiver.numbers[-1] == 99  # the newest are kept


def test_a_refusal_is_said_once_and_not_tried_again(receiver: Receiver) -> None:
    receiver.answers = [401]
    sink = Webhook(receiver.url, batch=1, seconds=0)
    sink.open(None)
    said = []
    for number in range(20):
        time.sleep(0.01)
        try:
            sink.write(result(number))
        except MsstsError as error:
            said.append(str(error))
    with pytest.raises(MsstsError, match="20 frames were not posted"):
        sink.close()
    (line,) = said
    assert "answers 401" in line and "secret" not in line and "hidden" not in line


def test_a_redirection_is_a_refusal(receiver: Receiver) -> None:
    """Followed, a post loses its results and takes the password to another host."""
    asked = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as other:
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        receiver.answers, receiver.location = [302], f"http://127.0.0.1:{other.server_port}/"
        sink = Webhook(receiver.url, seconds=0)
        sink.open(None)
        sink.write(result(0))
        with pytest.raises(MsstsError, match="1 frames were not posted"):
            sink.close()
        other.shutdown()
    assert asked == []


@pytest.mark.parametrize("url", ["ftp://a/b", "http://", "nonsense", "http://[::1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(MsstsError, match="not an address"):
        Webhook(url)


# --- overlays -----------------------------------------------------------------------------------------------------


def test_an_overlay_has_every_frame_at_its_time(tmp_path: Path) -> None:
    path = tmp_path / "overlay.mp4"
    source = HandSource(is_live=False)
    source.give(*range(14), wait=False)
    source.end()
    stream = Stream(source.source, ColourSegmenter(), StreamOptions(images=True))
    run_stream(stream, [OverlayVideo(path, 12.0)], pytest.fail)
    frames = list(open_source(path).videos[0].frames())
    assert [frame.time for frame in frames] == pytest.approx([t / 12 for t in range(14)], abs=1e-3)
    height, width = frames[0].rgb_HWC.shape[:2]
    centre = frames[12].rgb_HWC[height * 34 // 48, width * 70 // 96]  # of the blue square, drawn over
    assert abs(centre.astype(int) - (0, 0, 255)).max() > 40


def test_an_overlay_needs_an_mp4(tmp_path: Path) -> None:
    with pytest.raises(MsstsError, match=r"ends with \.mp4"):
        OverlayVideo(tmp_path / "x.avi", None).open(None)


# --- running ------------------------------------------------------------------------------------------------------


def test_a_sink_that_fails_is_said_and_the_others_go_on(tmp_path: Path) -> None:
    class Failing(Sink):
        def write(self, result: FrameResult) -> None:
            if result.frame == 3:
                raise MsstsError("full")

        def close(self) -> None:
            raise MsstsError("not closed well")

    source = HandSource(is_live=False)
    source.give(*range(9), wait=False)
    source.end()
    said: list[str] = []
    path = tmp_path / "tracks.jsonl"
    stream = Stream(source.source, ColourSegmenter(), StreamOptions())
    run_stream(stream, [Failing(), JsonlFile(path, 10**6)], said.append)
    assert said == ["full", "not closed well"]
    assert numbers(path) == list(range(9))
