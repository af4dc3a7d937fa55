"""Compiler report on the CUDA kernels: registers, spills, occupancy, instructions.

An instruction is issued to 32 threads at once, and a multiprocessor issues four a cycle at most, so the instructions
for each point bound the time of a call: that is what this module counts, from the machine code of the built library.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mssts.bench.gpu_model.sass import Instruction, demangle, listings, loops_of, resources
from mssts.errors import MsstsError


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor (CUDA C++ Programming Guide, compute capabilities)."""

    threads: int
    blocks: int
    shared_bytes: int


LIMITS = {
    80: Limits(2048, 32, 164 * 1024),
    86: Limits(1536, 16, 100 * 1024),
    87: Limits(1536, 16, 164 * 1024),
    89: Limits(1536, 24, 100 * 1024),
    90: Limits(2048, 32, 228 * 1024),
    100: Limits(2048, 32, 228 * 1024),
    103: Limits(2048, 32, 228 * 1024),
    120: Limits(1536, 24, 100 * 1024),
}
REGISTERS_OF_MULTIPROCESSOR = 65536


@dataclass(frozen=True)
class Launch:
    """The R50 encoder's launch of a kernel, and the work of one warp.

    Attributes:
        kernel: part of the demangled name.
        dtype: of value, offsets and logits (the stock kernel: of everything).
        backward: the direction.
        deterministic: sums in fixed point; of a backward.
        threads: of a block.
        dynamic_bytes: shared memory of a block beside the static.
        points: that a warp computes in all (a point of one head and query).
        trips: how often the loops around the tokens' loads run, outermost first.
        load: the opcode of a token's load.
    """

    kernel: str
    dtype: str
    backward: bool
    threads: int
    dynamic_bytes: int
    points: int
    trips: tuple[int, ...]
    load: str
    deterministic: bool = False

    @property
    def stock(self) -> bool:
        """Launches of the released code's kernel.

        It takes softmax and locations that other kernels compute before it.
        """
        return self.kernel.startswith("ms_deformable")


def _tensor(dtype: str, name: str) -> Launch:
    return Launch(f"deform_forward_tensor<{name}, 32, 4, 4, 2>", dtype, False, 256, 8 * 4096, 8 * 16, (4,), "LDG.E.128")


def _backward(dtype: str, name: str, load: str) -> list[Launch]:
    # Rounds of 8 points, points: 4 items a warp.
    return [
        Launch(
            f"deform_backward<{name}, 4, 8, true, {str(fixed).lower()}>",
            dtype, True, 256, 8 * 768 + 64, 4 * 16, (2, 8), load, fixed,
        )
        for fixed in (False, True)
    ]  # fmt: skip


def _stock(dtype: str, name: str, load: str) -> list[Launch]:
    # Passes over its grid, levels, points: a warp is the 32 channels of one head and query.
    backward = f"ms_deformable_col2im_gpu_kernel_shm_blocksize_aware_reduce_v1<{name}, 32"
    return [
        Launch(f"ms_deformable_im2col_gpu_kernel<{name}>", dtype, False, 1024, 0, 16, (1, 4, 4), load),
        Launch(backward, dtype, True, 32, 0, 16, (1, 4, 4), load),
    ]


LAUNCHES = (
    _tensor("float16", "__half"),
    _tensor("bfloat16", "__nv_bfloat16"),
    # Passes over the channels, rounds of 8 points, 4 points an iteration.
    Launch("deform_forward_vector<float, 4, 8>", "float32", False, 256, 64, 4 * 16, (1, 2, 2), "LDG.E.128"),
    *_backward("float16", "__half", "LDG.E.64"),
    *_backward("bfloat16", "__nv_bfloat16", "LDG.E.64"),
    *_backward("float32", "float", "LDG.E.128"),
    *_stock("float32", "float", "LDG.E"),
    *_stock("float16", "Half", "LDG.E"),
)


# The released kernel (models/ops/src/cuda/ms_deform_im2col_cuda.cuh of OmkarThawakar/MSSTS-VIS at 82b2c1bcd6d9), as
# nvcc 13.0 -O3 -arch=sm_90 compiles it, so that a report needs no copy of it. It leaves out softmax and locations.
RECORDED_STOCK = (
    {"direction": "forward", "dtype": "float32", "instructions_per_point": 97.875, "registers": 39},
    {"direction": "backward", "dtype": "float32", "instructions_per_point": 288.0, "registers": 48},
)


@dataclass
class Kernel:
    """One kernel of one architecture.

    Attributes:
        name: without its arguments.
        registers: of a thread.
        stack_bytes: of a thread: what was spilled, as these kernels have no arrays there.
        shared_bytes: of a block, static.
        instructions: of its code.
        launch: that of the R50 encoder, or None.
        occupancy: of that launch.
        instructions_per_point: of that launch.
        note: why there are no instructions per point.
    """

    name: str
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    launch: Launch | None = None
    occupancy: float | None = None
    instructions_per_point: float | None = None
    note: str | None = None


