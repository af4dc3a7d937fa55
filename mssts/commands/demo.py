"""`mssts demo`: the main job from end to end on this machine.

It runs the real components.

Held-out MovingShapes (or a video of yours) → the shipped checkpoint exported to ONNX → the real tritonserver → the gRPC
client → masks, pictures, AP and frames per second. Each stage is the command that one would type.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mssts
from mssts.commands import run_command
from mssts.errors import MsstsError
from mssts.files import read_json, write_json

if TYPE_CHECKING:
    import numpy as np

    from mssts.evaluation.metrics import Metrics
    from mssts.manifest import Category
    from mssts.media.sources import VideoSource
    from mssts.prediction.predictor import PredictReport

HELP = "run the main job on this machine: shapes → ONNX → Triton → client → masks and AP"

CHECKPOINT = Path(mssts.__file__).parent / "training" / "checkpoints" / "tiny.safetensors"
SPLIT = "test"  # of MovingShapes v1: neither trained on, nor used to choose anything
PICTURES = 6  # of the videos, the first so many are drawn
SHEET = "contact_sheet.png"
_SHEET_COLUMNS = 4
_SHAPES_ONLY = (
    "the shipped checkpoint knows ten drawn shapes only; for real objects take public weights "
    "(docs/public-weights.md): make demo CHECKPOINT=released.pth VIDEO=…"
)
_SHEET_IMAGE_WIDTH = 480


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="where everything goes (default: %(default)s)"
    )
    parser.add_argument("--video", type=Path, help="a video of yours instead of MovingShapes; then there is no AP")
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT,
        help="instead of the shipped one, which knows ten shapes: yours, or public weights (docs/public-weights.md)",
    )  # fmt: skip
    parser.add_argument("--videos", type=int, metavar="N", help="held-out videos (default: the test split's 120)")
    parser.add_argument("--seed", type=int, metavar="S", help="of other held-out videos than the test split's")


def run(arguments: argparse.Namespace) -> int:
    """Runs the stages, prints the table, and leaves everything in `--out`."""
    from mssts.data.moving_shapes import SPLITS
    from mssts.evaluation import evaluate
    from mssts.media.sources import open_source
    from mssts.prediction.latency import stage_latency
    from mssts.prediction.predictor import REPORT, RESULTS, PredictOptions, predict
    from mssts.segmenters.triton import TritonSegmenter
    from mssts.serving.repository import model_repository
    from mssts.serving.server import TritonServer

    out, engine = arguments.out, arguments.out / "engine"
    seed = SPLITS[SPLIT].seed if arguments.seed is None else arguments.seed
    if not arguments.checkpoint.is_file():
        raise MsstsError(
            f"{arguments.checkpoint}: no such file; expected a checkpoint, such as the shipped {CHECKPOINT}"
        )
    if arguments.video is None:
        if arguments.checkpoint.suffix == ".pth":
            raise MsstsError(
                f"{arguments.checkpoint}: a released checkpoint knows none of the shapes of MovingShapes; pass --video "
                "(make: VIDEO=) with a video of yours"
            )
        source_path = _held_out(arguments.videos, seed, out)
    else:
        source_path = arguments.video
        _say(1, f"your video {source_path}")
    source = open_source(source_path)  # before the long steps, so that a wrong path fails at once

    _say(2, "checkpoint → ONNX, checked against PyTorch")
    _mssts("export", os.path.relpath(arguments.checkpoint), "--out", engine, "--reuse")

    _say(3, "Triton serves it")
    with model_repository(engine) as repository, TritonServer(repository) as server:
        print(f"  tritonserver {server.version} is ready at {server.grpc_url}")
        segmenter = TritonSegmenter(server.grpc_url)
        try:
            _say(4, "clips through the gRPC client")
            predicted = predict(source, segmenter, out, PredictOptions(pictures=PICTURES))
            latency = stage_latency(segmenter, _first_clip(source, segmenter.manifest.clip_frames))
            version = segmenter.server_version
            manifest = segmenter.manifest
        finally:
            segmenter.close()

    metrics: Metrics | None = None
    if arguments.video is None:
        metrics = evaluate(source_path, out / RESULTS)
    parity = manifest.checks["parity"]
    report: dict[str, Any] = {
        **(metrics.to_json() if metrics else {}),
        **read_json(out / REPORT),
        "engine": predicted.engine,
        "server_version": version,
        "parity_max_abs_error": max(parity["max_abs_error"].values()),
        "parity": parity,
        "latency_ms": latency,
        "held_out_seed": seed if metrics else None,
    }
    write_json(out / REPORT, report)
    _write_sheet(predicted, out)
    _table(predicted, metrics, latency, out)
    if arguments.video is not None:
        print(f"found     {_found(out / RESULTS, manifest.categories)}")
        if arguments.checkpoint == CHECKPOINT:
            print(f"note      {_SHAPES_ONLY}")
    for line in predicted.warnings():
        print(line, file=sys.stderr)
    return 0


def _held_out(videos: int | None, seed: int, out: Path) -> Path:
    """The annotations of held-out videos, drawn where they are not there yet."""
    from mssts.data.moving_shapes import SPLITS

    split = SPLITS[SPLIT]
    count = split.videos if videos is None else videos
    _say(1, f"{count} held-out MovingShapes videos")
    data = out / f"shapes_v1_{count}_seed{seed}"
    if not (data / "instances.json").exists():
        whole = (count, seed) == (split.videos, split.seed)  # then it is compared with the split's checksum
        which = ["--split", SPLIT] if whole else ["--videos", count, "--seed", seed]
        _mssts("data", "synth", "--version", 1, *which, "--out", data)
    return data / "instances.json"


def _found(results: Path, categories: Sequence[Category]) -> str:
    """Numbers of tracks drawn by class, such as `2 person, 1 dog`."""
    from mssts.prediction.predictor import PredictOptions

    threshold = PredictOptions().score_threshold
    names = {category.id: category.name for category in categories}
    drawn = Counter(names[entry["category_id"]] for entry in read_json(results) if entry["score"] >= threshold)
    counts = ", ".join(f"{count} {name}" for name, count in drawn.most_common())
    return f"{counts or 'nothing'} (tracks with a score of at least {threshold})"


def _first_clip(source: VideoSource, frames: int) -> np.ndarray | list[bytes]:
    """The first clip of a source, as it is sent: encoded where the source is."""
    import itertools

    import numpy as np

    first = list(itertools.islice(source.videos[0].frames(), frames))
    encoded = [frame.encoded for frame in first if frame.encoded is not None]
    return encoded if len(encoded) == len(first) else np.stack([frame.rgb_HWC for frame in first])


def _say(number: int, text: str) -> None:
    print(f"\n[{number}/4] {text}", flush=True)


def _mssts(*arguments: object) -> None:
    """Runs one of our commands in its own process, as a user would.

    If it fails, this process ends with its exit code.
    """
    words = [str(argument) for argument in arguments]
    print(f"  $ mssts {shlex.join(words)}", flush=True)
    done = run_command(*words)
    if done.returncode:
        raise SystemExit(done.returncode)


def _table(predicted: PredictReport, metrics: Metrics | None, latency: dict[str, float], out: Path) -> None:
    rows: list[tuple[str, str]] = []
    if metrics is not None:
        names = ("ap", "ap50", "ap75", "ar1", "ar10")
        rows += [(name.upper(), f"{100 * getattr(metrics, name):.1f}") for name in names]
    rows += [
        ("frames/s", f"{predicted.frames_per_second:.1f}"),
        ("clips/s", f"{predicted.clips_per_second:.1f}"),
    ]
    rows += [(f"{stage}, ms a clip", f"{milliseconds:.1f}") for stage, milliseconds in latency.items()]
    print(f"\n{predicted.frames} frames in {predicted.clips} clips, end to end through Triton on this machine:")
    for name, value in rows:
        print(f"  {name:24} {value:>8}")
    first = next(video for video in predicted.videos if video.overlay)
    print(f"\npictures  {out / SHEET}, and for each drawn video an overlay such as {out / str(first.overlay)}")
    print(f"figures   {out / 'report.json'}\nresults   {out / 'results.json'}")


def _write_sheet(predicted: PredictReport, out: Path) -> None:
    """One picture of the whole run.

    A row of frames for every drawn video, read back from its overlay.
    """
    import cv2
    import numpy as np

    from mssts.media.rendering import contact_sheet, write_png
    from mssts.media.sources import open_source

    images, captions = [], []
    for video in predicted.videos:
        if video.overlay is None:
            continue
        chosen = np.linspace(0, video.frames - 1, _SHEET_COLUMNS).round().astype(int).tolist()
        for t, frame in enumerate(open_source(out / video.overlay).videos[0].frames()):
            height, width = frame.rgb_HWC.shape[:2]
            size = (_SHEET_IMAGE_WIDTH, round(_SHEET_IMAGE_WIDTH * height / width))
            for _ in range(chosen.count(t)):  # a short video has a frame in several columns
                images.append(cv2.resize(frame.rgb_HWC, size, interpolation=cv2.INTER_AREA))
                captions.append(f"{video.name}, frame {t}")
    write_png(out / SHEET, contact_sheet(images, _SHEET_COLUMNS, captions))
