"""The ablation: its rows, its figures, and what is not done twice."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mssts.bench.ablation import report, runs
from mssts.bench.ablation.configurations import Run, ordered_runs
from mssts.bench.ablation.report import lines, plot, summary
from mssts.bench.ablation.runs import Folders, Settings, do_run
from mssts.bench.ablation.scoring import interrupted_alone, scored
from mssts.cli import main
from mssts.data.moving_shapes import MovingShapes1Config, write_dataset
from mssts.errors import MsstsError
from mssts.evaluation import evaluate


def test_the_table_comes_before_all_but_one_and_seed_by_seed() -> None:
    order = [run.name for run in ordered_runs(["baseline", "all", "no-inter", "intra"], [0, 1])]
    assert order == [
        "baseline-seed0", "intra-seed0", "all-seed0", "baseline-seed1", "intra-seed1", "all-seed1",
        "no-inter-seed0", "no-inter-seed1",
    ]  # fmt: skip
    assert Run("no-inter", 0).switches == ("intra-scale", "temporal-decoder", "discriminator")
    assert Run("baseline", 0).switches == ()


def row(configuration: str, seed: int, ap: float) -> dict[str, Any]:
    others = ("ap50", "ap75", "ap_oracle_classes", "identity_switches", "ap_interrupted", "ap_motion_classes",
              "train_cpu_seconds_per_step", "predict_cpu_seconds_per_frame")  # fmt: skip
    return {"configuration": configuration, "seed": seed, "ap": ap, "steps": 3, **dict.fromkeys(others, 0.5)}


def test_a_summary_has_means_and_deviations(tmp_path: Path) -> None:
    rows = [row("all", 0, 0.2), row("baseline", 0, 0.1), row("all", 1, 0.4)]
    first, second = summary(rows)
    assert (first["configuration"], first["seeds"], first["ap"]) == ("baseline", [0], {"mean": 0.1, "deviation": None})
    assert second["seeds"] == [0, 1]
    assert second["ap"]["mean"] == pytest.approx(0.3)
    assert second["ap"]["deviation"] == pytest.approx(0.1414, abs=1e-4)
    assert "0.300 ± 0.141" in lines(rows)[2]
    # Only the runs of seed 0 have a baseline that saw the same clips.
    assert second["ap_over_baseline"] == {"mean": pytest.approx(0.1), "deviation": None}
    assert "+0.100" in lines(rows)[2]
    assert "ap_over_baseline" not in first
    pytest.importorskip("matplotlib")
    plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


def box(left: int) -> dict[str, Any]:
    mask = np.zeros((8, 20), np.uint8, order="F")
    mask[:, left : left + 6] = 1
    return {"size": [8, 20], "counts": coco_mask.encode(mask)["counts"].decode()}


def test_interrupted_objects_are_scored_apart() -> None:
    """An object that goes and comes back is found, and two others are missed."""
    video = {"id": 1, "height": 8, "width": 20, "length": 3, "file_names": ["0.jpg", "1.jpg", "2.jpg"]}
    tracks = [[box(0), None, box(0)], [box(12)] * 3, [None, box(12), box(12)]]
    truth = {
        "videos": [video],
        "categories": [{"id": 1, "name": "ape"}],
        "annotations": [
            {"id": i, "video_id": 1, "category_id": 1, "iscrowd": 0, "segmentations": track}
            for i, track in enumerate(tracks, 1)
        ],
    }
    found = [{"video_id": 1, "category_id": 1, "score": 0.9, "segmentations": tracks[0]}]
    assert [entry["iscrowd"] for entry in interrupted_alone(truth)["annotations"]] == [0, 1, 1]
    assert evaluate(truth, found).ap < 0.4
    assert evaluate(interrupted_alone(truth), found).ap == pytest.approx(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """A folder of runs with tiny data in the places of the splits."""
    found = Folders(tmp_path_factory.mktemp("ablation"))
    for seed, split in enumerate(("train", "val")):
        config = MovingShapes1Config(width=128, height=72, length=4)
        write_dataset(found.data(split), 4, seed, config, progress=False)
    return found


SETTINGS = Settings("mini", 1, 1500, "val")


def test_a_run_trains_predicts_and_is_scored(folders: Folders) -> None:
    """One step of the real commands, in their own processes."""
    videos, baseline, run = folders.data("train") / "instances.json", Run("baseline", 2), Run("temporal", 3)
    found = do_run(folders, baseline, SETTINGS, videos)
    assert (found["configuration"], found["seed"], found["steps"]) == ("baseline", 2, 1)
    assert found == json.loads((folders.run(baseline) / "row.json").read_text())
    assert found["object_frames"] > 0
    assert "loss" in found["last_losses"]
    # Another configuration goes on from it.
    trained = folders.run(baseline) / "train" / "model.safetensors"
    do_run(folders, run, SETTINGS, videos, trained)
    assert f"started from {trained}; not in it and new: decoder" in (folders.run(run) / "log.txt").read_text()
    described = json.loads((folders.run(run) / "train" / "run.json").read_text())
    assert described["model"]["switches"] == {
        "intra_scale": False, "inter_scale": False, "temporal_decoder": True, "discriminator": False
    }  # fmt: skip
    assert described["seed"] == 3


def test_finished_runs_are_not_done_again(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done: list[str] = []
    stops = [True]

    def fake(folders: Folders, run: Run, settings: Settings, *_: object) -> dict[str, Any]:
        if run.configuration == "all" and stops:
            stops.clear()
            raise MsstsError("stopped")
        done.append(run.name)
        made = {**row(run.configuration, run.seed, 0.1), "settings": vars(settings)}
        folder = folders.run(run)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "row.json").write_text(json.dumps(made))
        return made

    monkeypatch.setattr(runs, "do_run", fake)
    monkeypatch.setattr(report, "costs", functools.cache(report.costs))
    words = ["bench", "ablation", "--runs", str(folders.root), "--configurations", "baseline", "all", "--seeds", "0"]
    words += ["--out", str(tmp_path / "out.json"), "--epochs", "1", "--jobs", "1"]
    assert main(words) == 2
    assert done == ["baseline-seed0"]
    written = json.loads((tmp_path / "out.json").read_text())
    assert [entry["configuration"] for entry in written["rows"]] == ["baseline"]
    assert written["rows"][0]["parameters"] > 1e6
    assert written["rows"][0]["gflops_per_clip"] > 0.1
    assert main(words) == 0
    assert done == ["baseline-seed0", "all-seed0"]
    assert main([*words, "--collect"]) == 0
    assert len(json.loads((tmp_path / "out.json").read_text())["rows"]) == 2
    assert main([*words[:-4], "--epochs", "2"]) == 2
    assert "of a run with other settings" in capsys.readouterr().err
    assert main([*words, "--init", "nowhere.safetensors"]) == 2
    assert "--init nowhere.safetensors: no such file" in capsys.readouterr().err
    assert main(["bench", "ablation", "--configurations", "none", "--runs", str(tmp_path)]) == 2
    assert "unknown configuration 'none'" in capsys.readouterr().err


def test_a_failed_command_is_named_with_its_log(folders: Folders) -> None:
    with pytest.raises(MsstsError, match=r"`mssts train` failed \(exit 2\); its output is in .*log.txt"):
        do_run(folders, Run("all", 9), Settings("none", 1, 1500, "val"), folders.data("train") / "instances.json")
    assert "unknown preset 'none'" in (folders.run(Run("all", 9)) / "log.txt").read_text()


def test_scores_by_scenario_and_difficulty(folders: Folders, tmp_path: Path) -> None:
    truth = json.loads((folders.data("val") / "instances.json").read_text())
    keys = ("video_id", "category_id", "segmentations")
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{**{k: a[k] for k in keys}, "score": 0.9} for a in truth["annotations"]]))
    found = scored(folders.data("val") / "instances.json", results)
    assert found["ap"] == pytest.approx(1)
    assert set(found["ap_scenarios"]) == {video["scenario"] for video in truth["videos"]}
    assert all(ap == pytest.approx(1) for ap in found["ap_scenarios"].values())
    assert found["identity_switches"] == 0
