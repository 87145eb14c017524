"""The training loop, the only one: `train` runs it with weighted losses, `reweight` with the robust objective."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from dcprune.artifacts import StageCost
from dcprune.devices import autocast
from dcprune.errors import ArtifactError, OutOfMemory, OutOfTime, TrainingDiverged
from dcprune.interfaces import Backend, ClassTask, Progress, Task, TrainingData
from dcprune.processes import ALONE, Processes
from dcprune.progress import SILENT
from dcprune.training import checkpoint
from dcprune.training.compiling import compiled, wanted
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Drawing, Purpose, derived_seed
from dcprune.training.dropout import keep_dropping, per_sample_dropout
from dcprune.training.ema import Ema
from dcprune.training.flops import Flops, count_flops
from dcprune.training.guard import LossGuard
from dcprune.training.interrupt import Agreement, Stop, deferred_interrupt
from dcprune.training.losses import Losses, LossSums
from dcprune.training.run_folder import RunFolder
from dcprune.training.schedule import Phase, Schedule, learning_rate, plan_sha256, warmup_steps
from dcprune.training.sharing import Sharing

_PROBE_SAMPLES = 4
_SLOW_UPDATE = 5.0  # seconds, of one that says enough by itself

# Renamed in torch 2.13, which warns of the old name.
_OPTIONS_OF_DDP = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS_OF_DDP else "broadcast_buffers"
_BUFFERS_STAY: dict[str, Any] = {_SYNC_BUFFERS: False}


class Trainer:
    """A model, what it learns from, and how far it has come.

    Every update is a function of the seed, its number and the state before it, so a run that was interrupted and
    resumed ends with the weights of one that was not; on a CPU with the same number of threads, bit for bit. Everything
    that is drawn is drawn for the whole batch, so several processes train the same model, up to rounding.

    Args:
        backend: the family of models.
        data: prepared samples on `device`.
        config: how to train.
        phases: what to train on, in order.
        num_classes: K; 0 for class-less data.
        device: where the model lives.
        dtype: autocast precision.
        folder: where to leave files; None leaves none.
        strata: see `dcprune.training.draws.Drawing`.
        class_names: names of the classes in label order, for the progress.
        processes: all that share the batches; the first one writes.
        progress: for long work.

    Attributes:
        model, ema, optimizer: the learner.
        step: updates done.
        device_seconds: time that all devices were held in `run`, also before a resume.
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
        strata: int = 0,
        class_names: Sequence[str] = (),
        processes: Processes = ALONE,
        progress: Progress = SILENT,
    ) -> None:
        self.backend = backend
        self.data = data
        self.config = config
        self.device = device
        self.dtype = dtype
        self.folder = folder
        self.class_names = class_names
        self.processes = processes
        self.progress = progress
        model = backend.build(num_classes=num_classes, sample_shape=data.sample_shape, seed=config.seed)
        self.model = model.to(device).train()
        self.ema = Ema(self.model, config.ema_decay, ramp=config.ema_ramp)
        self._parameters: list[torch.Tensor] = [each for each in self.model.parameters() if each.requires_grad]
        self.optimizer = _optimizer(self._parameters, config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.schedule = Schedule(
            [phase for phase in phases if phase.steps], config, backend.num_train_timesteps, device
        )
        self.sharing = Sharing(processes, config.gradient_accumulation_steps)
        self.step = 0
        self.device_seconds = 0.0
        self._dropout = per_sample_dropout(self.model)
        self._drawing = Drawing(
            config.seed,
            backend.num_train_timesteps,
            1.0 if config.unconditional else config.label_dropout,
            config.horizontal_flip,
            strata=strata,
        )
        self._warmup = warmup_steps(config, len(self.schedule.phases[0].rows))
        self._losses = LossSums(num_classes, device, self.sharing)
        self._guard = LossGuard()
        self._whole = True
        self._ahead: tuple[int, Draw] | None = None
        self._mark, self._mark_step = 0.0, 0
        self._scorer: torch.nn.Module = self.model
        self._network: torch.nn.Module = self.model

    @property
    def phases(self) -> tuple[Phase, ...]:
        return self.schedule.phases

    @property
    def total_steps(self) -> int:
        """Updates of the whole run; fewer are made where samples are left out."""
        return self.step if self.schedule.finished else self.schedule.total_steps

    @property
    def images_seen(self) -> int:
        return self.step * self.config.batch_size

    @cached_property
    def flops_per_sample(self) -> Flops:
        """Counted on two samples."""
        with self._own_randomness():
            self.model.eval()
            found = count_flops(self.backend, self.model, self._probe(2))
            self.model.train()
        return found

    def cost(self, stage: str) -> StageCost:
        """What has been spent so far, scoring passes among it."""
        return StageCost(
            stage=stage,
            images_seen=self.images_seen,
            updates=self.step,
            flops=self.images_seen * self._flops_of_a_sample(),
            device_seconds=round(self.device_seconds, 3),
        )

    def run(self, deadline: float | None = None) -> None:
        """Train to the end.

        Args:
            deadline: when to save and stop, on the clock of `time.monotonic`.

        Raises:
            TrainingDiverged: the loss is not finite, or explodes.
            StorageError: a file of the run cannot be written.
            OutOfMemory: a device does not hold its part of a batch.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once the state is saved.
            OutOfTime: after `deadline`, once the state is saved.
        """
        agreement = Agreement(self.processes)
        with self._own_randomness(), deferred_interrupt() as asked_to_stop:
            with self._in_memory():
                self._prepare()
            self._mark, self._mark_step = time.perf_counter(), self.step
            before, started = self.device_seconds, self._mark
            with self.progress.task("train", self.total_steps, "step") as task:
                shown = round(self.schedule.position)
                task.advance(shown)
                while not self.schedule.finished:
                    try:
                        with self._in_memory():
                            self._update()
                        self.device_seconds = before + (time.perf_counter() - started) * self.processes.count
                        self._record(task, round(self.schedule.position) - shown)
                        shown = round(self.schedule.position)
                    except KeyboardInterrupt:
                        self._save_at_once()
                        raise
                    self._leave(agreement(_wish(asked_to_stop, deadline)))
            agreement.close()
        self.device_seconds = before + (time.perf_counter() - started) * self.processes.count

    @contextmanager
    def _in_memory(self) -> Iterator[None]:
        """Say what to do where a batch does not fit.

        Raises:
            OutOfMemory: it does not.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            size, portions = self.config.batch_size, self.sharing.portions
            raise OutOfMemory(
                f"The memory of {self.device} does not hold a batch of {size} on {self.processes.count} devices in "
                f"{portions} portions: raise --gradient-accumulation-steps, which changes no result, or lower "
                "--batch-size."
            ) from error

    def resume(self, run: Path) -> bool:
        """Go on from the newest checkpoint of a run folder; False when there is none.

        Raises:
            ArtifactError: the checkpoint is damaged, or was written for other data or other options.
        """
        path = checkpoint.latest(run)
        if self.folder is not None and self.processes.is_main:
            self.folder.rewind(checkpoint.step_of(path))
        if path is None:
            return False
        position, progress = checkpoint.load(path, self._learner())
        if position.plan_sha256 != plan_sha256(self.phases) or position.seed != self.config.seed:
            raise ArtifactError(f"The checkpoint {path} belongs to other samples, class weights or another seed.")
        self.step = position.step
        self.device_seconds = position.device_seconds
        self.schedule.load_state(_under(progress, "schedule."))
        self._losses.load_state(_under(progress, "losses."))
        self._guard = LossGuard(position.guard["first"], position.guard["total"], int(position.guard["samples"]))
        self.scaler.load_state_dict(position.scaler)
        return True

    def seconds_per_step(self, steps: int = 3) -> float:
        """Time of an update, from some that follow a first one; they are the run's own.

        Where the first one takes so long that whatever is done once does not count, it is all.
        """
        with self._own_randomness():
            for phase in self.phases:
                phase.objective.prepare(self.same_in_training)
            started = time.perf_counter()
            self._update()
            _wait(self.device)
            first = time.perf_counter() - started
            if first > _SLOW_UPDATE:
                return first
            started = time.perf_counter()
            done = 0
            while done < steps and not self.schedule.finished:
                self._update()
                done += 1
            _wait(self.device)
        return (time.perf_counter() - started) / max(1, done)

    @property
    def num_parameters(self) -> int:
        return sum(each.numel() for each in self._parameters)

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint, once an update has been done."""
        return self._learner().num_bytes

    def flops_per_step(self) -> int:
        """Floating-point operations of an update, scoring passes among them."""
        return self.config.batch_size * self._flops_of_a_sample()

    def will_compile(self) -> bool:
        """Whether `run` compiles the network."""
        steps = self.schedule.total_steps
        return wanted(self.config.compile, self.device, steps, steps * self.flops_per_step())

    def same_in_training(self, *, dropout: bool = False) -> bool:
        """Whether the model in training mode has the losses that it has in evaluation mode.

        Args:
            dropout: with its dropout in evaluation mode, too.
        """
        draw = self._probe(min(_PROBE_SAMPLES, self.config.batch_size))
        with torch.no_grad(), _nothing_is_zero(self._parameters):
            self._dropout.values = draw.dropout_seeds
            training = score(self.backend, self.dtype, self.model, draw)
            self.model.eval()
            if dropout:
                keep_dropping(self.model)
            evaluation = score(self.backend, self.dtype, self.model, draw)
            self.model.train()
        return torch.allclose(training, evaluation, rtol=1e-5, atol=0.0)

    def _prepare(self) -> None:
        """What is decided once the state is known: scoring passes, compilation, how processes exchange gradients."""
        for phase in self.phases:
            phase.objective.prepare(self.same_in_training)
        if not self.schedule.finished and self.will_compile():
            alone = self.processes.count == self.sharing.portions == 1
            self._scorer = compiled(
                self.model,
                cuda_graphs=self.device.type == "cuda" and alone,
                trial=self._first_pass,
                progress=self.progress,
            )
            # Without CUDA graphs: a forward pass alone keeps a GPU busy, and is called between those of the training.
            scored = partial(compiled, cuda_graphs=False, trial=self._scoring_trial, progress=self.progress)
            for phase in self.phases:
                phase.objective.compile(scored)
        if self._scorer is self.model:
            self._network = self._connected(self.model)

    def _connected(self, network: torch.nn.Module) -> torch.nn.Module:
        """A network whose gradients all processes average; itself where there is one process."""
        if self.processes.count == 1:
            return network
        return torch.nn.parallel.DistributedDataParallel(
            network,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_BUFFERS_STAY,
        )

    def _first_pass(self, network: torch.nn.Module) -> None:
        """One training pass of the compiled network, without an update.

        It goes through what connects the processes, so that the graph is cut where their gradients travel.
        """
        self._network = self._connected(network)
        part = self._portion()
        self._dropout.values = part.dropout_seeds
        score(self.backend, self.dtype, self._network, part).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.zero_grad(set_to_none=True)

    def _scoring_trial(self, network: torch.nn.Module) -> None:
        """One scoring pass."""
        with torch.no_grad():
            score(self.backend, self.dtype, network, self._portion())

    def _portion(self) -> Draw:
        """A draw of the shape of this process's portions that is not one of the run's own."""
        return self._probe(self.config.batch_size).part(self.sharing.portions_of(self.config.batch_size)[0])

    def _probe(self, size: int) -> Draw:
        """A draw of a few samples that is not one of the run's own."""
        rows = self.phases[0].rows[torch.arange(size) % len(self.phases[0].rows)]
        return self._drawing(self.data, rows.to(self.device), 0)

    def _draw(self) -> Draw:
        """The whole batch of the current step."""
        if self._ahead is not None and self._ahead[0] == self.step:
            return self._ahead[1]
        rows, weights = self.schedule.next()
        return self._drawing(self.data, rows, self.step, weights)

    def _update(self) -> None:
        """One optimizer step and everything that belongs to it."""
        self._whole = False
        rate = learning_rate(self.config, self.schedule.position, self.schedule.total_steps, self._warmup)
        objective, whole = self.schedule.phase.objective, self._draw()
        parts = [whole.part(where) for where in self.sharing.portions_of(len(whole))]
        torch.manual_seed(derived_seed(self.config.seed, Purpose.DROPOUT, self.step, self.processes.rank))
        if self._scorer is not self.model:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        objective.begin(whole, parts, self._scorer)
        losses = []
        for part in parts:
            weigh = _weigher(objective.weights, whole, part)
            losses.append(self._backward(part, weigh, synchronised=part is parts[-1]))
        self._optimize(rate)
        if self.schedule.wants_losses:
            self.schedule.observe(whole, self.sharing.gathered(torch.cat(losses), len(whole)))
        self.step += 1
        self.schedule.advance()
        self.ema.update(self.step)
        self._losses.updates += 1
        self._whole = True

    def _backward(
        self, part: Draw, weigh: Callable[[torch.Tensor], torch.Tensor], *, synchronised: bool
    ) -> torch.Tensor:
        """Add the gradient of one part; returns its losses [b], without a graph."""
        with nullcontext() if synchronised else _unsynchronised(self._network):
            self._dropout.values = part.dropout_seeds
            per_sample_loss = score(self.backend, self.dtype, self._network, part)
            losses = per_sample_loss.detach()
            loss = (per_sample_loss * weigh(losses)).sum()
            # Processes average their gradients, and the loss is a sum over all of them.
            self.scaler.scale(loss * self.processes.count).backward()  # type: ignore[no-untyped-call]
        self._losses.add(loss.detach(), losses, part.batch.labels)
        return losses

    def _optimize(self, rate: float) -> None:
        self.scaler.unscale_(self.optimizer)
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def _record(self, task: Task, advanced: int) -> None:
        """Whatever is due after this step; `task` counts on by `advanced`."""
        config, last = self.config, self.schedule.finished
        if last or self.step % config.log_every == 0:
            self._draw_ahead()
            self._log(task)
        if self.folder is not None:
            # The grid goes first: a run that dies between the two draws it again. One that cannot draw keeps its state.
            if last or (config.sample_every and self.step % config.sample_every == 0):
                try:
                    self._sample_grid(self.folder)
                except Exception:
                    self._checkpoint(self.folder)
                    raise
            if last or (self.step % config.checkpoint_every == 0 and not self._suspects()):
                self._checkpoint(self.folder)
        task.advance(advanced)

    def _draw_ahead(self) -> None:
        """Queue the next draw before the host waits for the device, so that the device does not wait for the host."""
        if not self.schedule.finished and not self.schedule.wants_losses:
            self._ahead = self.step, self._draw()

    def _log(self, task: Task) -> None:
        """Read the losses since the last time, write them down and show them; waits for the device."""
        losses = self._losses.read(reset=True)
        self._check(losses)
        now = time.perf_counter()
        speed = (self.step - self._mark_step) * self.config.batch_size / max(1e-9, now - self._mark)
        self._mark, self._mark_step = now, self.step
        rate = self.optimizer.param_groups[0]["lr"]
        if self.folder is not None and self.processes.is_main:
            line = {"step": self.step, "epoch": round(self.schedule.epochs, 4), "loss": losses.mean, "lr": rate}
            by_class = [None if each is None else float(f"{each:.5g}") for each in losses.per_class]
            self.folder.log(
                {**line, "images_per_second": round(speed, 2), **({"class_losses": by_class} if by_class else {})}
            )
        task.advance(0, loss=losses.mean, lr=rate, **{"images/s": speed})
        if isinstance(task, ClassTask):
            task.show_classes(dict(zip(self.class_names, losses.per_class, strict=False)))

    def _check(self, losses: Losses) -> None:
        """Stop when the losses since the last look say that training goes wrong."""
        complaint = self._guard.complaint(losses.mean, losses.updates * self.config.batch_size)
        if complaint:
            self._diverged(complaint)

    def _diverged(self, complaint: str) -> None:
        newest = None if self.folder is None else checkpoint.latest(self.folder.path)
        good = f"The last good checkpoint is {newest}. " if newest else ""
        raise TrainingDiverged(
            f"{complaint[0].upper()}{complaint[1:]} (noticed at step {self.step}). {good}"
            f"Start again with a lower learning_rate ({self.config.learning_rate:g} now), or with dtype fp32."
        )

    def _sample_grid(self, folder: RunFolder) -> None:
        if self.processes.is_main:
            folder.sample_grid(self.ema.model, self.step)

    def _checkpoint(self, folder: RunFolder) -> None:
        """Save the state, unless it is no longer good."""
        if not self._is_finite():
            self._diverged("the loss or a weight is not finite any more")
        position = checkpoint.Position(
            step=self.step,
            seed=self.config.seed,
            plan_sha256=plan_sha256(self.phases),
            device_seconds=self.device_seconds,
            guard=asdict(self._guard),
            scaler=self.scaler.state_dict(),
        )
        learner = self._learner()
        if self.processes.is_main:
            folder.checkpoint(position, learner)

    def _suspects(self) -> bool:
        """Whether losses are such that older checkpoints should stay until the next look at them; waits for the device.

        Those that are not finite are left to `_checkpoint`.
        """
        losses = self._losses.read()
        return self._guard.suspects(losses.mean, losses.updates * self.config.batch_size)

    def _is_finite(self) -> bool:
        """Whether all losses since the last look and all weights are; waits for the device."""
        norms = torch.stack(torch._foreach_norm(self._parameters))
        return bool(torch.isfinite(norms).all()) and math.isfinite(self._losses.read().mean)

    def _leave(self, agreed: Stop) -> None:
        """Save and stop, if that is what all processes do now.

        Raises:
            KeyboardInterrupt, OutOfTime: the state is saved.
        """
        if agreed is Stop.NO or (agreed is Stop.OUT_OF_TIME and self.schedule.finished):
            return
        if self.folder is not None:
            self._checkpoint(self.folder)
            self.processes.barrier()
        where = f"at step {self.step} of {self.total_steps}"
        saved = "; the state is saved" if self.folder is not None else ""
        if agreed is Stop.OUT_OF_TIME:
            raise OutOfTime(f"The time was over {where}{saved}. Continue with the same options and --resume.")
        self.progress.note(f"Stopped {where}{saved}.")
        raise KeyboardInterrupt

    def _save_at_once(self) -> None:
        """Save after an interrupt that nothing deferred, unless it came in the middle of an update."""
        if self.folder is not None and self._whole and self.processes.count == 1:
            self._checkpoint(self.folder)
            self.progress.note(f"Stopped at step {self.step} of {self.total_steps}; the state is saved.")

    def _learner(self) -> checkpoint.Learner:
        parts = {"schedule": self.schedule.state(), "losses": self._losses.state()}
        progress = {f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}
        return checkpoint.Learner(self.model, self.ema.model, self.optimizer, progress)

    def _flops_of_a_sample(self) -> int:
        passes = max(phase.objective.forward_passes for phase in self.phases)
        return self.flops_per_sample.training + passes * self.flops_per_sample.forward

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


@contextmanager
def _nothing_is_zero(parameters: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within it, parameters that begin as zeros, behind which a network says nothing yet, are noise."""
    zero = [each for each in parameters if not each.any()]
    for each in zero:
        each.normal_(std=0.02)
    try:
        yield
    finally:
        for each in zero:
            each.zero_()


def _unsynchronised(network: torch.nn.Module) -> AbstractContextManager[None]:
    """Within it, processes keep their gradients to themselves."""
    if isinstance(network, torch.nn.parallel.DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


def _wait(device: torch.device) -> None:
    """Until the device has done everything that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _weigher(
    weights: Callable[[Draw, Draw, torch.Tensor], torch.Tensor], whole: Draw, part: Draw
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The weights of a part's samples, as a function of their losses."""

    def weigh(losses: torch.Tensor) -> torch.Tensor:
        found = weights(whole, part, losses)
        return found if part.weights is None else found * part.weights

    return weigh


def _wish(asked_to_stop: Callable[[], bool], deadline: float | None) -> Stop:
    if asked_to_stop():
        return Stop.INTERRUPTED
    return Stop.OUT_OF_TIME if deadline is not None and time.monotonic() >= deadline else Stop.NO


def _under(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _optimizer(parameters: list[torch.Tensor], config: TrainingConfig, device: torch.device) -> torch.optim.Optimizer:
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adan":
        from timm.optim.adan import Adan

        adan: torch.optim.Optimizer = Adan(parameters, **options)
        return adan
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **options, fused=device.type in ("cpu", "cuda"))
