"""Compiler report on the CUDA kernels: registers, spills, occupancy, issue bound.

The issue bound follows from the instructions for each point.

Bound by the compiler's report, no time measured. An instruction is issued to 32 threads at once, and a multiprocessor
issues four a cycle at most: `instructions a point × points ÷ (multiprocessors × 4 × clock)` is the time that issuing
alone takes. Bytes give another bound: every input read once, every output written once.

    python plugins/cuda/report.py mssts/lib/libmssts_cuda.so --architecture 90 --stock stock.cubin --out report.json
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sass import (
    Instruction,
    ReportError,
    demangle,
    listings,
    loops_of,
    never_taken,
    resources,
    run,
    tool,
)

ROOT = Path(__file__).resolve().parents[2]
# R50 encoder, 360×640, T = 5: N*Q queries of M heads, D channels, L*P points; S = Q.
QUERIES, HEADS, CHANNELS, LEVELS, POINTS_OF_ITEM = 5 * 4820, 8, 32, 4, 16
POINTS = QUERIES * HEADS * POINTS_OF_ITEM
# H200 SXM; the clock is a usual one under load, the highest is 1.98 GHz. Memory: of the data sheet, and what copies
# are known to reach (not measured here).
MULTIPROCESSORS, ISSUES_A_CYCLE, CLOCK_HZ = 132, 4, 1.75e9
BANDWIDTH, USUAL_BANDWIDTH = 4.8e12, 4.3e12


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
        threads: of a block.
        dynamic_bytes: shared memory of a block beside the static.
        points: that a warp computes in all (a point of one head and query).
        trips: how often the loops around the tokens' loads run, outermost first.
        load: the opcode of a token's load.
        never: opcodes of code that does not run in this call.
    """

    kernel: str
    dtype: str
    backward: bool
    threads: int
    dynamic_bytes: int
    points: int
    trips: tuple[int, ...]
    load: str
    never: tuple[str, ...] = ()

    @property
    def stock(self) -> bool:
        """Launches of the released code's kernel.

        It takes softmax and locations that other kernels compute before it.
        """
        return self.kernel.startswith("ms_deformable")

    @property
    def bytes(self) -> int:
        """Compulsory traffic of one call."""
        element = 4 if self.dtype == "float32" else 2
        # value, offsets (or locations) and logits (or weights); R = 2.
        tensors = CHANNELS + 2 * POINTS_OF_ITEM + POINTS_OF_ITEM
        numbers = 2 * tensors + CHANNELS if self.backward else tensors + CHANNELS
        references = 0 if self.stock else QUERIES * LEVELS * 2 * 4 * (2 if self.backward else 1)
        return QUERIES * HEADS * numbers * element + references


def _tensor(dtype: str, name: str) -> Launch:
    return Launch(
        f"deform_forward_tensor<{name}, 32, 4, 4, 2>", dtype, False, 256, 8 * 4096 + 64, 8 * 16, (4,), "LDG.E.128"
    )


def _backward(dtype: str, name: str, load: str) -> Launch:
    # Rounds of 8 points, points, passes over the channels: 4 items a warp. Sums in fixed point: deterministic calls.
    fixed = ("F2I.S64", "RED.E.ADD.64", "REDG.E.ADD.64")
    return Launch(f"deform_backward<{name}, 4, 8>", dtype, True, 256, 8 * 768 + 64, 4 * 16, (2, 8, 1), load, fixed)


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
    _backward("float16", "__half", "LDG.E.64"),
    _backward("bfloat16", "__nv_bfloat16", "LDG.E.64"),
    _backward("float32", "float", "LDG.E.128"),
    *_stock("float32", "float", "LDG.E"),
    *_stock("float16", "Half", "LDG.E"),
)


@dataclass
class Kernel:
    """One kernel of one architecture."""

    name: str
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    local_instructions: int  # LDL and STL: spills
    instructions: int
    dtype: str | None = None
    backward: bool | None = None
    stock: bool | None = None
    threads: int | None = None
    occupancy: float | None = None
    points_of_warp: int | None = None
    main_loop_instructions_a_point: float | None = None
    instructions_a_warp: int | None = None
    instructions_a_point: float | None = None
    issue_bound_us: float | None = None
    bytes: int | None = None
    bytes_bound_us: float | None = None
    bytes_usual_us: float | None = None
    notes: list[str] = field(default_factory=list)


def provenance() -> dict[str, Any]:
    """Machine, versions and commit, as in every file of figures."""
    sys.path.insert(0, str(ROOT))
    from mssts.provenance import provenance as found

    return found()


