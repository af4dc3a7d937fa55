"""What a server's log says of why it failed, short enough for an error message."""

from __future__ import annotations

import re

_LINES = 4
# The backend adds a Python traceback, with its newlines escaped, to what a model raised.
_FAILED_MODEL = re.compile(
    r"\"failed to load '(?P<model>\w+)' version \d+: (?P<reason>.*?)(?:\\n\\nAt:.*|\")$", re.MULTILINE
)
_REASON_PREFIX = re.compile(r"^(?:Internal|Invalid argument|Unavailable): (?:MsstsError: )?")
_TABLE = re.compile(r"^[+|]")
_ERROR = re.compile(r"^[EF]\d{4} |^error: ")
# Every start on a machine without a GPU says these, and does not mind.
_NO_GPU = re.compile(r"CUDA|CudaDriverHelper|NVML|DCGM")


def failure_reason(log: str) -> str:
    """The models that could not be loaded, each with its reason.

    Else the last errors; else the last lines.
    """
    failed = [f"{match['model']}: {_REASON_PREFIX.sub('', match['reason'])}" for match in _FAILED_MODEL.finditer(log)]
    if failed:
        return "; ".join(failed)
    lines = [line.strip() for line in log.splitlines() if line.strip() and not _TABLE.match(line)]
    errors = [line for line in lines if _ERROR.match(line) and not _NO_GPU.search(line)]
    return " / ".join((errors or lines)[-_LINES:]) or "(empty)"
