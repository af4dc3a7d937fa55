"""A server that the container's entry point has started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import pytest
from support.deployment import ENTRYPOINT, ROOT, Entrypoint, Ports, answer_of, free_ports, write_program
from support.toy_engine import write_toy_engine

from mssts.serving.installation import find_tritonserver, link_runtime


@pytest.fixture(scope="session")
def ports() -> Ports:
    """The ports of the server, before it is there."""
    return Ports(*free_ports(3))


@pytest.fixture(scope="session")
def entrypoint(ports: Ports, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Entrypoint]:
    """The container's entry point with the target python, outside a container.

    Two programs stand in for what is in the image: `tritonserver` is the wheel's, without the one flag that it does not
    know and with ports of its own; `mssts health` asks those ports.
    """
    folder = tmp_path_factory.mktemp("container")
    engine = write_toy_engine(folder / "model").parent
    grpc, http, metrics = astuple(ports)
    prefix = f"mssts-entrypoint-{os.getpid()}-"
    installation = find_tritonserver()
    (folder / "runtime").mkdir()
    environment = link_runtime(installation, folder / "runtime")
    programs = folder / "bin"
    write_program(
        programs / "tritonserver",
        f"""#!/usr/bin/env bash
arguments=()
for argument in "$@"; do
  [ "$argument" = --allow-client-shm=false ] || arguments+=("$argument")
done
exec {installation.server} --backend-directory={folder}/runtime/backends --grpc-address=127.0.0.1 \
  --http-address=127.0.0.1 --metrics-address=127.0.0.1 --grpc-port={grpc} --http-port={http} \
  --metrics-port={metrics} --backend-config=python,shm-region-prefix-name={prefix} "${{arguments[@]}}"
""",
    )
    write_program(
        programs / "mssts",
        f"""#!/usr/bin/env bash
urls=()
[ "$1" != health ] || urls=(--url http://127.0.0.1:{http} --metrics-url http://127.0.0.1:{metrics})
exec {sys.executable} -m mssts.cli "$@" "${{urls[@]}}"
""",
    )
    environment |= {
        "PATH": f"{programs}{os.pathsep}{environment['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{environment['PYTHONPATH']}",
        "MSSTS_METRICS_ADDRESS": f"127.0.0.1:{metrics}",
        "MSSTS_MODEL": str(engine),
        "MSSTS_TARGET": "python",
        "MSSTS_THREADS": "1",
        "MSSTS_REPOSITORY": str(folder / "run" / "models"),
        "MSSTS_WATCH": "0.7",
    }
    log = open(folder / "log", "w", encoding="utf-8")  # noqa: SIM115  (until the server ends)
    process = subprocess.Popen([ENTRYPOINT], env=environment, stdout=log, stderr=log, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                answer_of(f"http://127.0.0.1:{http}/v2/health/ready")
                answer_of(f"http://127.0.0.1:{metrics}/metrics")
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
        yield Entrypoint(grpc, http, metrics, process, engine)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a container takes all its processes with it, and its memory
        for segment in Path("/dev/shm").glob(f"{prefix}*"):
            segment.unlink(missing_ok=True)
        log.close()
