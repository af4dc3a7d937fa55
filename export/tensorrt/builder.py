"""Build of a TensorRT plan from an export: checked before and after, then written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mssts import contract, kernels
from mssts.artefact import Artefact, Kind, unchanged, writing
from mssts.errors import CheckFailed, MsstsError
from mssts.export.average_precision import NOT_MEASURED, ApGate
from mssts.export.tensorrt.network import (
    check_contract,
    check_plugins,
    check_precision,
    check_report,
    layers_of,
    our_nodes,
    parse_network,
)
from mssts.export.tensorrt.options import HARDWARE_COMPATIBILITY, BuildOptions, Profile
from mssts.export.tensorrt.parity import check_ap, check_data, check_parity
from mssts.export.tensorrt.progress import progress_monitor
from mssts.files import atomic_path, sha256, write_json
from mssts.manifest import Manifest
from mssts.provenance import provenance
from mssts.runners.tensorrt_library import (
    PLAN,
    Gpu,
    deserialised,
    first_gpu,
    load_plugins,
    message_log,
    tensorrt_module,
)

LAYERS = "layers.json"


@dataclass(frozen=True)
class _Build:
    """The inputs of a build.

    Attributes:
        source: the export.
        trt: TensorRT's module.
        options: as they were asked for.
        profile: the shapes of the plan.
        identity: what decides the plan, for the manifest; `key` is its hash.
        unmeasured: why the plan cannot be run on this machine; empty where it can.
    """

    source: Artefact
    trt: Any
    options: BuildOptions
    profile: Profile
    identity: dict[str, Any]
    unmeasured: str

    @classmethod
    def of(cls, model: Artefact | Path, options: BuildOptions) -> _Build:
        """The build of an export on this machine."""
        source = Artefact.open(model)
        if source.kind is not Kind.ONNX:
            raise MsstsError(f"{source.path}: not an ONNX file; expected the folder that `mssts export` writes")
        profile = options.profile(source.described())
        trt, gpu = tensorrt_module(options.target), first_gpu()
        if gpu is None and options.target == "tensorrt":
            raise MsstsError(
                "tensorrt builds on the GPU that the plan is for, and there is none here; use tensorrt-rtx"
            )
        identity = _identity(trt, options, profile, source.described(), gpu)
        return cls(source, trt, options, profile, identity, _why_unmeasured(trt, gpu, options))


def build_engine(model: Artefact | Path, out: Path, options: BuildOptions, gate: ApGate | None = None) -> Manifest:
    """Writes `out/model.plan` and `out/manifest.json`, or nothing.

    Where there is a GPU that runs it, the plan is loaded, its layer report is checked and saved as `layers.json`, its
    outputs are compared with those of the ONNX file, and so is its AP on the gate's data, if there is a gate. Without
    a GPU (TensorRT-RTX builds without) the checks are of the network, and the manifest says what was not measured.

    Args:
        model: a folder of `mssts export`.
        out: another folder.
        options: the target, the shapes and the rest.
        gate: the data that the ONNX file and the plan are scored on; None: they are not.

    Raises:
        MsstsError: the export is absent or was edited, TensorRT is not installed or cannot parse it, a shape is wrong,
            the data are absent or broken.
        CheckFailed: the network or the plan is not what was asked for, or loses more AP than the gate allows.
    """
    build = _Build.of(model, options)
    source, unmeasured = build.source.described(), build.unmeasured
    if out.resolve() == build.source.path.parent.resolve():
        raise MsstsError(f"--out is the export's own folder {out}; its manifest would be overwritten: name another")
    if gate is not None:
        check_data(source, build.profile, gate)
    with writing(out, PLAN) as draft:
        log = message_log(build.trt)
        nodes = our_nodes(build.source.path)
        plan, network = _plan(build, log, nodes)
        draft.path.write_bytes(memoryview(plan))
        checks: dict[str, Any] = {
            "network": network,
            "layers": unmeasured,
            "parity": {"holds": None, "reason": unmeasured},
            **(gate.unmeasured(unmeasured) if gate is not None and unmeasured else {}),
        }
        profile = build.profile
        manifest = replace(
            source,
            runner="tensorrt",
            shape=profile.best if profile.least == profile.best == profile.most else None,
            checks=checks,
            provenance={
                "weights": source.provenance.get("weights"),
                "onnx": {"sha256": source.artefact_sha256, "provenance": source.provenance},
                "engine": {**build.identity, "bytes": draft.path.stat().st_size},
                **provenance(),
            },
        )
        if not unmeasured:
            draft.describe(manifest)
            report = _layer_report(build.trt, log, plan, options)
            others = check_report(report, nodes, options.uses_plugins, source.precision)
            write_json(draft.folder / LAYERS, report)
            checks["layers"] = {"layers": len(report), "holds": True, "in_another_precision": others}
            checks["parity"] = check_parity(build.source, draft.folder, profile, str(out / PLAN))
            if gate is not None:
                ap_checks, ran = check_ap(build.source, draft.folder, gate, options.uses_plugins)
                checks |= ap_checks
                manifest = replace(manifest, provenance={**manifest.provenance, "scored_with": ran})
        return draft.describe(replace(manifest, checks=checks))


def existing_engine(
    model: Artefact | Path, out: Path, options: BuildOptions, gate: ApGate | None = None
) -> Manifest | None:
    """The manifest in `out` if `build_engine` would build the same again, else None.

    The rule is that of `mssts.export.existing`.

    Where the plan cannot be run, it need not have been scored either.

    Raises:
        MsstsError: as `build_engine`, of the export, the options and TensorRT.
    """
    build, found = _Build.of(model, options), unchanged(out)
    if found is None or found.manifest is None:
        return None
    manifest = found.manifest
    if manifest.artefact != PLAN or manifest.provenance.get("engine", {}).get("key") != build.identity["key"]:
        return None
    scored = gate is None or gate.has_measured(manifest.checks) or (build.unmeasured and gate.is_of(manifest.checks))
    return manifest if scored else None


def _identity(trt: Any, options: BuildOptions, profile: Profile, source: Manifest, gpu: Gpu | None) -> dict[str, Any]:
    """Everything that decides a plan. `key` is its hash."""
    library = kernels.library("tensorrt")
    plugin = sha256(library.path) if options.uses_plugins and library.path is not None else None
    identity: dict[str, Any] = {
        "target": options.target,
        "tensorrt": trt.__version__,
        "gpu": None if gpu is None else {"name": gpu.name, "capability": gpu.capability},
        "plugin_sha256": plugin,
        "options": options.to_json(),
        "profile": profile.to_json(),
    }
    hashed = {**identity, "onnx": source.artefact_sha256, "companions": source.companions}
    key = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
    return {**identity, "key": key}


def _why_unmeasured(trt: Any, gpu: Gpu | None, options: BuildOptions) -> str:
    """The reason why the plan cannot run here, empty if it can."""
    if gpu is None:
        return f"{NOT_MEASURED}: no GPU"
    if options.target == "tensorrt-rtx":
        known = hasattr(trt.ComputeCapability, "SM" + gpu.capability.replace(".", ""))
        if not known or gpu.capability not in (options.compute_capabilities or (gpu.capability,)):
            return f"{NOT_MEASURED}: the plan is not for the {gpu.name} of this machine ({gpu.capability})"
    return ""


def _plan(build: _Build, log: Any, nodes: list[str]) -> tuple[Any, dict[str, Any]]:
    """The bytes of a plan, and the report on its network.

    The network is checked before it is built."""
    trt, options, precision = build.trt, build.options, build.source.described().precision
    builder = trt.Builder(log)
    if options.uses_plugins:
        load_plugins(builder.get_plugin_registry())
    network = parse_network(trt, log, builder, build.source.path)
    check_contract(network, build.source.path)
    layers = layers_of(network)
    check_plugins(trt, layers, nodes, options.uses_plugins)
    judged = check_precision(trt, layers, precision)
    report = {"layers": len(layers), "plugins": nodes if options.uses_plugins else [], "in_precision": judged}
    return _serialize(trt, log, builder, network, options, build.profile, precision), report


def _serialize(
    trt: Any, log: Any, builder: Any, network: Any, options: BuildOptions, profile: Profile, precision: str
) -> Any:
    """Builds the network and returns the plan's bytes."""
    config = builder.create_builder_config()
    shapes = builder.create_optimization_profile()
    for spec in (contract.FRAMES, contract.SIZES):
        shapes.set_shape(
            spec.name,
            *(
                (shape.clips, shape.frames, shape.height, shape.width, 3)
                if spec is contract.FRAMES
                else (shape.clips, 2)
                for shape in (profile.least, profile.best, profile.most)
            ),
        )
    config.add_optimization_profile(shapes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_gib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace_gib * 2**30))
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)  # 10 bits of mantissa are not what was asked for
    level = HARDWARE_COMPATIBILITY[options.hardware_compatible]
    if level != "NONE":
        if not hasattr(trt.HardwareCompatibilityLevel, level):
            raise MsstsError(f"TensorRT {trt.__version__} has no --hardware-compatible {options.hardware_compatible}")
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.compute_capabilities:
        _set_capabilities(trt, config, options.compute_capabilities)
    cache = _read_timing_cache(trt, config, options)
    with progress_monitor(trt) as monitor:
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise MsstsError(f"TensorRT {trt.__version__} cannot build the engine: {log.last()}")
    if cache is not None and options.timing_cache is not None:
        with atomic_path(options.timing_cache) as path:
            path.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return plan


