"""The training loop: one process or several, resumable at any step."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mssts.data.clips import ClipSource
from mssts.errors import MsstsError
from mssts.files import atomic_path, write_json
from mssts.manifest import Category
from mssts.model.checkpoint import save_checkpoint
from mssts.model.config import Preset
from mssts.model.engine import normalise
from mssts.model.mssts_vis import MSSTSVIS
from mssts.provenance import provenance
from mssts.training.batches import Batch, batches, batches_in_epoch
from mssts.training.config import TrainConfig
from mssts.training.criterion import Criterion
from mssts.training.discriminator import Discriminator, foreground, verdict_loss
from mssts.training.distributed import (
    broadcast_module,
    gather,
    rank,
    sum_gradients,
    sum_over_ranks,
    synchronise_batch_norm,
    world_size,
)
from mssts.training.metric_log import MetricLog
from mssts.training.recomputation import frozen_statistics, recompute_activations

STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class _Extent:
    """What the shares and parts of a batch must know of the whole of it."""

    height: int
    width: int
    instances: int
    clips: int

    @classmethod
    def of(cls, share: Batch) -> _Extent:
        """The extent of the batch that all processes have a share of."""
        height, width = share.frames_BTHWC.shape[2:4]
        heights, widths, instances, clips = zip(
            *gather((height, width, share.instances, len(share.targets))), strict=True
        )
        return cls(max(heights), max(widths), sum(instances), sum(clips))


@dataclass(frozen=True)
class _Forward:
    """What the model made of N frames, a part of a batch, and what the discriminator is shown of it."""

    terms: dict[str, Tensor]
    total: Tensor
    images_N3HW: Tensor
    features_NChw: Tensor  # of the finest scale
    drawn_N1hw: Tensor  # probability of the foreground
    true_N1hw: Tensor
    share: float  # of the whole batch


class Trainer:
    """Trains one preset on one data set into one run folder.

    The run folder holds `model.safetensors` (what to export), `training_state.pt` (what to resume from), `metrics.csv`,
    TensorBoard events and `run.json`. Every file is replaced atomically.

    In a process group (`mssts.training.distributed`) each process has a `Trainer` of its own; they stay equal but for
    the random numbers that dropout draws, and that of rank 0 writes the files.
    """

    def __init__(
        self,
        preset: Preset,
        config: TrainConfig,
        clips: ClipSource,
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
        synchronise_batch_norm(self.model)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(config.frozen))
        self.criterion = Criterion()
        self.optimiser = torch.optim.AdamW(_groups(self.model, config), weight_decay=config.weight_decay, fused=True)
        self.discriminator: Discriminator | None = None
        if preset.model.switches.discriminator:
            self.discriminator = Discriminator(preset.model.width).to(device)
            self.discriminator_optimiser = torch.optim.AdamW(
                self.discriminator.parameters(), lr=config.discriminator_rate, betas=(0.5, 0.999)
            )
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.ema_decay else None
        if config.checkpoint_activations:
            recompute_activations(self.model)
        self.epoch = 0
        self.step_in_epoch = 0
        self.steps_per_epoch = batches_in_epoch(clips, config.batch)
        clips_per_step, parts = min(config.batch, len(clips)), world_size() * config.accumulate
        if clips_per_step % parts:
            raise MsstsError(
                f"the {clips_per_step} clips of a step cannot be split over {world_size()} processes times "
                f"{config.accumulate} accumulated parts; pass a --batch that is a multiple of {parts} and at most "
                f"{len(clips)}, the number of clips"
            )
        if rank():
            torch.manual_seed(seed + 1_000_003 * rank())  # the models are equal, what dropout drops is not

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
        for module in (self.model, self.averaged, self.discriminator):
            if module is not None:
                broadcast_module(module)
        if rank() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            for torn in (*self.out.glob(f".{Path(STATE_FILE).stem}.*"), *self.out.glob(f".{Path(MODEL_FILE).stem}.*")):
                torn.unlink()  # a killed process was writing it
            write_json(self.out / "run.json", self.describe())
        metric_log = MetricLog(self.out, self.step) if rank() == 0 else nullcontext()
        with metric_log as log, self._bar(progress) as bar:
            while self.epoch < self.config.epochs:
                started = time.perf_counter()
                for batch in self._batches():
                    metrics = self.train_step(batch)
                    self.step_in_epoch += 1
                    metrics["seconds"] = time.perf_counter() - started
                    started = time.perf_counter()
                    if log is not None:
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

    def _batches(self) -> Iterator[Batch]:
        share = rank(), world_size()
        return batches(self.clips, self.config.batch, self.seed, self.epoch, self.step_in_epoch, self.workers, share)

    def _bar(self, progress: bool) -> tqdm[Any]:
        return tqdm(
            total=self.total_steps, initial=self.step, unit="step", disable=None if progress and rank() == 0 else True
        )

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step of the model, and one of the discriminator where there is one, on this process' share of a batch.

        Returns the unweighted losses of the whole batch.
        """
        self.model.train()
        factor = self.learning_rate_factor()
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * self.config.learning_rate * factor
        whole = _Extent.of(batch)
        parts = batch.padded(whole.height, whole.width).split(self.config.accumulate)
        adversarial = self.discriminator is not None and whole.instances > 0
        # The discriminator first, on what the model drew; then the model, to be taken for real.
        passes: Iterable[_Forward]
        discriminator: dict[str, float] = {}
        if len(parts) == 1:
            passes = [self._forward(parts[0], whole)]
            if adversarial:
                discriminator = self._step_discriminator(passes)
        else:
            if adversarial:
                discriminator = self._step_discriminator(self._rehearsal(parts, whole))
            passes = (self._forward(part, whole) for part in parts)

        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, float] = defaultdict(float)
        for forward in passes:
            for name, value in self._backward(forward, adversarial).items():
                sums[name] += value
        sums |= discriminator
        sum_gradients(self.model.parameters())
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        self._average()
        metrics = dict(zip(sums, sum_over_ranks(list(sums.values())), strict=True))
        loss, rate = metrics.pop("loss"), self.config.learning_rate * factor
        return {"loss": loss, "grad_norm": float(norm), "learning_rate": rate, **metrics}

    def _forward(self, part: Batch, whole: _Extent) -> _Forward:
        sizes = part.sizes_B2.to(self.device)
        images = normalise(part.frames_BTHWC.to(self.device), sizes)
        targets = [target.to(self.device) for target in part.targets]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
            prediction = self.model(images, sizes)
        losses = self.criterion(self.model, prediction, targets, normaliser=max(whole.instances, 1))
        h, w = prediction.shapes[0]
        return _Forward(
            losses.terms,
            losses.total(self.config.losses),
            images.flatten(0, 1),
            prediction.encoded_BTSC[:, :, : h * w].float().flatten(0, 1).transpose(1, 2).unflatten(2, (h, w)),
            foreground(losses.mask_logits.sigmoid(), losses.clip_of_mask, len(targets)),
            foreground(losses.mask_targets, losses.clip_of_mask, len(targets)),
            len(targets) / whole.clips,
        )

    def _rehearsal(self, parts: Sequence[Batch], whole: _Extent) -> Iterator[_Forward]:
        """What the model will make of the parts of an accumulated batch, for the discriminator, which steps before it.

        To keep the graphs of all parts until then would cost the memory that accumulation saves, so that the model
        computes each part twice, drawing the same random numbers.
        """
        with torch.random.fork_rng(self._gpus), frozen_statistics(self.model):
            for part in parts:
                with torch.no_grad():
                    forward = self._forward(part, whole)
                yield forward

    @property
    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

    def _step_discriminator(self, passes: Iterable[_Forward]) -> dict[str, float]:
        assert self.discriminator is not None
        self.discriminator_optimiser.zero_grad(set_to_none=True)
        sum_of_losses = 0.0
        for forward in passes:
            images, features = forward.images_N3HW, forward.features_NChw.detach()
            fake = verdict_loss(self.discriminator(images, features, forward.drawn_N1hw.detach()), real=False)
            real = verdict_loss(self.discriminator(images, features, forward.true_N1hw), real=True)
            loss = (fake + real) / 2 * forward.share
            loss.backward()
            sum_of_losses += float(loss.detach())
        sum_gradients(self.discriminator.parameters())
        self.discriminator_optimiser.step()
        return {"discriminator": sum_of_losses}

    def _backward(self, forward: _Forward, adversarial: bool) -> dict[str, float]:
        """Adds the gradients of the model's losses. Returns those, each this part's share of the whole batch's."""
        total = forward.total
        metrics = {name: float(term.detach()) for name, term in forward.terms.items()}
        if adversarial:
            assert self.discriminator is not None
            self.discriminator.requires_grad_(False)
            verdict = self.discriminator(forward.images_N3HW, forward.features_NChw, forward.drawn_N1hw)
            self.discriminator.requires_grad_(True)
            loss = verdict_loss(verdict, real=True) * forward.share
            total = total + self.config.adversarial * loss
            metrics["adversarial"] = float(loss.detach())
        total.backward()
        return {"loss": float(total.detach()), **metrics}

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
        """Writes the state to resume from, then the checkpoint. All processes call it, for their random numbers."""
        random = gather([torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)])
        if rank():
            return
        state: dict[str, Any] = {
            "preset": self.preset.name,
            "seed": self.seed,
            "batch": self.config.batch,
            "accumulate": self.config.accumulate,
            "processes": world_size(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "random": random,
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
            MsstsError: there is no state, it is damaged, or it belongs to another preset, seed, batch size or number of
                processes, with which it would not go on as it was.
        """
        path = self.out / STATE_FILE
        if not path.is_file():
            raise MsstsError(f"{path}: no such file; there is nothing to resume, leave --resume out")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise MsstsError(f"{path}: cannot be read ({type(error).__name__}); train again without --resume") from None
        config = self.config
        own = {"preset": self.preset.name, "seed": self.seed, "batch": config.batch, "accumulate": config.accumulate}
        for key, value in own.items():
            if state.get(key) != value:
                raise MsstsError(
                    f"{path}: was trained with {key} {state.get(key)}, not {value}; pass --{key} {state.get(key)}"
                )
        if state.get("processes") != world_size():
            raise MsstsError(
                f"{path}: was trained by {state.get('processes')} processes, not {world_size()}; start as many to go "
                "on exactly, or pass --init with its checkpoint and another --out"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if self.discriminator is not None:
            self.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimiser.load_state_dict(state["discriminator_optimiser"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        random, *random_of_gpus = state["random"][rank()]
        torch.set_rng_state(random)
        for gpu, random in zip(self._gpus, random_of_gpus, strict=False):
            torch.cuda.set_rng_state(random, gpu)

    def describe(self) -> dict[str, Any]:
        """The run's settings and where it runs, as JSON."""
        return {
            "preset": self.preset.name,
            "config": dataclasses.asdict(self.config),
            "model": dataclasses.asdict(self.preset.model),
            "seed": self.seed,
            "processes": world_size(),
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
        if not parameter.requires_grad:
            continue
        if name.startswith("backbone."):
            groups["backbone"].append(parameter)
        elif "sampling_offsets" in name or "reference_points" in name:
            groups["sampling"].append(parameter)
        else:
            groups["rest"].append(parameter)
    return [{"params": groups[name], "factor": factor, "lr": 0.0} for name, factor in factors.items()]
