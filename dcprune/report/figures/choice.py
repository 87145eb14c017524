"""What was kept: images of every class, and scores with the window that was kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import Coreset, Scores, group_by_class
from dcprune.report.charts.axes import number
from dcprune.report.charts.bars import share_chart
from dcprune.report.charts.histograms import Window, bin_range, histogram, histogram_rows
from dcprune.report.collect import Material
from dcprune.report.figures.figure import Figure, Table, described, extremes, limited
from dcprune.report.words import percent

MAX_HISTOGRAMS = 16
_LEAST_SHARE = 0.15  # of a common axis that the scores of the middle class must take
_WINDOW = ("edge", "the window that was kept")


def class_counts(material: Material, coreset: Coreset) -> Figure | None:
    """Images of every class in the dataset and in the coreset."""
    names, counts = list(coreset.class_counts), list(coreset.class_counts.values())
    if not names:
        return None
    labels = material.labels()
    totals = None if labels is None else np.bincount(labels, minlength=len(names)).tolist()
    shares = [part / max(1, whole) for part, whole in zip(counts, totals or [1] * len(counts), strict=True)]
    shown = extremes(shares)
    some = None if totals is None else [totals[i] for i in shown]
    title = "Images per class"
    svg = share_chart(
        described(title, f"Kept images of a class: {min(counts):,} to {max(counts):,}."),
        [names[i] for i in shown],
        some,
        [counts[i] for i in shown],
        x_label="images",
    )
    head = ("class", "kept") if totals is None else ("class", "kept", "of")
    rows = tuple(
        (names[i], f"{counts[i]:,}") if totals is None else (names[i], f"{counts[i]:,}", f"{totals[i]:,}")
        for i in shown
    )
    return Figure(title, svg, limited(len(names), "kept share"), kept_keys(coreset), Table(head, rows))


def kept_keys(coreset: Coreset) -> tuple[tuple[str, str], ...]:
    """The two colours of a coreset, with numbers of images."""
    dropped = coreset.dataset.num_samples - coreset.num_selected
    return (("kept", f"kept, {coreset.num_selected:,}"), ("dropped", f"dropped, {dropped:,}"))


def is_kept(coreset: Coreset, indices: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the dataset rows `indices` int64 [n] are in the coreset."""
    return np.isin(indices, np.asarray(coreset.indices, dtype=np.int64))


def kept_window(kept: NDArray[np.float64], dropped: NDArray[np.float64]) -> Window | None:
    """The lowest and the highest kept score, when nothing between them was dropped; otherwise there is no window."""
    if not len(kept) or not len(dropped):
        return None
    low, high = float(kept.min()), float(kept.max())
    return None if ((dropped > low) & (dropped < high)).any() else (low, high)


def score_histogram(scores: Scores, coreset: Coreset, recomputed: bool) -> Figure:
    """Scores of all samples, the kept ones and their window marked."""
    where = is_kept(coreset, scores.indices)
    kept, dropped = scores.scores[where], scores.scores[~where]
    window = kept_window(kept, dropped)
    title = f"Scores ({scores.scorer.name})"
    ranges = [f"{word}: {_quartiles(values)}" for word, values in (("kept", kept), ("dropped", dropped)) if len(values)]
    svg = histogram(
        described(title, f"{'; '.join(ranges)}."),
        kept,
        dropped,
        x_label=f"{scores.scorer.name} score",
        y_label="images",
        window=window,
    )
    notes = []
    if coreset.selection.scope == "class" and coreset.dataset.num_classes > 1:
        notes.append("The choice was made within each class, so kept and dropped overlap in this total.")
    if window is not None:
        notes.append(f"Everything from {number(window[0])} to {number(window[1])} was kept.")
    if recomputed:
        notes.append("Computed again from the embeddings; selection stored no scores.")
    rows = tuple(
        (word, f"{len(values):,}", *(number(each) for each in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()))
        for word, values in (("kept", kept), ("dropped", dropped))
        if len(values)
    )
    table = Table(("part", "images", "lowest", "first quartile", "median", "third quartile", "highest"), rows)
    return Figure(title, svg, " ".join(notes), (*kept_keys(coreset), *([_WINDOW] if window else [])), table)


def _quartiles(values: NDArray[np.float64]) -> str:
    low, middle, high = (number(each) for each in np.quantile(values, (0, 0.5, 1)).tolist())
    return f"median {middle}, {low} to {high}"


def class_histograms(scores: Scores, coreset: Coreset) -> Figure | None:
    """Scores within every class, where the choice was made; some of the classes when there are many."""
    names = coreset.dataset.class_names
    if scores.labels is None or coreset.selection.scope != "class" or len(names) < 2:
        return None
    groups = list(group_by_class(scores.labels, len(scores.scores)))
    step = max(1.0, len(groups) / MAX_HISTOGRAMS)
    groups = [groups[int(position * step)] for position in range(min(len(groups), MAX_HISTOGRAMS))]
    where = is_kept(coreset, scores.indices)
    kept = [scores.scores[rows[where[rows]]] for _, rows in groups]
    dropped = [scores.scores[rows[~where[rows]]] for _, rows in groups]
    windows = [kept_window(some, others) for some, others in zip(kept, dropped, strict=True)]
    own_axes = _far_apart([scores.scores[rows] for _, rows in groups])
    some_names = [names[label] for label, _ in groups]
    title = "Scores within each class"
    found = [window for window in windows if window is not None]
    summary = f"{len(found)} of {len(groups)} classes kept one window of scores." if found else ""
    svg = histogram_rows(
        described(title, summary),
        some_names,
        kept,
        dropped,
        x_label=f"{scores.scorer.name} score{', each row over its own range' if own_axes else ''}",
        windows=windows,
        own_axes=own_axes,
    )
    share = f", {len(groups)} of {len(names)} classes" if len(groups) < len(names) else ""
    rows = tuple(
        (
            name,
            f"{len(some):,}",
            f"{len(others):,}",
            *_range(some),
            percent(len(some) / (len(some) + len(others))),
        )
        for name, some, others in zip(some_names, kept, dropped, strict=True)
    )
    return Figure(
        title,
        svg,
        f"Each row is scaled to its own highest bin{share}.",
        (*kept_keys(coreset), *([_WINDOW] if found else [])),
        Table(("class", "kept", "dropped", "lowest kept", "highest kept", "share kept"), rows),
    )


def _far_apart(groups: Sequence[NDArray[np.float64]]) -> bool:
    """Whether the scores of a class take so little of the range of all that one axis for all shows nothing."""
    low, high = bin_range(np.concatenate(groups))
    spreads = [float(np.ptp(bin_range(each))) for each in groups if np.ptp(each) > 0]
    return bool(spreads) and float(np.median(spreads)) < _LEAST_SHARE * (high - low)


def _range(kept: NDArray[np.float64]) -> tuple[str, str]:
    return (number(float(kept.min())), number(float(kept.max()))) if len(kept) else ("none", "none")
