"""What the three models of `triton_repo/` share.

Runs inside Triton's Python backend.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from mssts.errors import MsstsError
from mssts.manifest import Manifest
from mssts.serving.admission import QueueLimits, Refused
from mssts.serving.health import CANARY

Tensors = Mapping[str, np.ndarray]


def check_numpy() -> None:
    """Refuses numpy 2, with which Triton 2.51's stub returns empty tensors.

    Raises:
        MsstsError: numpy 2 or newer.
    """
    if int(np.__version__.partition(".")[0]) >= 2:
        raise MsstsError(
            f"numpy {np.__version__} is installed, but Triton's Python backend needs numpy < 2: install 'numpy<2' "
            "under Python 3.10 to 3.12"
        )


def model_parameters(arguments: Mapping[str, str]) -> dict[str, str]:
    """The string parameters of the model's configuration."""
    config = json.loads(arguments["model_config"])
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def manifest_of(parameters: Mapping[str, str]) -> Manifest:
    """The engine's manifest, which `mssts serve` puts into the model's configuration.

    Raises:
        MsstsError: it is not there, as in `triton_repo/` itself.
    """
    if "manifest" not in parameters:
        raise MsstsError("the model has no parameter `manifest`; serve an engine with `mssts serve --model`")
    return Manifest.from_json(json.loads(parameters["manifest"]), "the parameter `manifest`")


def queue_limits(parameters: Mapping[str, str]) -> QueueLimits:
    """The limits of the queue in the model's configuration, else the defaults."""
    usual = QueueLimits()
    return QueueLimits(
        int(parameters.get("max_queue", usual.clips)), float(parameters.get("max_queue_seconds", usual.seconds))
    )


class _Metric:
    """A metric of the model's own on the server's metrics page."""

    def __init__(self, name: str, meaning: str) -> None:
        import triton_python_backend_utils as pb_utils

        kind = getattr(pb_utils.MetricFamily, type(self).__name__.upper())
        self._family = pb_utils.MetricFamily(name=name, description=meaning, kind=kind)
        self._metric = self._family.Metric(labels={})

    def close(self) -> None:
        """Takes it off the page.

        Left to the end of the process, it would end that by a segmentation fault.
        """
        del self._metric, self._family


class Counter(_Metric):
    """A metric that counts."""

    def increment(self) -> None:
        """Adds one."""
        self._metric.increment(1)


class Gauge(_Metric):
    """A metric that has a value."""

    def set(self, value: float) -> None:
        """Changes it."""
        self._metric.set(value)


def log_warning(message: str) -> None:
    """Writes a line into the server's log."""
    import triton_python_backend_utils as pb_utils

    pb_utils.Logger.log_warn(message)


def answer(requests: Iterable[Any], model: Callable[[Tensors], Tensors]) -> list[Any]:
    """One response for each request: the model's tensors, or that request's error.

    A `MsstsError` is the client's to read, and a `Refused` says that it may come again. Anything else is our defect,
    whose traceback goes to the server's log. The supervisor's canary is answered at once, with nothing.
    """
    import triton_python_backend_utils as pb_utils  # exists only inside the backend

    return [
        pb_utils.InferenceResponse(output_tensors=[])
        if request.request_id() == CANARY
        else _response(pb_utils, partial(_computed, request, model))
        for request in requests
    ]


def _inputs(request: Any) -> dict[str, np.ndarray]:
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}


def _computed(request: Any, model: Callable[[Tensors], Tensors]) -> Tensors:
    return model(_inputs(request))


def _response(pb_utils: Any, compute: Callable[[], Tensors]) -> Any:
    try:
        outputs = [pb_utils.Tensor(name, array) for name, array in compute().items()]
        return pb_utils.InferenceResponse(output_tensors=outputs)
    except Refused as error:
        return _refusal(pb_utils, str(error), pb_utils.TritonError.UNAVAILABLE)
    except MsstsError as error:
        return _refusal(pb_utils, str(error), pb_utils.TritonError.INVALID_ARG)
    except Exception as error:
        pb_utils.Logger.log_error(traceback.format_exc())
        message = f"internal error ({type(error).__name__}: {error}); the server's log has the details"
        return _refusal(pb_utils, message, pb_utils.TritonError.INTERNAL)


class Answering:
    """Answers several requests at once, each on a thread of its own.

    Triton hands over the next request when `execute` returns: as soon as a thread is free.

    Args:
        count: of threads.
        model: as `answer` takes it.
    """

    def __init__(self, count: int, model: Callable[[Tensors], Tensors]) -> None:
        self._pool, self._model = ThreadPoolExecutor(count, "mssts-answer"), model
        self._free = threading.Semaphore(count)

    def start(self, requests: Iterable[Any]) -> None:
        """Begins on requests, whose responses are sent from the threads."""
        import triton_python_backend_utils as pb_utils

        for request in requests:
            sender = request.get_response_sender()
            if request.request_id() == CANARY:
                _send(pb_utils, sender, pb_utils.InferenceResponse(output_tensors=[]))
                continue
            inputs = {name: array.copy() for name, array in _inputs(request).items()}  # Triton's end with `execute`
            self._free.acquire()
            self._pool.submit(self._answer, pb_utils, sender, inputs)
        with self._free:  # until one is free
            pass

    def _answer(self, pb_utils: Any, sender: Any, inputs: Tensors) -> None:
        try:
            _send(pb_utils, sender, _response(pb_utils, partial(self._model, inputs)))
        except Exception:
            pb_utils.Logger.log_error(traceback.format_exc())
        finally:
            self._free.release()

    def close(self) -> None:
        """Waits for what was begun."""
        self._pool.shutdown()


def _send(pb_utils: Any, sender: Any, response: Any) -> None:
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _refusal(pb_utils: Any, message: str, code: int) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(" ".join(message.split()), code))
