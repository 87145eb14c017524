"""`score` and `select`: from embeddings to a coreset."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dcprune import formats
from dcprune.api.provenance import provenance
from dcprune.artifacts import Coreset, Embeddings, ScorerInfo, Scores, Selection
from dcprune.errors import ArtifactError, OptionError
from dcprune.interfaces import Progress, Scorer
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.selection import Scope, check_budget, select_rows, total_budget

StrPath = str | os.PathLike[str]


def score(
    embeddings: Embeddings | StrPath,
    scorer: str = "gaussian",
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Score every sample of `embeddings` with one criterion.

    Args:
        embeddings: the artifact, or its path.
        scorer: a registered scorer.
        settings: its parameters; strings are converted.
        seed: seed of scorers that draw.
        progress: for long work.

    Raises:
        UnknownName: no such scorer or parameter.
        OptionError: a parameter that does not fit.
        ArtifactError: the embeddings are damaged, or the scorer returned something that is not N finite numbers.
    """
    criterion: Scorer = registry().create("scorer", scorer, settings or {})
    if not isinstance(embeddings, Embeddings):
        embeddings = formats.read_embeddings(embeddings)
    count = len(embeddings.embeddings)
    with (progress or SILENT).task(f"score {scorer}", count, "samples") as task:
        scores = np.asarray(criterion.score(embeddings, np.random.default_rng(seed)), dtype=np.float64)
        task.advance(count)
    if scores.shape != (count,):
        raise ArtifactError(f"Scorer {scorer!r} returned shape {scores.shape} for {count} samples.")
    params = resolved_settings(criterion, settings or {})
    config = {"input": embeddings.origin, "scorer": scorer, "set": params, "seed": seed}
    return Scores(
        scores=scores,
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=embeddings.ids,
        scorer=ScorerInfo(name=scorer, params=params),
        keep=criterion.keep,
        dataset=embeddings.dataset,
        provenance=provenance("score", config, seed=seed, inputs=[embeddings.origin]),
    )


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
        seed: seed of scorers and policies that draw.
        progress: for long work.

    Raises:
        UnknownName: no such scorer, parameter or keep policy.
        OptionError: a ratio, number or parameter that does not fit.
        ArtifactError: a damaged file, or scores where embeddings are needed.
    """
    check_budget(ratio, num)
    scores = _scores(source, scorer, settings, seed, progress)
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


def _scores(
    source: Scores | Embeddings | StrPath,
    scorer: str | None,
    settings: Mapping[str, Any] | None,
    seed: int,
    progress: Progress | None,
) -> Scores:
    """Scores of `source`: as they are when no scorer is asked for, computed from embeddings otherwise."""
    if scorer is not None:
        if isinstance(source, Scores):
            raise ArtifactError("`scorer` scores embeddings, but scores were given. Leave it out to use them.")
        return score(source, scorer, settings=settings, seed=seed, progress=progress)
    if settings:
        raise OptionError("--set gives parameters of a scorer, so it needs --scorer.")
    if isinstance(source, Embeddings):
        raise ArtifactError("Embeddings need a scorer to select from: pass --scorer, such as --scorer moderate.")
    return source if isinstance(source, Scores) else formats.read_scores(source)