def count(code: list[Instruction], launch: Launch) -> tuple[int, int]:
    """(instructions of the main loop, all that one warp issues).

    Both are counted by how often the loops around the tokens' loads run.

    Code outside of these loops counts once, that of branches too, to the first EXIT or vote after them: what stands
    behind the vote computes again what is not finite. Not counted: unrolled loops beside the nest (4 loads or more: for
    more points than a lane has here) and what `never_taken` finds. All corners count as inside of their levels.
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
        raise ReportError("no loop with the loads of tokens")
    inner = max(innermost, key=lambda loop: loads(loop, launch.load))
    nest = sorted(
        (loop for loop in loops if loop[0] <= inner[0] and inner[1] <= loop[1]), key=lambda loop: loop[0] - loop[1]
    )
    if len(nest) != len(launch.trips):
        raise ReportError(f"{len(nest)} loops around the loads of tokens, {len(launch.trips)} expected")
    skipped = never_taken(code, launch.never)
    skipped += [loop for loop in loops if loop not in nest and loads(loop, "LDG") >= 4]
    end = next(
        (
            i.address
            for i in code
            if i.address > nest[0][1] and ((i.opcode == "EXIT" and not i.predicated) or i.opcode == "VOTE.ANY")
        ),
        code[-1].address,
    )
    total = main = 0
    for instruction in code:
        at = instruction.address
        if at > end or any(first <= at <= last for first, last in skipped):
            continue
        times = 1
        for (first, last), trips in zip(nest, launch.trips, strict=True):
            times *= trips if first <= at <= last else 1
        total += times
        # With the loop over the points where one over channels lies within.
        main += times if nest[-2 if launch.never else -1][0] <= at <= nest[-2 if launch.never else -1][1] else 0
    return main, total


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

    The file is for one architecture.
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
            raise ReportError(f"no SASS of {mangled} for sm_{architecture} in {library}")
        kernel = Kernel(
            name=names[mangled].removeprefix("void ").split("(")[0].replace("mssts::", ""),
            architecture=architecture,
            registers=usage["REG"],
            stack_bytes=usage["STACK"],
            # From sm_90 on the driver's 1 KiB is in the figure.
            shared_bytes=max(usage["SHARED"] - (1024 if architecture >= 90 else 0), 0),
            local_instructions=sum(i.opcode.startswith(("LDL", "STL")) for i in sass),
            instructions=len(sass),
        )
        for launch in LAUNCHES:
            if launch.kernel in kernel.name:
                describe(kernel, sass, launch)
        found.append(kernel)
    return found


def describe(kernel: Kernel, sass: list[Instruction], launch: Launch) -> None:
    """Adds the figures that depend on the launch, with bounds for the H200 only."""
    kernel.dtype, kernel.backward, kernel.stock = launch.dtype, launch.backward, launch.stock
    kernel.threads, kernel.points_of_warp = launch.threads, launch.points
    kernel.occupancy = occupancy(kernel, launch)
    try:
        main, kernel.instructions_a_warp = count(sass, launch)
    except ReportError as error:
        kernel.notes.append(f"not counted: {error}")
        return
    kernel.main_loop_instructions_a_point = main / launch.points
    kernel.instructions_a_point = kernel.instructions_a_warp / launch.points
    if kernel.architecture == 90:
        issues = kernel.instructions_a_point * POINTS
        kernel.issue_bound_us = issues / (MULTIPROCESSORS * ISSUES_A_CYCLE * CLOCK_HZ) * 1e6
        kernel.bytes = launch.bytes
        kernel.bytes_bound_us, kernel.bytes_usual_us = (launch.bytes / b * 1e6 for b in (BANDWIDTH, USUAL_BANDWIDTH))


def table(kernels: list[Kernel], everything: bool) -> str:
    """Text for people: the kernels of the encoder call, or all."""

    def cell(value: float | None, form: str = "") -> str:
        return "" if value is None else format(value, form)

    heads = ("kernel", "sm", "regs", "stack", "LDL/STL", "shared", "occup.", "loop", "a point", "issue µs", "bytes µs")
    rows: list[tuple[str, ...]] = [heads]
    for k in sorted(kernels, key=lambda k: (k.name, k.architecture)):
        if everything or k.threads is not None or k.local_instructions or k.stack_bytes:
            numbers = (k.architecture, k.registers, k.stack_bytes, k.local_instructions, k.shared_bytes)
            counts = (cell(k.main_loop_instructions_a_point, ".1f"), cell(k.instructions_a_point, ".1f"))
            bounds = (cell(k.issue_bound_us, ".1f"), cell(k.bytes_bound_us, ".1f"))
            rows.append((k.name[:52], *map(str, numbers), cell(k.occupancy, ".0%"), *counts, *bounds))
    lines = [f"{row[0]:52} " + " ".join(f"{text:>8}" for text in row[1:]) for row in rows]
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("library", type=Path, help="libmssts_cuda.so, or a cubin")
    parser.add_argument("--architecture", type=int, metavar="SM", help="of the library, as in 90 (default: all)")
    parser.add_argument("--stock", type=Path, help="library or cubin of another kernel to set beside")
    parser.add_argument("--out", type=Path, help="JSON file")
    parser.add_argument("--remark", help="kept in the file: of which source and compiler the stock kernels are, say")
    parser.add_argument(
        "--all", action="store_true", help="all kernels, not only those of the encoder call and those that spill"
    )
    return parser.parse_args()


def main() -> int:
    """Prints the table and writes the file.

    Returns 1 with a line on what is missing.
    """
    arguments = parsed()
    try:
        kernels = kernels_of(arguments.library, arguments.architecture)
        if arguments.stock:
            kernels += kernels_of(arguments.stock)
    except ReportError as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    note = (
        "No time measured: bound by the compiler's report. Instructions of all warps of the R50 encoder call "
        f"(360×640, T = 5: {POINTS} points) at {MULTIPROCESSORS} multiprocessors × {ISSUES_A_CYCLE} a cycle × "
        f"{CLOCK_HZ / 1e9:g} GHz (H200); bytes at {BANDWIDTH / 1e12:g} TB/s (data sheet; bytes_usual_us: "
        f"{USUAL_BANDWIDTH / 1e12:g}). The stock kernels leave out what ours include: softmax and locations."
    )
    print(table(kernels, arguments.all))
    print(note)
    if arguments.out:
        compiler = run(tool("cuobjdump"), "--version").strip().splitlines()[-2:]
        report = {
            "note": note,
            "remark": arguments.remark,
            "points": POINTS,
            "disassembler": " ".join(compiler),
            **provenance(),
        }
        report["kernels"] = [{key: x for key, x in asdict(k).items() if x not in (None, [])} for k in kernels]
        arguments.out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
