"""`mssts info`: the kernels and engines that work here, and how to get the others."""

from __future__ import annotations

import argparse
import ctypes
import importlib
import textwrap
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mssts
from mssts import kernels, provenance
from mssts.errors import first_line
from mssts.files import write_json
from mssts.kernels import library
from mssts.machine import cpu_count, gpus

HELP = "this machine: versions, which kernels and engines work, and why not the others"

_REBUILD = "`make plugins` in a checkout rebuilds it"
_WIDTH = 24  # of the names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prints what was found. Nothing that is missing is an error."""
    engines = {entry.name: entry for entry in _engines()}
    bindings = _bindings(engines)
    found_gpus, gpu_reason = gpus()
    folder = kernels.folder()
    found = {
        "mssts": mssts.__version__,
        **provenance.provenance(),
        "gpus": found_gpus,
        "library_folder": None if folder is None else str(folder),
        "kernels": {binding.name: asdict(binding) for binding in bindings},
        "engines": {name: asdict(entry) for name, entry in engines.items()},
    }
    if arguments.json is not None:
        write_json(arguments.json, found)

    machine = found["machine"]
    memory = "" if machine["memory_gib"] is None else f", {machine['memory_gib']} GiB of memory"
    print(f"mssts {found['mssts']}, commit {found['commit']}, {Path(mssts.__file__).parent}\n")
    _print_line("Processor", f"{machine['cpu']}, {machine['cores']} usable cores{memory}")
    _print_line("System", f"{machine['os']}, Python {machine['python']}")
    _print_line("GPU", "; ".join(_gpu_text(gpu) for gpu in found_gpus) or gpu_reason)
    _print_line("Packages", ", ".join(f"{name} {version}" for name, version in found["versions"].items()) or "none")
    print("\nKernels: what computes the two ops in each runtime")
    for binding in bindings:
        _print_entry(binding)
    print("\nEngines that can run here")
    for entry in engines.values():
        _print_entry(entry)


@dataclass(frozen=True)
class Entry:
    """One line of the table.

    Attributes:
        name: a runtime, for a kernel with its device.
        active: whether it works here.
        detail: what it is; for an inactive one why not, and what to do.
        path: the library, where there is one.
        facts: for machines: instruction set, threads, architectures, providers.
    """

    name: str
    active: bool
    detail: str
    path: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


# --------------------------------------------------------------------------------------------------------- engines


def _engines() -> list[Entry]:
    found = []
    torch, reason = _imported("torch", "PyTorch", "`pip install torch`")
    if torch is None:
        found.append(Entry("PyTorch", False, reason))
    else:
        cuda = bool(torch.cuda.is_available())
        device = f"CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        device += "" if cuda or not torch.version.cuda else ", which finds no GPU"
        facts = {"version": torch.__version__, "cuda": cuda, "cuda_build": torch.version.cuda}
        found.append(Entry("PyTorch", True, f"{torch.__version__}, {device}", facts=facts))

    runtime, reason = _imported("onnxruntime", "ONNX Runtime", "`pip install onnxruntime`")
    if runtime is None:
        found.append(Entry("ONNX Runtime", False, reason))
    else:
        providers = list(runtime.get_available_providers())
        names = ", ".join(provider.removesuffix("ExecutionProvider") for provider in providers)
        facts = {"version": runtime.__version__, "providers": providers, "cores": cpu_count()}
        found.append(Entry("ONNX Runtime", True, f"{runtime.__version__}, providers {names}", facts=facts))

    for module, name, install in (
        ("openvino", "OpenVINO", "`pip install openvino`"),
        ("tensorrt", "TensorRT", "`pip install tensorrt`, from NVIDIA's own package index"),
        ("tensorrt_rtx_bindings", "TensorRT-RTX", "`pip install tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs`"),
    ):
        imported, reason = _imported(module, name, install)
        version = getattr(imported, "__version__", "of unknown version")
        entry = Entry(name, True, str(version), facts={"version": str(version)})
        found.append(entry if imported is not None else Entry(name, False, reason))
    return found


