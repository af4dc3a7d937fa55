"""`mssts serve`: a Triton server on one engine, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mssts.artefact import Kind
from mssts.errors import MsstsError
from mssts.manifest import FixedShape
from mssts.runners import AUTO, runner_help
from mssts.serving import LOOPBACK, NONE, USUAL

if TYPE_CHECKING:
    from mssts.serving.server import Tls

HELP = "serve an exported engine with Triton"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help="the folder or ONNX file of an engine"
    )
    for name in ("grpc", "http", "metrics", "health"):
        parser.add_argument(f"--{name}-port", type=int, metavar="PORT", help="a free one by default")
    parser.add_argument("--host", default=LOOPBACK, metavar="ADDRESS", help="where to listen (default: %(default)s)")
    parser.add_argument(
        "--trust-network", action="store_true",
        help="listen where others can reach this server, an old build of Triton: inside a container's network, say",
    )  # fmt: skip
    parser.add_argument(
        "--allow-shared-memory", action="store_true",
        help="let clients name shared memory of this machine for the server to read and write, other programs' too",
    )  # fmt: skip
    parser.add_argument(
        "--tls-certificate", type=Path, metavar="FILE",
        help="speak TLS on the gRPC port, with this certificate (PEM); HTTP and metrics stay on this machine then",
    )  # fmt: skip
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="the certificate's private key")
    parser.add_argument(
        "--tls-client-authority", type=Path, metavar="FILE",
        help="serve only clients whose certificate this authority signed",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, metavar="N", help="cores for the engine (default: all)")
    parser.add_argument("--runner", default=AUTO, help=runner_help(Kind.ONNX))
    parser.add_argument(
        "--warm",
        metavar="BxTxHxW",
        default=USUAL,
        help="run this input shape once before the server is ready, as 1x5x360x640, or none (default: the engine's own "
        "shape, else a clip of its length at 16:9)",
    )
    parser.add_argument(
        "--max-queue", type=int, default=2, metavar="N",
        help="clips that may wait for a step; more are refused, and clients try again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-queue-seconds", type=float, default=1.0, metavar="SECONDS",
        help="a clip that would wait longer, and for more than one other, is refused; 0 for no limit (default: "
        "%(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--max-restarts", type=int, default=5, metavar="N",
        help="give up when the server has died or hung more often than this in ten minutes (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--startup-timeout", type=float, default=120.0, metavar="SECONDS", help="to be ready in (default: %(default)g)"
    )


def run(arguments: argparse.Namespace) -> int:
    from mssts.serving.admission import QueueLimits
    from mssts.serving.repository import model_repository
    from mssts.serving.server import TritonServer
    from mssts.serving.supervisor import HealthServer, RestartLimits, Supervisor

    if arguments.threads is not None and arguments.threads < 1:
        raise MsstsError(f"--threads must be at least 1, not {arguments.threads}")
    queue = QueueLimits(arguments.max_queue, arguments.max_queue_seconds)
    tls = _tls(arguments)
    warm = arguments.warm if arguments.warm in (USUAL, NONE) else FixedShape.parse("--warm", arguments.warm)
    # Not every parent leaves SIGINT to us: a shell ignores it for its background jobs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with model_repository(arguments.model, arguments.threads, arguments.runner, warm, queue) as repository:
            server = TritonServer(
                repository,
                arguments.grpc_port,
                arguments.http_port,
                arguments.metrics_port,
                arguments.host,
                arguments.startup_timeout,
                tls,
                arguments.trust_network,
                arguments.allow_shared_memory,
            )
            limits = RestartLimits(arguments.max_restarts)
            supervisor = Supervisor(server, limits, lambda line: _say(line, server.log_path))
            health_host = LOOPBACK if tls else arguments.host
            with HealthServer(health_host, arguments.health_port, supervisor.state) as health, server:
                print(f"{server.grpc_url} is ready (Triton {server.version}); Ctrl-C stops it")
                print(f"http     {server.http_url}\nmetrics  {server.metrics_url}\nlog      {server.log_path}")
                print(f"health   {health.url}/v2/health/ready", flush=True)
                supervisor.run()
    except KeyboardInterrupt:
        return 0


def _tls(arguments: argparse.Namespace) -> Tls | None:
    """The TLS settings of the options.

    Raises:
        MsstsError: a part of it is missing.
    """
    from mssts.serving.server import Tls

    if arguments.tls_certificate is None and arguments.tls_key is None:
        if arguments.tls_client_authority is not None:
            raise MsstsError("--tls-client-authority needs --tls-certificate and --tls-key")
        return None
    if arguments.tls_certificate is None or arguments.tls_key is None:
        raise MsstsError("TLS needs both --tls-certificate and --tls-key")
    return Tls(arguments.tls_certificate, arguments.tls_key, arguments.tls_client_authority)


def _say(line: str, log_path: Path) -> None:
    """Prints why something happened, and notes it in the server's log."""
    stamped = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} mssts serve: {line}"
    print(stamped, file=sys.stderr, flush=True)
    with open(log_path, "a", encoding="utf-8") as log:
        print(stamped, file=log)
