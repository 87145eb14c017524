"""The training loop, the only one: `train` runs it with weighted losses, `reweight` with the robust objective."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import torch

from dcprune.devices import autocast
from dcprune.errors import ArtifactError, TrainingDiverged
from dcprune.interfaces import Backend, Progress, TrainingData
from dcprune.progress import SILENT
from dcprune.training import checkpoint
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Drawing, Purpose, derived_seed
from dcprune.training.ema import Ema
from dcprune.training.interrupt import deferred_interrupt
from dcprune.training.run_folder import RunFolder
from dcprune.training.schedule import Phase, RowStream, learning_rate, plan_sha256, warmup_steps


class Trainer:
    """A model, what it learns from, and how far it has come.

    Every update is a function of the seed, its number and the weights before it, so a run that was interrupted and
    resumed ends with the weights of one that was not; on a CPU with the same number of threads, bit for bit.

    Args:
        backend: the family of models.
        data: prepared samples on `device`.
        config: how to train.
        phases: what to train on, in order.
        num_classes: K; 0 for class-less data.
        device: where the model lives.
        dtype: autocast precision.
        folder: where to leave files; None leaves none.
        progress: for long work.

    Attributes:
        model, ema, optimizer: the learner.
        step: updates done.
        device_seconds: time spent in `run`, also before a resume.
    """

    def __init__(
        self,
        backend: Backend,
        data: TrainingData,
        config: TrainingConfig,
        phases: Sequence[Phase],
        *,
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
        folder: RunFolder | None = None,
        progress: Progress = SILENT,
    ) -> None:
        self.backend = backend
        self.data = data
        self.config = config
        self.phases = tuple(phase for phase in phases if phase.steps)
        self.device = device
        self.dtype = dtype
        self.folder = folder
        self.progress = progress
        model = backend.build(num_classes=num_classes, sample_shape=data.sample_shape, seed=config.seed)
        self.model = model.to(device).train()
        self.ema = Ema(self.model, config.ema_decay)
        self.optimizer = _optimizer(self.model, config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.step = 0
        self.device_seconds = 0.0
        self._ends = list(accumulate(phase.steps for phase in self.phases))
        self._streams = [self._stream(number) for number in range(len(self.phases))]
        self._drawing = Drawing(config.seed, backend.num_train_timesteps, config.label_dropout, config.horizontal_flip)
        self._warmup = warmup_steps(config, len(self.phases[0].rows))
        self._loss_sum = torch.zeros((), device=device)
        self._loss_count = 0
        self._whole = True
        self._mark, self._mark_step = 0.0, 0

    @property
    def total_steps(self) -> int:
        return self._ends[-1]

    @property
    def images_seen(self) -> int:
        return self.step * self.config.batch_size

    def run(self) -> None:
        """Train to the end.

        Raises:
            TrainingDiverged: the loss is not finite.
            KeyboardInterrupt: after Ctrl-C, once the state is saved.
        """
        self._mark, self._mark_step = time.perf_counter(), self.step
        started = self._mark - self.device_seconds
        with (
            self._own_randomness(),
            deferred_interrupt() as asked_to_stop,
            self.progress.task("train", self.total_steps, "step") as task,
        ):
            task.advance(self.step)
            try:
                while self.step < self.total_steps:
                    self._update()
                    self.device_seconds = time.perf_counter() - started
                    shown = self._record()
                    task.advance(1, **shown)
                    if asked_to_stop():
                        raise KeyboardInterrupt
            except KeyboardInterrupt:
                self._save_after_interrupt()
                raise
        self.device_seconds = time.perf_counter() - started

    def resume(self, run: Path) -> bool:
        """Go on from the newest checkpoint of a run folder; False when there is none.

        Raises:
            ArtifactError: the checkpoint is damaged, or was written for other data or other options.
        """
        path = checkpoint.latest(run)
        if self.folder is not None:
            self.folder.rewind(0 if path is None else int(path.name.removeprefix("step-")))
        if path is None:
            return False
        position = checkpoint.load(path, self._learner)
        if position.plan_sha256 != plan_sha256(self.phases) or position.seed != self.config.seed:
            raise ArtifactError(f"The checkpoint {path} belongs to other samples, class weights or another seed.")
        self.step = position.step
        self.device_seconds = position.device_seconds
        self._loss_sum.fill_(position.loss_sum)
        self._loss_count = position.loss_count
        self.scaler.load_state_dict(position.scaler)
        return True

    def _update(self) -> None:
        """One optimizer step and everything that belongs to it."""
        self._whole = False
        number = next(index for index, end in enumerate(self._ends) if self.step < end)
        phase, local = self.phases[number], self.step - (self._ends[number - 1] if number else 0)
        draw = self._drawing(self.data, self._streams[number].at(local), self.step)
        torch.manual_seed(derived_seed(self.config.seed, Purpose.DROPOUT, self.step))
        per_sample_loss = score(self.backend, self.dtype, self.model, draw)
        loss = phase.objective.reduce(per_sample_loss, self.model, draw)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.ema.update(self.model, self.step)
        self._loss_sum += loss.detach()
        self._loss_count += 1
        self._whole = True

    def _record(self) -> dict[str, float]:
        """Whatever is due after this step; returns what the progress display should show."""
        config, last = self.config, self.step == self.total_steps
        shown = self._log() if last or self.step % config.log_every == 0 else {}
        if self.folder is not None:
            if config.sample_every and self.step % config.sample_every == 0 and not last:
                self.folder.sample_grid(self.ema.model, self.step)
            if last or self.step % config.checkpoint_every == 0:
                self._checkpoint(self.folder)
            if last:
                self.folder.sample_grid(self.ema.model, self.step)
        return shown

    def _log(self) -> dict[str, float]:
        loss = self._finite_loss_sum() / self._loss_count
        now = time.perf_counter()
        speed = (self.step - self._mark_step) * self.config.batch_size / max(1e-9, now - self._mark)
        self._mark, self._mark_step = now, self.step
        self._loss_sum.zero_()
        self._loss_count = 0
        if self.folder is not None:
            rate = self._rate(self.step - 1)
            line = {"step": self.step, "epoch": round(self._epoch(), 4), "loss": loss, "lr": rate}
            self.folder.log({**line, "images_per_second": round(speed, 2)})
        return {"loss": loss}

    def _finite_loss_sum(self) -> float:
        """The running sum of losses; a loss that was not finite at any step shows here."""
        total = float(self._loss_sum)
        if not math.isfinite(total):
            raise TrainingDiverged(
                f"The loss is not finite any more (noticed at step {self.step}). "
                f"Lower learning_rate ({self.config.learning_rate}), or use dtype fp32."
            )
        return total

    def _checkpoint(self, folder: RunFolder) -> None:
        position = checkpoint.Position(
            step=self.step,
            seed=self.config.seed,
            plan_sha256=plan_sha256(self.phases),
            loss_sum=self._finite_loss_sum(),
            loss_count=self._loss_count,
            device_seconds=self.device_seconds,
            scaler=self.scaler.state_dict(),
        )
        folder.checkpoint(position, self._learner)

    def _save_after_interrupt(self) -> None:
        """Save, unless a second signal came in the middle of an update."""
        if self.folder is not None and self._whole:
            self._checkpoint(self.folder)
            self.progress.note(f"Stopped at step {self.step} of {self.total_steps}; the state is saved.")

    @property
    def _learner(self) -> checkpoint.Learner:
        return checkpoint.Learner(self.model, self.ema.model, self.optimizer)

    def _rate(self, step: int) -> float:
        return learning_rate(self.config, step, self.total_steps, self._warmup)

    def _epoch(self) -> float:
        """Epochs done, each counted over the rows of its phase."""
        starts = [0, *self._ends[:-1]]
        done = (min(self.step, end) - min(self.step, start) for start, end in zip(starts, self._ends, strict=True))
        sizes = (len(phase.rows) for phase in self.phases)
        return sum(steps * self.config.batch_size / size for steps, size in zip(done, sizes, strict=True))

    def _stream(self, number: int) -> RowStream:
        phase, config = self.phases[number], self.config
        return RowStream(
            phase.rows,
            phase.row_weights,
            batch_size=config.batch_size,
            seed=config.seed,
            device=self.device,
            counter=number,
        )

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout is seeded step by step; the caller's global generators come back as they were."""
        devices = [] if self.device.type == "cpu" else [self.device]
        kind = "cuda" if self.device.type == "cpu" else self.device.type
        with torch.random.fork_rng(devices=devices, device_type=kind):
            yield


def score(backend: Backend, dtype: torch.dtype, model: torch.nn.Module, draw: Draw) -> torch.Tensor:
    """Loss of every sample of a draw under autocast to `dtype`, float32 [B]."""
    with autocast(draw.noise.device, dtype):
        return backend.per_sample_loss(model, draw.batch, draw.timesteps, draw.noise, draw.inside())


def _optimizer(model: torch.nn.Module, config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        model.parameters(),
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
