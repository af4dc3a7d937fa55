"""A video of any length through windows, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from mssts.errors import MsstsError
from mssts.machine import resident_bytes


def write_shapes(folder: Path, length: int, size: tuple[int, int]) -> Path:
    """Writes one MovingShapes video and returns its `instances.json`."""
    from mssts.data.moving_shapes import MovingShapesConfig, write_dataset

    height, width = size
    return write_dataset(folder, 1, 0, MovingShapesConfig(width=width, height=height, length=length), progress=False)


def predict_in_a_process(data: Path, engine: Path, threads: int) -> tuple[float, float]:
    """Seconds that `predict` takes for a data set, and its peak memory in MB.

    It runs in a process of its own, once before to warm up.

    Raises:
        MsstsError: the process failed; the message holds its last line.
    """
    program = [sys.executable, "-m", "mssts.bench.scaling.video", str(data), str(engine), str(threads)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MsstsError(f"predicting {data} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    seconds, peak_mb = json.loads(done.stdout.splitlines()[-1])
    return float(seconds), float(peak_mb)


def _main(data: str, engine: str, threads: str) -> None:
    import mssts
    from mssts.prediction.predictor import PredictOptions

    with tempfile.TemporaryDirectory() as folder, mssts.load(engine, threads=int(threads)) as segmenter:
        mssts.predict(data, segmenter, Path(folder) / "warm", PredictOptions(pictures=0), progress=False)
        report = mssts.predict(data, segmenter, Path(folder) / "out", PredictOptions(pictures=0), progress=False)
    print(json.dumps([report.frames / report.frames_per_second, resident_bytes("VmHWM") / 1e6]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
