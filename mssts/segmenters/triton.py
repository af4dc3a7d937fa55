"""Asks a Triton server for the instances of clips, over gRPC."""

from __future__ import annotations

import ipaddress
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mssts import contract
from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.segmenters.base import Instances, Segmenter

_CONNECT_SECONDS = 10.0
# The stages of a request, as reports name them, and the models that run them.
STAGE_MODELS = {"decode": "preprocess", "engine": "engine", "postprocess": "postprocess"}
# What Triton writes in front of a message: the request's id, of which we give none, and the ensemble's name.
_OF_TRITON = re.compile(r"^(?:\[request id: \S+\] )?(?:in ensemble '\w+', )?")


@dataclass(frozen=True)
class StageTime:
    """What a server has spent in one model since it started; the difference of two is what it spent in between.

    Times are in nanoseconds, summed over `count` requests. `total_ns` is from a request's arrival to its response;
    `queue_ns` and `compute_ns` are parts of it. The ensemble's compute is the sum of its models'. A model starts while
    the one before still tidies up, so that sum may exceed the ensemble's total a little, and likewise its total what
    the client saw. A request is counted a moment after its response; one that `preprocess` refused is counted there,
    but not in the others.
    """

    count: int
    total_ns: int
    queue_ns: int
    compute_ns: int

    def __sub__(self, earlier: StageTime) -> StageTime:
        return StageTime(
            self.count - earlier.count,
            self.total_ns - earlier.total_ns,
            self.queue_ns - earlier.queue_ns,
            self.compute_ns - earlier.compute_ns,
        )


class TritonSegmenter(Segmenter):
    """The ensemble of a server. Safe to share between threads.

    Args:
        url: `grpc://host:port` or `host:port`.
        timeout: seconds a clip may take, its time in the server's queue included.

    Raises:
        MsstsError: the URL is not of that form, no server answers there, or it does not serve an engine of ours.
    """

    def __init__(self, url: str, timeout: float = 300.0) -> None:
        try:
            import tritonclient.grpc as triton
        except ImportError:
            raise MsstsError("the gRPC client is not installed: `pip install 'mssts[client]'`") from None
        self._triton = triton
        self._timeout = timeout
        self._request_seconds = 0.0
        self._lock = threading.Lock()
        host, self._address = _parse_url(url)
        self._client = triton.InferenceServerClient(self._address, channel_args=_channel_options(host))
        try:
            self._manifest = self._read_manifest()
        except MsstsError:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The manifest of the engine that the server runs."""
        return self._manifest

    @property
    def server_version(self) -> str:
        """The server's own version, as 2.51.0."""
        return str(self._call(self._client.get_server_metadata, _CONNECT_SECONDS).version)

    def segment(self, frames_THWC: np.ndarray | Sequence[bytes], score_threshold: float = 0.0) -> Instances:
        """Finds the instances of a clip, see `Segmenter.segment`.

        Raises:
            MsstsError: the server refused the clip (its own line says why), failed, or did not answer in time.
        """
        start = time.perf_counter()
        if isinstance(frames_THWC, np.ndarray):
            if frames_THWC.dtype != np.uint8:
                raise MsstsError(f"frames must be uint8, not {frames_THWC.dtype}")
            clip = self._input(contract.FRAMES_RAW, frames_THWC)
        else:
            clip = self._input(contract.FRAMES_JPEG, np.array(frames_THWC, dtype=object))
        threshold = self._input(contract.SCORE_THRESHOLD, np.array([score_threshold], np.float32))
        result = self._call(self._client.infer, self._timeout, contract.ENSEMBLE, [clip, threshold])
        scores, labels, boxes, rles, size = (result.as_numpy(spec.name) for spec in contract.RESULT_OUTPUTS)
        height, width = size
        found = Instances(
            scores=scores,
            labels=labels,
            boxes=boxes,
            rles=tuple(tuple(rle or None for rle in instance) for instance in rles),
            size=(int(height), int(width)),
            categories=self._manifest.categories,
        )
        with self._lock:
            self._request_seconds += time.perf_counter() - start
        return found

    def describe(self) -> dict[str, Any]:
        """The server's version and the engine's precision."""
        return {"name": "triton", "version": self.server_version, "precision": self._manifest.precision}

    def stage_seconds(self) -> dict[str, float]:
        """Seconds in the server's `decode`, `engine`, `postprocess` and `overhead` (queues, copies between models),
        and in `transfer`, the rest of what this client's requests took: network and serialisation.

        The server counts on its own clock, what it did for others included, and a model may start while the one before
        tidies up: a difference may come out a little below zero.
        """
        times = self.statistics()
        stages = {stage: times[model].compute_ns / 1e9 for stage, model in STAGE_MODELS.items()}
        server = times[contract.ENSEMBLE].total_ns / 1e9
        with self._lock:
            requests = self._request_seconds
        return {**stages, "overhead": server - sum(stages.values()), "transfer": requests - server}

    def statistics(self) -> dict[str, StageTime]:
        """What the server has spent so far in the ensemble and in each of its models, by their names."""
        answer = self._call(self._client.get_inference_statistics, _CONNECT_SECONDS)
        times = {}
        for model in answer.model_stats:
            spent = model.inference_stats
            compute = spent.compute_input.ns + spent.compute_infer.ns + spent.compute_output.ns
            times[model.name] = StageTime(spent.success.count, spent.success.ns, spent.queue.ns, compute)
        return times

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _input(self, spec: contract.TensorSpec, array: np.ndarray) -> Any:
        tensor = self._triton.InferInput(spec.name, list(array.shape), spec.triton_dtype)
        return tensor.set_data_from_numpy(array)

    def _read_manifest(self) -> Manifest:
        config = self._call(self._client.get_model_config, _CONNECT_SECONDS, contract.ENSEMBLE).config
        if "manifest" not in config.parameters:
            raise MsstsError(
                f"{self._address}: its model {contract.ENSEMBLE} carries no manifest; start it with `mssts serve`"
            )
        return Manifest.from_json(json.loads(config.parameters["manifest"].string_value), f"{self._address}: manifest")

    def _call(self, method: Any, seconds: float, *arguments: Any) -> Any:
        """Calls the server; its refusals and its absence become one line."""
        try:
            return method(*arguments, client_timeout=seconds)
        except self._triton.InferenceServerException as error:
            message = " ".join(str(error.message()).split())
            status = str(error.status()).removeprefix("StatusCode.")
        if status == "UNAVAILABLE":
            raise MsstsError(f"{self._address}: no Triton server answers there; start one with `mssts serve`")
        if status == "DEADLINE_EXCEEDED":
            raise MsstsError(f"{self._address}: no answer after {seconds:g} s")
        if status in ("NOT_FOUND", "UNIMPLEMENTED"):
            raise MsstsError(f"{self._address}: does not serve {contract.ENSEMBLE} ({message})")
        raise MsstsError(_OF_TRITON.sub("", message))


def _parse_url(url: str) -> tuple[str, str]:
    """Host and address (host:port) of a URL."""
    match = re.fullmatch(r"(?:grpc://)?(\[[0-9a-fA-F:.]+\]|[\w.-]+):(\d{1,5})/?", url)
    if match is None:
        raise MsstsError(f"{url}: not a server's URL; expected grpc://host:port")
    return match[1].strip("[]"), f"{match[1]}:{match[2]}"


def _channel_options(host: str) -> list[tuple[str, Any]]:
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
    ]
    if _is_loopback(host):  # gRPC would send even these to the proxy of the environment
        options.append(("grpc.enable_http_proxy", 0))
    return options


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
