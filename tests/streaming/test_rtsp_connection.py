"""Cameras over RTSP: no frame waits for the next, and frames are FFmpeg's."""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from support.rtsp_replay import RATE, ReplayServer, rtp_packets
from support.streams import picture
from support.toy_engine import write_toy_engine

from mssts.cli import main
from mssts.errors import MsstsError
from mssts.streaming import rtsp_login, rtsp_session
from mssts.streaming.capture import Connection
from mssts.streaming.options import StreamOptions
from mssts.streaming.rtp import AccessUnits, RtpPacket
from mssts.streaming.rtsp_connection import RtspConnection
from mssts.streaming.rtsp_film import Film, RtspUnsupportedError
from mssts.streaming.rtsp_login import Login
from mssts.streaming.sources import Gap, open_stream_source

COUNT, GROUP = 24, 6
NO_DELAY = {"tune": "zerolatency", "g": str(GROUP)}
CODECS = {
    "one slice": ("libx264", {**NO_DELAY, "x264-params": "sliced-threads=0"}),
    "slices": ("libx264", {**NO_DELAY, "x264-params": "slices=3:sliced-threads=0"}),
    "B-frames": ("libx264", {"g": str(GROUP), "bf": "2", "x264-params": "b-adapt=0"}),
    "H.265": ("libx265", {"x265-params": f"keyint={GROUP}:bframes=0:log-level=none"}),
}

Found = list[tuple[np.ndarray, float | None]]


@pytest.fixture
def serve() -> Iterator[Callable[..., ReplayServer]]:
    started: list[ReplayServer] = []

    def start(packets: Sequence[bytes], encoding: str = "H264", **more: Any) -> ReplayServer:
        started.append(ReplayServer(packets, encoding, **more))
        return started[-1]

    yield start
    for server in started:
        server.close()


@functools.cache
def packets_of(name: str, packet_size: int = 1400) -> list[bytes]:
    codec, options = CODECS[name]
    return rtp_packets([picture(number) for number in range(COUNT)], codec, packet_size, **options)


def read(connection: Connection | RtspConnection, count: int) -> Found:
    """So many frames, or those that come until the camera is silent."""
    found: Found = []
    with contextlib.suppress(TimeoutError, av.FFmpegError):
        found += itertools.islice(connection.frames(), count)
    connection.close()
    return found


def ours(server: ReplayServer, count: int = COUNT, timeout: float = 5.0) -> Found:
    return read(RtspConnection(server.url, "camera", timeout), count)


def ffmpegs(server: ReplayServer, count: int) -> Found:
    settings = {"rtsp_transport": "tcp", "probesize": "32", "analyzeduration": "0"}
    return read(Connection(server.url, "camera", None, settings, 5), count)


@pytest.mark.parametrize(("name", "packet_size"), [*((name, 1400) for name in CODECS), ("slices", 120), ("H.265", 120)])
def test_frames_are_those_that_ffmpeg_finds(serve: Callable[..., ReplayServer], name: str, packet_size: int) -> None:
    server = serve(packets_of(name, packet_size), "H265" if name == "H.265" else "H264")
    count = COUNT - 3  # FFmpeg waits for the next frame, and here for that of two B-frames
    found, expected = ours(server, count), ffmpegs(server, count)
    assert len(expected) == count
    np.testing.assert_array_equal([rgb for rgb, _ in found], [rgb for rgb, _ in expected])
    times = [time for _, time in found if time is not None]
    assert np.diff(times) == pytest.approx(1 / RATE, abs=1e-4)


@pytest.mark.parametrize("name", ["one slice", "slices", "H.265"])
def test_a_frame_does_not_wait_for_the_next(serve: Callable[..., ReplayServer], name: str) -> None:
    server = serve(packets_of(name), "H265" if name == "H.265" else "H264")
    assert len(ours(server)) == COUNT


def test_frames_with_b_frames_wait_for_their_order_alone(serve: Callable[..., ReplayServer]) -> None:
    assert len(ours(serve(packets_of("B-frames")), COUNT - 2)) == COUNT - 2


@pytest.mark.parametrize("markers", ["on every packet", "absent"])
def test_where_markers_are_wrong_a_frame_ends_with_the_next_ones_time(
    serve: Callable[..., ReplayServer], markers: str
) -> None:
    right = packets_of("slices", 120)
    marker = 0x80 if markers == "on every packet" else 0
    wrong = [bytes([packet[0], packet[1] & 0x7F | marker]) + packet[2:] for packet in right]
    found, expected = ours(serve(wrong), timeout=1.0), ours(serve(right))
    assert len(found) == COUNT - 1
    np.testing.assert_array_equal([rgb for rgb, _ in found], [rgb for rgb, _ in expected[:-1]])


