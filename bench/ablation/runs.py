"""One run of the ablation: train, predict and score, each resumable.

The trainings are `mssts train` in processes of their own, as stages share files and not code.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mssts.bench.ablation.configurations import Run
from mssts.bench.ablation.scoring import last_losses, scored
from mssts.errors import MsstsError
from mssts.files import read_json, write_json

_ROW = "row.json"


@dataclass(frozen=True)
class Settings:
    """Settings that all runs have in common.

    A finished run counts only if its own are the same.
    """

    preset: str
    epochs: int
    train_videos: int
    split: str
    init_sha256: str | None = None  # of the checkpoint that all start from


@dataclass(frozen=True)
class Folders:
    """Where the data and the runs lie."""

    root: Path

    def data(self, split: str) -> Path:
        """The folder of a split of MovingShapes."""
        return self.root / "data" / split

    def run(self, run: Run) -> Path:
        """The folder of a run."""
        return self.root / run.name


def make_data(folders: Folders, splits: tuple[str, ...]) -> None:
    """Writes the splits that are not there yet."""
    for split in splits:
        if not (folders.data(split) / "instances.json").exists():
            arguments = ["data", "synth", "--version", "1", "--split", split, "--out", str(folders.data(split))]
            _mssts(arguments, folders.root / f"data_{split}.log")


def training_file(folders: Folders, videos: int) -> Path:
    """The training split, or the first so many of its videos."""
    whole = folders.data("train") / "instances.json"
    content = read_json(whole)
    if videos >= len(content["videos"]):
        return whole
    kept = content["videos"][:videos]
    ids = {video["id"] for video in kept}
    part = {**content, "videos": kept, "annotations": [a for a in content["annotations"] if a["video_id"] in ids]}
    path = whole.with_name(f"first_{videos}.json")
    write_json(path, part)
    return path


def finished_row(folders: Folders, run: Run, settings: Settings) -> dict[str, Any] | None:
    """The row of a run that is done with these settings."""
    path = folders.run(run) / _ROW
    if not path.exists():
        return None
    row: dict[str, Any] = read_json(path)
    if row["settings"] != asdict(settings):
        raise MsstsError(f"{path}: of a run with other settings ({row['settings']}); pass another --runs, or remove it")
    return row


def do_run(folders: Folders, run: Run, settings: Settings, videos: Path, init: Path | None = None) -> dict[str, Any]:
    """Does what is left of a run, and returns its row.

    Args:
        folders: where everything lies.
        run: the configuration and the seed.
        settings: what all runs have in common.
        videos: the file to train on.
        init: the checkpoint to start from, at random if None.

    Raises:
        MsstsError: a command failed; the message names its log.
    """
    folder = folders.run(run)
    folder.mkdir(parents=True, exist_ok=True)
    trained, log = folder / "train", folder / "log.txt"
    resume = ["--resume"] if (trained / "training_state.pt").exists() else []
    start = resume or (["--init", str(init)] if init is not None else [])
    before = _steps_of(trained) if resume else 0
    train = ["train", "--preset", settings.preset, "--data", str(videos), "--out", str(trained), "--threads", "1"]
    train += ["--epochs", str(settings.epochs), "--seed", str(run.seed), "--switches", *run.switches]
    train_seconds = _mssts([*train, *start], log)
    truth = folders.data(settings.split) / "instances.json"
    predicted = folder / "predicted"
    predict = [
        "predict",
        str(truth),
        "--model",
        str(trained / "model.safetensors"),
        "--pictures",
        "0",
        "--threads",
        "1",
    ]
    predict_seconds = _mssts([*predict, "--out", str(predicted)], log)
    steps = last_losses(trained / "metrics.csv")
    frames = read_json(predicted / "report.json")["frames"]
    row = {
        "configuration": run.configuration,
        "seed": run.seed,
        "switches": list(run.switches),
        **scored(truth, predicted / "results.json"),
        **steps,
        # Of the last sitting, if a run was resumed; the start of Python is part of it.
        "train_cpu_seconds_per_step": train_seconds / max(steps["steps"] - before, 1),
        "predict_cpu_seconds_per_frame": predict_seconds / frames,
        "settings": asdict(settings),
        "commit": read_json(trained / "run.json").get("commit"),
    }
    write_json(folder / _ROW, row)
    return row


def _steps_of(trained: Path) -> int:
    """Steps that the log of a run holds, those after its last saved state included."""
    metrics = trained / "metrics.csv"
    return last_losses(metrics)["steps"] if metrics.exists() else 0


def _mssts(arguments: list[str], log: Path) -> float:
    """Runs a command on one core, and returns the processor time in seconds.

    Raises:
        MsstsError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        print("mssts", *arguments, file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "mssts.cli", *arguments], stdout=file, stderr=file, stdin=subprocess.DEVNULL,
            env=environment,
        )  # fmt: skip
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise MsstsError(f"`mssts {arguments[0]}` failed (exit {process.returncode}); its output is in {log}")
    return usage.ru_utime + usage.ru_stime
