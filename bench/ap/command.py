"""`mssts bench ap`: how accurate something is, and what it gets wrong.

It may be a checkpoint, an export, an engine, a server or a set of results.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mssts.bench.annotations import read_annotations
from mssts.bench.arguments import check_outputs, check_positive
from mssts.bench.records import save_record
from mssts.errors import MsstsError
from mssts.machine import cpu_count
from mssts.runners import AUTO, RUNNERS

if TYPE_CHECKING:
    from mssts.evaluation.tracks import GroundTruth, Track

HELP = "AP of a checkpoint, export, engine, server or results.json, its loss by cause, and the difference of two"


_TRACKED = 0.3  # the score from which on a prediction counts as a track, as `predict` draws it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument(
        "subjects", nargs="+", metavar="SUBJECT",
        help="one or two of: a checkpoint, an export's or engine's folder, grpc://HOST:PORT, a results.json",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="annotated videos: an instances.json or its folder"
    )
    parser.add_argument("--runner", default=AUTO, help=f"of local engines: {', '.join(RUNNERS)} (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="default: all that this process may use")
    parser.add_argument("--draws", type=int, default=500, help="of the bootstrap over videos (default: %(default)s)")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="the worst videos, annotated above, found below")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="file or folder (default: into runs/bench)")


def run(arguments: argparse.Namespace) -> None:
    """Predicts where need be, scores, prints the tables and writes the record."""
    from mssts.evaluation.bootstrap import ap_difference, ap_interval

    check_positive(arguments, "threads", "draws")
    check_outputs(arguments)
    if len(arguments.subjects) > 2:
        raise MsstsError(f"{len(arguments.subjects)} subjects; expected one, or two to compare")
    data, truth = read_annotations(arguments.data)
    rows: list[dict[str, Any]] = []
    found: list[Sequence[Track]] = []
    for subject in arguments.subjects:
        tracks, frames_per_second = _tracks(subject, data, truth, arguments)
        found.append(tracks)
        scored = _rows(subject, truth, tracks)
        interval = ap_interval(truth, tracks, arguments.draws)
        scored[0] |= {"ap_low": interval.low, "ap_high": interval.high, "frames_per_second": frames_per_second}
        rows += scored
        _print(subject, scored)
    report: dict[str, Any] = {"data": data.name, "videos": len(truth.videos), "draws": arguments.draws, "rows": rows}
    if len(found) == 2:
        difference = ap_difference(truth, found[0], found[1], arguments.draws)
        report["difference"] = asdict(difference)
        print(
            f"\nAP of {arguments.subjects[1]} minus that of {arguments.subjects[0]}: {difference.value:+.3f} "
            f"(95 %: {difference.low:+.3f} to {difference.high:+.3f})"
        )
    save_record("ap", report, arguments.out)
    if arguments.sheet is not None:
        from mssts.bench.ap.sheet import write_sheet

        write_sheet(arguments.sheet, data, truth, found[-1])
        print(f"wrote {arguments.sheet}")


def _tracks(
    subject: str, data: Path, truth: GroundTruth, arguments: argparse.Namespace
) -> tuple[tuple[Track, ...], float | None]:
    """What a subject finds in the videos, and its frames a second if it was run."""
    from mssts.evaluation.average_precision import check_categories
    from mssts.evaluation.tracks import read_predictions
    from mssts.files import read_json
    from mssts.prediction.predictor import PredictOptions, predict
    from mssts.prediction.results import RESULTS, results_categories
    from mssts.segmenters import load

    if subject.endswith(".json"):
        check_categories(Path(subject), results_categories(Path(subject)), truth)
        return read_predictions(read_json(subject), subject, truth)[0], None
    with (
        tempfile.TemporaryDirectory() as folder,
        load(subject, threads=arguments.threads, runner=arguments.runner) as segmenter,
    ):
        report = predict(data, segmenter, folder, PredictOptions(pictures=0))
        results = read_json(Path(folder) / RESULTS)
    return read_predictions(results, subject, truth)[0], report.frames_per_second


def _rows(subject: str, truth: GroundTruth, tracks: Sequence[Track]) -> list[dict[str, Any]]:
    """The figures of the whole set, of its groups, and without each kind of mistake."""
    from mssts.evaluation.average_precision import score_tracks
    from mssts.evaluation.groups import ap_by_group
    from mssts.evaluation.oracles import loss_by_cause
    from mssts.evaluation.tracking import tracking_metrics

    whole, loss = score_tracks(truth, tracks), loss_by_cause(truth, tracks)
    objects = [track for track in truth.tracks if not track.is_crowd]
    tracking = tracking_metrics(objects, [track for track in tracks if track.score >= _TRACKED], _TRACKED)
    rows = [
        {
            "artefact": subject, "scope": "all", "objects": whole.objects, "ap": whole.ap, "ap50": whole.ap50,
            "ap75": whole.ap75, "ar1": whole.ar1, "ar10": whole.ar10, "hota": tracking.hota,
            "det_a": tracking.det_a, "ass_a": tracking.ass_a, "idf1": tracking.idf1,
            "id_switches": tracking.id_switches,
        }
    ]  # fmt: skip
    for group in ap_by_group(truth, tracks):
        if group.objects:
            rows.append(
                {
                    "artefact": subject, "scope": group.name, "objects": group.objects, "ap": group.ap,
                    "ap50": group.ap50, "ap75": group.ap75,
                }
            )  # fmt: skip
    undone = {
        "class": loss.true_classes, "mask": loss.true_masks, "association": loss.true_links, "all three": loss.all
    }  # fmt: skip
    for cause, ap in undone.items():
        rows.append({"artefact": subject, "scope": f"without mistakes of {cause}", "ap": ap, "loss": ap - loss.ap})
    return rows


def _print(subject: str, rows: Sequence[dict[str, Any]]) -> None:
    width = max(len(row["scope"]) for row in rows)
    print(f"\n{subject}: AP {rows[0]['ap']:.3f} (95 %: {rows[0]['ap_low']:.3f} to {rows[0]['ap_high']:.3f})")
    print(
        f"tracks of score {_TRACKED} or more: HOTA {rows[0]['hota']:.3f}, DetA {rows[0]['det_a']:.3f}, "
        f"AssA {rows[0]['ass_a']:.3f}, IDF1 {rows[0]['idf1']:.3f}, {rows[0]['id_switches']} identity switches"
    )
    print(f"{'':{width}}{'objects':>9}{'AP':>8}{'AP50':>8}{'AP75':>8}{'AR1':>8}{'AR10':>8}{'loss':>8}")
    for row in rows:
        cells = "".join(
            f"{row[key]:8.3f}" if row.get(key, -1) >= 0 or (key == "loss" and key in row) else f"{'':8}"
            for key in ("ap", "ap50", "ap75", "ar1", "ar10", "loss")
        )
        print(f"{row['scope']:{width}}{row.get('objects', ''):>9}{cells}".rstrip())
