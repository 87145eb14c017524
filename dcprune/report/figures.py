"""Turns what was collected into charts with their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from dcprune.artifacts import ClassWeights, Coreset, Scores, group_by_class
from dcprune.report.axes import number
from dcprune.report.charts import (
    Bars,
    Line,
    Points,
    bar_chart,
    histogram,
    histogram_rows,
    line_chart,
    scatter,
    share_chart,
)
from dcprune.report.collect import Losses, Material, RunData
from dcprune.report.compare import comparable_values, metric_names

MAX_POINTS = 2_000
MAX_BARS = 24
MAX_HISTOGRAMS = 16
MAX_NAMED_LINES = 10
MAX_LINES = 100
_CURVE_POINTS = 150
_CLASS_CURVE_POINTS = 40  # a class has a part of a batch, so its losses are noisier


@dataclass(frozen=True)
class Figure:
    """A chart under its title. `keys` are (colour class, words) pairs; `note` is what a reader must know beside it."""

    title: str
    svg: str
    note: str = ""
    keys: tuple[tuple[str, str], ...] = ()


def series(position: int) -> str:
    """The colour class of the run or curve at `position`; there are ten."""
    return f"s{position % 10 + 1}"


def extremes(values: Sequence[float], limit: int = MAX_BARS) -> list[int]:
    """Positions to show: all, in order, or the highest and the lowest when there are more than `limit`."""
    if len(values) <= limit:
        return list(range(len(values)))
    order: list[int] = np.argsort(-np.asarray(values), kind="stable").tolist()
    return order[: limit // 2] + order[-(limit - limit // 2) :]


def _limited(total: int, what: str) -> str:
    return (
        f"The {MAX_BARS // 2} classes with the highest and the {MAX_BARS // 2} with the lowest {what} of {total}."
        if (total > MAX_BARS)
        else ""
    )


def class_counts(material: Material, coreset: Coreset) -> Figure | None:
    """Images of every class in the dataset and in the coreset."""
    names, counts = list(coreset.class_counts), list(coreset.class_counts.values())
    if not names:
        return None
    labels = material.labels()
    totals = None if labels is None else np.bincount(labels, minlength=len(names)).tolist()
    shares = [part / max(1, whole) for part, whole in zip(counts, totals or [1] * len(counts), strict=True)]
    shown = extremes(shares)
    title = "Images per class"
    svg = share_chart(
        title,
        [names[i] for i in shown],
        None if totals is None else [totals[i] for i in shown],
        [counts[i] for i in shown],
        x_label="images",
    )
    return Figure(title, svg, _limited(len(names), "kept share"), _kept_keys(coreset))


def _kept_keys(coreset: Coreset) -> tuple[tuple[str, str], ...]:
    dropped = coreset.dataset.num_samples - coreset.num_selected
    return (("kept", f"kept, {coreset.num_selected:,}"), ("dropped", f"dropped, {dropped:,}"))


def is_kept(coreset: Coreset, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the dataset rows `indices` int64 [n] are in the coreset."""
    return np.isin(indices, np.asarray(coreset.indices, dtype=np.int64))


def score_histogram(scores: Scores, coreset: Coreset, recomputed: bool) -> Figure:
    """Scores of all samples, the kept ones marked."""
    kept = is_kept(coreset, scores.indices)
    title = f"Scores ({scores.scorer.name})"
    svg = histogram(
        title, scores.scores[kept], scores.scores[~kept], x_label=f"{scores.scorer.name} score", y_label="images"
    )
    notes = []
    if coreset.selection.scope == "class" and coreset.dataset.num_classes > 1:
        notes.append("The choice was made within each class, so kept and dropped overlap in this total.")
    if recomputed:
        notes.append("Computed again from the embeddings; selection stored no scores.")
    return Figure(title, svg, " ".join(notes), _kept_keys(coreset))


