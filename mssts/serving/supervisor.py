"""Supervisor that restarts a server when it or one of its models dies or hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

from mssts.errors import MsstsError
from mssts.serving.health import Endpoint, Unanswered, ask_canary, models_of_python
from mssts.serving.model_config import STAGES
from mssts.serving.server import TritonServer

_TICK_SECONDS = 0.2  # between two looks at the processes
_LOOK_SECONDS = 1.0  # between two looks at the server's statistics
_QUIET_SECONDS = 5.0  # that a model may answer nothing before it gets a canary
_CANARY_SECONDS = 600.0  # a canary may wait as long as clips do; there is one a model at a time
_MUTE_SECONDS = 15.0  # that the server itself may answer nothing


@dataclass(frozen=True)
class RestartLimits:
    """When to give up.

    Attributes:
        restarts: at most so many within `seconds`.
        seconds: see `restarts`.
        longest_pause: pauses before a restart double from none, then half a second, to so many seconds.
    """

    restarts: int = 5
    seconds: float = 600.0
    longest_pause: float = 30.0

    def __post_init__(self) -> None:
        if self.restarts < 0:
            raise MsstsError(f"the number of restarts must be at least 0, not {self.restarts}")

    def pause(self, recent: int) -> float:
        """Seconds to wait before the next restart, after `recent` ones."""
        return 0.0 if recent == 0 else min(self.longest_pause, 0.5 * 2 ** (recent - 1))


class Supervisor:
    """Supervision of a server that runs.

    Dead is a process that is gone or a zombie; hung is one that is stopped for two looks, or that Triton calls "not
    healthy" when a canary asks it. A canary that waits or is refused means that the model is busy. The server is killed
    then, not asked: with a dead stub it would take ten seconds to end.

    Args:
        server: to be entered before `run`, and left again, by the caller.
        limits: when to give up.
        say: takes one line a call: why the server was restarted.
    """

    def __init__(self, server: TritonServer, limits: RestartLimits, say: Callable[[str], None]) -> None:
        self._server = server
        self._limits = limits
        self._say = say
        self._restarts: list[float] = []
        self._lock = threading.Lock()
        self._reason: str | None = "starting"
        self._looked = time.monotonic()
        self._watch: _Watch | None = None

    def state(self) -> dict[str, Any]:
        """Readiness as a JSON value: `ready`, `reason` where it is not, `restarts` so far."""
        with self._lock:
            reason = self._reason
            if reason is None and time.monotonic() - self._looked > 2 and (fault := self._fault()):
                reason = fault
            return {"ready": reason is None, "reason": reason, "restarts": len(self._restarts), "supervised": True}

    def run(self) -> NoReturn:
        """Watches until an exception, such as Ctrl-C.

        To be called in the thread that entered the server.

        Raises:
            MsstsError: the server does not stay up.
        """
        self._is_up()
        suspected = None
        while True:
            fault = self._fault()
            # One look alone may have met a process that someone stopped for a moment.
            if fault and ("is stopped" not in fault or fault == suspected):
                self._restart(fault)
                suspected = None
            else:
                suspected = fault
            with self._lock:
                self._looked = time.monotonic()
            time.sleep(_TICK_SECONDS)

    def _fault(self) -> str | None:
        fault = self._server.fault()
        return self._watch.fault if fault is None and self._watch is not None else fault

    def _is_up(self) -> None:
        self._watch = _Watch(self._server)
        with self._lock:
            self._reason = None
            self._looked = time.monotonic()

    def _restart(self, fault: str) -> None:
        while True:
            now = time.monotonic()
            recent = sum(now - then < self._limits.seconds for then in self._restarts)
            with self._lock:
                self._reason = f"restarting: {fault}"
            if recent >= self._limits.restarts:
                tried = f"; restarted {recent} times within {self._limits.seconds:g} s" if recent else ""
                raise MsstsError(f"{fault}{tried}; the log says: {self._server.failure()}")
            pause = self._limits.pause(recent)
            self._say(f"{fault}; the server is killed and started again" + (f" in {pause:g} s" if pause else ""))
            self._server.kill()
            time.sleep(pause)
            self._restarts.append(time.monotonic())
            start = time.monotonic()
            try:
                self._server.start()
            except MsstsError as error:
                fault = str(error)
                continue
            self._is_up()
            self._say(f"the server is ready again after {time.monotonic() - start:.1f} s")
            return


class _Watch:
    """Checks a server's statistics, and sends canaries to models that do not move.

    Attributes:
        fault: what was found, None if nothing.
    """

    def __init__(self, server: TritonServer) -> None:
        self.fault: str | None = None
        self._server = server
        self._pid = server.pid
        self._endpoint = Endpoint.parse(server.http_url)
        self._canaries: dict[str, threading.Thread] = {}
        threading.Thread(target=self._look, name="mssts-watch", daemon=True).start()

    def _is_over(self) -> bool:
        return self.fault is not None or self._server.pid != self._pid

    def _look(self) -> None:
        answered = time.monotonic()
        seen: dict[str, tuple[int, int]] = {}
        moved: dict[str, float] = {}
        configs: dict[str, dict[str, Any]] = {}
        while not self._is_over():
            try:
                configs = configs or models_of_python(self._endpoint, STAGES)
                for name in configs:
                    counts = self._counts(name)
                    now = answered = time.monotonic()
                    failed = counts[1] > seen.get(name, counts)[1]
                    if counts[0] != seen.get(name, (-1, 0))[0]:
                        moved[name] = now
                    seen[name] = counts
                    if failed or now - moved[name] > _QUIET_SECONDS:
                        moved[name] = now
                        self._send_canary(name, configs[name])
            except Unanswered as error:
                if time.monotonic() - answered > _MUTE_SECONDS and not self._is_over():
                    self.fault = f"tritonserver does not answer on its HTTP port ({error})"
            time.sleep(_LOOK_SECONDS)

    def _counts(self, name: str) -> tuple[int, int]:
        """Requests of a model that succeeded and that failed."""
        stats = self._endpoint.ask_json(f"/v2/models/{name}/stats").get("model_stats", [])
        counts = [stat.get("inference_stats", {}) for stat in stats]
        return (
            sum(int(count.get("success", {}).get("count", 0)) for count in counts),
            sum(int(count.get("fail", {}).get("count", 0)) for count in counts),
        )

    def _send_canary(self, name: str, config: dict[str, Any]) -> None:
        if name in self._canaries and self._canaries[name].is_alive():
            return

        def send() -> None:
            patient = Endpoint(self._endpoint.host, self._endpoint.port, _CANARY_SECONDS)
            fault = ask_canary(patient, config)
            if fault and not self._is_over():
                self.fault = fault

        self._canaries[name] = threading.Thread(target=send, name="mssts-canary", daemon=True)
        self._canaries[name].start()


class HealthServer:
    """An HTTP port that tells whether a supervised server can answer.

    `/v2/health/ready` (or `/ready`) is 200 or 503, with the state as JSON; `/v2/health/live` is 200 while this process
    lives.

    Args:
        host: where to listen.
        port: where to listen, a free one if None.
        state: gives the JSON value, with `ready`.

    Raises:
        MsstsError: the port is in use.
    """

    def __init__(self, host: str, port: int | None, state: Callable[[], dict[str, Any]]) -> None:
        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # a client that says nothing holds a thread no longer

            def do_GET(self) -> None:
                known = state()
                path = self.path.rstrip("/")
                if path in ("/live", "/v2/health/live"):
                    self._answer(200, known)
                elif path in ("/ready", "/v2/health/ready"):
                    self._answer(200 if known["ready"] else 503, known)
                else:
                    self._answer(404, {"error": "expected /v2/health/ready or /v2/health/live"})

            def _answer(self, status: int, value: dict[str, Any]) -> None:
                body = json.dumps(value).encode() + b"\n"
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        try:
            self._server = ThreadingHTTPServer((host, port or 0), Handler)
        except OSError as error:
            raise MsstsError(f"cannot listen on the health port {port} of {host}: {error.strerror}") from None
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, name="mssts-health", daemon=True).start()

    def __enter__(self) -> HealthServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
