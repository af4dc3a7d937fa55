"""The training loop: one process or several, resumable at any step."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mssts.categories import difference
from mssts.data.clips import ClipSource
from mssts.errors import MsstsError
from mssts.files import atomic_path, write_json
from mssts.manifest import Category
from mssts.model.checkpoint import load_checkpoint, save_checkpoint
from mssts.model.config import Preset
from mssts.model.mssts_vis import MSSTSVIS
from mssts.provenance import provenance
from mssts.training.adversary import Adversary
from mssts.training.batches import Batch, batches, batches_in_epoch
from mssts.training.config import TrainConfig
from mssts.training.criterion import Criterion
from mssts.training.distributed import (
    gather,
    parallel,
    rank,
    sum_over_ranks,
    synchronise_batch_norm,
    synchronised,
    world_size,
)
from mssts.training.metric_log import MetricLog
from mssts.training.progress import Progress
from mssts.training.recomputation import recompute_activations
from mssts.training.step import StepOutput, TrainingStep
from mssts.training.validation import Validation

STATE_FILE = "training_state.pt"
MODEL_FILE = "model.safetensors"


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
        validation: Validation | None = None,
    ) -> None:
        torch.manual_seed(seed)
        self.preset, self.config, self.clips, self.categories = preset, config, clips, tuple(categories)
        self.out, self.device, self.seed, self.workers, self.amp = out, device, seed, workers, amp
        self.validation = validation
        self.model = MSSTSVIS(preset.model).to(device)
        synchronise_batch_norm(self.model, device)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(not name.startswith(config.frozen))
        self.optimiser = torch.optim.AdamW(_groups(self.model, config), weight_decay=config.weight_decay, fused=True)
        self.adversary: Adversary | None = None
        if preset.model.switches.discriminator:
            self.adversary = Adversary(preset.model.width, config, device)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False) if config.ema_decay else None
        if config.checkpoint_activations:
            recompute_activations(self.model)
        self._step = parallel(
            TrainingStep(self.model, Criterion(absent_boxes=config.absent_boxes), config.losses, amp), device
        )
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

    def train(self, progress: bool = True) -> None:
        """Trains to the end, saving every `config.save_every` steps and after the last."""
        if rank() == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            # What a killed process was writing: our temporary files, and those of safetensors beside them.
            for pattern in (f".{Path(STATE_FILE).stem}.*", f".{Path(MODEL_FILE).stem}.*", ".tmp??????"):
                for torn in self.out.glob(pattern):
                    torn.unlink()
            write_json(self.out / "run.json", self.describe())
        if self.validation is not None:
            self.validation.start(self.epoch)
        metric_log = MetricLog(self.out, self.step) if rank() == 0 else nullcontext()
        with metric_log as log, Progress(self.step, self.total_steps, progress and rank() == 0) as bar:
            while self.epoch < self.config.epochs:
                started = time.perf_counter()
                for batch in self._batches():
                    metrics = self.train_step(batch)
                    self.step_in_epoch += 1
                    metrics["seconds"] = time.perf_counter() - started
                    started = time.perf_counter()
                    if log is not None:
                        log.write(self.step, metrics)
                    bar.update(metrics["loss"], self.epoch)
                    if not math.isfinite(metrics["loss"]):
                        raise MsstsError(
                            f"step {self.step}: the loss is not finite; resume from {self.out} with a lower "
                            "--learning-rate, or with --no-amp"
                        )
                    if self.step % self.config.save_every == 0:
                        self.save()
                if self.validation is not None:
                    self._validate(self.validation, log, bar)
                self.epoch, self.step_in_epoch = self.epoch + 1, 0
            self.save()

    def _validate(self, validation: Validation, log: MetricLog | None, bar: Progress) -> None:
        """Scores the checkpoint of the epoch that ends.

        The state is saved first, so that a run that is killed meanwhile scores again when it is resumed.
        """
        self.save()
        with torch.random.fork_rng(self._gpus):  # building a model draws numbers
            metrics = validation.score(self.epoch + 1, self.step, self._write_checkpoint)
        if log is not None and metrics is not None:
            log.board(
                {f"val/{name}": getattr(metrics, name) for name in ("ap", "ap50", "ap75", "ar1", "ar10")}, self.step
            )
            bar.say(validation.line())

    def _batches(self) -> Iterator[Batch]:
        share = rank(), world_size()
        return batches(self.clips, self.config.batch, self.seed, self.epoch, self.step_in_epoch, self.workers, share)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One step of the model and of the discriminator, on this process' share.

        Returns the unweighted losses of the whole batch.
        """
        self.model.train()
        rate = self.config.learning_rate * self.config.learning_rate_factor(self.step, self.steps_per_epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = group["factor"] * rate
        instances = int(sum_over_ranks(torch.tensor(batch.instances)))
        adversary = self.adversary if instances else None
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for i in range(self.config.accumulate):
            part = batch.split(self.config.accumulate)[i].to(self.device)
            last = i + 1 == self.config.accumulate
            with synchronised(self._step, last):
                output = self._step(part, float(max(instances, 1)))
                for name, value in self._backward(output, adversary, last).items():
                    sums[name] += value
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimiser.step()
        if adversary is not None:
            adversary.step(rate)
        self._average()
        # Until here nothing has made the processor wait for a GPU but the matching.
        values = torch.stack([norm.detach(), *sum_over_ranks(torch.stack(list(sums.values())))]).tolist()
        metrics = dict(zip(("grad_norm", *sums), values, strict=True))
        if adversary is not None:
            own, other = metrics.pop("adversarial_square"), metrics.pop("other_square")
            metrics["adversarial_share"] = math.sqrt(own / other) if other else 0.0
        return {"loss": metrics.pop("loss"), "grad_norm": metrics.pop("grad_norm"), "learning_rate": rate, **metrics}

    def _backward(self, output: StepOutput, adversary: Adversary | None, last: bool) -> dict[str, Tensor]:
        """Adds the gradients of a part of this process' share.

        Returns its contribution to the batch's losses.
        """
        metrics = {name: term.detach() for name, term in output.terms.items()}
        loss = output.total.detach()
        # Terms of the model are sums over the processes, of whose gradients DistributedDataParallel takes the mean.
        tensors, gradients = [output.total], [torch.full_like(loss, world_size())]
        if adversary is not None:
            judgement = adversary.judge(output, 1 / self.config.accumulate, last)
            tensors.append(judgement.mask_logits)
            gradients.append(judgement.gradient)
            share = 1 / (self.config.accumulate * world_size())
            metrics |= {name: value * share for name, value in judgement.metrics.items()}
            loss = loss + self.config.adversarial * metrics["adversarial"]
        torch.autograd.backward(tensors, gradients)
        if adversary is not None:
            metrics |= judgement.squares()
        return {"loss": loss, **metrics}

    @property
    def _gpus(self) -> list[torch.device]:
        return [self.device] if self.device.type == "cuda" else []

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
        """Writes the state to resume from, then the checkpoint.

        All processes call it, for their random numbers.
        """
        random = gather([torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in self._gpus)])
        if rank():
            return
        state: dict[str, Any] = {
            "preset": self.preset.name,
            "seed": self.seed,
            "batch": self.config.batch,
            "accumulate": self.config.accumulate,
            "categories": [[category.id, category.name] for category in self.categories],
            "switches": dataclasses.asdict(self.preset.model.switches),
            "processes": world_size(),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "random": random,
        }
        if self.adversary is not None:
            state |= self.adversary.state_dict()
        with atomic_path(self.out / STATE_FILE) as temporary:
            torch.save(state, temporary)
        self._write_checkpoint(self.out / MODEL_FILE)

    def _write_checkpoint(self, path: Path) -> None:
        dtype = torch.float16 if self.config.half_storage else torch.float32
        save_checkpoint(path, self.weights(), self.preset, self.categories, dtype)

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
        switches = dataclasses.asdict(self.preset.model.switches)
        trained = state.get("switches", switches)  # a run of a version that did not save them has the preset's
        if trained != switches:
            names = " ".join(name.replace("_", "-") for name, on in trained.items() if on)
            raise MsstsError(f"{path}: was trained with other switches; pass --switches {names}".rstrip())
        if state.get("processes") != world_size():
            raise MsstsError(
                f"{path}: was trained by {state.get('processes')} processes, not {world_size()}; start as many to go "
                "on exactly, or pass --init with its checkpoint and another --out"
            )
        # A run of a version that did not save it has it in its checkpoint alone.
        saved = state.get("categories") or [
            [category.id, category.name] for category in load_checkpoint(self.out / MODEL_FILE).categories
        ]
        changed = difference(self.categories, [Category(*entry) for entry in saved])
        if changed:
            raise MsstsError(
                f"{path}: was trained on other classes: the data now has them {changed}; go on with the former "
                "data, or start with --init and another --out, which matches classes by name"
            )
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        if self.adversary is not None:
            self.adversary.load_state_dict(state)
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
