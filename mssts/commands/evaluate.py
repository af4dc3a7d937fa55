"""`mssts evaluate`: YouTube-VIS AP of a results file, offline."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "score results.json against instances.json: the official YouTube-VIS AP, offline"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command."""
    parser.add_argument("--gt", type=Path, required=True, metavar="FILE", help="ground truth in YouTube-VIS format")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="results in YouTube-VIS format")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the metrics to this JSON file too")


def run(arguments: argparse.Namespace) -> None:
    """Evaluates, prints the table and writes the JSON file."""
    from mssts.evaluation import evaluate, format_table
    from mssts.files import write_json
    from mssts.provenance import provenance

    metrics = evaluate(arguments.gt, arguments.results)
    if arguments.out:
        files = {"ground_truth": str(arguments.gt), "results": str(arguments.results)}
        write_json(arguments.out, {**metrics.to_json(), **files, **provenance()})
    print(format_table(metrics))