def count(code: list[Instruction], launch: Launch) -> int:
    """The instructions that one warp issues.

    They are counted by how often the loops around the tokens' loads run.

    Code outside of these loops counts once, that of branches too, to the first EXIT or vote after them: what stands
    behind the vote computes again what is not finite. Not counted: unrolled loops beside the nest (4 loads or more: for
    more points than a lane has here). All corners count as inside of their levels.
    """
    loops = loops_of(code)

    def loads(loop: tuple[int, int], opcode: str) -> int:
        return sum(loop[0] <= i.address <= loop[1] and i.opcode.startswith(opcode) for i in code)

    with_loads = [loop for loop in loops if loads(loop, launch.load) >= 4]
    # The innermost, and of those the one with most loads.
    innermost = [a for a in with_loads if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in with_loads)]
    if launch.backward and not launch.stock:
        # The loop over channels, with the updates of grad_value.
        innermost = [a for a in innermost if loads(a, "RED") > 0] or innermost
    if not innermost:
        raise MsstsError("no loop with the loads of tokens")
    inner = max(innermost, key=lambda loop: loads(loop, launch.load))
    nest = sorted(
        (loop for loop in loops if loop[0] <= inner[0] and inner[1] <= loop[1]), key=lambda loop: loop[0] - loop[1]
    )
    if len(nest) != len(launch.trips):
        raise MsstsError(f"{len(nest)} loops around the loads of tokens, {len(launch.trips)} expected")
    skipped = [loop for loop in loops if loop not in nest and loads(loop, "LDG") >= 4]
    end = next(
        (
            i.address
            for i in code
            if i.address > nest[0][1] and ((i.opcode == "EXIT" and not i.predicated) or i.opcode == "VOTE.ANY")
        ),
        code[-1].address,
    )
    total = 0
    for instruction in code:
        at = instruction.address
        if at > end or any(first <= at <= last for first, last in skipped):
            continue
        times = 1
        for (first, last), trips in zip(nest, launch.trips, strict=True):
            times *= trips if first <= at <= last else 1
        total += times
    return total


def occupancy(kernel: Kernel, launch: Launch) -> float | None:
    """Resident warps of a multiprocessor, as a fraction of its maximum.

    They are limited by registers, shared memory, threads and blocks.
    """
    limits = LIMITS.get(kernel.architecture)
    if limits is None:
        return None
    warps = launch.threads // 32
    registers = (kernel.registers * 32 + 255) // 256 * 256 * warps
    shared = (kernel.shared_bytes + launch.dynamic_bytes + 1024 + 127) // 128 * 128
    blocks = min(
        REGISTERS_OF_MULTIPROCESSOR // registers,
        limits.shared_bytes // shared,
        limits.threads // launch.threads,
        limits.blocks,
    )
    return blocks * launch.threads / limits.threads


def kernels_of(library: Path, only: int | None = None) -> list[Kernel]:
    """`cuobjdump`'s figures for every kernel of a library or cubin.

    They are of one architecture, or of all.

    Raises:
        MsstsError: there is no disassembler, or it cannot read the file.
    """
    options = ("--gpu-architecture", f"sm_{only}") if only and library.suffix != ".cubin" else ()
    code = {(architecture, name): sass for architecture, name, sass in listings(library, options)}
    architectures = {architecture for architecture, _ in code}
    found = []
    names = demangle(sorted({name for _, name in code}))
    for stated, mangled, usage in resources(library, options):
        # A lone cubin does not state its architecture among its resources.
        architecture = stated or (next(iter(architectures)) if len(architectures) == 1 else 0)
        sass = code.get((architecture, mangled))
        if sass is None:
            raise MsstsError(f"no SASS of {mangled} for sm_{architecture} in {library}")
        kernel = Kernel(
            name=names[mangled].removeprefix("void ").split("(")[0].replace("mssts::", ""),
            architecture=architecture,
            registers=usage["REG"],
            stack_bytes=usage["STACK"],
            # From sm_90 on the driver's 1 KiB is in the figure.
            shared_bytes=max(usage["SHARED"] - (1024 if architecture >= 90 else 0), 0),
            instructions=len(sass),
        )
        for launch in LAUNCHES:
            if launch.kernel in kernel.name:
                describe(kernel, sass, launch)
        found.append(kernel)
    return found


def describe(kernel: Kernel, sass: list[Instruction], launch: Launch) -> None:
    """Adds the figures that depend on the launch."""
    kernel.launch, kernel.occupancy = launch, occupancy(kernel, launch)
    try:
        kernel.instructions_per_point = count(sass, launch) / launch.points
    except MsstsError as error:
        kernel.note = f"instructions not counted: {error}"
