"""Admission to the engine's queue, from a metrics page that the test writes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mssts.serving import admission
from mssts.serving.admission import Admission, QueueLimits, Refused, check_age

PAGE = """# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{{model="preprocess",version="1"}} 9
nv_inference_pending_request_count{{model="engine",version="1"}} {waiting}
# TYPE mssts_engine_clip_seconds gauge
mssts_engine_clip_seconds {seconds}
"""


@pytest.fixture
def page() -> Iterator[dict[str, str]]:
    """A server whose page at `address` is `text`."""
    shown = {"text": ""}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = shown["text"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    shown["address"] = f"127.0.0.1:{server.server_port}"
    yield shown
    server.shutdown()
    server.server_close()


def test_clips_pass_while_fewer_than_the_limit_wait(page: dict[str, str]) -> None:
    gate = Admission(QueueLimits(clips=2), page["address"])
    for waiting in (0, 1, 0):
        page["text"] = PAGE.format(waiting=waiting, seconds=0.1)
        assert gate.check() is None
    for waiting in (2, 3):
        page["text"] = PAGE.format(waiting=waiting, seconds=0.1)
        with pytest.raises(Refused, match=f"the server is full: {waiting} clips wait"):
            gate.check()


@pytest.mark.parametrize(
    ("seconds", "limit", "let_in"),
    [(0.1, 1.0, 3), (0.5, 1.0, 2), (0.6, 1.0, 2), (0.7, 1.0, 1), (5.0, 1.0, 1), (5.0, 8.0, 2), (5.0, 0.0, 3)],
)
def test_fewer_may_wait_for_a_slow_engine(page: dict[str, str], seconds: float, limit: float, let_in: int) -> None:
    gate = Admission(QueueLimits(clips=3, seconds=limit), page["address"])
    for waiting in range(4):
        page["text"] = PAGE.format(waiting=waiting, seconds=seconds)
        if waiting < let_in:
            assert gate.check() is None
        else:
            with pytest.raises(Refused, match=f"the server is full: {waiting} "):
                gate.check()


def test_what_waited_for_one_clip_is_computed_however_slow_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1_000]
    monkeypatch.setattr(admission.time, "monotonic_ns", lambda: now[0] * 1_000_000)
    arrived = admission.stamp()
    now[0] += 5_000
    check_age(arrived, QueueLimits(seconds=1.0), clip_seconds=5.0)
    with pytest.raises(Refused, match=r"waited 5\.0 s .* over the limit of 3\.75 s"):
        check_age(arrived, QueueLimits(seconds=1.0), clip_seconds=3.0)


def test_a_server_without_metrics_limits_nothing_and_says_why(page: dict[str, str]) -> None:
    page["text"] = "nothing of that kind\n"
    assert "do not say how many" in str(Admission(QueueLimits(), page["address"]).check())
    gate = Admission(QueueLimits(), "127.0.0.1:1")
    for _ in range(2):
        assert "no metrics at 127.0.0.1:1: ConnectionRefusedError" in str(gate.check())


def test_age_is_checked_across_the_clocks_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5_000_000_000]
    monkeypatch.setattr(admission.time, "monotonic_ns", lambda: now[0] * 1_000_000)
    limits = QueueLimits(seconds=1.5)
    for start in (5_000_000_000, 2**31 - 700, 3 * 2**31 - 1):
        now[0] = start
        arrived = admission.stamp()
        assert 0 <= arrived < 2**31
        now[0] = start + 1500
        check_age(arrived, limits)
        now[0] = start + 1600
        with pytest.raises(Refused, match=r"waited 1\.6 s .* over the limit of 1\.5 s"):
            check_age(arrived, limits)
        check_age(arrived, QueueLimits(seconds=0))
