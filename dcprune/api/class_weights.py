"""`reweight`: class weights from a proxy and a reference."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import MODEL_FOLDER, TrainedRun, open_run
from dcprune.api.matching import check_same_dataset
from dcprune.api.provenance import provenance
from dcprune.api.recipes import FREE_ON_RESUME, check_same
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Objective, StageCost, joined_costs
from dcprune.devices import resolve_device, resolve_dtype
from dcprune.errors import OptionError, OutputExists, UnknownName
from dcprune.formats.documents import parse_json
from dcprune.interfaces import Progress, TrainingData
from dcprune.processes import Processes, processes
from dcprune.progress import SILENT
from dcprune.sources import open_for
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Drawing, Purpose
from dcprune.training.interrupt import seconds_of
from dcprune.training.objectives import DroObjective, DroResult, DroSettings
from dcprune.training.run_folder import RunFolder, is_leftover, remove_leftovers
from dcprune.training.schedule import Phase, RowStream, phase_steps
from dcprune.training.sharing import Sharing
from dcprune.training.subset import Subset
from dcprune.training.trainer import Trainer, score

StrPath = str | os.PathLike[str]

PROXY_SHARE = 0.1
_OPTIONS_FILE = "options.json"


def reweight(
    coreset: Coreset | StrPath,
    reference: StrPath,
    *,
    backend: str | None = None,
    preset: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    eta: float = 1.0,
    smoothing: float = 1e-3,
    excess_decay: float = 0.0,
    held_out: bool = False,
    stratified: bool = True,
    batch_size: int | None = None,
    data_dir: StrPath | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    state: StrPath | None = None,
    max_time: float | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ClassWeights:
    """Learn class weights: a proxy trains on the coreset while the weights follow its excess loss over the reference.

    Under `torchrun` or `accelerate launch` every process calls this; they share the batches.

    Args:
        coreset: the artifact, or its path.
        reference: run folder of the reference, trained on the same dataset, better on all of it.
        backend: the reference's; naming another one is an error.
        preset: training recipe of the proxy and, with its `proxy_epochs`, its length; by default the reference's
            training options and a tenth of its epochs. The model settings are always the reference's.
        epochs: length of the proxy's training, in passes over the coreset.
        steps: the same in updates, instead of `epochs`.
        eta: step size of the class weights, see `dcprune.reweighting.update_class_weights`.
        smoothing: share of the uniform weights in every step; the ratio eta / smoothing sets the spread.
        excess_decay: moving average of the class excess over steps; 0 is none.
        held_out: measure the excess on the pruned samples instead of the training batch.
        stratified: spread the timesteps evenly within every class of a batch, so that class means differ less by luck.
        batch_size: samples of one update.
        data_dir: where datasets lie.
        device: where to train.
        dtype: precision.
        seed: of the proxy and all draws.
        state: folder for checkpoints and losses while the proxy trains; it stays, for the caller to remove. None keeps
            nothing.
        max_time: save and stop after this time: seconds, or a text such as `55m` or `1h30m`.
        resume: go on from what `state` holds, if it holds anything; the options must be the same.
        overwrite: discard what `state` holds.
        progress: for long work.

    Raises:
        OutputExists: `state` holds an interrupted proxy, and neither `resume` nor `overwrite` was given.
        ArtifactError: a damaged coreset, or an unfinished reference.
        DatasetMismatch: coreset and reference are of different datasets, or the dataset here is another one.
        OptionError: a class-less dataset, or an option that does not fit.
        TrainingDiverged: the proxy's loss is not finite, or explodes.
        StorageError: a checkpoint cannot be written; those before it are still there.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; `state` holds all that is needed to go on.
        OutOfTime: after `max_time`; the same.
    """
    deadline = None if max_time is None else time.monotonic() + seconds_of(max_time)
    team = processes()
    progress = progress if progress is not None and team.is_main else SILENT
    coreset = coreset if isinstance(coreset, Coreset) else formats.read_coreset(coreset)
    run = open_run(reference)
    game = _Game(
        coreset=coreset,
        run=run,
        config=_proxy_config(run, preset, {"epochs": epochs, "steps": steps, "batch_size": batch_size, "seed": seed}),
        settings=DroSettings(eta, smoothing, excess_decay),
        held_out=held_out,
        stratified=stratified,
        device=resolve_device(device),
        dtype=resolve_dtype(dtype, resolve_device(device)),
        team=team,
    )
    _check(game, backend)
    if state is not None:
        _open_state(game, Path(state), resume=resume, overwrite=overwrite)
    result, cost = _play(game, data_dir, None if state is None else Path(state), deadline, progress)
    for caveat in result.caveats:
        progress.warn(caveat)
    asked = {"input": coreset.origin, "reference": str(reference), "backend": backend, "preset": preset}
    reference_costs = [
        each.model_copy(update={"stage": "reference"}) if each.stage == "train" else each for each in run.record.ledger
    ]
    return _artifact(game, result, asked).with_costs(joined_costs(game.coreset.costs, reference_costs, [cost]))


@dataclass(frozen=True)
class _Game:
    """One resolved call of `reweight`."""

    coreset: Coreset
    run: TrainedRun
    config: TrainingConfig
    settings: DroSettings
    held_out: bool
    stratified: bool
    device: torch.device
    dtype: torch.dtype
    team: Processes

    @property
    def steps(self) -> int:
        return phase_steps(self.config, self.coreset.num_selected, self.coreset.dataset.num_samples)[0]

    @property
    def sharing(self) -> Sharing:
        return Sharing(self.team, self.config.gradient_accumulation_steps)

    @property
    def strata(self) -> int:
        return self.coreset.dataset.num_classes if self.stratified else 0

    def options(self) -> dict[str, Any]:
        """Everything that decides what a proxy learns."""
        training = self.config.model_dump(mode="json", exclude=set(FREE_ON_RESUME))
        return {
            "coreset": hashlib.sha256(np.array(self.coreset.indices, dtype=np.int64).tobytes()).hexdigest(),
            "dataset fingerprint": self.coreset.dataset.fingerprint,
            "reference": self.run.model_sha256,
            **training,
            **asdict(self.settings),
            "held_out": self.held_out,
            "stratified": self.stratified,
        }


def _proxy_config(run: TrainedRun, preset: str | None, asked: Mapping[str, Any]) -> TrainingConfig:
    """Training options of the proxy: the recipe's, never annealed, as long as was asked for."""
    recipe = dict(run.record.training)
    length: dict[str, Any] = {name: asked[name] for name in ("epochs", "steps") if asked[name] is not None}
    if preset is not None:
        presets = run.backend.presets
        if preset not in presets:
            raise UnknownName(f"preset of backend {run.record.backend!r}", preset, presets)
        recipe = dict(presets[preset].training)
        length = length or {"epochs": presets[preset].proxy_epochs}
    if not length and recipe["epochs"] is not None:
        length = {"epochs": PROXY_SHARE * recipe["epochs"]}
    if not length:
        length = {"steps": math.ceil(PROXY_SHARE * recipe["steps"])}
    recipe.update(anneal=None, dynamic=None, class_weighting="loss")
    return TrainingConfig.resolve(recipe, {**asked, **length})


