"""Retries: when, on which server, and until when, by a clock that the test moves."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mssts.errors import MsstsError
from mssts.segmenters.triton.addresses import parse_urls
from mssts.segmenters.triton.failures import Failure, Kind, failure_of
from mssts.segmenters.triton.options import ClientOptions
from mssts.segmenters.triton.retries import Attempts, Pool, Server

FULL, ABSENT = Failure(Kind.FULL, "Exceeds maximum queue size"), Failure(Kind.ABSENT, "Connection refused")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pool_of(urls: str, clock: Clock, fraction: float = 0.0) -> Pool:
    return Pool([Server(address, None) for address in parse_urls(urls)], clock, lambda: fraction)


def exception(status: str, message: str) -> SimpleNamespace:
    return SimpleNamespace(status=lambda: f"StatusCode.{status}", message=lambda: message)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [  # as 2.51 and nginx said them
        ("UNAVAILABLE", "in ensemble 'mssts_vis', [request id: <id_unknown>] Exceeds maximum queue size", Kind.FULL),
        ("UNAVAILABLE", "in ensemble 'mssts_vis', Request timeout expired", Kind.FULL),
        ("UNAVAILABLE", "Received http2 header with status: 503", Kind.FULL),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused", Kind.ABSENT),
        ("UNAVAILABLE", "Socket closed", Kind.ABSENT),
        ("UNAVAILABLE", "Tls handshake failed: CERTIFICATE_VERIFY_FAILED", Kind.REFUSED),
        ("INTERNAL", "in ensemble 'mssts_vis', Stub process 'engine_0_0' is not healthy.", Kind.BROKEN),
        ("NOT_FOUND", "Request for unknown model: 'mssts_vis' is not found", Kind.BROKEN),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", Kind.LATE),
        ("INVALID_ARGUMENT", "in ensemble 'mssts_vis', frame 0: not a JPEG or PNG image", Kind.REFUSED),
        ("INTERNAL", "in ensemble 'mssts_vis', internal error (ValueError: x); the server's log", Kind.REFUSED),
    ],
)
def test_an_error_is_what_it_means_not_what_its_status_is(status: str, message: str, kind: Kind) -> None:
    failure = failure_of(exception(status, message))
    assert failure.kind is kind
    assert not failure.message.startswith(("in ensemble", "[request id"))


def test_pauses_grow_and_end_at_the_deadline() -> None:
    clock = Clock()
    attempts = Attempts(pool_of("grpc://a:1", clock), timeout=10, reconnect=60)
    pauses: list[float] = []
    with pytest.raises(MsstsError, match=r"a:1: the server is full and refused the clip for 10 s"):
        while True:
            server, wait = attempts.take()
            if wait:
                pauses.append(wait)
                clock.now += wait
                continue
            clock.now += 0.01
            attempts.failed(server, FULL)
    assert pauses[:3] == pytest.approx([0.05, 0.1, 0.2])
    assert max(pauses) <= 1.0
    assert 9 < clock.now - 1000 <= 10


def test_half_of_a_pause_is_chance() -> None:
    for fraction, expected in ((0.0, 0.05), (1.0, 0.025)):
        clock = Clock()
        attempts = Attempts(pool_of("grpc://a:1", clock, fraction), timeout=10, reconnect=60)
        attempts.failed(attempts.take()[0], FULL)
        assert attempts.take()[1] == pytest.approx(expected)


def test_another_server_is_tried_at_once() -> None:
    clock = Clock()
    attempts = Attempts(pool_of("grpc://a:1,b:1,c:1", clock), timeout=10, reconnect=60)
    tried = []
    for failure in (FULL, ABSENT, FULL):
        server, wait = attempts.take()
        assert not wait
        tried.append(str(server.address))
        attempts.failed(server, failure)
    assert sorted(tried) == ["a:1", "b:1", "c:1"]
    assert attempts.take()[1] > 0


def test_work_goes_to_the_least_busy_server() -> None:
    pool = pool_of("grpc://a:1,b:1", Clock())
    taken = [pool.take()[0] for _ in range(4)]
    assert sorted(str(server.address) for server in taken) == ["a:1", "a:1", "b:1", "b:1"]
    for server in taken[:2]:
        pool.give_back(server, None)
    assert {str(pool.take()[0].address) for _ in range(2)} == {"a:1", "b:1"}


def test_nobody_answers_for_longer_than_a_restart_takes() -> None:
    clock = Clock()
    attempts = Attempts(pool_of("grpc://a:1", clock), timeout=300, reconnect=20)
    with pytest.raises(MsstsError, match=r"a:1: no Triton server answers there.*\(Connection refused\)"):
        while True:
            server, wait = attempts.take()
            clock.now += wait
            if not wait:
                attempts.failed(server, ABSENT)
    assert 20 <= clock.now - 1000 < 23


def test_a_server_that_came_back_is_asked_who_it_is() -> None:
    clock = Clock()
    pool = pool_of("grpc://a:1", clock)
    (server,) = pool.servers
    server.is_known = True
    attempts = Attempts(pool, timeout=10, reconnect=20)
    attempts.failed(attempts.take()[0], FULL)
    assert server.is_known
    clock.now += 5
    attempts.failed(attempts.take()[0], ABSENT)
    assert not server.is_known


@pytest.mark.parametrize("kind", [Kind.REFUSED, Kind.LATE])
def test_what_cannot_pass_is_not_tried_again(kind: Kind) -> None:
    attempts = Attempts(pool_of("grpc://a:1", Clock()), timeout=10, reconnect=20)
    server, _ = attempts.take()
    server.is_known = True
    with pytest.raises(MsstsError, match="^frame 0: no$" if kind is Kind.REFUSED else "no answer after 10 s"):
        attempts.failed(server, Failure(kind, "frame 0: no"))


def test_urls_of_several_servers() -> None:
    addresses = parse_urls("grpcs://a.example:8001,[::1]:2/,grpc://127.0.0.1:3")
    assert [(a.name, a.is_loopback, a.is_encrypted) for a in addresses] == [
        ("a.example:8001", False, True),
        ("[::1]:2", True, True),
        ("127.0.0.1:3", True, False),
    ]
    with pytest.raises(MsstsError, match="names a:1 twice"):
        parse_urls("grpc://a:1,b:1,a:1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timeout": 0}, "timeout must be above 0"),
        ({"in_flight": 0}, "at least 1 clip"),
        ({"certificate": "c"}, "give both"),
        ({"jpeg_quality": 101}, "from 1 to 100"),
    ],
)
def test_options_that_mean_nothing(options: dict, said: str) -> None:
    with pytest.raises(MsstsError, match=said):
        ClientOptions(**options)


def test_certificates_need_tls_and_a_file() -> None:
    options = ClientOptions(root_certificates="absent.crt")
    (plain,) = parse_urls("grpc://a:1")
    with pytest.raises(MsstsError, match=r"write grpcs://a:1"):
        plain.channel_arguments(options)
    (encrypted,) = parse_urls("grpcs://a:1")
    with pytest.raises(MsstsError, match=r"absent\.crt: no such file"):
        encrypted.channel_arguments(options)
