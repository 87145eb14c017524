"""The game of one call of `reweight`: a proxy against a reference, resolved, and the trainer that plays it."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import TrainedRun, open_run
from dcprune.api.matching import check_same_dataset
from dcprune.api.preparing import preparation_context
from dcprune.api.recipes import FREE_ON_RESUME
from dcprune.artifacts import Coreset
from dcprune.devices import dtype_name, resolve_device, resolve_dtype
from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import Progress, TrainingData
from dcprune.processes import ALONE, Processes
from dcprune.sources import open_for
from dcprune.subset import Subset
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Drawing, Purpose
from dcprune.training.objectives import DroObjective, DroSettings
from dcprune.training.run_folder import RunFolder
from dcprune.training.schedule import Phase, RowStream, phase_steps, warn_of_warmup
from dcprune.training.sharing import Sharing
from dcprune.training.trainer import Trainer, score

StrPath = str | os.PathLike[str]

PROXY_SHARE = 0.1


@dataclass(frozen=True)
class ReweightingRequest:
    """What to learn class weights from, and how, as it was asked for; `reweight` documents every option."""

    coreset: Coreset | StrPath
    reference: StrPath
    backend: str | None = None
    preset: str | None = None
    epochs: float | None = None
    steps: int | None = None
    eta: float = 1.0
    smoothing: float = 1e-3
    excess_decay: float = 0.0
    shared_dropout: bool = False
    held_out: bool = False
    stratified: bool = True
    batch_size: int | None = None
    gradient_accumulation_steps: int | None = None
    latents: StrPath | None = None
    data_dir: StrPath | None = None
    device: str = "auto"
    dtype: str = "auto"
    seed: int = 0


def open_game(request: ReweightingRequest, team: Processes = ALONE) -> Game:
    """Resolve a request and read the artifacts; nothing is written.

    Raises:
        InputError: whatever does not fit; see `dcprune.api.class_weights.reweight`.
    """
    coreset = request.coreset if isinstance(request.coreset, Coreset) else formats.read_coreset(request.coreset)
    run = open_run(request.reference)
    device = resolve_device(request.device)
    asked = {
        name: getattr(request, name)
        for name in ("epochs", "steps", "batch_size", "gradient_accumulation_steps", "seed")
    }
    game = Game(
        request=request,
        coreset=coreset,
        run=run,
        config=_proxy_config(run, request.preset, asked),
        settings=DroSettings(request.eta, request.smoothing, request.excess_decay, request.shared_dropout),
        device=device,
        dtype=resolve_dtype(request.dtype, device),
        team=team,
    )
    _check(game)
    game.sharing.check(game.config.batch_size)
    return game


@dataclass(frozen=True)
class Game:
    """One resolved call of `reweight`."""

    request: ReweightingRequest
    coreset: Coreset
    run: TrainedRun
    config: TrainingConfig
    settings: DroSettings
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
        return self.coreset.dataset.num_classes if self.request.stratified else 0

    def options(self) -> dict[str, Any]:
        """Everything that decides what a proxy learns."""
        training = self.config.model_dump(mode="json", exclude=set(FREE_ON_RESUME))
        return {
            "coreset": hashlib.sha256(np.array(self.coreset.indices, dtype=np.int64).tobytes()).hexdigest(),
            "dataset fingerprint": self.coreset.dataset.fingerprint,
            "reference": self.run.model_sha256,
            "dtype": dtype_name(self.dtype),
            **training,
            **asdict(self.settings),
            "held_out": self.request.held_out,
            "stratified": self.request.stratified,
        }


def _proxy_config(run: TrainedRun, preset: str | None, asked: Mapping[str, Any]) -> TrainingConfig:
    """Training options of the proxy: the recipe's, never annealed, as long as was asked for.

    A proxy that is shorter than its recipe because nobody said how long it should be warms up for less in proportion.
    """
    recipe = dict(run.record.training)
    length: dict[str, Any] = {name: asked[name] for name in ("epochs", "steps") if asked[name] is not None}
    if preset is not None:
        presets = run.backend.presets
        if preset not in presets:
            raise UnknownName(f"preset of backend {run.record.backend!r}", preset, presets)
        recipe = dict(presets[preset].training)
    if not length:
        share, epochs = PROXY_SHARE, recipe.get("epochs")
        if preset is not None:
            length = {"epochs": presets[preset].proxy_epochs}
            share = min(1.0, presets[preset].proxy_epochs / epochs) if epochs else 1.0
        elif epochs is not None:
            length = {"epochs": share * epochs}
        else:
            length = {"steps": math.ceil(share * recipe["steps"])}
        recipe["lr_warmup_epochs"] = share * recipe.get("lr_warmup_epochs", 0.0)
        recipe["lr_warmup_steps"] = round(share * recipe.get("lr_warmup_steps", 0))
    recipe.update(anneal=None, dynamic=None, class_weighting="loss")
    return TrainingConfig.resolve(recipe, {**asked, **length})


def _check(game: Game) -> None:
    """Refuse, before any work, what cannot give class weights."""
    identity, reference, backend = game.coreset.dataset, game.run.record, game.request.backend
    if identity.num_classes == 0:
        raise OptionError(f"The dataset {identity.uri!r} has no classes to weigh.")
    if game.config.unconditional:
        raise OptionError(f"The reference {game.run.folder} is unconditional: it knows no classes to weigh.")
    if backend is not None and backend != reference.backend:
        raise OptionError(
            f"The reference is of backend {reference.backend!r}; its losses do not compare with {backend!r}."
        )
    if game.request.held_out and game.coreset.num_selected == identity.num_samples:
        raise OptionError("held_out measures pruned samples, but this coreset keeps every sample.")
    if game.settings.shared_dropout and (game.request.held_out or game.sharing.portions > 1):
        other = "held_out" if game.request.held_out else "gradient_accumulation_steps"
        raise OptionError(f"shared_dropout takes the scores of the training pass, which {other} rules out: choose one.")


def proxy_trainer(
    game: Game,
    folder: RunFolder | None,
    progress: Progress,
    *,
    download: bool = True,
    few: int | None = None,
    cache_dir: Path | None = None,
) -> tuple[Trainer, DroObjective]:
    """The proxy's trainer at its start, and what it minimises.

    Args:
        game: what to play.
        folder: where to leave files.
        progress: for long work.
        download: whether a dataset that is missing may be fetched.
        few: prepare no more samples than this, kept ones and pruned ones, to time a few updates; all when None.
        cache_dir: where prepared samples are kept; the user's cache by default.

    Raises:
        DatasetMismatch: coreset and reference are of different datasets, or the dataset here is another one.
    """
    identity, data_dir = game.coreset.dataset, game.request.data_dir
    place = None if data_dir is None else Path(data_dir)
    source = game.team.main_first(lambda: open_for(identity, data_dir=place, download=download))
    check_same_dataset("the reference", game.run.record.dataset, identity, source)
    warn_of_warmup(game.config, game.coreset.num_selected, game.steps, progress)
    if game.run.record.coreset is not None:
        progress.warn(f"The reference {game.run.folder} was itself trained on a coreset.")
    kept = np.array(game.coreset.indices, dtype=np.int64)
    labels = np.asarray(source.labels)[kept]
    data: TrainingData
    context = preparation_context(
        game.device, latents=game.request.latents, team=game.team, progress=progress, cache_dir=cache_dir
    )
    if game.request.held_out and few is None:
        data, rows = game.run.backend.prepare(source, context), kept
    else:
        pruned = np.setdiff1d(np.arange(len(source)), kept)[:few] if game.request.held_out else kept[:0]
        data = game.run.backend.prepare(Subset(source, np.concatenate([kept[:few], pruned])), context)
        rows = np.arange(len(kept[:few]), dtype=np.int64)
    objective = DroObjective(
        game.run.load(game.device),
        partial(score, game.run.backend, game.dtype),
        np.bincount(labels, minlength=identity.num_classes) / len(labels),
        game.settings,
        total_steps=game.steps,
        held_out=_held_out_draws(game, data, rows) if game.request.held_out else None,
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


def _held_out_draws(game: Game, data: TrainingData, kept: NDArray[np.int64]) -> Callable[[int], Draw]:
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
