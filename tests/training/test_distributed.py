"""Training in several processes, in parts and with recomputation.

It is training in one process, and it survives being killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from mssts.data.clips import Clip, ClipDataset, ClipTransform
from mssts.data.moving_shapes import CATEGORIES, MovingShapesConfig, write_dataset
from mssts.data.youtube_vis import read_youtube_vis
from mssts.errors import MsstsError
from mssts.model.checkpoint import load_checkpoint
from mssts.model.config import Preset, Switches, tiny
from mssts.model.swin import SwinConfig, SwinTransformer
from mssts.training.batches import Batch, batches, collate
from mssts.training.config import TrainConfig
from mssts.training.metric_log import METRICS_FILE
from mssts.training.recomputation import recompute_activations
from mssts.training.trainer import MODEL_FILE, STATE_FILE, Trainer

SMALL = replace(
    tiny().model, width=32, heads=2, ffn_width=32, queries=5, encoder_layers=1, decoder_layers=2, split_width=16,
    temporal_width=16, backbone_norm="frozen", switches=Switches(),
)  # fmt: skip
# The gradients are compared as they are, unclipped.
CONFIG = TrainConfig(
    epochs=2, batch=4, clip_frames=2, transform=ClipTransform((48,), 64), clip_norm=1e9, ema_decay=0.9, save_every=100
)
# The discriminator sees masks cut at a probability of 1/2, where a rounding error moves a whole pixel: over many steps,
# losses are compared without its term, whose gradient single steps compare.
TWENTY = {"clip_norm": 0.1, "adversarial": 0.0}
# Of each of four clips: instances, and sizes. With two processes, the first has clips 0 and 1.
SIZES = ((72, 88), (80, 72), (72, 80), (72, 96))
COUNTS = {"unbalanced": (3, 1, 2, 1), "one has none": (2, 1, 0, 0), "none": (0, 0, 0, 0)}
TIMEOUT = 120  # seconds; generous, as tests share the machine


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_dataset(folder, 4, 0, MovingShapesConfig(width=64, height=48, length=4), progress=False)
    return folder


def trainer(shapes: Path, out: Path, model: dict[str, Any] | None = None, **config: Any) -> Trainer:
    preset = Preset("tiny", replace(SMALL, **(model or {})), tiny().input, clip_frames=2, clip_overlap=1, top_k=4)
    clips = ClipDataset(read_youtube_vis(shapes / "instances.json"), CONFIG.transform, CONFIG.clip_frames, 0)
    return Trainer(preset, replace(CONFIG, **config), clips, CATEGORIES, out, torch.device("cpu"), 0, amp=False)


def clips_of(
    counts: tuple[int, ...], sizes: tuple[tuple[int, int], ...] = ((72, 88),) * 4, seed: int = 7
) -> list[Clip]:
    """Noise with instances.

    It is larger than 64 pixels, or the coarsest map would be one pixel, whose group norm magnifies rounding.
    """
    rng = np.random.default_rng(seed)
    clips = []
    for i, (n, (h, w)) in enumerate(zip(counts, sizes, strict=True)):
        frames = rng.integers(0, 256, (2, h, w, 3), dtype=np.uint8)
        boxes = rng.uniform(0.3, 0.7, (n, 2, 4)).astype(np.float32)
        masks, present = rng.random((n, 2, h, w)) > 0.5, np.ones((n, 2), bool)
        clips.append(Clip(i, (0, 1), frames, rng.integers(0, 5, n), boxes, masks, present))
    return clips


def step(run: Trainer, batch: Batch) -> dict[str, Any]:
    """One step, and what it computed.

    What the discriminator learned from is taken before it is cleared.
    """
    assert run.adversary is not None
    judge = run.adversary.discriminator
    gradients: dict[str, Any] = {f"discriminator.{name}": None for name, _ in judge.named_parameters()}

    def keep(*_: Any) -> None:
        gradients.update({f"discriminator.{name}": p.grad.clone() for name, p in judge.named_parameters()})

    run.adversary.optimiser.register_step_pre_hook(keep)
    metrics = run.train_step(batch)
    gradients |= {name: p.grad for name, p in run.model.named_parameters() if p.requires_grad}
    buffers = {name: b for name, b in run.model.named_buffers() if "num_batches" not in name}
    return {"metrics": metrics, "gradients": gradients, "buffers": buffers}


def assert_same(a: dict[str, Any], b: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Gradients, running statistics and metrics agree.

    `tolerance` is relative to the largest of a tensor or 1.
    """
    assert a["metrics"].keys() == b["metrics"].keys()
    for name, value in a["metrics"].items():
        assert b["metrics"][name] == pytest.approx(value, rel=tolerance, abs=tolerance), name
    for kind in ("gradients", "buffers"):
        assert a[kind].keys() == b[kind].keys()
        for name, tensor in a[kind].items():
            if tensor is None:
                assert b[kind][name] is None or not b[kind][name].any(), name
                continue
            error = (tensor - b[kind][name]).abs().max().item()
            assert error <= tolerance * max(1.0, tensor.abs().max().item()), (name, error)


