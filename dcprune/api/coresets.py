"""`score` and `select`: from embeddings to a coreset."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.generation import open_run
from dcprune.api.preparing import preparation_context
from dcprune.api.provenance import provenance
from dcprune.artifacts import Coreset, Embeddings, ScorerInfo, Scores, Selection, StageCost
from dcprune.devices import resolve_device
from dcprune.errors import ArtifactError, OptionError, UnknownName
from dcprune.interfaces import Progress, Scorer, ScoringContext, TrainedRun
from dcprune.plugins import registry
from dcprune.processes import processes
from dcprune.progress import SILENT
from dcprune.selection import KEEP_POLICIES, Scope, check_budget, select_rows, total_budget
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

    Under `torchrun` or `accelerate launch` the processes share the classes where the criterion looks at each class by
    itself; otherwise the first process does the work. All of them return the same scores.

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
    opened: list[TrainedRun] = []
    context = ScoringContext(
        seed=seed,
        device=place,
        ratio=ratio,
        progress=progress or SILENT,
        open_dataset=partial(open_for, embeddings.dataset, data_dir=Path(data_dir) if data_dir is not None else None),
        open_run=partial(_trained, device=place, progress=progress or SILENT, opened=opened),
    )
    started = time.perf_counter()
    scores = _by_all_processes(criterion, scorer, embeddings, context)
    seconds = (time.perf_counter() - started) * processes().count
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
        ratio=ratio,
        dataset=embeddings.dataset,
        provenance=provenance("score", config, seed=seed, inputs=[embeddings.origin], device=place),
        costs=(*embeddings.costs, _cost(len(scores) if opened else None, seconds)),
    )


def _by_all_processes(
    criterion: Scorer, name: str, embeddings: Embeddings, context: ScoringContext
) -> NDArray[np.float64]:
    """Scores float64 [N], of which every process computes those of its classes."""
    team = processes()
    if team.count == 1:
        return _checked(criterion, name, embeddings, context)
    count = len(embeddings.embeddings)
    shares = _shares(embeddings, team.count) if criterion.per_class else [np.arange(count)]
    mine = shares[team.rank] if team.rank < len(shares) else np.arange(0)
    part = _checked(criterion, name, embeddings.take(mine), context) if len(mine) else np.empty(0)
    scores = np.empty(count)
    for rows, values in zip(shares, team.gather(part), strict=False):
        scores[rows] = values
    return scores


def _shares(embeddings: Embeddings, count: int) -> list[NDArray[np.int64]]:
    """Row numbers for each of `count` processes: whole classes, the largest first to whoever has least."""
    shares: list[list[NDArray[np.int64]]] = [[] for _ in range(count)]
    loads = [0] * count
    for rows in sorted((rows for _, rows in embeddings.classes()), key=len, reverse=True):
        least = loads.index(min(loads))
        shares[least].append(rows)
        loads[least] += len(rows)
    return [np.sort(np.concatenate([*share, np.arange(0)])) for share in shares]


def _checked(criterion: Scorer, name: str, embeddings: Embeddings, context: ScoringContext) -> NDArray[np.float64]:
    scores = np.asarray(criterion.score(embeddings, context), dtype=np.float64)
    if scores.shape != (len(embeddings.embeddings),):
        count = len(embeddings.embeddings)
        raise ArtifactError(f"Scorer {name!r} returned shape {scores.shape} for {count} samples.")
    return scores


def _trained(folder: Path, device: torch.device, progress: Progress, opened: list[TrainedRun]) -> TrainedRun:
    """A finished run's backend and EMA model, for scorers that ask a trained model; it is noted in `opened`."""
    run = open_run(folder)
    # Processes score different classes, and may not come here at all: each prepares the samples for itself.
    context = preparation_context(device, progress=progress)
    opened.append(TrainedRun(run.backend, run.load(device), lambda source: run.backend.prepare(source, context)))
    return opened[-1]


