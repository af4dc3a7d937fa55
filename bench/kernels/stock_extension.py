"""Builds Deformable DETR's CUDA extension from a checkout of the user's own.

Its source is written for PyTorch 1.x. A copy of it is brought to the names that PyTorch has today, and compiled. The
kernels themselves stay as they are.

    python -m mssts.bench.kernels.stock_extension CHECKOUT FOLDER

FOLDER gets the module `MultiScaleDeformableAttention`, which `mssts bench kernels` imports from PYTHONPATH.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from mssts.errors import MsstsError

NAME = "MultiScaleDeformableAttention"
_SOURCES = ("vision.cpp", "cpu/ms_deform_attn_cpu.cpp", "cuda/ms_deform_attn_cuda.cu")
# Gone from PyTorch → what is there now.
_RENAMED = (
    (r"\.type\(\)\.is_cuda\(\)", ".is_cuda()"),
    (r"(AT_DISPATCH_\w+\(\s*\w+)\.type\(\)", r"\1.scalar_type()"),
    (r"\.data<(\w+)>\(\)", r".data_ptr<\1>()"),
    (r"\bAT_ASSERTM\b", "TORCH_CHECK"),
    (r"<THC/THCAtomics\.cuh>", "<ATen/cuda/Atomic.cuh>"),
    (r"#include <THC/[\w./]+>\n", ""),
)


def patched(text: str) -> str:
    """A source file of the extension with today's names."""
    for old, new in _RENAMED:
        text = re.sub(old, new, text)
    return text


def copy_patched(checkout: Path, folder: Path) -> list[Path]:
    """Copies the extension's sources, patched, and returns those to compile.

    Raises:
        MsstsError: the checkout has none.
    """
    source = next((place for place in checkout.rglob("ops/src") if (place / _SOURCES[-1]).is_file()), None)
    if source is None:
        raise MsstsError(f"{checkout}: no ops/src/{_SOURCES[-1]} in it; expected a checkout of Deformable-DETR")
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for path in folder.rglob("*"):
        if path.suffix in (".cpp", ".cu", ".h", ".cuh"):
            path.write_text(patched(path.read_text(encoding="utf-8")), encoding="utf-8")
    return [folder / name for name in _SOURCES]


def build(checkout: Path, folder: Path) -> Path:
    """Compiles the extension for the GPU of this machine (one to two minutes)."""
    from torch.utils.cpp_extension import load

    sources = copy_patched(checkout, folder / "source")
    flags = ["-DWITH_CUDA", "-O3"]
    cuda_flags = [*flags, "-DCUDA_HAS_FP16=1", "-D__CUDA_NO_HALF_OPERATORS__", "-D__CUDA_NO_HALF_CONVERSIONS__"]
    module = load(
        NAME,
        [str(path) for path in sources],
        extra_cflags=flags,
        extra_cuda_cflags=cuda_flags,
        extra_include_paths=[str(folder / "source")],
        build_directory=str(folder),
        with_cuda=True,
    )
    return Path(module.__file__)


if __name__ == "__main__":
    try:
        print(build(Path(sys.argv[1]), Path(sys.argv[2])))
    except MsstsError as error:
        sys.exit(f"error: {error}")
