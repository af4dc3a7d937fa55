"""The page of `--view`: who may see it, what it shows, and its viewers."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.browser import browser
from support.media_files import write_video
from support.streams import PATIENCE, ColourSegmenter, HandSource, picture
from support.tools import needs_tool
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.errors import MsstsError
from mssts.media.video import Frame
from mssts.segmenters.base import ServerHealth
from mssts.streaming import page as page_module
from mssts.streaming.jsonl import JsonlFile
from mssts.streaming.options import StreamOptions
from mssts.streaming.page import Page
from mssts.streaming.page_address import PageAddress, is_loopback_header
from mssts.streaming.page_server import PageServer
from mssts.streaming.running import run_stream
from mssts.streaming.sources import Gap, SizedFrame
from mssts.streaming.stream import Stream


class Shown:
    """A stream that the test feeds, with its page and its JSON lines."""

    def __init__(self, folder: Path, view: str) -> None:
        self.source, self.segmenter, self.jsonl = HandSource(), ColourSegmenter(), folder / "tracks.jsonl"
        self.said: list[str] = []
        self.stream = Stream(
            self.source.source, self.segmenter, StreamOptions(score_threshold=0, images=True), self.said.append
        )
        self.source.stream = self.stream
        page = Page(PageAddress.parse(view), "camera", self.segmenter, self.said.append)
        sinks = [JsonlFile(self.jsonl, 10**9), page]
        self._thread = threading.Thread(target=run_stream, args=(self.stream, sinks, self.said.append))
        self._thread.start()
        wait_for(lambda: any("watch it at" in line for line in self.said))
        self.url = next(line for line in self.said if "watch it at" in line).split()[-1]

    def get(self, path: str = "") -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=PATIENCE) as answer:
            return answer.read()

    def state(self) -> dict[str, Any]:
        return json.loads(self.get("state"))

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.jsonl.read_text().splitlines()]

    def end(self) -> None:
        self.source.end()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture
def show(tmp_path: Path) -> Iterator[Callable[..., Shown]]:
    shown: list[Shown] = []

    def start(view: str = "0") -> Shown:
        shown.append(Shown(tmp_path, view))
        return shown[-1]

    yield start
    for each in shown:
        each.end()


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- who may see it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("8080", "127.0.0.1", 8080),
        ("0.0.0.0:1", "0.0.0.0", 1),
        ("[::1]:80", "::1", 80),
        ("localhost:0", "localhost", 0),
    ],
)
def test_an_address_is_read(text: str, host: str, port: int) -> None:
    address = PageAddress.parse(text)
    assert (address.host, address.port) == (host, port)
    assert bool(address.token) is (host == "0.0.0.0")


@pytest.mark.parametrize("text", ["", "camera", "host:", "host:70000", "::1:80", "-1", "host:٣"])
def test_what_is_no_address_is_one_line(text: str) -> None:
    with pytest.raises(MsstsError, match="expected a port"):
        PageAddress.parse(text)


def test_beyond_this_machine_a_token_is_asked_for(show: Callable[..., Shown]) -> None:
    shown = show("0.0.0.0:0")
    address, _, query = shown.url.partition("?")
    assert query.startswith("token=") and len(query) > 20
    base = f"http://127.0.0.1:{urllib.request.urlparse(address).port}/"
    for path in ("", "state", "picture", "?token=", "state?token=x"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(base + path, timeout=PATIENCE)
        assert refused.value.code == 403
    assert urllib.request.urlopen(f"{base}state?{query}", timeout=PATIENCE).status == 200


def test_another_sites_name_for_this_machine_is_refused(show: Callable[..., Shown]) -> None:
    shown = show()
    request = urllib.request.Request(shown.url + "state", headers={"Host": "evil.example:80"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=PATIENCE)
    assert refused.value.code == 403
    assert all(map(is_loopback_header, ("127.0.0.1:80", "localhost", "[::1]:80", "[::1]")))


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = write_toy_engine(tmp_path / "engine").parent
    video = write_video(tmp_path / "scene.mp4", [picture(number) for number in range(6)], rate=12)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["stream", str(video), "--model", str(engine), "--view", str(port)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"127.0.0.1:{port}: cannot listen there: Address already in use" in error
    # A file ends the command, page or not, and the page is an output of its own: no lines on stdout.
    assert main(["stream", str(video), "--model", str(engine), "--view", "0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "watch it at http://127.0.0.1:" in captured.err


# --- what it shows ------------------------------------------------------------------------------------------------


def test_its_figures_are_those_of_the_lines(show: Callable[..., Shown]) -> None:
    shown = show()
    assert shown.state()["frame"] is None
    shown.source.give(*range(29))
    shown.source.give(Gap("camera: lost"))  # what was read comes out
    wait_for(lambda: shown.state()["frame"] == 28)
    state, lines = shown.state(), shown.lines()
    assert state["frames"] == len(lines) == 29 and state["dropped"] == 0
    assert state["lines"] == ["camera: lost"] and state["servers"] == []
    last = lines[-1]
    assert state["time"] == last["time"]
    assert [(item["track"], item["name"], item["score"]) for item in state["tracks"]] == [
        (item["track"], item["name"], item["score"]) for item in last["instances"]
    ]
    first = {}
    for line in lines:
        for item in line["instances"]:
            first.setdefault(item["track"], line["time"])
    for item in state["tracks"]:
        assert item["age"] == pytest.approx(last["time"] - first[item["track"]], abs=0.01)


def test_a_server_that_is_gone_is_shown(show: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ColourSegmenter, "health", lambda self: (ServerHealth("host:8001", False),))
    shown = show()
    shown.source.give(*range(5))
    wait_for(lambda: shown.state()["servers"] == [{"name": "host:8001", "is_ready": False}])


# --- viewers ------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_once_for_all_and_only_if_watched(
    show: Callable[..., Shown], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = [], page_module._jpeg

    def counted(result: Any) -> bytes:
        drawn.append(result.frame)
        return draw(result)

    monkeypatch.setattr(page_module, "_jpeg", counted)
    shown = show()
    shown.source.give(*range(5))
    wait_for(lambda: shown.state()["frame"] == 4)
    assert drawn == []
    answers = [urllib.request.urlopen(shown.url + f"picture?viewer={n}", timeout=PATIENCE) for n in range(3)]
    assert all(answer.read(200).startswith(b"--frame\r\nContent-Type: image/jpeg") for answer in answers)
    before = len(drawn)
    assert set(drawn) == {4}  # the last frame, for those who came
    assert shown.state()["viewers"] == 3
    shown.source.give(*range(5, 9))
    wait_for(lambda: shown.state()["frame"] == 8)
    assert len(drawn) - before <= 4
    for answer in answers:
        answer.close()


def test_a_viewer_that_never_reads_is_dropped_and_nothing_grows() -> None:
    server = PageServer(PageAddress.parse("0"), lambda: None, patience=0.5)
    server.start()
    jpeg = np.random.default_rng(0).bytes(400_000)
    try:
        host, port = "127.0.0.1", int(server.url.split(":")[2].strip("/"))
        with socket.create_connection((host, port)) as viewer:
            viewer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            viewer.sendall(b"GET /picture?viewer=a HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_for(lambda: server.is_watched)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            published, end = 0, time.monotonic() + PATIENCE
            while server.is_watched:
                started = time.monotonic()
                server.publish({}, bytes(jpeg))
                published += 1
                assert time.monotonic() - started < 1 and time.monotonic() < end
                time.sleep(0.005)
            assert published > 50
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
            assert grown < published * len(jpeg) / 1e6 / 2
    finally:
        server.stop()


@needs_tool("chromium")
def test_in_a_browser(show: Callable[..., Shown], tmp_path: Path) -> None:
    """The picture changes, and the figures are those of the lines.

    Nothing is asked elsewhere, and no error is logged.
    """
    shown = show()

    async def watch() -> None:
        async with browser(tmp_path / "profile") as page:
            await page.size(390, 844)
            await page.go(shown.url)
            await page.until("document.getElementById('status').textContent === 'running'")
            pictures = []
            for start in (0, 15):
                await asyncio.to_thread(shown.source.give, *map(enlarged, range(start, start + 15)))
                await asyncio.to_thread(shown.source.give, Gap(f"camera: lost {start}"))
                await page.until(f"document.getElementById('number').textContent.startsWith('{start + 14} ')")
                await page.until("document.getElementById('picture').naturalWidth > 0")
                await asyncio.sleep(0.5)
                pictures.append(await page.screenshot())
                last = shown.lines()[-1]
                rows = await page.value(
                    "[...document.querySelectorAll('#tracks tbody tr')].map((row) => row.innerText)"
                )
                assert [row.split("\t")[:2] for row in rows] == [
                    [f"{item['name']} #{item['track']}", f"{item['score']:.2f}"] for item in last["instances"]
                ]
            assert pictures[0] != pictures[1]
            assert await page.value(RED)
            assert await page.value("document.documentElement.scrollWidth") == 390
            assert all(url.startswith((shown.url, "data:")) for url in page.requests), page.requests
            assert page.errors == []

            # A stream that ends and begins again is shown again, by the same page.
            await asyncio.to_thread(shown.end)
            await page.until("document.getElementById('status').textContent === 'ended'")
            again = show(shown.url.split(":")[2].strip("/"))
            await asyncio.to_thread(again.source.give, *map(enlarged, range(5)))
            await page.until("document.getElementById('status').textContent === 'running'")
            await page.until("document.getElementById('number').textContent.startsWith('4 ')")
            await asyncio.to_thread(wait_for, lambda: again.state()["viewers"] == 1)

    asyncio.run(watch())


# Whether the picture on the page has the red square of the scene in it.
RED = """(() => {
  const canvas = document.createElement("canvas"), image = document.getElementById("picture");
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let red = 0;
  for (let i = 0; i < pixels.length; i += 4) red += pixels[i] > 150 && pixels[i + 2] < 100;
  return red > canvas.width * canvas.height / 50;
})()"""


def enlarged(number: int) -> SizedFrame:
    rgb_HWC = picture(number).repeat(4, axis=0).repeat(4, axis=1)
    return SizedFrame(Frame(rgb_HWC, time=number / 12), rgb_HWC.shape[:2])
