"""`reweight`: class weights from a proxy and a reference."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from dcprune import formats
from dcprune.api.generation import MODEL_FOLDER
from dcprune.api.provenance import provenance
from dcprune.api.proxy import Game, ReweightingRequest, open_game, proxy_trainer
from dcprune.api.recipes import check_same
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Objective, StageCost, joined_costs
from dcprune.devices import dtype_name
from dcprune.errors import OptionError, OutputExists
from dcprune.formats.documents import parse_json
from dcprune.interfaces import Progress
from dcprune.processes import processes
from dcprune.progress import SILENT
from dcprune.training.interrupt import seconds_of
from dcprune.training.objectives import DroResult
from dcprune.training.run_folder import RunFolder, is_leftover, remove_leftovers

StrPath = str | os.PathLike[str]

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
    shared_dropout: bool = False,
    held_out: bool = False,
    stratified: bool = True,
    batch_size: int | None = None,
    gradient_accumulation_steps: int | None = None,
    latents: StrPath | None = None,
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
        shared_dropout: score proxy and reference under the dropout of the training pass instead of under none, which
            saves the proxy's second forward pass.
        held_out: measure the excess on the pruned samples instead of the training batch.
        stratified: spread the timesteps evenly within every class of a batch, so that class means differ less by luck.
        batch_size: samples of one update.
        gradient_accumulation_steps: portions of a batch that a device computes one after the other, to save memory; the
            reference's by default.
        latents: folder that `prepare` wrote for the whole dataset; the user's cache by default.
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
    request = ReweightingRequest(
        coreset=coreset,
        reference=reference,
        backend=backend,
        preset=preset,
        epochs=epochs,
        steps=steps,
        eta=eta,
        smoothing=smoothing,
        excess_decay=excess_decay,
        shared_dropout=shared_dropout,
        held_out=held_out,
        stratified=stratified,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        latents=latents,
        data_dir=data_dir,
        device=device,
        dtype=dtype,
        seed=seed,
    )
    game = open_game(request, team)
    if state is not None:
        _open_state(game, Path(state), resume=resume, overwrite=overwrite)
    result, cost = _play(game, None if state is None else Path(state), deadline, progress)
    for caveat in result.caveats:
        progress.warn(caveat)
    reference_costs = [
        each.model_copy(update={"stage": "reference"}) if each.stage == "train" else each
        for each in game.run.record.ledger
    ]
    return _artifact(game, result).with_costs(joined_costs(game.coreset.costs, reference_costs, [cost]))


def finished_weights(request: ReweightingRequest, output: Path) -> ClassWeights:
    """The class weights that a call with the same options wrote before.

    Raises:
        ArtifactError: `output` holds none, or is damaged.
        OptionError: it was made with other options, naming the first that differs.
    """
    game, known = open_game(request), formats.read_class_weights(output)
    config = known.provenance.config
    asked = {"epochs": game.config.epochs, "steps": game.config.steps, "batch_size": game.config.batch_size}
    own = {**_objective(game).model_dump(), **asked, "seed": game.config.seed, "dtype": dtype_name(game.dtype)}
    made = {**known.objective.model_dump(), **{name: config.get(name) for name in (*asked, "seed", "dtype")}}
    if game.coreset.origin is not None:
        own["coreset"] = formats.sha256(game.coreset.origin)
        files = [each.sha256 for each in known.provenance.inputs if each.path.endswith(".json")]
        made["coreset"] = own["coreset"] if own["coreset"] in files else next(iter(files), None)
    check_same(made, own, str(output))
    return known


def _open_state(game: Game, state: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to mix two proxies in one folder, and write down which one this is."""
    if resume and overwrite:
        raise OptionError("--resume goes on with what there is and --overwrite replaces it: choose one.")
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


def _play(game: Game, state: Path | None, deadline: float | None, progress: Progress) -> tuple[DroResult, StageCost]:
    """Train the proxy; returns what its objective found, and what it cost."""
    folder = None if state is None else RunFolder(state, keep_checkpoints=game.config.keep_checkpoints)
    trainer, objective = proxy_trainer(game, folder, progress)
    if state is not None and trainer.resume(state):
        progress.note(f"Resuming at step {trainer.step} of {trainer.total_steps}.")
    trainer.run(deadline)
    return objective.result(), trainer.cost("proxy")


def _objective(game: Game) -> Objective:
    settings = game.settings
    return Objective(
        eta=settings.eta,
        smoothing=settings.smoothing,
        clip=True,
        steps=game.steps,
        backend=game.run.record.backend,
        reference_sha256=game.run.model_sha256,
        held_out=game.request.held_out,
        excess_decay=settings.excess_decay,
        shared_dropout=settings.shared_dropout,
        stratified=game.request.stratified,
    )


def _artifact(game: Game, result: DroResult) -> ClassWeights:
    config, settings, run = game.config, game.settings, game.run
    used = {
        "input": game.coreset.origin,
        "reference": str(game.request.reference),
        "backend": game.request.backend,
        "preset": game.request.preset,
        "epochs": config.epochs,
        "steps": config.steps,
        "eta": settings.eta,
        "smoothing": settings.smoothing,
        "excess_decay": settings.excess_decay,
        "shared_dropout": settings.shared_dropout,
        "held_out": game.request.held_out,
        "stratified": game.request.stratified,
        "batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "dtype": dtype_name(game.dtype),
        "seed": config.seed,
    }
    inputs = [game.coreset.origin, str(run.folder / MODEL_FOLDER)]
    names = game.coreset.dataset.class_names
    return ClassWeights(
        dataset=game.coreset.dataset,
        weights={name: float(weight) * len(names) for name, weight in zip(names, result.weights, strict=True)},
        objective=_objective(game),
        diagnostics=Diagnostics(
            trajectory=result.trajectory,
            entropy=result.entropy,
            fraction_clipped=result.fraction_clipped,
            final_excess=result.final_excess,
            warnings=result.caveats,
        ),
        provenance=provenance("reweight", used, seed=config.seed, inputs=inputs, device=game.device, dtype=game.dtype),
    )
