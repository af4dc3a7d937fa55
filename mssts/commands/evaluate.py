"""`mssts evaluate`: YouTube-VIS AP of results, or a check of a submission."""

from __future__ import annotations

import argparse
from pathlib import Path

from mssts.errors import MsstsError
from mssts.files import write_json
from mssts.provenance import provenance

HELP = "score results.json against instances.json (the official YouTube-VIS AP, offline), or check a submission"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--gt", type=Path, metavar="FILE", help="ground truth in YouTube-VIS or COCO-video format")
    parser.add_argument(
        "--results", type=Path, nargs="+", metavar="FILE",
        help="results in YouTube-VIS format; several, as `mssts predict --shard` writes, are put together",
    )  # fmt: skip
    parser.add_argument(
        "--check", type=Path, metavar="FILE",
        help="instead of a score: why the benchmark's server would reject this results.json or results.zip",
    )  # fmt: skip
    parser.add_argument(
        "--videos", type=Path, metavar="FILE", help="with --check: the set's instances.json, annotated or not"
    )
    parser.add_argument(
        "--tracking",
        action="store_true",
        help="HOTA, IDF1 and identity switches too, of tracks that score 0.3 or more",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the metrics, or the problems, as JSON too")


def run(arguments: argparse.Namespace) -> int:
    """Evaluates or checks, prints what came out and writes the JSON file."""
    given = {name for name in ("gt", "results", "check", "videos") if getattr(arguments, name) is not None}
    if given == {"gt", "results"}:
        return _score(arguments)
    if given == {"check", "videos"}:
        return _check(arguments)
    raise MsstsError("expected --gt and --results, to score; or --check and --videos, to check a submission")


def _score(arguments: argparse.Namespace) -> int:
    from mssts.data.videos import read_youtube_vis_value
    from mssts.evaluation import evaluate, evaluate_tracking, format_table, format_tracking
    from mssts.evaluation.average_precision import check_categories
    from mssts.evaluation.tracks import read_video_set
    from mssts.prediction.results import merge_shards, results_categories

    first = arguments.results[0]
    whole = len(arguments.results) == 1 and not first.absolute().parent.name.startswith("shard-")
    if not whole:
        known = read_video_set(read_youtube_vis_value(arguments.gt), arguments.gt)
        check_categories(first, results_categories(first), known)
    results = first if whole else merge_shards(arguments.results)
    metrics = evaluate(arguments.gt, results)
    tracking = evaluate_tracking(arguments.gt, results) if arguments.tracking else None
    if arguments.out:
        files = {"ground_truth": str(arguments.gt), "results": [str(path) for path in arguments.results]}
        figures = {**metrics.to_json(), **({"tracking": tracking.to_json()} if tracking else {})}
        write_json(arguments.out, {**figures, **files, **provenance()})
    print(format_table(metrics))
    if tracking:
        print(f"\n{format_tracking(tracking)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from mssts.evaluation import check_submission

    report = check_submission(arguments.check, arguments.videos)
    if arguments.out:
        files = {"submission": str(arguments.check), "videos_file": str(arguments.videos)}
        write_json(arguments.out, {**report.to_json(), **files, **provenance()})
    print("\n".join(report.lines()))
    return 1 if report.problem_count else 0
