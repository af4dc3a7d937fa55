"""`mssts health`: whether a server can answer, for probes of containers."""

from __future__ import annotations

import argparse
import sys

HELP = "tell whether a server can answer; exit code 1 if not"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", metavar="http://HOST:PORT",
        help="the HTTP port of a Triton server, or the health port of `mssts serve` (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--metrics-url", default="http://127.0.0.1:8002", metavar="http://HOST:PORT",
        help="its metrics, which say which models are busy (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--timeout", type=float, default=5.0, metavar="SECONDS", help="default: %(default)g")
    parser.add_argument(
        "--no-canary", dest="canary", action="store_false",
        help="send no request; the server's word and the processes alone",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Asks once."""
    from mssts.serving.health import Endpoint, check
    from mssts.serving.model_config import MODELS

    endpoint = Endpoint.parse(arguments.url, arguments.timeout)
    metrics = Endpoint.parse(arguments.metrics_url, arguments.timeout)
    fault = check(endpoint, MODELS, metrics, arguments.canary)
    if fault:
        print(f"mssts health: {fault}", file=sys.stderr)
        return 1
    return 0
