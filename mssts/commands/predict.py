"""`mssts predict`: tracks and segments the objects of videos."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mssts.artefact import Kind
from mssts.commands.options import add_exif, add_tls, client_options, server_url
from mssts.errors import MsstsError
from mssts.runners import AUTO, runner_help

if TYPE_CHECKING:
    from mssts.bulk.report import BulkReport
    from mssts.prediction.predictor import PredictOptions, PredictReport

HELP = "track and segment the objects of videos, on a server, a local engine or a checkpoint"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument(
        "source", type=Path,
        help="a video, a folder of images or of videos, a .txt with a path on each line, a YouTube-VIS or COCO-video "
        "JSON",
    )  # fmt: skip
    engine = parser.add_mutually_exclusive_group(required=True)
    engine.add_argument("--url", metavar="grpc://HOST:PORT", help="a server, or several with commas; grpcs:// for TLS")
    engine.add_argument(
        "--model", type=Path, metavar="PATH", help="an exported model's file or folder, or a checkpoint"
    )
    parser.add_argument("--runner", default=AUTO, help=runner_help(Kind.ONNX, Kind.CHECKPOINT))
    parser.add_argument("--out", type=Path, default=Path("runs/predict"), metavar="DIR", help="default %(default)s")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="S", help="of what is drawn (default %(default)s)"
    )
    parser.add_argument("--max-videos", type=int, metavar="N", help="only the first N videos of a data set")
    parser.add_argument(
        "--shard", type=_shard, metavar="K/N",
        help="every N-th video from the K-th on (from 0), into DIR/shard-K-of-N; torchrun's rank by default",
    )  # fmt: skip
    parser.add_argument(
        "--pictures",
        type=int,
        metavar="N",
        help="draw only the first N videos, 0 for none (default: all; 0 with --ray)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="cores of a local engine (default: all; 1 for each worker with --ray)"
    )
    parser.add_argument(
        "--whole-video", action="store_true",
        help="each video as one clip, as released (memory grows with its length; default: overlapping windows)",
    )  # fmt: skip
    parser.add_argument(
        "--as-released", action="store_true",
        help="for comparisons with published AP: --whole-video, and frames resized as the released inference.py does",
    )  # fmt: skip
    parser.add_argument(
        "--zip", dest="archive", action="store_true", help="write results.zip too, for the evaluation server"
    )
    parser.add_argument(
        "--format", dest="formats", action="append", choices=("ytvis", "mots", "coco"), default=[],
        help="beside results.json (ytvis): mots, NAME.txt a video, of what is drawn; coco, coco.json; may be repeated",
    )  # fmt: skip
    add_exif(parser)
    add_tls(parser)
    transfer = parser.add_mutually_exclusive_group()
    transfer.add_argument(
        "--jpeg", dest="transfer", action="store_const", const="jpeg", default="auto",
        help="send frames of a video file as JPEG (fewer bytes; image files are always sent as they are)",
    )  # fmt: skip
    transfer.add_argument(
        "--raw", dest="transfer", action="store_const", const="raw", help="send decoded frames even of image files"
    )
    _add_bulk(parser)


def _add_bulk(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "many videos on many machines", "with Ray (`pip install 'mssts[ray]'`); whatever dies, what is done is kept"
    )
    group.add_argument(
        "--ray", metavar="CLUSTER", help="local: this machine; auto: the cluster it belongs to; or HOST:PORT of a head"
    )
    group.add_argument("--resume", action="store_true", help="go on with what an earlier run left in --out")
    group.add_argument("--workers", type=int, metavar="N", help="at most so many (default: as there is room for)")
    group.add_argument("--gpus", type=float, metavar="N", help="of each worker, 0.25 for a quarter (default 0)")
    group.add_argument("--retries", type=int, metavar="N", help="of a video whose worker was lost (default 2)")
    group.add_argument("--video-timeout", type=float, metavar="SECONDS", help="a video that takes longer has failed")


def run(arguments: argparse.Namespace) -> int:
    """Predicts and prints a summary."""
    from mssts.media.sources import open_source
    from mssts.prediction.predictor import PredictOptions, predict
    from mssts.segmenters import load

    if arguments.threads is not None and arguments.threads < 1:
        raise MsstsError(f"--threads must be at least 1, not {arguments.threads}")
    shard = arguments.shard or (int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    out = arguments.out if shard[1] == 1 else arguments.out / f"shard-{shard[0]}-of-{shard[1]}"
    options = PredictOptions(
        score_threshold=arguments.score_threshold,
        max_videos=arguments.max_videos,
        shard=shard,
        pictures=arguments.pictures,
        transfer=arguments.transfer,
        whole_video=arguments.whole_video or arguments.as_released,
        archive=arguments.archive,
        formats=tuple(arguments.formats),
    )
    if arguments.ray is not None:
        return _run_bulk(arguments, options)
    given = [name for name in _BULK_ONLY if getattr(arguments, name) not in (None, False)]
    if given:
        raise MsstsError(f"--{given[0].replace('_', '-')} is for --ray; pass --ray local, auto or HOST:PORT")
    client = client_options(arguments)
    source = open_source(arguments.source, arguments.exif)
    target = server_url(arguments.url) if arguments.url else arguments.model
    with load(
        target, threads=arguments.threads, runner=arguments.runner, as_released=arguments.as_released, client=client
    ) as segmenter:
        report = predict(source, segmenter, out, options)
    _print_summary(report, out, options)
    for line in report.warnings():
        print(line, file=sys.stderr)
    return 0


_BULK_ONLY = ("resume", "workers", "gpus", "retries", "video_timeout")


def _run_bulk(arguments: argparse.Namespace, options: PredictOptions) -> int:
    """As `run`, with Ray.

    The exit code is 1 if a video has failed.
    """
    from mssts.bulk.options import BulkOptions
    from mssts.bulk.prediction import predict_many

    if arguments.url:
        raise MsstsError("--ray runs engines, not clients of a server; pass --model instead of --url")
    if set(options.formats) - {"ytvis"}:
        raise MsstsError("--ray writes results.json alone; predict without --ray, or leave out --format")
    if options.shard[1] > 1:
        raise MsstsError("--ray shares the videos itself; run it without torchrun and --shard")
    chosen = {"gpus": arguments.gpus, "retries": arguments.retries, "threads": arguments.threads}
    bulk = BulkOptions(
        workers=arguments.workers,
        video_timeout=arguments.video_timeout,
        resume=arguments.resume,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    report = predict_many(
        arguments.source,
        arguments.model,
        arguments.out,
        arguments.ray,
        replace(options, pictures=options.pictures or 0),
        bulk,
        runner=arguments.runner,
        as_released=arguments.as_released,
        exif=arguments.exif,
    )
    _print_bulk(report, arguments.out, arguments.archive)
    for line in report.warnings():
        print(line, file=sys.stderr)
    return 1 if report.failed else 0


def _print_bulk(report: BulkReport, out: Path, archive: bool) -> None:
    print(
        f"videos {len(report.videos)}   failed {len(report.failed)}   frames {report.frames}   clips {report.clips}   "
        f"tracks {report.tracks}"
    )
    print(f"frames/s {report.frames_per_second:.2f}   workers {len(report.workers)}   retries {report.retries}")
    print(f"written to {out}: {', '.join(_results(archive))}")


def _results(archive: bool) -> list[str]:
    return ["results.json", *(["results.zip"] if archive else []), "report.json"]


def _shard(text: str) -> tuple[int, int]:
    part, _, parts = text.partition("/")
    return int(part), int(parts)


def _print_summary(report: PredictReport, out: Path, options: PredictOptions) -> None:
    tracks = sum(video.tracks for video in report.videos)
    print(f"videos {len(report.videos)}   frames {report.frames}   clips {report.clips}   tracks {tracks}")
    print(f"frames/s {report.frames_per_second:.2f}   clips/s {report.clips_per_second:.2f}   (without rendering)")
    print("seconds  " + "   ".join(f"{stage} {seconds:.2f}" for stage, seconds in report.stage_seconds.items()))
    files = _results(options.archive)
    if "coco" in options.formats:
        files.append("coco.json")
    if "mots" in options.formats:
        files += _shortened([f"{video.name}.txt" for video in report.videos], "text files")
    pictures = [name for video in report.videos for name in (video.overlay, video.contact_sheet) if name]
    print(f"written to {out}: " + ", ".join(files + _shortened(pictures, "pictures")))


def _shortened(names: list[str], kind: str) -> list[str]:
    """The first names, and how many there are beside them."""
    return names if len(names) <= 4 else [*names[:4], f"… {len(names) - 4} more {kind}"]
