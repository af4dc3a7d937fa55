"""The training loop: one process, resumable at any step."""

from __future__ import annotations

import copy
import csv
import dataclasses
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mssts.data.clips import ClipDataset
from mssts.errors import MsstsError
from mssts.files import atomic_path, write_json
from mssts.manifest import Category
from mssts.model.checkpoint import save_checkpoint
from mssts.model.config import Preset
from mssts.model.engine import normalise
from mssts.model.mssts_vis import MSSTSVIS
from mssts.provenance import provenance
from training.batches import Batch, batches, batches_in_epoch
from training.config import TrainConfig
from training.criterion import Criterion
from training.discriminator import Discriminator, foreground, verdict_loss

STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"
METRICS_FILE = "metrics.csv"


class Trainer:
    """Trains one preset on one data set into one run folder.

    The run folder holds `model.safetensors` (what to export), `training_state.pt` (what to resume from), `metrics.csv`,
    TensorBoard events and `run.json`. Every file is replaced atomically.
    """

    def __init__(
        self,
        preset: Preset,
        config: TrainConfig,
        clips: ClipDataset,
        categories: Sequence[Category],
        out: Path,
        device: torch.device,
        seed: int,
        workers: int = 0,
        amp: bool = True,
    ) -> None:
        torch.manual_seed(seed)
        self.preset, self.config, self.clips, self.categories = preset, config, clips, tuple(categories)
        self.out, self.device, self.seed, self.workers, self.amp = out, device, seed, workers, amp
        self.model = MSSTSVIS(preset.model).to(device)
        self.criterion = Criterion()
        self.optimiser = torch.optim.AdamW(_groups(self.model, config), weight_decay=config.weight_decay, fused=True)
        self.discriminator: Discriminator | None = None
        if preset.model.switches.discriminator:
            self.discriminator = Discriminator(preset.model.width).to(device)
            self.discriminator_optimiser = torch.optim.AdamW(
                self.discriminator.parameters(), lr=config.discriminator_rate, betas=(0.5, 0.999)
            )
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.ema_decay else None
        self.epoch = 0
        self.step_in_epoch = 0
        self.steps_per_epoch = batches_in_epoch(clips, config.batch)

    @property
    def step(self) -> int:
        """Steps done since the beginning."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return self.config.epochs * self.steps_per_epoch

    def learning_rate_factor(self) -> float:
        """Linear warm-up, then a tenth after each of the recipe's drops."""
        drops = sum(self.epoch >= epoch for epoch in self.config.lr_drops)
        return min(1.0, (self.step + 1) / max(self.config.warmup_steps, 1)) * 0.1**drops

    def train(self, progress: bool = True) -> None:
        """Trains to the end, saving every `config.save_every` steps and after the last."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / "run.json", self.describe())
        with MetricLog(self.out, self.step) as log, self._bar(progress) as bar:
            while self.epoch < self.config.epochs:
                started = time.perf_counter()
                clips = batches(self.clips, self.config.batch, self.seed, self.epoch, self.step_in_epoch, self.workers)
                for batch in clips:
                    metrics = self.train_step(batch)
                    self.step_in_epoch += 1
                    metrics["seconds"] = time.perf_counter() - started
                    started = time.perf_counter()
                    log.write(self.step, metrics)
                    bar.update()
                    bar.set_postfix(loss=f"{metrics['loss']:.2f}", epoch=self.epoch, refresh=False)
                    if not math.isfinite(metrics["loss"]):
                        raise MsstsError(
                            f"step {self.step}: the loss is not finite; resume from {self.out} with a lower "
                            "--learning-rate, or with --no-amp"
                        )
                    if self.step % self.config.save_every == 0:
                        self.save()
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
            self.save()

    def _bar(self, progress: bool) -> tqdm[Any]:
        return tqdm(total=self.total_steps, initial=self.step, unit="step", disable=None if progress else True)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step of the model, and one of the discriminator where there is one. Returns the unweighted losses."""
        self.model.train()
        factor = self.learning_rate_factor()
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.config.learning_rate * factor
        sizes = batch.sizes_B2.to(self.device)
        images = normalise(batch.frames_BTHWC.to(self.device), sizes)
        targets = [target.to(self.device) for target in batch.targets]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            prediction = self.model(images, sizes)
        losses = self.criterion(self.model, prediction, targets)
        total = losses.total(self.config.losses)
        metrics = {name: float(term.detach()) for name, term in losses.terms.items()}

        if self.discriminator is not None and len(losses.clip_of_mask):
            h, w = prediction.shapes[0]
            features = prediction.encoded_BTSC[:, :, : h * w].float().flatten(0, 1).transpose(1, 2).unflatten(2, (h, w))
            flat_images = images.flatten(0, 1)
            drawn = foreground(losses.mask_logits.sigmoid(), losses.clip_of_mask, len(targets))
            true = foreground(losses.mask_targets, losses.clip_of_mask, len(targets))
            # The discriminator first, on what the model drew; then the model, to be taken for real.
            fake = verdict_loss(self.discriminator(flat_images, features.detach(), drawn.detach()), real=False)
            real = verdict_loss(self.discriminator(flat_images, features.detach(), true), real=True)
            discriminator_loss = (fake + real) / 2
            self.discriminator_optimiser.zero_grad(set_to_none=True)
            discriminator_loss.backward()
            self.discriminator_optimiser.step()
            self.discriminator.requires_grad_(False)
            adversarial = verdict_loss(self.discriminator(flat_images, features, drawn), real=True)
            self.discriminator.requires_grad_(True)
            total = total + self.config.adversarial * adversarial
            metrics |= {"discriminator": float(discriminator_loss.detach()), "adversarial": float(adversarial.detach())}

        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self._average()
        rate = self.config.learning_rate * factor
        return {"loss": float(total.detach()), "grad_norm": float(norm), "learning_rate": rate, **metrics}

    @torch.no_grad()
    def _average(self) -> None:
        if self.averaged is None:
            return
        # Early on the average follows quickly, or it would remember the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        own, averaged = self.model.state_dict(), self.averaged.state_dict()
        floating = [name for name, tensor in own.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([averaged[n] for n in floating], [own[n] for n in floating], 1 - decay)

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the averaged weights where they are kept."""
        model = self.model if self.averaged is None else self.averaged
        return {name: tensor for name, tensor in model.state_dict().items() if "num_batches_tracked" not in name}

    def save(self) -> None:
        """Writes the state to resume from, then the checkpoint."""
        state: dict[str, Any] = {
            "preset": self.preset.name,
            "seed": self.seed,
            "batch": self.config.batch,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "rng": torch.get_rng_state(),
        }
        if self.discriminator is not None:
            state["discriminator"] = self.discriminator.state_dict()
            state["discriminator_optimiser"] = self.discriminator_optimiser.state_dict()
        with atomic_path(self.out / STATE_FILE) as temporary:
            torch.save(state, temporary)
        dtype = torch.float16 if self.config.half_storage else torch.float32
        save_checkpoint(self.out / MODEL_FILE, self.weights(), self.preset, self.categories, dtype)

    def resume(self) -> None:
        """Goes on where the run folder's last saved state stopped.

        Raises:
            MsstsError: there is no state, it is damaged, or it belongs to another preset, seed or batch size.
        """
        path = self.out / STATE_FILE
        if not path.is_file():
            raise MsstsError(f"{path}: no such file; there is nothing to resume, leave --resume out")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise MsstsError(f"{path}: cannot be read ({type(error).__name__}); train again without --resume") from None
        for key, own in (("preset", self.preset.name), ("seed", self.seed), ("batch", self.config.batch)):
            if state[key] != own:
                raise MsstsError(f"{path}: was trained with {key} {state[key]}, not {own}; pass --{key} {state[key]}")
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        torch.set_rng_state(state["rng"])

    def describe(self) -> dict[str, Any]:
        """The run's settings and where it runs, as JSON."""
        return {
            "preset": self.preset.name,
            "config": dataclasses.asdict(self.config),
            "model": dataclasses.asdict(self.preset.model),
            "seed": self.seed,
            "videos": len(self.clips),
            "device": str(self.device),
            "amp": self.amp,
            **provenance(),
        }


def _groups(model: MSSTSVIS, config: TrainConfig) -> list[dict[str, Any]]:
    """Parameter groups with their own share of the learning rate."""
    factors = {"backbone": config.backbone_factor, "sampling": config.sampling_factor, "rest": 1.0}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in factors}
    for name, parameter in model.named_parameters():
        if name.startswith("backbone."):
            groups["backbone"].append(parameter)
        elif "sampling_offsets" in name or "reference_points" in name:
            groups["sampling"].append(parameter)
        else:
            groups["rest"].append(parameter)
    return [{"params": groups[name], "factor": factor, "lr": 0.0} for name, factor in factors.items()]


class MetricLog:
    """Metrics to `metrics.csv` and to TensorBoard; rows after the resumed step are dropped first."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = out / METRICS_FILE
        self._names: list[str] = []
        rows: list[list[str]] = []
        if step and self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                header, *rows = list(csv.reader(file)) or [[]]
            self._names = header[1:]
            rows = [row for row in rows if int(row[0]) <= step]
        with atomic_path(self._path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["step", *self._names], *rows] if self._names else [])
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = SummaryWriter(os.fspath(out / "tensorboard"), purge_step=step)

    def __enter__(self) -> MetricLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a row; the first row fixes the columns, so a term that is missing later leaves its cell empty."""
        writer = csv.writer(self._file)
        if not self._names:
            self._names = list(metrics)
            writer.writerow(["step", *self._names])
        writer.writerow([step, *(f"{metrics[name]:.6g}" if name in metrics else "" for name in self._names)])
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
