"""Training losses: of whole runs, and of every class of one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dcprune.report.charts.axes import number
from dcprune.report.charts.lines import Line, line_chart
from dcprune.report.collect import RunData
from dcprune.report.figures.figure import Figure, Table, described, extremes, series
from dcprune.report.figures.weights import class_lines
from dcprune.report.losses import Losses

_CURVE_POINTS = 150
_CLASS_CURVE_POINTS = 40  # a class has a part of a batch, so its losses are noisier
_TABLE_ROWS = 10


def loss_curves(runs: Sequence[RunData]) -> Figure | None:
    """Training losses of all runs, each point the mean of a stretch of updates."""
    trained = [(series(position), run.name, run.losses) for position, run in enumerate(runs) if run.losses is not None]
    if not trained:
        return None
    longest = max(int(losses.steps.max()) for _, _, losses in trained)
    lines = [Line("", *smoothed(losses, longest / _CURVE_POINTS), css) for css, _, losses in trained]
    keys = tuple((css, name) for css, name, _ in trained)
    title = "Training loss"
    ends = [f"{name} ends at {number(line.y[-1])}" for line, (_, name, _) in zip(lines, trained, strict=True)]
    svg = _chart(described(title, f"{'; '.join(ends)}."), lines)
    note = "Each run's loss is on its own training set and under its own weights: a lower curve is not a better model."
    coarse = [smoothed(losses, longest / _TABLE_ROWS) for _, _, losses in trained]
    return Figure(title, svg, note, keys, _table(longest, [name for _, name, _ in trained], coarse))


def class_loss_curves(run: RunData) -> Figure | None:
    """Training loss of every class of one run, each point the mean of a stretch of updates."""
    losses, names = run.losses, run.record.dataset.class_names
    if losses is None or losses.classes is None or losses.classes.shape[1] != len(names):
        return None
    longest = int(losses.steps.max())
    found = []
    for name, column in zip(names, losses.classes.T, strict=True):
        known = np.isfinite(column)
        if known.any():
            found.append((name, Losses(losses.steps[known], column[known])))
    if len(found) < 2:
        return None
    stretch = max(longest / _CLASS_CURVE_POINTS, 1.0)
    curves = [smoothed(each, stretch) for _, each in found]
    last = [values[-1] for _, values in curves]
    least, most = int(np.argmin(last)), int(np.argmax(last))
    title = f"Training loss of each class ({run.name})"
    summary = f"At the end from {number(last[least])} ({found[least][0]}) to {number(last[most])} ({found[most][0]})."
    svg = _chart(described(title, summary), class_lines([name for name, _ in found], curves))
    shown = extremes(last)
    rows = tuple((found[i][0], number(curves[i][1][0]), number(last[i])) for i in shown)
    return Figure(
        title,
        svg,
        "Without weights: what the model loses on the images of a class, on average.",
        table=Table(("class", "at the start", "at the end"), rows),
    )


def _chart(name: str, lines: Sequence[Line]) -> str:
    log = all(value > 0 for each in lines for value in each.y)
    label = f"loss per image{', logarithmic' if log else ''}"
    return line_chart(name, lines, x_label="updates", y_label=label, log_y=log)


def _table(longest: int, names: Sequence[str], curves: Sequence[tuple[list[float], list[float]]]) -> Table:
    """A row for each tenth of the longest run; a run that had ended by then has a dash."""
    rows = []
    for part in range(_TABLE_ROWS):
        start, stop = longest * part / _TABLE_ROWS, longest * (part + 1) / _TABLE_ROWS
        values = [
            next((number(value) for step, value in zip(*curve, strict=True) if start < step <= stop), "–")
            for curve in curves
        ]
        if any(value != "–" for value in values):
            rows.append((f"{start:,.0f} to {stop:,.0f}", *values))
    return Table(("updates", *names), tuple(rows))


def smoothed(losses: Losses, stretch: float) -> tuple[list[float], list[float]]:
    """Mean step and mean loss of every `stretch` updates that were logged."""
    part = np.unique(np.ceil(losses.steps / stretch), return_inverse=True)[1]
    counts = np.bincount(part)
    means = [(np.bincount(part, weights=each) / counts).tolist() for each in (losses.steps, losses.values)]
    return means[0], means[1]
