"""`reweight`: class weights from a proxy and a reference."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Objective
from dcprune.devices import resolve_device, resolve_dtype
from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import Progress, TrainingData
from dcprune.progress import SILENT
from dcprune.sources import open_for
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Drawing, Purpose
from dcprune.training.objectives import DroObjective, DroResult, DroSettings
from dcprune.training.schedule import Phase, RowStream, phase_steps
from dcprune.training.subset import Subset
from dcprune.training.trainer import Trainer, score

StrPath = str | os.PathLike[str]

PROXY_SHARE = 0.1


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
    batch_size: int | None = None,
    data_dir: StrPath | None = None,
    device: str = "auto",
    dtype: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> ClassWeights:
    """Learn class weights: a proxy trains on the coreset while the weights follow its excess loss over the reference.

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
        batch_size: samples of one update.
        data_dir: where datasets lie.
        device: where to train.
        dtype: precision.
        seed: of the proxy and all draws.
        progress: for long work.

    Raises:
        ArtifactError: a damaged coreset, or an unfinished reference.
        DatasetMismatch: coreset and reference are of different datasets, or the dataset here is another one.
        OptionError: a class-less dataset, or an option that does not fit.
        TrainingDiverged: the proxy's loss is not finite.
    """
    progress = progress or SILENT
    coreset = coreset if isinstance(coreset, Coreset) else formats.read_coreset(coreset)
    run = open_run(reference)
    game = _Game(
        coreset=coreset,
        run=run,
        config=_proxy_config(run, preset, {"epochs": epochs, "steps": steps, "batch_size": batch_size, "seed": seed}),
        settings=DroSettings(eta, smoothing, excess_decay),
        held_out=held_out,
        device=resolve_device(device),
        dtype=resolve_dtype(dtype, resolve_device(device)),
    )
    _check(game, backend)
    result = _play(game, data_dir, progress)
    for caveat in result.caveats:
        progress.warn(caveat)
    asked = {"input": coreset.origin, "reference": str(reference), "backend": backend, "preset": preset}
    return _artifact(game, result, asked)


@dataclass(frozen=True)
class _Game:
    """One resolved call of `reweight`."""

    coreset: Coreset
    run: TrainedRun
    config: TrainingConfig
    settings: DroSettings
    held_out: bool
    device: torch.device
    dtype: torch.dtype

    @property
    def steps(self) -> int:
        return phase_steps(self.config, self.coreset.num_selected, self.coreset.dataset.num_samples)[0]


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
    recipe.update(anneal=None, class_weighting="loss")
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


def _play(game: _Game, data_dir: StrPath | None, progress: Progress) -> DroResult:
    """Train the proxy; returns what its objective found."""
    identity = game.coreset.dataset
    source = open_for(identity, data_dir=data_dir if data_dir is None else Path(data_dir))
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
    )
    trainer = Trainer(
        game.run.backend,
        data,
        game.config,
        [Phase(torch.from_numpy(rows), game.steps, objective)],
        num_classes=identity.num_classes,
        device=game.device,
        dtype=game.dtype,
        progress=progress,
    )
    trainer.run()
    return objective.result()


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
        "held_out": game.held_out,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
    if settings.excess_decay:
        used["excess_decay"] = settings.excess_decay
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
