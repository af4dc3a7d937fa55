"""The time of an inference by module of the paper, in each runner."""

from __future__ import annotations

import functools
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mssts.artefact import Artefact
from mssts.bench.operations import MODULES, module_of
from mssts.errors import MsstsError
from mssts.runners.base import Runner

OUTSIDE = "outside the nodes"
"""What an inference takes beyond its nodes: copies of inputs and outputs, and the runtime's own work."""

_PATH = re.compile(r"(?:engine|model)[\w.]*(?=/)")


@dataclass(frozen=True)
class ModuleTimes:
    """Medians over the inferences.

    Attributes:
        total_ms: of the whole inference.
        modules: milliseconds of each of `MODULES`, and of `OUTSIDE`. They are scaled so that their sum is `total_ms`.
    """

    total_ms: float
    modules: dict[str, float]


def times_in_engine(
    runner: str, path: Path, clip: tuple[np.ndarray, np.ndarray], threads: int, repeats: int
) -> ModuleTimes:
    """The times of an export in OpenVINO or ONNX Runtime, by their counters.

    Args:
        runner: `openvino` or `onnxruntime`.
        path: the export.
        clip: frames [B, T, H, W, 3] and sizes [B, 2].
        threads: cores.
        repeats: inferences.
    """
    from tqdm import tqdm

    seconds: list[float] = []
    nodes: list[dict[str, float]] = []
    if runner == "openvino":
        from mssts.runners.openvino_runner import OpenVinoRunner

        engine = OpenVinoRunner(path, threads, profile=True)
        engine.infer(*clip)
        for _ in tqdm(range(repeats), desc="profile", unit="clip", disable=None):
            seconds.append(_timed(engine, clip))
            nodes.append(_by_module(engine.node_milliseconds()))
        engine.close()
        return _medians(seconds, nodes)
    from mssts.runners.onnx_runtime import OnnxRuntimeRunner

    makers = _makers(Artefact.open(path).path)
    # A trace holds one run: it can be ended once a session, so each run has a session of its own.
    for _ in tqdm(range(repeats), desc="profile", unit="clip", disable=None):
        with tempfile.TemporaryDirectory() as folder:
            session = OnnxRuntimeRunner(path, threads, profile=Path(folder))
            session.infer(*clip)
            seconds.append(_timed(session, clip))
            times = session.node_milliseconds().items()
            # Convolutions of a blocked layout are named after what they give.
            nodes.append(_by_module({makers.get(name.removesuffix("_nchwc"), name): ms for name, ms in times}))
            session.close()
    return _medians(seconds, nodes)


def times_in_pytorch(
    checkpoint: Path, precision: str, clip: tuple[np.ndarray, np.ndarray], threads: int, repeats: int
) -> ModuleTimes:
    """The times of a checkpoint in PyTorch, by hooks at the borders of its modules.

    A module's time is its own, without that of the modules that it calls. On a processor PyTorch computes as it is
    called, so the clock at a border is right; on a GPU it would not be.
    """
    from torch import nn
    from tqdm import tqdm

    from mssts.runners.torch_runner import TorchRunner

    engine = TorchRunner(checkpoint, threads, "cpu", precision=precision, channels_last=True)
    clock = _ModuleClock()
    for name, module in engine.module.named_modules():
        assert isinstance(module, nn.Module)
        module.register_forward_pre_hook(functools.partial(clock.enter, module_of(name)), prepend=True)
        module.register_forward_hook(clock.leave, always_call=True)
    engine.infer(*clip)
    seconds, found = [], []
    for _ in tqdm(range(repeats), desc="profile", unit="clip", disable=None):
        clock.spent.clear()
        seconds.append(_timed(engine, clip))
        found.append({name: 1e3 * spent for name, spent in clock.spent.items()})
    engine.close()
    return _medians(seconds, found)


class _ModuleClock:
    """Gives each moment to the innermost module that is running."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    def enter(self, part: str, *_: object) -> None:
        self._pass()
        self._running.append(part)

    def leave(self, *_: object) -> None:
        self._pass()
        self._running.pop()

    def _pass(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.spent[self._running[-1]] += now - self._since
        self._since = now


def _timed(runner: Runner, clip: tuple[np.ndarray, np.ndarray]) -> float:
    start = time.perf_counter()
    runner.infer(*clip)
    return time.perf_counter() - start


def _makers(path: Path) -> dict[str, str]:
    """The name of the node that makes each value of a graph."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    return {output: node.name for node in graph.node for output in node.output}


def _by_module(nodes: dict[str, float]) -> dict[str, float]:
    """Milliseconds by module, from those by node.

    What a runtime puts between two nodes is named after the second.
    """
    if not nodes:
        raise MsstsError("the runtime tells no times of nodes")
    found: defaultdict[str, float] = defaultdict(float)
    for name, ms in nodes.items():
        paths = _PATH.findall(name)
        found[module_of(paths[-1] if paths else "")] += ms
    return found


def _medians(seconds: Sequence[float], nodes: Sequence[dict[str, float]]) -> ModuleTimes:
    total = 1e3 * statistics.median(seconds)
    modules = {name: statistics.median(found.get(name, 0.0) for found in nodes) for name in MODULES}
    inside = sum(modules.values())
    # Counters can add up to a little more than the clock says, which a share of the clock's time sets right.
    scale = min(1.0, total / inside) if inside else 1.0
    modules = {name: scale * ms for name, ms in modules.items()}
    return ModuleTimes(total, {**modules, OUTSIDE: max(0.0, total - sum(modules.values()))})
