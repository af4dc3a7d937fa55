"""Reader of the machine code in a CUDA library: registers, instructions, loops."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mssts.errors import MsstsError


def tool(name: str) -> str:
    """A binary of the CUDA toolkit.

    It is on PATH, in /usr/local/cuda, or in this Python's wheels.
    """
    found = shutil.which(name)
    if found:
        return found
    folders = [Path("/usr/local/cuda/bin"), *Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin")]
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    raise MsstsError(f"{name} is not on PATH: install the CUDA toolkit, or pip install nvidia-{name_of_wheel(name)}")


def name_of_wheel(name: str) -> str:
    """`cuobjdump` is in nvidia-cuda-cuobjdump, and so on."""
    return f"cuda-{name}"


def run(*command: str) -> str:
    """The standard output of a command.

    cuobjdump calls nvdisasm, which is on its PATH then.
    """
    paths = [os.environ.get("PATH", ""), str(Path(tool("nvdisasm")).parent)]
    environment = {**os.environ, "PATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise MsstsError(f"{Path(command[0]).name} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout


def demangle(names: list[str]) -> dict[str, str]:
    """Demangled C++ names, unchanged where there is no c++filt."""
    if not names or shutil.which("c++filt") is None:
        return {name: name for name in names}
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def resources(library: Path, options: tuple[str, ...]) -> Iterator[tuple[int, str, dict[str, int]]]:
    """(architecture, mangled name, REG STACK SHARED …) of each kernel."""
    architecture, name = 0, ""
    for line in run(tool("cuobjdump"), *options, "--dump-resource-usage", str(library)).splitlines():
        if match := re.search(r"arch = sm_(\d+)", line) or re.search(r"sm_(\d+)\.cubin", line):
            architecture = int(match[1])
        if match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif name and "REG:" in line:
            yield architecture, name, {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            name = ""


@dataclass(frozen=True)
class Instruction:
    """One line of SASS."""

    address: int
    opcode: str
    operands: str
    predicated: bool


def listings(library: Path, options: tuple[str, ...]) -> Iterator[tuple[int, str, list[Instruction]]]:
    """(architecture, mangled name, SASS) of each kernel."""
    architecture, name = 0, ""
    code: list[Instruction] = []
    for line in run(tool("cuobjdump"), *options, "--dump-sass", str(library)).splitlines():
        if match := re.search(r"arch = sm_(\d+)", line) or re.search(r"code for sm_(\d+)", line):
            if name:
                yield architecture, name, code
            architecture, name, code = int(match[1]), "", []
        elif match := re.match(r"\s*Function : (\S+)", line):
            if name:
                yield architecture, name, code
            name, code = match[1], []
        elif match := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);", line):
            code.append(Instruction(int(match[1], 16), match[3], match[4], bool(match[2])))
    if name:
        yield architecture, name, code


def loops_of(code: list[Instruction]) -> list[tuple[int, int]]:
    """(first, last) address of each loop, by its branch backwards."""
    loops = []
    for instruction in code[:-1]:
        target = re.search(r"0x([0-9a-f]+)\s*$", instruction.operands)
        if instruction.opcode.startswith("BRA") and target and int(target[1], 16) < instruction.address:
            loops.append((int(target[1], 16), instruction.address))
    return loops