def _imported(module: str, name: str, install: str) -> tuple[Any, str]:
    """The module, or None and the reason.

    A package whose libraries do not load counts as missing."""
    try:
        return importlib.import_module(module), ""
    except ModuleNotFoundError as error:
        if error.name == module:
            return None, f"not installed; {install}"
        return None, f"{name} is broken: it needs {error.name}, which is not installed"
    except Exception as error:  # whatever a half-installed package raises
        return None, f"{name} is broken: {first_line(error)}"


# --------------------------------------------------------------------------------------------------------- kernels


def _bindings(engines: dict[str, Entry]) -> list[Entry]:
    # PyTorch is imported by now, if it is there: kernels share its threads.
    return [
        _pytorch_cpu(engines["PyTorch"]),
        _pytorch_cuda(engines["PyTorch"]),
        *_onnx_runtime(engines["ONNX Runtime"]),
        _openvino(engines["OpenVINO"]),
        _tensorrt(engines["TensorRT"]),
    ]


def _pytorch_cpu(engine: Entry) -> Entry:
    name, found = "PyTorch, CPU", library("cpu")
    path = None if found.path is None else str(found.path)
    if found.reason:
        return Entry(name, False, f"PyTorch's own functions instead: {found.reason}", path)
    isa, threads = found.handle.mssts_cpu_isa().decode(), found.handle.mssts_cpu_threads().decode()
    facts = {"instruction_set": isa, "threads": threads}
    if not engine.active:
        return Entry(name, False, f"built ({isa}), but PyTorch is {engine.detail}", path, facts)
    whose = "PyTorch's threads (OpenMP)" if threads == "openmp" else "threads of its own"
    return Entry(name, True, f"{isa}, {whose}", path, facts)


def _pytorch_cuda(engine: Entry) -> Entry:
    name, found = "PyTorch, CUDA", library("cuda")
    path = None if found.path is None else str(found.path)
    facts: dict[str, Any] = {}
    built = ""
    if found.handle is not None:
        facts = {"build": found.handle.mssts_cuda_build().decode(), "gpus": int(found.handle.mssts_cuda_devices())}
        built = f"built for {facts['build']}"
    if found.reason:
        return Entry(name, False, f"{built}, but {found.reason}" if built else found.reason, path, facts)
    if not engine.active:
        return Entry(name, False, f"{built}, but PyTorch is {engine.detail}", path, facts)
    if not engine.facts["cuda"]:
        return Entry(name, False, f"{built}, but this PyTorch is {engine.detail.partition(', ')[2]}", path, facts)
    return Entry(name, True, built, path, facts)


def _onnx_runtime(engine: Entry) -> list[Entry]:
    names = ("ONNX Runtime, CPU", "ONNX Runtime, CUDA")
    found = library("onnxruntime")
    path = None if found.path is None else str(found.path)
    reason = found.reason and f"the model's function bodies instead: {found.reason}"
    facts: dict[str, Any] = {}
    if not reason:
        if not engine.active:
            reason = f"built, but ONNX Runtime is {engine.detail}"
        else:
            facts, reason = _registered(str(found.path))
    if reason:
        return [Entry(name, False, reason, path) for name in names]
    cpu = Entry(names[0], True, f"{facts['instruction_set']}, the session's threads", path, facts)
    cuda_reason = ""
    if not facts["cuda_build"]:
        cuda_reason = "built without the CUDA kernels; `make plugins` on a machine with nvcc builds them"
    elif "CUDAExecutionProvider" not in engine.facts["providers"]:
        cuda_reason = "this ONNX Runtime has no CUDA provider; `pip install onnxruntime-gpu` in its place"
    elif not facts["gpus"]:
        cuda_reason = f"built for {facts['cuda_build']}, but no GPU that it can run on, or no driver"
    detail = cuda_reason or f"built for {facts['cuda_build']}"
    return [cpu, Entry(names[1], not cuda_reason, detail, path, facts)]


