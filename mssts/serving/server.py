"""A `tritonserver` process, its ports, its log, and its certain end."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from mssts.errors import MsstsError
from mssts.serving import LOOPBACK
from mssts.serving.admission import METRICS_ADDRESS, STOPPING_FILE
from mssts.serving.health import Endpoint, Unanswered, ask_canary, models_of_python
from mssts.serving.installation import find_tritonserver, is_one_word, link_runtime, make_temporary_folder
from mssts.serving.log import failure_reason
from mssts.serving.model_config import STAGES
from mssts.serving.processes import fault_of, stubs_of

_STOP_SECONDS = 15.0
_LEAST_STOP_SECONDS = 3.0  # Triton looks once a second whether its models are unloaded
_POLL_SECONDS = 0.05
_PING_MS = 50  # half of the least that a client may set (`ClientOptions.keepalive`)

# Runs `tritonserver` in the place of this interpreter, after asking the kernel to end it when its parent dies, however
# that happens. In a program of its own because subprocess's preexec_fn is unsafe beside gRPC's threads.
_EXEC = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

# These let a client read or write outside its own request: memory, files, settings. The key is given to nobody.
_CLOSED = ("model-repository", "trace", "logging")
_SHARED_MEMORY = "shared-memory"


@dataclass(frozen=True)
class Tls:
    """Files in PEM form for TLS on the gRPC port.

    Attributes:
        certificate: the server's, with the names or addresses by which clients call it.
        key: its private key.
        client_authority: if given, only clients with a certificate that this authority signed are served.
    """

    certificate: Path
    key: Path
    client_authority: Path | None = None

    def flags(self) -> list[str]:
        """The server's flags.

        Raises:
            MsstsError: a file is not there.
        """
        for path in (self.certificate, self.key, self.client_authority):
            if path is not None and not path.is_file():
                raise MsstsError(f"{path}: no such file; expected a PEM file for TLS")
        mutual = ["--grpc-use-ssl-mutual=true", f"--grpc-root-cert={self.client_authority}"]
        return [
            *(["--grpc-use-ssl=true"] if self.client_authority is None else mutual),
            f"--grpc-server-cert={self.certificate}",
            f"--grpc-server-key={self.key}",
        ]


class TritonServer:
    """The real `tritonserver` on a model repository, ready inside the `with` block.

    Whatever ends the block ends the server, the processes of its models and their shared memory: an exception, Ctrl-C,
    and SIGTERM and SIGHUP where the program has no handler of its own. If this process dies without a chance to clean
    up, the kernel stops the server. (It does so when the *thread* that entered ends; let it outlive the block.)

    Attributes:
        grpc_url: `grpc://host:port`, or `grpcs://host:port`.
        http_url: `http://host:port`.
        metrics_url: where Prometheus reads.
        version: the server's own, as 2.51.0.
        log_path: what the server writes; removed with the server.
        stubs: ids of the processes that run its models, with the models' names.
    """

    def __init__(
        self,
        model_repository: Path | str,
        grpc_port: int | None = None,
        http_port: int | None = None,
        metrics_port: int | None = None,
        host: str = LOOPBACK,
        startup_timeout: float = 120.0,
        tls: Tls | None = None,
        trust_network: bool = False,
        allow_shared_memory: bool = False,
    ) -> None:
        """A server that does not run yet.

        Args:
            model_repository: a folder, as `mssts.serving.repository` makes it.
            grpc_port: a free one if None, as the next two.
            http_port: see `grpc_port`.
            metrics_port: see `grpc_port`.
            host: where to listen. With `tls` it is the gRPC port alone that listens there: HTTP and metrics know no TLS
                and stay on this machine.
            startup_timeout: seconds to be ready in.
            tls: for the gRPC port; it speaks plain text if None.
            trust_network: allow a `host` that others can reach.
            allow_shared_memory: let clients name shared memory of this machine for the server to read and write, that
                of other programs included.

        Raises:
            MsstsError: others could reach `host`, and `trust_network` does not allow it.
        """
        if not _is_loopback(host) and not trust_network:
            raise MsstsError(
                f"{host}: others could reach this server, which is Triton 2.51 of 2024, a build with known holes. "
                f"Listen on {LOOPBACK} and let a proxy or a newer Triton face the network (docs/serving.md); inside "
                "a container's own network, --trust-network allows it"
            )
        self._model_repository = Path(model_repository)
        self._asked_ports = {"gRPC": grpc_port, "HTTP": http_port, "metrics": metrics_port}
        self._host = host
        self._http_host = host if tls is None else LOOPBACK
        self._tls = tls
        self._allow_shared_memory = allow_shared_memory
        self._startup_timeout = startup_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._environment: dict[str, str] = {}
        self._log_start = 0
        self._folder: Path | None = None
        self._handled_signals: list[signal.Signals] = []
        self._id = f"mssts_{os.getpid()}_{secrets.token_hex(4)}"
        self.version = ""
        self.stubs: dict[int, str] = {}

    def __enter__(self) -> TritonServer:
        """Starts the server and waits until every model is ready.

        Raises:
            MsstsError: no server is installed, a port is in use, or the server did not become ready; then the message
                holds the end of its log.
        """
        if not is_one_word(self._model_repository):
            raise MsstsError(
                f"{self._model_repository}: Triton takes no model repository with such a name; use letters"
            )
        installation = find_tritonserver()
        ports = _free_ports(self._host, self._asked_ports)
        http_host = _reachable(self._http_host)
        self.grpc_url = f"{'grpc' if self._tls is None else 'grpcs'}://{self._host}:{ports['gRPC']}"
        self.http_url = f"http://{http_host}:{ports['HTTP']}"
        self.metrics_url = f"http://{http_host}:{ports['metrics']}/metrics"
        try:
            self._handle_signals()
            self._folder = make_temporary_folder("mssts-server-")
            self.log_path = self._folder / "tritonserver.log"
            self._environment = link_runtime(installation, self._folder)
            self._environment[METRICS_ADDRESS] = f"{http_host}:{ports['metrics']}"
            self._environment[STOPPING_FILE] = str(self._folder / "stopping")
            self._command = [str(installation.server), *self._flags(ports)]
            self.start()
        except BaseException:
            self.stop(grace_seconds=0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The id of the server's process, 0 while there is none."""
        return 0 if self._process is None else self._process.pid

    def fault(self) -> str | None:
        """The fault of the server's processes, None if they have none."""
        return fault_of(self.pid, self.stubs)

    def start(self) -> None:
        """Starts the server again on the same ports, and waits until it is ready.

        Raises:
            MsstsError: the server did not become ready; the message holds the end of its log.
        """
        with open(self.log_path, "ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _EXEC, str(os.getpid()), *self._command],
                env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for us; and the group ends as one
            )  # fmt: skip
        self._wait_until_ready()
        self.stubs = stubs_of(self._process.pid)

    def kill(self) -> None:
        """Kills the server and its models, and removes their shared memory."""
        if self._process is not None:
            # The processes of the models outlive the server for a moment. Until it is reaped, its id names their group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self.stubs = {}
        for segment in Path("/dev/shm").glob(f"{self._id}*"):
            segment.unlink(missing_ok=True)

    def stop(self, grace_seconds: float = _STOP_SECONDS) -> None:
        """Ends the server: takes no more clips, finishes those in flight, asks, kills.

        Asking and finishing take `grace_seconds` together at most.
        """
        try:
            # With a dead stub it would take ten seconds to end.
            if self._process is not None and grace_seconds and self.stubs and not self.fault():
                deadline = time.monotonic() + grace_seconds
                self._drain(deadline)
                os.kill(self._process.pid, signal.SIGTERM)  # Popen's own methods would reap it
                _wait_without_reaping(self._process.pid, max(deadline - time.monotonic(), _LEAST_STOP_SECONDS))
        finally:
            self._clean_up()

    def _drain(self, deadline: float) -> None:
        """Waits until no clip is in flight.

        Triton itself drops a clip that is on its way from one model to the next when it is asked to stop.
        """
        assert self._folder is not None
        (self._folder / "stopping").touch()
        with contextlib.suppress(Unanswered, OSError):
            endpoint = Endpoint.parse(self.http_url)
            configs = models_of_python(endpoint, STAGES)
            # Models answer in order, so what came before a canary has gone on to the next model when it is answered.
            for name in (name for name in STAGES if name in configs):
                left = deadline - time.monotonic()
                if left <= 0:
                    return
                ask_canary(replace(endpoint, timeout=left), configs[name])

    def _clean_up(self) -> None:
        self.kill()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for number in self._handled_signals:
            signal.signal(number, signal.SIG_DFL)
        self._handled_signals.clear()

    def _handle_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread do it
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _exit_on_signal)
                self._handled_signals.append(number)

    def _flags(self, ports: dict[str, int]) -> list[str]:
        assert self._folder is not None
        kept_closed = _CLOSED if self._allow_shared_memory else (_SHARED_MEMORY, *_CLOSED)
        closed = f"{','.join(kept_closed)}:mssts={secrets.token_hex(16)}"
        return [
            f"--id={self._id}",
            f"--model-repository={self._model_repository}",
            f"--backend-directory={self._folder / 'backends'}",
            "--model-control-mode=none",
            "--strict-readiness=true",
            "--exit-on-error=true",
            # Our configurations are complete; to complete them Triton would start every model twice.
            "--disable-auto-complete-config",
            "--exit-timeout-secs=10",
            # Each pooled request object keeps the memory of the largest clip it has held (8 by default).
            "--grpc-infer-allocation-pool-size=1",
            # Clients with a clip here ask for signs of life; the default allows two in five minutes.
            f"--grpc-http2-min-recv-ping-interval-without-data={_PING_MS}",
            f"--grpc-address={self._host}",
            f"--grpc-port={ports['gRPC']}",
            f"--http-address={self._http_host}",
            f"--http-port={ports['HTTP']}",
            f"--metrics-address={self._http_host}",
            f"--metrics-port={ports['metrics']}",
            *(self._tls.flags() if self._tls else []),
            f"--grpc-restricted-protocol={closed}",
            f"--http-restricted-api={closed}",
            # A prefix of our own tells which segments to remove if the server cannot.
            f"--backend-config=python,shm-region-prefix-name={self._id}_",
        ]

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._startup_timeout
        while not self._is_ready():
            ended = _wait_without_reaping(self._process.pid, _POLL_SECONDS)
            if ended is not None:
                raise MsstsError(f"tritonserver failed to start ({_cause(ended)}); its log says: {self.failure()}")
            if time.monotonic() > deadline:
                raise MsstsError(
                    f"tritonserver was not ready after {self._startup_timeout:g} s; its log says: {self.failure()}"
                )

    def _is_ready(self) -> bool:
        if _get(f"{self.http_url}/v2/health/ready") is None:
            return False
        # Another program may have taken the port since it was found free; then this is not our server.
        server: dict[str, Any] = json.loads(_get(f"{self.http_url}/v2") or b"{}")
        self.version = server.get("version", "")
        # The metrics' port opens last, and `preprocess` reads them.
        return server.get("name") == self._id and _get(self.metrics_url) is not None

    def failure(self) -> str:
        """Why the server failed, by its log since its last start."""
        with open(self.log_path, "rb") as log:
            log.seek(self._log_start)
            return failure_reason(log.read().decode(errors="replace"))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reachable(host: str) -> str:
    """An address of this machine at which a server that listens on `host` is reached."""
    return LOOPBACK if host in ("0.0.0.0", "::", "") else host


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _free_ports(host: str, asked: dict[str, int | None]) -> dict[str, int]:
    """A free port for each name.

    Those given are checked.

    Raises:
        MsstsError: a given port is in use or may not be used, or the host has no such address.
    """
    ports = {}
    with contextlib.ExitStack() as held:  # all at once, so that they differ
        for name, port in asked.items():
            if port is not None and not 1 <= port <= 65535:
                raise MsstsError(f"the {name} port must lie between 1 and 65535, not be {port}")
            try:
                listener = held.enter_context(socket.create_server((host, port or 0)))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise MsstsError(f"the {name} port {port} of {host} is in use; give another, or none") from None
                where = host if port is None else f"the {name} port {port} of {host}"
                raise MsstsError(f"cannot listen on {where}: {error.strerror}") from None
            ports[name] = listener.getsockname()[1]
    return ports


def _wait_without_reaping(pid: int, seconds: float) -> os.waitid_result | None:
    """How a child ended, or None if it still runs after `seconds`.

    The child stays a zombie, so that its process id cannot come to name another.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None or time.monotonic() >= deadline:
            return ended
        time.sleep(_POLL_SECONDS)


def _cause(ended: os.waitid_result) -> str:
    kind = "exit code" if ended.si_code == os.CLD_EXITED else "signal"
    return f"{kind} {ended.si_status}"


def _get(url: str) -> bytes | None:
    """The body of a successful answer, or None."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is here, not behind a proxy
    try:
        with opener.open(url, timeout=5) as answer:
            return answer.read()
    except OSError:
        return None
