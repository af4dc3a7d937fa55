"""`mssts bench ablation`: which of the paper's parts help, on MovingShapes.

Each run trains a small model on one core, predicts the validation split, and is scored. Whatever is finished lies in
`--runs`, so that the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mssts.bench.ablation.configurations import CONFIGURATIONS, Run, ordered_runs
from mssts.bench.arguments import check_positive
from mssts.errors import MsstsError

HELP = "trains with and without each of the paper's parts, on MovingShapes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The benchmark's arguments."""
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/ablation"), metavar="DIR",
        help="data and runs; what is finished there is not done again (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON file for the rows, rewritten after each run")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture of the rows")
    parser.add_argument(
        "--configurations", nargs="+", default=list(CONFIGURATIONS), metavar="NAME",
        help=f"default: all of {', '.join(CONFIGURATIONS)}",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, each on one core (default: %(default)s)")
    parser.add_argument("--preset", default="mini", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=6, help="of a training (default: %(default)s)")
    parser.add_argument(
        "--train-videos", type=int, default=1500, metavar="N", help="the first N of the split (default: all 1500)"
    )
    parser.add_argument(
        "--init", type=Path, metavar="FILE",
        help="checkpoint that every run starts from, such as a baseline trained on single frames (default: at random)",
    )  # fmt: skip
    parser.add_argument(
        "--collect", action="store_true", help="do no run; write the rows and the plot of those that are finished"
    )


def run(arguments: argparse.Namespace) -> None:
    """Does the runs, and writes the table after each."""
    from mssts.bench.ablation.report import costs, lines, plot
    from mssts.bench.ablation.runs import Folders, Settings, do_run, finished_row, make_data, training_file
    from mssts.data.moving_shapes import CATEGORIES_1
    from mssts.files import sha256, write_json
    from mssts.provenance import provenance

    check_positive(arguments, "jobs", "epochs")
    if arguments.init is not None and not arguments.init.is_file():
        raise MsstsError(f"--init {arguments.init}: no such file; expected a checkpoint of `mssts train`")
    started = None if arguments.init is None else sha256(arguments.init)
    settings = Settings(arguments.preset, arguments.epochs, arguments.train_videos, "val", started)
    folders = Folders(arguments.runs.absolute())
    runs = ordered_runs(arguments.configurations, arguments.seeds)
    rows = {each: row for each in runs if (row := finished_row(folders, each, settings)) is not None}
    price = costs(settings.preset, len(CATEGORIES_1))

    def write() -> None:
        done = [{**rows[each], **price[each.configuration]} for each in runs if each in rows]
        if arguments.out is not None:
            write_json(arguments.out, _report(done, settings, provenance()))
        if arguments.plot is not None and done:
            plot(done, arguments.plot)

    print(f"{len(rows)} of {len(runs)} runs are finished", flush=True)
    if not arguments.collect and len(rows) < len(runs):
        make_data(folders, ("train", settings.split))
        videos = training_file(folders, settings.train_videos)
        init = None if arguments.init is None else arguments.init.absolute()

        def one(each: Run) -> dict[str, Any]:
            return do_run(folders, each, settings, videos, init)

        _do([each for each in runs if each not in rows], one, arguments.jobs, rows, write)
    write()
    print("\n".join(lines([rows[each] for each in runs if each in rows])))


def _report(rows: list[dict[str, Any]], settings: Any, machine: dict[str, Any]) -> dict[str, Any]:
    from mssts.bench.ablation.report import summary

    return {"benchmark": "ablation", "settings": asdict(settings), "rows": rows, "summary": summary(rows), **machine}


def _do(
    runs: list[Run],
    do: Callable[[Run], dict[str, Any]],
    jobs: int,
    rows: dict[Run, Any],
    write: Callable[[], None],
) -> None:
    """Does the runs, `jobs` at once, and writes the table after each.

    The first that fails is raised once the others in progress are done.
    """
    failed = threading.Event()
    errors: list[BaseException] = []

    def unless_failed(each: Run) -> dict[str, Any] | None:
        return None if failed.is_set() else do(each)

    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future[dict[str, Any] | None], Run] = {pool.submit(unless_failed, each): each for each in runs}
        while waiting:
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                each = waiting.pop(future)
                error = future.exception()
                if error is not None:
                    failed.set()
                    errors.append(error)
                elif (row := future.result()) is not None:
                    rows[each] = row
                    print(f"{each.name}: AP {row['ap']:.3f}, {row['steps']} steps", flush=True)
                    write()
    if errors:
        raise errors[0]
