"""Fuzzer of the live server: requests that no client would send, from a seed.

    python tests/serving/fuzz.py --requests 2000 --seed 1     # serves the toy engine and sends them

`attack` sends them to a server that runs. After every few it sends a good clip and compares the answer, and in the end
the processes must be the ones of the start and hold no more memory.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mutations import Mutations
from support.serving import assert_same, clip_with_rectangles

from mssts.segmenters.base import Segmenter
from mssts.serving.processes import stubs_of
from mssts.serving.server import TritonServer

_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_SECONDS = 30.0  # for one request
_GOOD_EVERY = 25


@dataclass
class Outcome:
    """What became of an attack.

    Attributes:
        sent: how many requests.
        answers: how often each kind of request had each status.
        memory_mb: anonymous and shared memory of all processes of the server: the least in the second quarter of the
            attack, and the least in the last. The first quarter is the warm-up: each process keeps buffers of the
            largest clip that it has seen, some of them sooner than others. A leak lifts the floor; what comes and goes
            does not.
        slowest: seconds of the request that took longest, and its kind.
    """

    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    memory_mb: tuple[float, float] = (0.0, 0.0)
    slowest: tuple[float, str] = (0.0, "")


def send_grpc(channel: grpc.Channel, message: bytes) -> str:
    """The status of a message of raw bytes."""
    call = channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
    try:
        call(message, timeout=_SECONDS)
    except grpc.RpcError as error:
        return str(error.code()).removeprefix("StatusCode.")
    return "OK"


def send_http(port: int, request: bytes) -> str:
    """The status of an HTTP request of raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        connection.settimeout(2.0)  # a request whose length was damaged has no answer
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except TimeoutError:
            return "none"
        except OSError:
            return "closed"
    return answer[9:12].decode(errors="replace") or "closed"


def vanish(port: int, chance: random.Random, request: bytes) -> str:
    """A client that ends in the middle of its request, or reads nothing of the answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as connection:
        if chance.random() < 0.5:  # a reset instead of an orderly end
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        end = len(request) if chance.random() < 0.3 else chance.randrange(1, len(request))
        connection.sendall(request[:end])
    return "gone"


def memory_mb(server: TritonServer, *kinds: str) -> float:
    """The proportional resident memory of a server and of its models' processes.

    Of some `kinds`, as `Pss_Anon`.
    """
    total = 0
    for pid in (server.pid, *stubs_of(server.pid)):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.partition(":")[0] in (kinds or ("Pss",)):
                total += int(line.split()[1])
    return total / 1024


def attack(
    server: TritonServer,
    client: Segmenter,
    local: Segmenter,
    requests: int,
    seed: int,
    note: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Sends so many requests, one after the other.

    Raises:
        AssertionError: a good clip between them was not answered as the local engine answers it, a request had no
            answer in time, or a process of the server is not the one of the start.
    """
    outcome = Outcome()
    mutations = Mutations(seed)
    kinds = ("protobuf", "tensors", "options", "images", "images", "pixels", "http", "vanish")
    pids = {server.pid, *stubs_of(server.pid)}
    clip = clip_with_rectangles()
    expected = local.segment(clip)
    address = server.grpc_url.removeprefix("grpc://")
    grpc_port, http_port = int(address.rpartition(":")[2]), int(server.http_url.rpartition(":")[2])
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    # Pages of files are left out: they are shared with whatever else runs here.
    memory: list[float] = []
    with grpc.insecure_channel(address, unlimited) as channel:
        for message in mutations.largest() * 3:
            assert send_grpc(channel, message) == "OK"
        for index in range(requests):
            kind = mutations.random.choice(kinds)
            start = time.monotonic()
            if kind == "http":
                status = send_http(http_port, mutations.http())
            elif kind == "vanish":
                port = mutations.random.choice((grpc_port, http_port))
                status = vanish(port, mutations.random, mutations.http())
            else:
                status = send_grpc(channel, getattr(mutations, kind)())
            seconds = time.monotonic() - start
            outcome.slowest = max(outcome.slowest, (seconds, f"{kind} {index}"))
            outcome.answers[f"{kind} {status}"] += 1
            outcome.sent += 1
            alive = {server.pid, *stubs_of(server.pid)}
            assert alive == pids and server.fault() is None, f"seed {seed}, request {index} ({kind}): {server.fault()}"
            assert status != "DEADLINE_EXCEEDED", f"seed {seed}, request {index} ({kind}): no answer in {_SECONDS:g} s"
            if index % _GOOD_EVERY == _GOOD_EVERY - 1 or index == requests - 1:
                assert_same(client.segment(clip), expected)
                memory.append(memory_mb(server, "Pss_Anon", "Pss_Shmem"))
            if index % 250 == 249:
                note(f"{index + 1} of {requests} sent, {memory[-1]:.0f} MB")
    quarter = max(len(memory) // 4, 1)
    outcome.memory_mb = (min(memory[quarter : 2 * quarter] or memory), min(memory[-quarter:]))
    return outcome


def main() -> None:
    """Serves the toy engine and attacks it."""
    from support.toy_engine import write_toy_engine

    from mssts.segmenters.local import LocalSegmenter
    from mssts.segmenters.triton import TritonSegmenter
    from mssts.serving.repository import model_repository

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engine = write_toy_engine(Path(folder)).parent
        with (
            model_repository(engine, threads=1) as repository,
            TritonServer(repository) as server,
            TritonSegmenter(server.grpc_url) as client,
            LocalSegmenter(engine, threads=1) as local,
        ):
            outcome = attack(server, client, local, arguments.requests, arguments.seed, print)
    for answer, count in sorted(outcome.answers.items()):
        print(f"{count:6d}  {answer}")
    print(f"memory at least {outcome.memory_mb[0]:.1f} MB after the warm-up, {outcome.memory_mb[1]:.1f} MB in the end")
    print(f"slowest {outcome.slowest[0]:.1f} s ({outcome.slowest[1]})")


if __name__ == "__main__":
    main()
