"""`score` and `select`: from embeddings to a coreset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcprune import formats
from dcprune.api.generation import open_run
from dcprune.api.provenance import provenance
from dcprune.artifacts import Coreset, Embeddings, ScorerInfo, Scores, Selection
from dcprune.devices import resolve_device
from dcprune.errors import ArtifactError, OptionError
from dcprune.interfaces import Progress, Scorer, ScoringContext, TrainedRun
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.selection import Scope, check_budget, select_rows, total_budget
from dcprune.sources import open_for

StrPath = str | os.PathLike[str]


def score(
    embeddings: Embeddings | StrPath,
    scorer: str = "gaussian",
    *,
    settings: Mapping[str, Any] | None = None,
    ratio: float = 1.0,
    data_dir: StrPath | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Score every sample of `embeddings` with one criterion.

    Args:
        embeddings: the artifact, or its path.
        scorer: a registered scorer.
        settings: its parameters; strings are converted.
        ratio: the largest fraction that will be kept, in (0, 1]: greedy scorers order no more than that.
        data_dir: where datasets lie, for scorers that look at the images.
        device: where heavy arithmetic runs.
        seed: seed of scorers that draw.
        progress: for long work.

    Raises:
        UnknownName: no such scorer or parameter.
        OptionError: a ratio, parameter or device that does not fit.
        ArtifactError: the embeddings are damaged, or the scorer returned something that is not N finite numbers.
    """
    check_budget(ratio, None)
    place = resolve_device(device)
    criterion: Scorer = registry().create("scorer", scorer, settings or {})
    if not isinstance(embeddings, Embeddings):
        embeddings = formats.read_embeddings(embeddings)
    count = len(embeddings.embeddings)
    context = ScoringContext(
        seed=seed,
        device=place,
        ratio=ratio,
        progress=progress or SILENT,
        open_dataset=partial(open_for, embeddings.dataset, data_dir=Path(data_dir) if data_dir is not None else None),
        open_run=partial(_trained, device=place),
    )
    scores = np.asarray(criterion.score(embeddings, context), dtype=np.float64)
    if scores.shape != (count,):
        raise ArtifactError(f"Scorer {scorer!r} returned shape {scores.shape} for {count} samples.")
    params = resolved_settings(criterion, settings or {})
    config = {
        "input": embeddings.origin,
        "scorer": scorer,
        "ratio": ratio if ratio < 1 else None,
        "set": params,
        "seed": seed,
    }
    return Scores(
        scores=scores,
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=embeddings.ids,
        scorer=ScorerInfo(name=scorer, params=params),
        keep=criterion.keep,
        dataset=embeddings.dataset,
        provenance=provenance("score", config, seed=seed, inputs=[embeddings.origin], device=place),
    )


def _trained(folder: Path, device: torch.device) -> TrainedRun:
    """A finished run's backend and EMA model, for scorers that ask a trained model."""
    run = open_run(folder)
    return TrainedRun(run.backend, run.load(device))


def resolved_settings(item: object, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting of an item as JSON values: its public attributes, completed by what the user gave."""
    public = {name: value for name, value in vars(item).items() if not name.startswith("_")}
    simple = {name: value for name, value in public.items() if isinstance(value, str | int | float | bool)}
    return {**{name.replace("-", "_"): value for name, value in settings.items()}, **simple}


def select(
    source: Scores | Embeddings | StrPath,
    scorer: str | None = None,
    *,
    ratio: float | None = None,
    num: int | None = None,
    scope: Scope = "class",
    keep: str | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: StrPath | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Coreset:
    """Choose the samples to keep.

    Args:
        source: scores, or embeddings to be scored with `scorer`; an artifact or its path.
        scorer: a registered scorer for embeddings; None when `source` holds scores.
        ratio: kept fraction in (0, 1].
        num: number of kept samples, instead of `ratio`.
        scope: `class` keeps the same fraction of every class, `global` ranks everything together.
        keep: a keep policy; the scorer's own by default.
        settings: parameters of `scorer`.
        data_dir: where datasets lie, for scorers that look at the images.
        device: where `scorer` does heavy arithmetic.
        seed: seed of scorers and policies that draw.
        progress: for long work.

    Raises:
        UnknownName: no such scorer, parameter or keep policy.
        OptionError: a ratio, number or parameter that does not fit.
        ArtifactError: a damaged file, or scores where embeddings are needed.
    """
    check_budget(ratio, num)
    if scorer is None:
        scores = _given_scores(source, settings)
    else:
        embeddings = _read_embeddings(source)
        scores = score(
            embeddings,
            scorer,
            settings=settings,
            ratio=ratio
            if ratio is not None
            else total_budget(len(embeddings.embeddings), None, num) / len(embeddings.embeddings),
            data_dir=data_dir,
            device=device,
            seed=seed,
            progress=progress,
        )
    count = len(scores.scores)
    total = total_budget(count, ratio, num)
    policy = keep or scores.keep
    classes = len(np.unique(scores.labels)) if scores.labels is not None else 1
    if num is not None and scope == "class" and num < classes:
        raise OptionError(f"--num {num} is fewer than the {classes} classes. Use --scope global, or a larger number.")
    rows = select_rows(scores.scores, scores.labels, scores.indices, keep=policy, scope=scope, total=total, seed=seed)
    names = scores.dataset.class_names
    counts = [] if scores.labels is None else np.bincount(scores.labels[rows], minlength=len(names)).tolist()
    origin = scores.origin if scorer is None else _origin(source)
    config = {
        "input": origin,
        "scorer": scorer,
        "ratio": ratio,
        "num": num,
        "scope": scope,
        "keep": policy,
        "set": scores.scorer.params if scorer is not None else {},
        "seed": seed,
    }
    return Coreset(
        dataset=scores.dataset,
        selection=Selection(
            scorer=scores.scorer.name,
            params=scores.scorer.params,
            keep=policy,
            scope=scope,
            ratio=ratio,
            budget=total,
            seed=seed,
        ),
        num_selected=len(rows),
        class_counts=dict(zip(names, counts, strict=True)),
        indices=tuple(scores.indices[rows].tolist()),
        ids=tuple(scores.ids[row] for row in rows) if scores.ids is not None else None,
        provenance=provenance("select", config, seed=seed, inputs=[origin]),
    )


def _origin(source: Scores | Embeddings | StrPath) -> str | None:
    return source.origin if isinstance(source, Scores | Embeddings) else str(source)


def _read_embeddings(source: Scores | Embeddings | StrPath) -> Embeddings:
    if isinstance(source, Scores):
        raise ArtifactError("`scorer` scores embeddings, but scores were given. Leave it out to use them.")
    return source if isinstance(source, Embeddings) else formats.read_embeddings(source)


def _given_scores(source: Scores | Embeddings | StrPath, settings: Mapping[str, Any] | None) -> Scores:
    if settings:
        raise OptionError("--set gives parameters of a scorer, so it needs --scorer.")
    if isinstance(source, Embeddings):
        raise ArtifactError("Embeddings need a scorer to select from: pass --scorer, such as --scorer moderate.")
    return source if isinstance(source, Scores) else formats.read_scores(source)
