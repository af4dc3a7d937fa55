"""Health of a server: its own word, its processes, and canary requests.

Triton 2.51 says "ready" for ever after the process of a model has died, so its word alone is not enough.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.parse
from dataclasses import dataclass
from typing import Any

from mssts.errors import MsstsError
from mssts.serving.processes import fault_of, servers, stubs_of

# The id of a request that the models of `triton_repo/` answer at once, with nothing.
CANARY = "mssts-canary"
_NOT_HEALTHY = re.compile(r"is not healthy")
_TYPES = {"TYPE_STRING": "BYTES"}  # where config.pbtxt and requests differ


class Unanswered(Exception):
    """No answer, or none in time."""


@dataclass(frozen=True)
class Endpoint:
    """The HTTP port of a Triton server (or of `mssts serve --health-port`).

    Attributes:
        host: name or address.
        port: its number.
        timeout: seconds for one answer.
    """

    host: str
    port: int
    timeout: float = 5.0

    @classmethod
    def parse(cls, url: str, timeout: float = 5.0) -> Endpoint:
        """The endpoint of `http://host:port`.

        Raises:
            MsstsError: it is not of that form.
        """
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None or parts.path.strip("/"):
            raise MsstsError(f"{url}: not the HTTP port of a server; expected http://host:port")
        return cls(parts.hostname, port, timeout)

    def ask(self, path: str, body: Any = None) -> tuple[int, bytes]:
        """Status and body of an answer to GET, or to POST with a JSON body.

        Raises:
            Unanswered: there was none.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
        try:
            if body is None:
                connection.request("GET", path)
            else:
                connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unanswered(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from None
        finally:
            connection.close()

    def ask_json(self, path: str) -> Any:
        """The JSON object of an answer, {} if it is none.

        Raises:
            Unanswered: there was none.
        """
        try:
            return json.loads(self.ask(path)[1])
        except ValueError:
            return {}


def models_of_python(endpoint: Endpoint, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The configurations of those models that run in the Python backend.

    Raises:
        Unanswered: the server does not answer.
    """
    configs = {name: endpoint.ask_json(f"/v2/models/{name}/config") for name in names}
    return {name: config for name, config in configs.items() if config.get("backend") == "python"}


def ask_canary(endpoint: Endpoint, config: dict[str, Any]) -> str | None:
    """What is wrong with a model of the Python backend by its answer to the canary.

    None if nothing.

    A model that is busy answers late or refuses, and nothing is wrong with it.
    """
    name = config["name"]
    inputs = []
    for tensor in config.get("input", []):
        if tensor.get("optional"):
            continue
        shape = [max(1, int(size)) for size in tensor["dims"]]
        dtype = _TYPES.get(tensor["data_type"], tensor["data_type"].removeprefix("TYPE_"))
        count = 1
        for size in shape:
            count *= size
        data: list[Any] = [""] * count if dtype == "BYTES" else [0] * count
        inputs.append({"name": tensor["name"], "shape": shape, "datatype": dtype, "data": data})
    try:
        status, body = endpoint.ask(f"/v2/models/{name}/infer", {"id": CANARY, "inputs": inputs})
    except Unanswered:
        return None
    message = body.decode(errors="replace")
    if status != 200 and _NOT_HEALTHY.search(message):
        return f"{name} does not answer ({_error_text(message)})"
    return None


def check(endpoint: Endpoint, names: tuple[str, ...], metrics: Endpoint | None, canary: bool = True) -> str | None:
    """The fault of a server, None if it has none, for a probe without a past.

    Args:
        endpoint: its HTTP port.
        names: its models.
        metrics: its metrics' port, which says whether a model is busy; not asked if None.
        canary: ask the models of the Python backend for an answer that computes nothing, where they are idle.
    """
    try:
        status, body = endpoint.ask("/v2/health/ready")
        if status != 200:
            return f"the server says that it is not ready ({_error_text(body.decode(errors='replace')) or status})"
        if b'"supervised"' in body:  # the port of `mssts serve`, which watches the rest
            return None
        for name in names:
            # Newer releases ask the model's own `is_ready` here.
            if endpoint.ask(f"/v2/models/{name}/ready")[0] != 200:
                return f"the model {name} is not ready"
        python = models_of_python(endpoint, names)
        if endpoint.host in ("127.0.0.1", "localhost", "::1"):
            for pid in servers("http", endpoint.port):
                stubs = stubs_of(pid)
                fault = fault_of(pid, stubs)
                expected = sum(_instances(config) for config in python.values())
                if fault is None and len(stubs) < expected:
                    fault = f"{len(stubs)} of {expected} processes of models are there"
                if fault:
                    return fault
        if canary:
            busy = _waiting(metrics)
            for name, config in python.items():
                if not busy.get(name) and (fault := ask_canary(endpoint, config)):
                    return fault
    except Unanswered as error:
        return f"no answer from {endpoint.host}:{endpoint.port} ({error})"
    return None


def _instances(config: dict[str, Any]) -> int:
    return sum(int(group.get("count", 1)) for group in config.get("instance_group", [{}]))


def _waiting(metrics: Endpoint | None) -> dict[str, int]:
    """How many requests wait for each model."""
    if metrics is None:
        return {}
    try:
        page = metrics.ask("/metrics")[1].decode(errors="replace")
    except Unanswered:
        return {}
    found = re.findall(r'^nv_inference_pending_request_count\{model="(\w+)".*?\} (\d+)', page, re.MULTILINE)
    return {name: int(count) for name, count in found}


def _error_text(body: str) -> str:
    """The message of Triton's (or our own) JSON error."""
    try:
        value = json.loads(body)
        return str(value.get("error") or value.get("reason") or "")
    except (ValueError, AttributeError):
        return body.strip()[:200]
