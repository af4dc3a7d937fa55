"""Memory of a call beyond its inputs and outputs, on a processor.

By the high-water mark of a process of its own, whose malloc returns every larger block to the system at once, so that
what one implementation has used does not hide what the next one needs.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mssts.bench.kernels.workloads import WORKLOADS
from mssts.machine import resident_bytes, return_freed_memory

_CLEAR = Path("/proc/self/clear_refs")
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak_extra_memory(
    workload: str, dtype: str, direction: str, threads: int, names: Sequence[str], seed: int
) -> dict[str, float | None]:
    """MB of each implementation, None where unknown (not Linux, or absent)."""
    if not _CLEAR.exists():
        return dict.fromkeys(names)
    words = [workload, dtype, direction, str(threads), str(seed), *names]
    environment = {**os.environ, **_MALLOC}
    program = [sys.executable, "-m", "mssts.bench.kernels.memory", *words]
    done = subprocess.run(program, capture_output=True, text=True, env=environment, check=False)
    found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
    return {name: found.get(name) for name in names}


def _main(workload: str, dtype: str, direction: str, threads: str, seed: str, *names: str) -> None:
    from mssts.bench.kernels.cases import Absent
    from mssts.bench.kernels.implementations import IMPLEMENTATIONS
    from mssts.bench.kernels.rounds import allocated_bytes, make_case, settings

    case = make_case(WORKLOADS[workload], "cpu", dtype, direction, int(threads), int(seed))
    case = replace(case, memory_only=True)
    found: dict[str, float | None] = {}
    with settings(case):
        for name in names:
            try:
                prepared = IMPLEMENTATIONS[case.workload.op][name](case)
            except (KeyError, Absent):
                found[name] = None
                continue
            prepared.call(0)  # what is allocated once, such as threads' stacks, is not a call's
            gc.collect()
            return_freed_memory()
            _CLEAR.write_text("5")  # the high-water mark falls to what is resident now
            before = resident_bytes("VmRSS")
            outputs = prepared.call(0)
            extra = resident_bytes("VmHWM") - before - allocated_bytes(outputs, prepared)
            found[name] = round(max(extra, 0) / 1e6, 1)
            del outputs, prepared
            gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*sys.argv[1:])