def test_times_go_on_where_timestamps_wrap_around(serve: Callable[..., ReplayServer]) -> None:
    packets = packets_of("one slice")
    shift = -7 * 90000 // RATE - int.from_bytes(packets[0][4:8], "big")

    def moved(packet: bytes) -> bytes:
        timestamp = (int.from_bytes(packet[4:8], "big") + shift) % (1 << 32)
        return packet[:4] + timestamp.to_bytes(4, "big") + packet[8:]

    times = [time for _, time in ours(serve([moved(packet) for packet in packets])) if time is not None]
    assert len(times) == COUNT and np.diff(times) == pytest.approx(1 / RATE, abs=1e-4)


def test_after_lost_packets_frames_go_on(serve: Callable[..., ReplayServer]) -> None:
    packets = packets_of("slices", 120)
    middle = len(packets) // 3
    found = ours(serve([*packets[:middle], *packets[middle + 3 :]]), timeout=1.0)
    assert COUNT - GROUP <= len(found) <= COUNT
    exact = ours(serve(packets))
    np.testing.assert_array_equal([rgb for rgb, _ in found[-GROUP:]], [rgb for rgb, _ in exact[-GROUP:]])


def test_any_bytes_are_packets_or_none() -> None:
    random = np.random.default_rng(5)
    real = packets_of("slices", 120) + packets_of("H.265", 120)
    for codec, number in itertools.product(("h264", "hevc"), range(60)):
        units = AccessUnits(codec)  # type: ignore[arg-type]
        for _ in range(20):
            data = bytearray(real[random.integers(len(real))])
            data = data[: random.integers(len(data) + 1)] if number % 3 == 0 else data
            for at in random.integers(0, max(len(data), 1), 3 if data else 0):
                data[at] = random.integers(256)
            packet = RtpPacket.parse(bytes(data))
            if packet is not None:
                units.push(packet)


def test_a_session_is_kept_alive(serve: Callable[..., ReplayServer]) -> None:
    server = serve(packets_of("one slice"), session="7;timeout=2", pause=0.1)
    assert len(ours(server)) == COUNT
    deadline = time.monotonic() + 5  # the server reads what was said once it has sent its packets
    while not any(said.startswith("GET_PARAMETER") for said in server.requests) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert any(said.startswith("GET_PARAMETER") for said in server.requests)


def test_what_ffmpeg_has_to_see_to_goes_to_it(serve: Callable[..., ReplayServer]) -> None:
    pictures = [picture(number) for number in range(4)]
    server = serve(rtp_packets(pictures, "mpeg4"), "MP4V-ES")
    with pytest.raises(RtspUnsupportedError, match="another codec"):
        RtspConnection(server.url, "camera", 0.5)
    assert open_stream_source(server.url, StreamOptions(timeout=2)).is_live


@pytest.mark.parametrize("name", ["MP4V-ES", "H264"])
def test_a_camera_is_found_again_by_what_has_read_it(serve: Callable[..., ReplayServer], name: str) -> None:
    """The client that does not know its codec is tried once."""
    pictures = [picture(number) for number in range(4)]
    packets = packets_of("one slice") if name == "H264" else rtp_packets(pictures, "mpeg4")
    server = serve(packets, name, ends=True)
    stopped = threading.Event()
    source = open_stream_source(server.url, StreamOptions(timeout=2, reconnect=20))
    for item in source.items(stopped, True):
        if isinstance(item, Gap) and item.is_back:
            break
    agents = [agent.partition("/")[0][:4] for agent in server.agents]
    assert agents == (["msst", "msst"] if name == "H264" else ["msst", "Lavf", "Lavf"])


LOGINS = {"Basic": 'Basic realm="x"', "Digest": 'Digest realm="x", nonce="1"'}