def _registered(path: str) -> tuple[dict[str, Any], str]:
    """The state of ONNX Runtime's library of our ops after a session has loaded it."""
    import onnxruntime

    try:
        onnxruntime.SessionOptions().register_custom_ops_library(path)
        handle = ctypes.CDLL(path)
        facts: dict[str, Any] = {"instruction_set": _text(handle.mssts_cpu_isa), "cuda_build": None, "gpus": 0}
        if hasattr(handle, "mssts_cuda_build"):
            facts["cuda_build"] = _text(handle.mssts_cuda_build)
            facts["gpus"] = int(handle.mssts_cuda_devices())
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        return {}, f"cannot be loaded ({first_line(error)}); {_REBUILD}"
    return facts, ""


def _openvino(engine: Entry) -> Entry:
    name, found = "OpenVINO, CPU", library("openvino")
    path = None if found.path is None else str(found.path)
    if found.path is None or found.reason or not engine.active:
        return Entry(name, False, found.reason or f"built, but OpenVINO is {engine.detail}", path)
    # Imported here: it needs OpenVINO. The runner's core is the only one of this process.
    from mssts.runners.openvino_runner import register_kernels

    isa, reason = register_kernels(found.path)
    if reason:
        return Entry(name, False, reason.removeprefix(f"{path} "), path)
    return Entry(name, True, f"{isa}, OpenVINO's threads", path, {"instruction_set": isa})


def _tensorrt(engine: Entry) -> Entry:
    name, found = "TensorRT", library("tensorrt")
    path = None if found.path is None else str(found.path)
    if found.reason or not engine.active:
        return Entry(name, False, found.reason or f"built, but TensorRT is {engine.detail}", path)
    version = engine.facts["version"]
    try:
        handle = ctypes.CDLL(path)  # it registers its plugins with the TensorRT that _engines() loaded
        built = f"built for {_text(handle.mssts_tensorrt_build)} and {_text(handle.mssts_cuda_build)}"
        facts = {"build": built, "gpus": int(handle.mssts_cuda_devices())}
        if handle.mssts_register_tensorrt_plugins(None) < 1:
            major = version.partition(".")[0]
            reason = f"{built}; TensorRT {version} did not take it; build it with the headers of TensorRT {major}"
            return Entry(name, False, reason, path, facts)
    except (OSError, AttributeError) as error:
        return Entry(name, False, f"cannot be loaded ({first_line(error)}); {_REBUILD}", path)
    if not facts["gpus"]:
        return Entry(name, False, f"{built}, but no GPU that it can run on, or no driver", path, facts)
    return Entry(name, True, built, path, facts)


def _text(function: Any) -> str:
    """The string that a C function without arguments returns."""
    function.restype = ctypes.c_char_p
    return str(function().decode())


# --------------------------------------------------------------------------------------------------------- machine


def _gpu_text(gpu: dict[str, str]) -> str:
    parts = [gpu.get("name", "unknown"), gpu.get("memory", "")]
    parts.append(f"compute capability {gpu.get('compute_capability', 'unknown')}")
    parts.append(f"driver {gpu.get('driver', 'unknown')}")
    return ", ".join(part for part in parts if part)


# --------------------------------------------------------------------------------------------------------- the table


def _print_entry(entry: Entry) -> None:
    _print_line(f"{'yes' if entry.active else 'no':5}{entry.name}", entry.detail)
    if entry.path is not None:
        print(" " * (_WIDTH + 2) + entry.path)


def _print_line(name: str, text: str) -> None:
    indent = "  " + name.ljust(_WIDTH)
    print(
        textwrap.fill(
            text,
            118,
            initial_indent=indent,
            subsequent_indent=" " * len(indent),
            break_on_hyphens=False,
            break_long_words=False,
        )
    )