def losses_of_twenty_steps(run: Trainer, share: slice) -> list[dict[str, float]]:
    """The metrics of each step of training on `share` of three batches in turn."""
    found = [collate(clips_of(counts, seed=i)[share]) for i, counts in enumerate(COUNTS.values())]
    return [run.train_step(found[i % len(found)]) for i in range(20)]


def frames_computed(run: Trainer, batch: Batch) -> list[tuple[int, ...]]:
    """The shape of the images that each pass of one step goes over."""
    shapes: list[tuple[int, ...]] = []
    run.model.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    run.train_step(batch)
    return shapes


def _process(rank: int, store: str, out: Path, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(job(*arguments), out / f"{rank}.pt")
    dist.destroy_process_group()


def in_two_processes(folder: Path, job: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `job` returns in each of two processes of one group."""
    folder.mkdir()
    mp.spawn(_process, (str(folder / "store"), folder, job, arguments), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def _jobs_of_a_group(shapes: Path, out: Path) -> dict[str, Any]:
    """All that the tests want of two processes, in one start of them."""
    found: dict[str, Any] = {}
    share = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    for name, counts in COUNTS.items():
        found[name] = step(trainer(shapes, out), collate(clips_of(counts)[share]))
    batch = collate(clips_of(COUNTS["unbalanced"])[share])
    found["accumulated"] = step(trainer(shapes, out, accumulate=2), batch)
    found["losses"] = losses_of_twenty_steps(trainer(shapes, out, **TWENTY), share)
    found["frames"] = frames_computed(trainer(shapes, out), collate(clips_of(COUNTS["unbalanced"], SIZES)[share]))
    clips = trainer(shapes, out).clips
    own = [b.frames_BTHWC for b in batches(clips, 2, 0, 1, 0, 0, (dist.get_rank(), 2))]
    found["order"] = torch.cat(own)

    noisy: dict[str, Any] = {"model": {"dropout": 0.1}, "batch": 2}
    whole = trainer(shapes, out / "whole", **noisy)
    whole.train(progress=False)
    broken = trainer(shapes, out / "broken", **noisy)
    for i, part in enumerate(broken._batches()):
        if i == 1:
            break
        broken.train_step(part)
        broken.step_in_epoch += 1
    broken.out.mkdir(exist_ok=True)
    broken.save()
    dist.barrier()
    resumed = trainer(shapes, out / "broken", **noisy)
    resumed.resume()
    resumed.train(progress=False)
    found["whole"], found["resumed"] = whole.weights(), resumed.weights()
    found["next random"] = torch.rand(8)
    return found


@pytest.fixture(scope="module")
def group(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("group")
    return in_two_processes(folder / "results", _jobs_of_a_group, shapes, folder)


@pytest.mark.parametrize("name", COUNTS)
def test_two_processes_compute_the_gradients_of_one(group, shapes, tmp_path, name):
    alone = step(trainer(shapes, tmp_path), collate(clips_of(COUNTS[name])))
    for process in group:
        assert_same(alone, process[name])
    assert ("discriminator" in alone["metrics"]) == (name != "none")


def test_two_processes_have_the_losses_of_one_over_twenty_steps(group, shapes, tmp_path):
    alone = losses_of_twenty_steps(trainer(shapes, tmp_path, **TWENTY), slice(0, 4))
    assert alone[-2]["loss"] < 0.98 * alone[1]["loss"]  # of the same batch: the weights have moved
    for process in group:
        for i, (a, b) in enumerate(zip(alone, process["losses"], strict=True)):
            for name in ("loss", *(name for name in a if name.startswith("loss_"))):
                assert b[name] == pytest.approx(a[name], rel=1e-5, abs=1e-5), (i, name)


def test_a_process_pads_its_clips_to_the_largest_of_its_own(group, shapes, tmp_path):
    assert [process["frames"] for process in group] == [[(2, 2, 3, 80, 88)], [(2, 2, 3, 72, 96)]]
    batch = collate(clips_of(COUNTS["unbalanced"], SIZES))
    alone = frames_computed(trainer(shapes, tmp_path, accumulate=4), batch)
    assert [shape[-2:] for shape in alone] == [(h, w) for h, w in SIZES]


def test_accumulated_parts_of_two_processes_are_one_batch(group, shapes, tmp_path):
    alone = step(trainer(shapes, tmp_path), collate(clips_of(COUNTS["unbalanced"])))
    for process in group:
        assert_same(alone, process["accumulated"])


def test_the_clips_of_a_batch_do_not_depend_on_the_number_of_processes(group, shapes, tmp_path):
    alone = [b.frames_BTHWC for b in batches(trainer(shapes, tmp_path).clips, 2, 0, 1, 0, 0)]
    for i, batch in enumerate(alone):
        assert torch.equal(batch, torch.stack([process["order"][i] for process in group]))


def test_processes_stay_equal_but_draw_different_numbers(group):
    a, b = group
    assert all(torch.equal(a["whole"][name], b["whole"][name]) for name in a["whole"])
    assert not torch.equal(a["next random"], b["next random"])


def test_a_resumed_run_of_two_processes_ends_with_the_weights_of_an_unbroken_one(group):
    for process in group:
        assert all(torch.equal(process["whole"][name], process["resumed"][name]) for name in process["whole"])


def test_another_number_of_processes_is_refused(group, shapes, tmp_path, monkeypatch):
    run = trainer(shapes, tmp_path)
    run.save()
    monkeypatch.setattr("mssts.training.trainer.world_size", lambda: 2)
    with pytest.raises(MsstsError, match="by 1 processes, not 2"):
        run.resume()
    with pytest.raises(MsstsError, match="the 3 clips of a step cannot be split over 2 processes"):
        trainer(shapes, tmp_path, batch=3)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("name", ["unbalanced", "one has none"])
def test_accumulation_is_the_large_batch(shapes, tmp_path, parts, name):
    batch = collate(clips_of(COUNTS[name]))
    assert_same(step(trainer(shapes, tmp_path), batch), step(trainer(shapes, tmp_path, accumulate=parts), batch))


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_recomputation_changes_nothing(shapes, tmp_path, norm):
    batch = collate(clips_of(COUNTS["unbalanced"]))
    model = {"dropout": 0.1, "backbone_norm": norm}
    kept = step(trainer(shapes, tmp_path, model), batch)
    again = step(trainer(shapes, tmp_path, model, checkpoint_activations=True), batch)
    assert_same(kept, again, tolerance=0)


class Kept:
    """Bytes of activations that wait for backward."""

    def __init__(self, module: nn.Module) -> None:
        self._parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._storages: dict[int, Tensor] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self._storages[storage.data_ptr()] = tensor  # kept, or its address would be used again
        return tensor

    @property
    def bytes(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._storages.values())


def test_recomputation_of_swin_keeps_less(shapes):
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def gradients(recompute: bool) -> tuple[list[Tensor], int]:
        torch.manual_seed(0)
        model = SwinTransformer(SwinConfig(16, (2, 2, 4, 2), (1, 2, 4, 8), window=4, drop_path=0.5)).train()
        if recompute:
            recompute_activations(model)
        kept = Kept(model)
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            features = model(images)
        torch.stack([feature.square().mean() for feature in features]).sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None], kept.bytes

    (usual, kept), (again, kept_less) = gradients(False), gradients(True)
    assert len(usual) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(usual, again, strict=True))
    # A block keeps some 14 maps of its width, and its attention; recomputed, its input alone (which is not counted).
    assert kept_less < 0.3 * kept


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def _rows(out: Path) -> int:
    path = out / METRICS_FILE
    return path.read_text().count("\n") if path.exists() else 0


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


# `mssts train` with a recipe that saves often and whose clips are small.
DRIVER = """
import sys
from dataclasses import replace
from mssts.cli import main
from mssts.data.clips import ClipTransform
from mssts.training import config
recipe = replace(config.recipe("tiny"), save_every=2, clip_frames=2, transform=ClipTransform((48,), 64))
config.recipe = lambda *_: recipe
sys.exit(main(sys.argv[1:]))
"""


def _torchrun(shapes: Path, out: Path, log: Path, *options: str) -> subprocess.Popen[bytes]:
    driver = out.parent / "driver.py"
    driver.write_text(DRIVER)
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1",
             "--nproc-per-node=2", *options, str(driver), "train", "--data", str(shapes), "--out", str(out),
             "--batch", "2", "--epochs", "6", "--device", "cpu"],
            env=_environment(), stdout=file, stderr=file,
        )  # fmt: skip


def test_a_job_whose_process_is_killed_starts_again_and_ends_with_the_same_weights(shapes, tmp_path):
    whole, killed, log = tmp_path / "whole", tmp_path / "killed", tmp_path / "log"
    process = _torchrun(shapes, whole, log)
    assert process.wait(TIMEOUT) == 0, log.read_text()
    process = _torchrun(shapes, killed, log, "--max-restarts=1", "--monitor-interval=0.1")
    try:
        _wait_for((killed / STATE_FILE).exists, process)
        moment, victim = random.uniform(0, 0.5), random.randrange(2)  # not seeded: another one every time
        time.sleep(moment)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(workers) == 2
        os.kill(int(workers[victim]), signal.SIGKILL)
        where = f"rank {victim} killed {moment:.2f} s after the first save, with {_rows(killed) - 1} steps done"
        assert process.wait(TIMEOUT) == 0, (where, log.read_text())
    finally:
        process.terminate()
        process.wait(TIMEOUT)
    assert "resumed at step" in log.read_text(), where
    a, b = (load_checkpoint(run / MODEL_FILE).weights for run in (whole, killed))
    assert all(torch.equal(a[name], b[name]) for name in a), where
    rows = [(run / METRICS_FILE).read_text().splitlines() for run in (whole, killed)]
    assert [row.rpartition(",")[0] for row in rows[0]] == [row.rpartition(",")[0] for row in rows[1]], where
    assert len(rows[0]) == 1 + 12  # one process wrote them
    assert not [path.name for path in killed.iterdir() if path.name.startswith(".")]
