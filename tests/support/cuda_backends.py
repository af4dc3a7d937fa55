"""Backends for the tests of the CUDA kernels: g++'s emulation, or a GPU."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mssts.kernels import DeformAttnCall, TemporalAttnCall, library
from support.kernel_cases import DTYPES, DeformInputs, TemporalInputs

ROOT = Path(__file__).resolve().parents[2]
PLUGINS, EMULATION = ROOT / "plugins", ROOT / "tests" / "cuda_emulation"
SUFFIXES = (".h", ".cuh", ".cu", ".cpp", ".txt")
DETERMINISTIC, NO_TENSOR_CORES = 1, 2
ORDERS = [0, -1, 7]  # of threads and blocks: ascending, descending, random
# Tools that the emulation is built with.
TOOLS = ("c++", "cmake")


def missing_tool() -> str:
    """The tools that the emulation needs and this machine lacks, empty if none."""
    return next((tool for tool in TOOLS if shutil.which(tool) is None), "")


def build_emulation() -> Path:
    """The folder of the emulated library, built once for each state of the sources.

    The emulation's own checks are there too.

    It is this user's own and named by the sources' hash, so that a second run of the tests finds it.
    """
    folders = (EMULATION, PLUGINS / "cuda", PLUGINS / "common", PLUGINS / "include" / "mssts")
    sources = [path for folder in folders for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES]
    digest = hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"mssts_emulation_{os.getuid()}"
    place.mkdir(mode=0o700, exist_ok=True)
    if place.stat().st_uid != os.getuid():
        raise RuntimeError(f"{place} belongs to another user; set TMPDIR to a folder of your own")
    folder = place / digest
    if not (folder / "done").exists():
        configure = ["cmake", "-S", str(EMULATION), "-B", str(folder), f"-DMSSTS_OUTPUT={folder}"]
        for command in (configure, ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)]):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
        (folder / "done").touch()
    return folder


class Memory:
    """A copy of a tensor where a kernel may use it.

    `pointer` is for the kernel, `tensor()` for the test.
    """

    pointer: int

    def tensor(self) -> Tensor:
        raise NotImplementedError


class GuardedMemory(Memory):
    """Host memory whose end touches a page that faults.

    It ends less than 16 bytes before the page, for the sake of alignment.

    Those, and all bytes before the tensor back to the other guard page, hold a pattern that is checked. The address is
    `offset` more than a multiple of 16.
    """

    _PATTERN = 0xFB  # NaN in every floating dtype

    def __init__(self, like: Tensor, offset: int, *, copy: bool) -> None:
        page = mmap.PAGESIZE
        self._size, self._dtype, self._shape = like.numel() * like.element_size(), like.dtype, like.shape
        room = (self._size + offset + 15 + page) // page * page
        self._map = mmap.mmap(-1, room + 2 * page)
        self._bytes = torch.frombuffer(self._map, dtype=torch.uint8)[page : page + room]
        self._bytes.fill_(self._PATTERN)
        self._start = (room - self._size) // 16 * 16 - (16 - offset if offset else 0)
        if copy:
            self._own().copy_(like.contiguous().view(-1).view(torch.uint8))
        self.pointer = self._bytes.data_ptr() + self._start
        libc = ctypes.CDLL(None, use_errno=True)
        for guard in (self._bytes.data_ptr() - page, self._bytes.data_ptr() + room):
            if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")

    def _own(self) -> Tensor:
        return self._bytes[self._start : self._start + self._size]

    def tensor(self) -> Tensor:
        around = (self._bytes[: self._start], self._bytes[self._start + self._size :])
        assert all((part == self._PATTERN).all() for part in around), "the kernel wrote outside of the tensor"
        return self._own().clone().view(self._dtype).view(self._shape)


class DeviceMemory(Memory):
    """Memory of the GPU, with a pattern of 256 bytes on both sides."""

    _PATTERN, _MARGIN = 0xFB, 256

    def __init__(self, like: Tensor, offset: int, *, copy: bool) -> None:
        self._size, self._dtype, self._shape = like.numel() * like.element_size(), like.dtype, like.shape
        self._start = self._MARGIN + offset
        size = self._size + offset + 2 * self._MARGIN
        self._bytes = torch.full((size,), self._PATTERN, dtype=torch.uint8, device="cuda")
        if copy:
            self._bytes[self._start : self._start + self._size] = like.contiguous().view(-1).view(torch.uint8).cuda()
        self.pointer = self._bytes.data_ptr() + self._start

    def tensor(self) -> Tensor:
        host = self._bytes.cpu()
        around = (host[: self._start], host[self._start + self._size :])
        assert all((part == self._PATTERN).all() for part in around), "the kernel wrote outside of the tensor"
        return host[self._start : self._start + self._size].clone().view(self._dtype).view(self._shape)


class Backend:
    """The CUDA kernels of one library, on CPU tensors that it copies to and fro."""

    def __init__(self, handle: Any, memory: type[GuardedMemory] | type[DeviceMemory]) -> None:
        self.handle, self.memory = handle, memory
        handle.mssts_last_error.restype = ctypes.c_char_p
        handle.mssts_cuda_deform_attn_workspace.restype = ctypes.c_int64
        self.emulated = memory is GuardedMemory

    @contextmanager
    def order(self, seed: int) -> Iterator[None]:
        """Runs threads and blocks ascending (0), descending (-1) or at random.

        A GPU has its own order.
        """
        if self.emulated:
            self.handle.mssts_emulation_order(ctypes.c_int64(seed))
        try:
            yield
        finally:
            if self.emulated:
                self.handle.mssts_emulation_order(ctypes.c_int64(0))

    def kernels(self) -> str:
        """The launches since the last call, one a line, in emulation only."""
        self.handle.mssts_emulation_launches.restype = ctypes.c_char_p
        return str(self.handle.mssts_emulation_launches().decode())

    def call(self, function: str, struct: ctypes.Structure) -> None:
        """Raises RuntimeError with the library's reason where a call fails."""
        status = getattr(self.handle, function)(ctypes.byref(struct), ctypes.c_void_p(0))
        if not self.emulated:
            torch.cuda.synchronize()
        if status != 0:
            raise RuntimeError(f"{function}: status {status}, {self.handle.mssts_last_error().decode()}")

    def place(self, tensor: Tensor, offset: int = 0) -> Memory:
        return self.memory(tensor, offset, copy=True)

    def room(self, shape: Sequence[int], dtype: torch.dtype, offset: int = 0) -> Memory:
        return self.memory(torch.empty(*shape, dtype=dtype), offset, copy=False)

    def temporal_forward(self, inputs: TemporalInputs, offset: int = 0) -> Tensor:
        """out_BTSC, with all tensors misaligned by `offset` bytes."""
        call, kept = self._temporal_call(inputs, offset)
        kept["out"] = self.room(inputs.query_BTSC.shape, inputs.query_BTSC.dtype, offset)
        call.out = kept["out"].pointer
        self.call("mssts_cuda_temporal_attn_forward", call)
        return kept["out"].tensor()

    def temporal_backward(
        self, inputs: TemporalInputs, wanted: Sequence[str] = ("query", "key", "value"), offset: int = 0
    ) -> dict[str, Tensor]:
        """The wanted gradients."""
        call, kept = self._temporal_call(inputs, offset)
        kept["grad_out"] = self.place(inputs.grad_BTSC, offset)
        call.grad_out = kept["grad_out"].pointer
        leaves = {"query": inputs.query_BTSC, "key": inputs.key_BUSC, "value": inputs.value_BUSC}
        gradients = {name: self.room(leaves[name].shape, leaves[name].dtype, offset) for name in wanted}
        for name, memory in gradients.items():
            setattr(call, f"grad_{name}", memory.pointer)
        self.call("mssts_cuda_temporal_attn_backward", call)
        return {name: memory.tensor() for name, memory in gradients.items()}

    def _temporal_call(self, inputs: TemporalInputs, offset: int) -> tuple[TemporalAttnCall, dict[str, Memory]]:
        B, T, S, C = inputs.query_BTSC.shape
        U, dtype = inputs.key_BUSC.shape[1], DTYPES[inputs.query_BTSC.dtype]
        call = TemporalAttnCall(B, S, T, U, inputs.heads, C // inputs.heads, dtype)
        kept: dict[str, Memory] = {}
        tokens = {"query": inputs.query_BTSC, "key": inputs.key_BUSC, "value": inputs.value_BUSC}
        for name, x in tokens.items():
            # The whole storage, with the strides that the view has of it.
            kept[name] = self.place(torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()), offset)
            setattr(call, name, kept[name].pointer + x.storage_offset() * x.element_size())
            setattr(call, f"{name}_strides", (ctypes.c_int64 * 3)(*x.stride()[:3]))
        return call, kept

    def deform_forward(self, inputs: DeformInputs, offset: int = 0, flags: int = 0, only: str = "") -> Tensor:
        """out_NQC, with tensors misaligned by `offset` bytes.

        They are those of the value's dtype, or `only` one of them.
        """
        call, kept = self._deform_call(inputs, offset, only)
        call.flags = flags
        shape = (call.batch, call.queries, call.heads * call.channels)
        kept["out"] = self.room(shape, inputs.value_NSMD.dtype, offset if only in ("", "out") else 0)
        call.out = kept["out"].pointer
        self.call("mssts_cuda_deform_attn_forward", call)
        return kept["out"].tensor()

    def deform_backward(
        self,
        inputs: DeformInputs,
        wanted: Sequence[str] = ("value", "reference", "offsets", "logits"),
        flags: int = 0,
        offset: int = 0,
    ) -> dict[str, Tensor]:
        """The wanted gradients."""
        call, kept = self._deform_call(inputs, offset)
        call.flags = flags
        kept["grad_out"] = self.place(inputs.grad_NQC, offset)
        call.grad_out = kept["grad_out"].pointer
        leaves = {
            "value": inputs.value_NSMD,
            "reference": inputs.reference_NQLR,
            "offsets": inputs.offsets_NQMLP2,
            "logits": inputs.logits_NQMLP,
        }
        gradients = {}
        for name in wanted:
            leaf = leaves[name]
            gradients[name] = self.room(leaf.shape, leaf.dtype, offset if leaf.dtype == inputs.value_NSMD.dtype else 0)
            setattr(call, f"grad_{name}", gradients[name].pointer)
        needed = int(self.handle.mssts_cuda_deform_attn_workspace(ctypes.byref(call)))
        if needed < 0:
            raise RuntimeError(f"workspace: {self.handle.mssts_last_error().decode()}")
        workspace = self.room(((needed + 255) // 256 * 256,), torch.uint8)
        call.workspace = workspace.pointer
        self.call("mssts_cuda_deform_attn_backward", call)
        workspace.tensor()
        return {name: memory.tensor() for name, memory in gradients.items()}

    def _deform_call(
        self, inputs: DeformInputs, offset: int, only: str = ""
    ) -> tuple[DeformAttnCall, dict[str, Memory]]:
        N, S, M, D = inputs.value_NSMD.shape
        _, Q, _, L, P, _ = inputs.offsets_NQMLP2.shape
        types = (DTYPES[inputs.value_NSMD.dtype], DTYPES[inputs.shapes_L2.dtype])
        call = DeformAttnCall(N, S, Q, M, D, L, P, inputs.reference_NQLR.shape[-1], *types)
        tensors = {
            "value": inputs.value_NSMD,
            "shapes": inputs.shapes_L2,
            "reference": inputs.reference_NQLR,
            "offsets": inputs.offsets_NQMLP2,
            "logits": inputs.logits_NQMLP,
        }
        shifted = [n for n, x in tensors.items() if x.dtype == inputs.value_NSMD.dtype and only in ("", n)]
        kept = {n: self.place(x, offset if n in shifted else 0) for n, x in tensors.items()}
        for name, memory in kept.items():
            setattr(call, name, memory.pointer)
        return call, kept


def gpu_library() -> tuple[Any, str]:
    """The CUDA library, or why there is none to test on a GPU here."""
    if not torch.cuda.is_available():
        return None, "PyTorch finds no GPU"
    found = library("cuda")
    return found.handle, f"the CUDA library: {found.reason}" if found.reason else ""
