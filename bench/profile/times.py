"""The time of an inference by module of the paper, in each runner."""

from __future__ import annotations

import functools
import re
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from mssts.artefact import Artefact
from mssts.bench.operations import MODULES, module_of
from mssts.bench.profile.work import WORK, work_of
from mssts.errors import MsstsError
from mssts.runners.base import NodeTime, Runner

OUTSIDE = "outside the nodes"
"""What an inference takes beyond its nodes: copies of inputs and outputs, and the runtime's own work."""

_PATH = re.compile(r"(?:engine|model)[\w.]*(?=/)")


@dataclass(frozen=True)
class ModuleTimes:
    """Medians over the inferences.

    Attributes:
        total_ms: of the whole inference.
        modules: milliseconds of each of `MODULES`, and of `OUTSIDE`. They are scaled so that their sum is `total_ms`.
        work: milliseconds of each of `WORK`, by module. It is empty where the runner has no nodes.
        kinds: milliseconds by the runtime's own names of what nodes compute, the longest first. It may be empty too.
    """

    total_ms: float
    modules: dict[str, float]
    work: dict[str, dict[str, float]]
    kinds: dict[str, float]


_Nodes = dict[tuple[str, str], float]
"""Milliseconds of one inference by module and kind of node."""


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
    nodes: list[_Nodes] = []
    if runner == "openvino":
        from mssts.runners.openvino_runner import OpenVinoRunner

        engine = OpenVinoRunner(path, threads, profile=True)
        engine.infer(*clip)
        for _ in tqdm(range(repeats), desc="profile", unit="clip", disable=None):
            seconds.append(_timed(engine, clip))
            nodes.append(_grouped(engine.node_times()))
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
            # Convolutions of a blocked layout are named after what they give.
            times = [
                replace(node, name=makers.get(node.name.removesuffix("_nchwc"), node.name))
                for node in session.node_times()
            ]
            nodes.append(_grouped(times))
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
    seconds: list[float] = []
    found: list[_Nodes] = []
    for _ in tqdm(range(repeats), desc="profile", unit="clip", disable=None):
        clock.spent.clear()
        seconds.append(_timed(engine, clip))
        found.append({(name, ""): 1e3 * spent for name, spent in clock.spent.items()})
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


def _grouped(nodes: Sequence[NodeTime]) -> _Nodes:
    """The times of nodes together by module and kind.

    What a runtime puts between two nodes is named after the second.
    """
    if not nodes:
        raise MsstsError("the runtime tells no times of nodes")
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for node in nodes:
        paths = _PATH.findall(node.name)
        found[module_of(paths[-1] if paths else ""), node.kind] += node.ms
    return found


def _medians(seconds: Sequence[float], runs: Sequence[_Nodes]) -> ModuleTimes:
    total = 1e3 * statistics.median(seconds)
    medians = {key: statistics.median(run.get(key, 0.0) for run in runs) for key in dict.fromkeys(chain(*runs))}
    inside = sum(medians.values())
    # Counters can add up to a little more than the clock says, which a share of the clock's time sets right.
    scale = min(1.0, total / inside) if inside else 1.0
    modules = dict.fromkeys(MODULES, 0.0)
    kinds: defaultdict[str, float] = defaultdict(float)
    work = {module: dict.fromkeys(WORK, 0.0) for module in MODULES}
    for (module, kind), ms in medians.items():
        modules[module] += scale * ms
        kinds[kind] += scale * ms
        work[module][work_of(kind)] += scale * ms
    outside = max(0.0, total - sum(modules.values()))
    known = any(kinds)  # PyTorch's hooks see modules, not nodes
    longest_first = dict(sorted(kinds.items(), key=lambda entry: -entry[1]))
    return ModuleTimes(total, {**modules, OUTSIDE: outside}, work if known else {}, longest_first if known else {})