def _cost(images: int | None, seconds: float) -> StageCost:
    """The cost of scoring, on embeddings alone (None) or with a network, whose operations nobody counts."""
    return StageCost(
        stage="score",
        images_seen=images or 0,
        updates=0,
        flops=0 if images is None else None,
        device_seconds=round(seconds, 3),
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
        scope: `class` keeps the same fraction of every class, at least one sample of each; `global` ranks everything
            together.
        keep: a keep policy; the scorer's own by default.
        settings: parameters of `scorer`.
        data_dir: where datasets lie, for scorers that look at the images.
        device: where `scorer` does heavy arithmetic.
        seed: seed of scorers and policies that draw.
        progress: for long work.

    Raises:
        UnknownName: no such scorer, parameter or keep policy.
        OptionError: a ratio, number or parameter that does not fit, or a greedy order that ends before it.
        ArtifactError: a damaged file, or scores where embeddings are needed.
    """
    check_budget(ratio, num)
    (coreset,) = select_each(
        source,
        scorer,
        ratios=[] if ratio is None else [ratio],
        nums=[] if num is None else [num],
        scope=scope,
        keep=keep,
        settings=settings,
        data_dir=data_dir,
        device=device,
        seed=seed,
        progress=progress,
    )
    return coreset


def select_each(
    source: Scores | Embeddings | StrPath,
    scorer: str | None = None,
    *,
    ratios: Sequence[float] = (),
    nums: Sequence[int] = (),
    scope: Scope = "class",
    keep: str | None = None,
    settings: Mapping[str, Any] | None = None,
    data_dir: StrPath | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Coreset]:
    """Choose samples once for every budget.

    `source` is read and scored once, for the largest budget; a scorer whose smaller choices are not the start of its
    larger ones (`moment`) scores once for each.

    Args:
        source: see `select`.
        scorer: see `select`.
        ratios: kept fractions.
        nums: kept numbers of samples, instead of `ratios`.
        scope: see `select`.
        keep: see `select`.
        settings: see `select`.
        data_dir: see `select`.
        device: see `select`.
        seed: see `select`.
        progress: see `select`.

    Returns:
        A coreset for every ratio or number, in their order.

    Raises:
        UnknownName: see `select`.
        OptionError: see `select`, or neither or both of `ratios` and `nums`.
        ArtifactError: see `select`.
    """
    if bool(ratios) == bool(nums):
        raise OptionError("Give either --ratio (the kept fraction) or --num (the kept number of samples).")
    budgets = [Budget(ratio=ratio) for ratio in ratios] + [Budget(num=num) for num in nums]
    if keep is not None and keep not in KEEP_POLICIES:
        raise UnknownName("keep policy", keep, KEEP_POLICIES)
    choice = _Choice(scorer, scope, keep, seed, progress or SILENT)
    if scorer is None:
        scores = _given_scores(source, settings)
        return [choice.coreset(scores, budget, scores.origin) for budget in budgets]
    embeddings = _read_embeddings(source)
    count = len(embeddings.embeddings)
    fractions = [_fraction(budget, embeddings.labels, count, scope) for budget in budgets]
    item, _ = registry().get("scorer", scorer)
    nested = getattr(item.load(), "nested", True)
    made: dict[float, Scores] = {}
    for fraction in {max(fractions)} if nested else sorted(set(fractions)):
        made[fraction] = score(
            embeddings,
            scorer,
            settings=settings,
            ratio=fraction,
            data_dir=data_dir,
            device=device,
            seed=seed,
            progress=progress,
        )
    return [
        choice.coreset(made[max(fractions) if nested else fraction], budget, _origin(source))
        for budget, fraction in zip(budgets, fractions, strict=True)
    ]


@dataclass(frozen=True)
class Budget:
    """How much to keep: a fraction, or a number of samples."""

    ratio: float | None = None
    num: int | None = None

    def __post_init__(self) -> None:
        check_budget(self.ratio, self.num)


def _fraction(budget: Budget, labels: NDArray[np.int64] | None, count: int, scope: Scope) -> float:
    """The fraction of `count` samples that a budget is.

    Raises:
        OptionError: more than there are, or a number below that of the classes, each of which keeps one.
    """
    total = total_budget(count, budget.ratio, budget.num)
    classes = 1 if labels is None else len(np.unique(labels))
    if budget.num is not None and scope == "class" and budget.num < classes:
        raise OptionError(
            f"--num {budget.num} is fewer than the {classes} classes. Use --scope global, or a larger number."
        )
    return budget.ratio if budget.ratio is not None else total / count


@dataclass(frozen=True)
class _Choice:
    """How samples are chosen, whatever the budget; see the arguments of `select`."""

    scorer: str | None
    scope: Scope
    keep: str | None
    seed: int
    progress: Progress

    def coreset(self, scores: Scores, budget: Budget, origin: str | None) -> Coreset:
        """The coreset of one budget; `origin` is the file that was given, scores or embeddings."""
        rows, total, policy = self._rows(scores, budget)
        names = scores.dataset.class_names
        counts = [] if scores.labels is None else np.bincount(scores.labels[rows], minlength=len(names)).tolist()
        config = {
            "input": origin,
            "scorer": self.scorer,
            "ratio": budget.ratio,
            "num": budget.num,
            "scope": self.scope,
            "keep": policy,
            "set": scores.scorer.params if self.scorer is not None else {},
            "seed": self.seed,
        }
        made = provenance("select", config, seed=self.seed, inputs=[origin])
        if self.scorer is not None:  # what scored the embeddings chose the samples
            made = made.model_copy(update={"environment": scores.provenance.environment})
        return Coreset(
            dataset=scores.dataset,
            selection=Selection(
                scorer=scores.scorer.name,
                params=scores.scorer.params,
                keep=policy,
                scope=self.scope,
                ratio=budget.ratio,
                budget=total,
                seed=self.seed,
            ),
            num_selected=len(rows),
            class_counts=dict(zip(names, counts, strict=True)),
            indices=tuple(scores.indices[rows].tolist()),
            ids=tuple(scores.ids[row] for row in rows) if scores.ids is not None else None,
            provenance=made,
        ).with_costs(scores.costs)

    def _rows(self, scores: Scores, budget: Budget) -> tuple[NDArray[np.int64], int, str]:
        """Rows that are kept, how many were asked for, and the keep policy."""
        policy = self.keep or scores.keep
        count = len(scores.scores)
        fraction = _fraction(budget, scores.labels, count, self.scope)
        total = total_budget(count, budget.ratio, budget.num)
        if policy == "order" and total > total_budget(count, scores.ratio, None):
            raise OptionError(
                f"The scores are an order of the first {scores.ratio:g} of the samples, and {fraction:g} are asked "
                f"for. Score again with --ratio {fraction:g}."
            )
        rows = select_rows(
            scores.scores, scores.labels, scores.indices, keep=policy, scope=self.scope, total=total, seed=self.seed
        )
        if len(rows) > total:
            self.progress.warn(
                f"A fraction of {fraction:g} is less than one sample of each of the {len(rows)} classes: every class "
                f"keeps one, {len(rows)} samples instead of {total}. --scope global keeps {total}."
            )
        return rows, total, policy


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
