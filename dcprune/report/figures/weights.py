"""Class weights: their values, and how they moved while they were learned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dcprune.artifacts import ClassWeights
from dcprune.report.charts.bars import Bars, bar_chart
from dcprune.report.charts.lines import Line, line_chart
from dcprune.report.figures.figure import Figure, Table, described, extremes, limited, series

MAX_NAMED_LINES = 10
MAX_LINES = 100
_CURVE_POINTS = 150
_TABLE_STEPS = 8


def weight_bars(weights: ClassWeights) -> Figure:
    """The loss weight of every class."""
    values = list(weights.weights.values())
    names, shown = list(weights.weights), extremes(values)
    show = "{:.3f}".format
    title = "Loss weight of each class"
    least, most = int(np.argmin(values)), int(np.argmax(values))
    summary = f"From {show(values[least])} ({names[least]}) to {show(values[most])} ({names[most]})."
    svg = bar_chart(
        described(title, summary),
        [names[i] for i in shown],
        [Bars("weight", [values[i] for i in shown], "s1")],
        x_label="loss weight (1 = unweighted)",
        baseline=1,
        show=show,
    )
    rows = tuple((names[i], show(values[i])) for i in shown)
    return Figure(title, svg, limited(len(names), "weight"), table=Table(("class", "weight"), rows))


def weight_trajectory(weights: ClassWeights) -> Figure | None:
    """How the weights moved while they were learned; beyond ten classes only the extremes are coloured."""
    trajectory = weights.diagnostics.trajectory
    if len(trajectory) < 2:
        return None
    picked = np.unique(np.linspace(0, len(trajectory) - 1, min(_CURVE_POINTS, len(trajectory))).round().astype(int))
    steps = [trajectory[i][0] for i in picked]
    values = np.asarray([trajectory[i][1] for i in picked]) * len(weights.weights)  # [n, K], mean 1
    names = list(weights.weights)
    lines = class_lines(names, [(steps, column.tolist()) for column in values.T])
    title = "Weights while they were learned"
    last = values[-1]
    summary = f"At the end from {last.min():.3f} ({names[last.argmin()]}) to {last.max():.3f} ({names[last.argmax()]})."
    svg = line_chart(
        described(title, summary), lines, x_label="updates of the proxy", y_label="weight at that update (1 = uniform)"
    )
    at = np.unique(np.linspace(0, len(steps) - 1, min(_TABLE_STEPS, len(steps))).round().astype(int))
    rows = tuple((names[i], *(f"{values[step, i]:.3f}" for step in at)) for i in extremes(last.tolist()))
    table = Table(("class", *(f"update {steps[step]:,}" for step in at)), rows)
    return Figure(title, svg, "The final weight of a class is the mean of its curve.", table=table)


def class_lines(names: Sequence[str], curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[Line]:
    """One line a class; those that end highest and lowest are named and coloured, the others faint."""
    last = [values[-1] for _, values in curves]
    named = set(extremes(last, MAX_NAMED_LINES))
    lines, colour = [], 0
    for index in sorted(extremes(last, MAX_LINES), key=lambda i: (i in named, i)):
        name = names[index] if index in named else ""
        lines.append(Line(name, *curves[index], series(colour) if name else "faint"))
        colour += index in named
    return lines
