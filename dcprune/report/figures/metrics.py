"""Metrics within every class, and against the number of generated images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dcprune.artifacts import MetricValue
from dcprune.report.charts.axes import number
from dcprune.report.charts.bars import Bars, bar_chart
from dcprune.report.charts.dots import Dots, Level, dot_chart
from dcprune.report.charts.lines import Line
from dcprune.report.collect import RunData
from dcprune.report.compare import comparable_values, interval_words, metric_names
from dcprune.report.figures.figure import Figure, Table, described, extremes, limited, series
from dcprune.report.words import enumerated

_LINE_POINTS = 40


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
        names = [classes[i] for i in shown]
        summary = f"{len(classes)} classes, {enumerated([group.label for group in groups])}."
        svg = bar_chart(described(title, summary), names, groups, x_label=name)
        keys = tuple((group.css, group.label) for group in groups)
        rows = tuple(
            (each, *("–" if group.values[i] is None else number(group.values[i] or 0.0) for group in groups))
            for i, each in enumerate(names)
        )
        table = Table(("class", *(group.label for group in groups)), rows)
        figures.append(Figure(title, svg, limited(len(classes), "value"), keys, table))
    return figures


def size_curves(runs: Sequence[RunData]) -> list[Figure]:
    """For every metric that was taken of several numbers of images, how it depends on them, and its limit."""
    figures = []
    for name in metric_names(runs):
        found = [(run, metric) for run, metric in comparable_values(runs, name) if len(metric.sweep) > 1]
        if found:
            figures.append(_size_curve(name, runs, found))
    return figures


def _size_curve(name: str, runs: Sequence[RunData], found: Sequence[tuple[RunData, MetricValue]]) -> Figure:
    rows, levels, lines = [], [], []
    for run, metric in found:
        css = series(runs.index(run))
        sizes = [each.num_generated for each in metric.sweep]
        spans = [None if each.interval is None else (each.interval.low, each.interval.high) for each in metric.sweep]
        rows.append(Dots(run.name, sizes, [each.value for each in metric.sweep], css, spans))
        if metric.extrapolated is not None:
            levels.append(Level(f"{run.name} limit", metric.extrapolated.value, css))
            lines.append(_fitted(metric, css))
    title = f"{name} against the number of images"
    limits = [f"{level.label} {number(level.value)}" for level in levels]
    svg = dot_chart(
        described(title, f"{'; '.join(limits)}." if limits else ""),
        rows,
        x_label="generated images",
        y_label=name,
        levels=levels,
        curves=lines,
    )
    note = "Dashed: the limit for ever more images, of a line in 1 / images through the points." if limits else ""
    table_rows = [
        (run.name, f"{each.num_generated:,}", number(each.value, 4), interval_words(each.interval))
        for run, metric in found
        for each in metric.sweep
    ]
    table_rows += [
        (run.name, "limit", number(metric.extrapolated.value, 4), interval_words(metric.extrapolated.interval))
        for run, metric in found
        if metric.extrapolated is not None
    ]
    table = Table(("run", "images", name, "interval"), tuple(table_rows))
    keys = tuple((row.css, row.label) for row in rows)
    return Figure(title, svg, note, keys, table)


def _fitted(metric: MetricValue, css: str) -> Line:
    """The line in 1 / N through the values of a sweep, drawn over N."""
    limit = metric.extrapolated
    sizes = np.geomspace(metric.sweep[0].num_generated, metric.sweep[-1].num_generated, _LINE_POINTS)
    heights = np.full(_LINE_POINTS, np.nan) if limit is None else limit.value + limit.slope / sizes
    return Line("", sizes.tolist(), heights.tolist(), css)