def _check(game: _Game, backend: str | None) -> None:
    """Refuse, before any work, what cannot give class weights."""
    identity, reference = game.coreset.dataset, game.run.record
    if identity.num_classes == 0:
        raise OptionError(f"The dataset {identity.uri!r} has no classes to weigh.")
    if game.config.unconditional:
        raise OptionError(f"The reference {game.run.folder} is unconditional: it knows no classes to weigh.")
    if backend is not None and backend != reference.backend:
        raise OptionError(
            f"The reference is of backend {reference.backend!r}; its losses do not compare with {backend!r}."
        )
    if game.held_out and game.coreset.num_selected == identity.num_samples:
        raise OptionError("held_out measures pruned samples, but this coreset keeps every sample.")


def _open_state(game: _Game, state: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two proxies in one folder, and write down which one this is."""
    options = state / _OPTIONS_FILE
    if resume and options.exists():
        check_same(parse_json(options.read_text(), str(options)), game.options(), "The proxy to resume")
    elif options.exists() and not overwrite:
        raise OutputExists(
            f"{state} holds an interrupted reweighting. Pass --resume to go on with it, or --overwrite to start over."
        )
    elif not options.exists() and state.exists() and not all(map(is_leftover, state.iterdir())):
        raise OutputExists(f"{state} exists and does not hold an interrupted reweighting. Move it away.")
    game.team.barrier()  # every process has looked before the first one changes anything
    if game.team.is_main:
        if not resume:
            formats.remove(state)
        remove_leftovers(state)
        formats.atomic_write(options, (json.dumps(game.options(), indent=1) + "\n").encode(), overwrite=True)
    game.team.barrier()


def _play(
    game: _Game, data_dir: StrPath | None, state: Path | None, deadline: float | None, progress: Progress
) -> tuple[DroResult, StageCost]:
    """Train the proxy; returns what its objective found, and what it cost."""
    folder = None if state is None else RunFolder(state, keep_checkpoints=game.config.keep_checkpoints)
    trainer, objective = _trainer(game, data_dir, folder, progress)
    if state is not None and trainer.resume(state):
        progress.note(f"Resuming at step {trainer.step} of {trainer.total_steps}.")
    trainer.run(deadline)
    return objective.result(), trainer.cost("proxy")


def _trainer(
    game: _Game, data_dir: StrPath | None, folder: RunFolder | None, progress: Progress
) -> tuple[Trainer, DroObjective]:
    """The proxy's trainer at its start, and what it minimises."""
    identity = game.coreset.dataset
    place = None if data_dir is None else Path(data_dir)
    source = game.team.main_first(lambda: open_for(identity, data_dir=place))
    check_same_dataset("the reference", game.run.record.dataset, identity, source)
    if game.run.record.coreset is not None:
        progress.warn(f"The reference {game.run.folder} was itself trained on a coreset.")
    kept = np.array(game.coreset.indices, dtype=np.int64)
    labels = np.asarray(source.labels)[kept]
    data: TrainingData
    if game.held_out:
        data, rows = game.run.backend.prepare(source, game.device, progress), kept
    else:
        data = game.run.backend.prepare(Subset(source, kept), game.device, progress)
        rows = np.arange(len(kept), dtype=np.int64)
    objective = DroObjective(
        game.run.load(game.device),
        partial(score, game.run.backend, game.dtype),
        np.bincount(labels, minlength=identity.num_classes) / len(labels),
        game.settings,
        total_steps=game.steps,
        held_out=_held_out_draws(game, data, kept) if game.held_out else None,
        device=game.device,
        sharing=game.sharing,
    )
    trainer = Trainer(
        game.run.backend,
        data,
        game.config,
        [Phase(torch.from_numpy(rows), game.steps, objective)],
        num_classes=identity.num_classes,
        device=game.device,
        dtype=game.dtype,
        folder=folder,
        strata=game.strata,
        class_names=identity.class_names,
        processes=game.team,
        progress=progress,
    )
    return trainer, objective


def _held_out_draws(game: _Game, data: TrainingData, kept: NDArray[np.int64]) -> Callable[[int], Draw]:
    """The draw of every scoring pass, from the samples that the coreset leaves out."""
    pruned = np.setdiff1d(np.arange(len(data), dtype=np.int64), kept)
    config = game.config
    stream = RowStream(
        torch.from_numpy(pruned),
        batch_size=config.batch_size,
        seed=config.seed,
        device=game.device,
        purpose=Purpose.HELD_OUT_ORDER,
    )
    drawing = Drawing(
        config.seed,
        game.run.backend.num_train_timesteps,
        config.label_dropout,
        config.horizontal_flip,
        Purpose.HELD_OUT_DRAW,
        strata=game.strata,
    )
    return lambda step: drawing(data, stream.at(step), step)


def _artifact(game: _Game, result: DroResult, asked: Mapping[str, Any]) -> ClassWeights:
    config, settings, run = game.config, game.settings, game.run
    used = {
        **asked,
        "epochs": config.epochs,
        "steps": config.steps,
        "eta": settings.eta,
        "smoothing": settings.smoothing,
        "excess_decay": settings.excess_decay,
        "held_out": game.held_out,
        "stratified": game.stratified,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    inputs = [game.coreset.origin, str(run.folder / MODEL_FOLDER)]
    names = game.coreset.dataset.class_names
    return ClassWeights(
        dataset=game.coreset.dataset,
        weights={name: float(weight) * len(names) for name, weight in zip(names, result.weights, strict=True)},
        objective=Objective(
            eta=settings.eta,
            smoothing=settings.smoothing,
            clip=True,
            steps=game.steps,
            backend=run.record.backend,
            reference_sha256=run.model_sha256,
            held_out=game.held_out,
            excess_decay=settings.excess_decay,
            stratified=game.stratified,
        ),
        diagnostics=Diagnostics(
            trajectory=result.trajectory,
            entropy=result.entropy,
            fraction_clipped=result.fraction_clipped,
            final_excess=result.final_excess,
            warnings=result.caveats,
        ),
        provenance=provenance("reweight", used, seed=config.seed, inputs=inputs, device=game.device, dtype=game.dtype),
    )