@pytest.mark.parametrize(("name", "status"), [("Basic", 401), ("Digest", 401), ("Digest", 403)])
def test_a_refused_password_is_tried_once(
    serve: Callable[..., ReplayServer], tmp_path: Path, name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A camera locks an account after a few tries."""
    server = serve(packets_of("one slice"), login=LOGINS[name], refusals=[(status, LOGINS[name])] * 9)
    engine = write_toy_engine(tmp_path / "engine").parent
    url = server.url.replace("://", "://admin:wr0ng@")
    assert main(["stream", url, "--model", str(engine), "--jsonl", str(tmp_path / "out.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error == f"mssts stream: error: {server.url}: refuses the user or the password\n"
    assert len(server.passwords) == 1 and not (tmp_path / "out.jsonl").exists()


def test_where_a_password_is_missing_it_is_asked_for(serve: Callable[..., ReplayServer]) -> None:
    server = serve(packets_of("one slice"), login=LOGINS["Digest"])
    with pytest.raises(MsstsError, match="asks for a user and a password"):
        open_stream_source(server.url, StreamOptions(timeout=2))


def test_a_nonce_that_is_too_old_is_no_refusal(serve: Callable[..., ReplayServer]) -> None:
    stale = 'Digest realm="x", nonce="2", stale=TRUE'
    server = serve(packets_of("one slice"), login=LOGINS["Digest"], refusals=[(401, stale)])
    url = server.url.replace("://", "://admin:right@")
    assert len(read(RtspConnection(url, "camera", 5.0), COUNT)) == COUNT
    assert [f'nonce="{number}"' in said for number, said in zip("122", server.passwords, strict=False)] == [True] * 3


def test_a_refused_sign_of_life_is_not_repeated_at_once(
    serve: Callable[..., ReplayServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The packets come all the same."""
    monkeypatch.setattr(rtsp_session, "_AGAIN_SECONDS", 0.01)
    server = serve(packets_of("one slice"), session="7;timeout=2", pause=0.08, login=LOGINS["Digest"])
    connection = RtspConnection(server.url.replace("://", "://admin:changed@"), "camera", 5.0)
    accepted = len(server.passwords)
    server.refusals += [(401, LOGINS["Digest"])] * 99
    assert len(read(connection, COUNT)) == COUNT
    assert 2 <= len(server.passwords) - accepted <= 6  # twice a second, which is half of the session's time


SDP = "v=0\r\na=range:npt={range}\r\nm=audio 0 RTP/AVP 0\r\na=control:a\r\nm=video 0 RTP/AVP 96\r\n{film}"


def test_the_film_is_what_the_camera_says() -> None:
    film = "a=rtpmap:96 H265/90000\r\na=framerate:12.5\r\na=fmtp:96 sprop-vps=QAE=;sprop-sps=QgE=; sprop-pps=RAE=\r\n"
    found = Film.of_description(SDP.format(range="now-", film=film + "a=control:rtsp://other/v"))
    assert found == Film("hevc", (b"\x40\x01", b"\x42\x01", b"\x44\x01"), "rtsp://other/v", 90000, 12.5)


@pytest.mark.parametrize(
    ("range_", "film"),
    [
        ("0-31.5", "a=rtpmap:96 H264/90000"),
        ("now-", "a=rtpmap:26 JPEG/90000"),
        ("now-", ""),
        ("now-", "a=rtpmap:96 H264/90000\r\na=fmtp:96 packetization-mode=2"),
        ("now-", "a=rtpmap:96 H264/90000\r\na=fmtp:96 sprop-parameter-sets=Z0I"),
        ("now-", "a=rtpmap:96 H264/90000\r\na=framerate:fast"),
    ],
)
def test_what_is_no_film_of_a_camera_is_left_to_ffmpeg(range_: str, film: str) -> None:
    with pytest.raises(RtspUnsupportedError):
        Film.of_description(SDP.format(range=range_, film=film))


RFC_7616 = (
    'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm={}, '
    'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"'
)


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
    ],
)
def test_the_login_is_that_of_the_standards_example(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, response: str
) -> None:
    monkeypatch.setattr(rtsp_login.secrets, "token_hex", lambda _: "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ")
    login = Login("Mufasa", "Circle of Life")
    assert login.header("GET", "/dir/index.html") is None
    assert login.accept(['Basic realm="x"', RFC_7616.format(algorithm)])
    assert f'response="{response}"' in str(login.header("GET", "/dir/index.html"))


def test_a_login_without_a_name_or_a_known_scheme_is_none() -> None:
    assert not Login("", "").accept(['Basic realm="x"'])
    assert not Login("user", "word").accept(["Negotiate", RFC_7616.format("MD4")])
    basic = Login("user", "word")
    assert basic.accept(['Basic realm="x"']) and basic.header("PLAY", "/") == "Basic dXNlcjp3b3Jk"