def _set_capabilities(trt: Any, config: Any, capabilities: tuple[str, ...]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        name = "SM" + capability.replace(".", "")
        if not hasattr(trt.ComputeCapability, name):
            known = [entry[2:-1] + "." + entry[-1] for entry in dir(trt.ComputeCapability) if entry.startswith("SM")]
            raise MsstsError(f"--compute-capability {capability}: expected one of: {', '.join(known)}")
        config.set_compute_capability(getattr(trt.ComputeCapability, name), index)


def _read_timing_cache(trt: Any, config: Any, options: BuildOptions) -> Any:
    """Puts the timing cache into the configuration."""
    path = options.timing_cache
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, False):
        raise MsstsError(f"{path}: not a timing cache of this TensorRT ({trt.__version__}) and GPU; delete it")
    return cache


def _layer_report(trt: Any, log: Any, plan: Any, options: BuildOptions) -> list[dict[str, Any]]:
    """The layer report of the built engine's inspector."""
    _runtime, engine = deserialised(
        trt, log, plan, plugins=options.uses_plugins, version_compatible=options.version_compatible
    )
    if engine is None:
        raise CheckFailed(f"the built plan cannot be loaded again: {log.last()}; nothing was written")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = json.loads(text).get("Layers", [])
    return [layer if isinstance(layer, dict) else {"Name": str(layer)} for layer in layers]