def class_histograms(scores: Scores, coreset: Coreset) -> Figure | None:
    """Scores within every class, where the choice was made; some of the classes when there are many."""
    names = coreset.dataset.class_names
    if scores.labels is None or coreset.selection.scope != "class" or len(names) < 2:
        return None
    groups = list(group_by_class(scores.labels, len(scores.scores)))
    step = max(1.0, len(groups) / MAX_HISTOGRAMS)
    groups = [groups[int(position * step)] for position in range(min(len(groups), MAX_HISTOGRAMS))]
    kept = is_kept(coreset, scores.indices)
    title = "Scores within each class"
    svg = histogram_rows(
        title,
        [names[label] for label, _ in groups],
        [scores.scores[rows[kept[rows]]] for _, rows in groups],
        [scores.scores[rows[~kept[rows]]] for _, rows in groups],
        x_label=f"{scores.scorer.name} score",
    )
    limited = f", {len(groups)} of {len(names)} classes" if len(groups) < len(names) else ""
    return Figure(title, svg, f"Each row is scaled to its own highest bin{limited}.", _kept_keys(coreset))


def principal_plane(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Coordinates float64 [n, 2] on the first two principal components of `rows` [n, D], and their shares of variance.

    The sign of a component is such that its largest coordinate by size is positive.
    """
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    total = float(np.square(centred).sum())
    smaller = min(centred.shape)
    product = centred @ centred.T if smaller == len(centred) else centred.T @ centred
    values, vectors = scipy.linalg.eigh(product, subset_by_index=(max(0, smaller - 2), smaller - 1))
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    plane = np.zeros((len(rows), 2))
    plane[:, : len(values)] = vectors * np.sqrt(values) if smaller == len(centred) else centred @ vectors
    plane *= np.where(np.take_along_axis(plane, np.abs(plane).argmax(axis=0)[None], axis=0) < 0, -1, 1)
    first, second = [*(values / (total or 1.0)).tolist(), 0.0][:2]
    return plane, (first, second)


def embedding_map(material: Material, coreset: Coreset) -> Figure | None:
    """The embeddings on their first two principal components, the coreset marked."""
    embeddings = material.embeddings
    if embeddings is None:
        return None
    total = len(embeddings.embeddings)
    generator = np.random.default_rng(0)
    rows = np.sort(generator.choice(total, min(MAX_POINTS, total), replace=False))
    plane, shares = principal_plane(embeddings.embeddings[rows])
    kept = is_kept(coreset, embeddings.indices[rows])
    names = []
    if embeddings.labels is not None and 1 < embeddings.dataset.num_classes <= 12:
        labels = embeddings.labels[rows]
        for label in np.unique(labels).tolist():
            x, y = np.median(plane[labels == label], axis=0).tolist()
            names.append((embeddings.dataset.class_names[label], x, y))
    title = f"Embeddings ({embeddings.encoder.name}, {embeddings.encoder.dim}-d)"
    svg = scatter(
        title,
        [Points("dropped", plane[~kept], "dropped"), Points("kept", plane[kept], "kept")],
        x_label=f"principal component 1 ({number(100 * shares[0], 2)} % of the variance)",
        y_label=f"principal component 2 ({number(100 * shares[1], 2)} %)",
        names=names,
    )
    note = f"{len(rows):,} of {total:,} images, drawn at random." if len(rows) < total else ""
    return Figure(title, svg, note, (("kept", "kept"), ("dropped", "dropped")))


def weight_bars(weights: ClassWeights) -> Figure:
    """The loss weight of every class."""
    values = list(weights.weights.values())
    names, shown = list(weights.weights), extremes(values)
    title = "Loss weight of each class"
    bars = Bars("weight", [values[i] for i in shown], "s1")
    svg = bar_chart(
        title,
        [names[i] for i in shown],
        [bars],
        x_label="loss weight (1 = unweighted)",
        baseline=1,
        show="{:.3f}".format,
    )
    return Figure(title, svg, _limited(len(names), "weight"))


def weight_trajectory(weights: ClassWeights) -> Figure | None:
    """How the weights moved while they were learned; beyond ten classes only the extremes are coloured."""
    trajectory = weights.diagnostics.trajectory
    if len(trajectory) < 2:
        return None
    picked = np.unique(np.linspace(0, len(trajectory) - 1, min(_CURVE_POINTS, len(trajectory))).round().astype(int))
    steps = [trajectory[i][0] for i in picked]
    values = np.asarray([trajectory[i][1] for i in picked]) * len(weights.weights)  # [n, K], mean 1
    lines = _class_lines(list(weights.weights), [(steps, column.tolist()) for column in values.T])
    title = "Weights while they were learned"
    svg = line_chart(title, lines, x_label="updates of the proxy", y_label="weight at that update (1 = uniform)")
    return Figure(title, svg, "The final weight of a class is the mean of its curve.")


def _class_lines(names: Sequence[str], curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Line]:
    """One line a class; those that end highest and lowest are named and coloured, the others faint."""
    last = [values[-1] for _, values in curves]
    named = set(extremes(last, MAX_NAMED_LINES))
    lines, colour = [], 0
    for index in sorted(extremes(last, MAX_LINES), key=lambda i: (i in named, i)):
        name = names[index] if index in named else ""
        lines.append(Line(name, *curves[index], series(colour) if name else "faint"))
        colour += index in named
    return lines


def class_loss_curves(run: RunData) -> Figure | None:
    """Training loss of every class of one run, each point the mean of a stretch of updates."""
    losses, names = run.losses, run.record.dataset.class_names
    if losses is None or losses.classes is None or losses.classes.shape[1] != len(names):
        return None
    stretch = max(int(losses.steps.max()) / _CLASS_CURVE_POINTS, 1.0)
    found = []
    for name, column in zip(names, losses.classes.T, strict=True):
        known = np.isfinite(column)
        if known.any():
            found.append((name, smoothed(Losses(losses.steps[known], column[known]), stretch)))
    if len(found) < 2:
        return None
    lines = _class_lines([name for name, _ in found], [curve for _, curve in found])
    title = f"Training loss of each class ({run.name})"
    log = all(value > 0 for each in lines for value in each.y)
    scale = ", logarithmic" if log else ""
    svg = line_chart(title, lines, x_label="updates", y_label=f"loss per image{scale}", log_y=log)
    return Figure(title, svg, "Without weights: what the model loses on the images of a class, on average.")


def loss_curves(runs: Sequence[RunData]) -> Figure | None:
    """Training losses of all runs, each point the mean of a stretch of updates."""
    trained = [(series(position), run.name, run.losses) for position, run in enumerate(runs) if run.losses is not None]
    if not trained:
        return None
    stretch = max(int(losses.steps.max()) for _, _, losses in trained) / _CURVE_POINTS
    lines = [Line("", *smoothed(losses, stretch), css) for css, _, losses in trained]
    keys = tuple((css, name) for css, name, _ in trained)
    title = "Training loss"
    log = all(value > 0 for each in lines for value in each.y)
    scale = ", logarithmic" if log else ""
    svg = line_chart(title, lines, x_label="updates", y_label=f"loss per image{scale}", log_y=log)
    note = "Each run's loss is on its own training set and under its own weights: a lower curve is not a better model."
    return Figure(title, svg, note, keys)


def smoothed(losses: Losses, stretch: float) -> tuple[list[float], list[float]]:
    """Mean step and mean loss of every `stretch` updates that were logged."""
    part = np.unique(np.ceil(losses.steps / stretch), return_inverse=True)[1]
    counts = np.bincount(part)
    means = [(np.bincount(part, weights=each) / counts).tolist() for each in (losses.steps, losses.values)]
    return means[0], means[1]


def per_class_metrics(runs: Sequence[RunData]) -> list[Figure]:
    """For every metric with values per class, those of all runs that were measured in the same way."""
    figures = []
    for name in metric_names(runs):
        found = [(run, metric) for run, metric in comparable_values(runs, name) if metric.per_class]
        if not found:
            continue
        classes = list(dict.fromkeys(each for _, metric in found for each in metric.per_class or {}))
        first = found[0][1].per_class or {}
        shown = extremes([first.get(each, 0.0) for each in classes])
        groups = []
        for run, metric in found:
            values = [(metric.per_class or {}).get(classes[i]) for i in shown]
            groups.append(Bars(run.name, values, series(runs.index(run))))
        title = f"{name} within each class"
        svg = bar_chart(title, [classes[i] for i in shown], groups, x_label=name)
        keys = tuple((group.css, group.label) for group in groups)
        figures.append(Figure(title, svg, _limited(len(classes), "value"), keys))
    return figures
