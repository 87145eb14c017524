"""Metrics of several runs against the kept ratio and against what it cost to get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dcprune.report.cells import Method
from dcprune.report.charts.axes import number
from dcprune.report.charts.dots import Dots, Level, dot_chart
from dcprune.report.collect import RunData
from dcprune.report.costs import TRAINING, compared_costs
from dcprune.report.figures.figure import Figure, Table, described, series
from dcprune.report.results import Results, summaries, summarised_costs
from dcprune.report.words import percent

MAX_METRICS = 3
_BASELINE: Final = "baseline"
_FULL: Final = "full"
_ALIKE: Final = 1.05  # costs that differ by less make no chart


def sweep_figures(results: Results, runs: Sequence[RunData]) -> list[Figure]:
    """The first metrics against the ratio; the first of them against the cost of the training and all costs, too."""
    figures: list[Figure] = []
    for name in list(results.values)[:MAX_METRICS]:
        shown = [(method, css) for method, css in _coloured(results.methods) if summaries(method, results.values[name])]
        if len(shown) < 2:
            continue
        figures.append(_against_ratio(name, results, shown))
        if len(figures) == 1:
            figures += _against_costs(name, results, shown, runs)
    return figures


def _coloured(methods: Sequence[Method]) -> list[tuple[Method, str]]:
    """The colour class of every method; random choice and the full data are grey and black."""
    found, position = [], 0
    for method in methods:
        plain = _BASELINE if method.is_random else _FULL if method.is_full else ""
        found.append((method, plain or series(position)))
        position += not plain
    return found


def _against_ratio(name: str, results: Results, shown: Sequence[tuple[Method, str]]) -> Figure:
    """Means at every ratio, the full data as a line across; a dot of its own where there is only one other ratio."""
    found = [(method, css, summaries(method, results.values[name])) for method, css in shown]
    several = len({ratio for method, _, by_ratio in found if not method.is_full for ratio in by_ratio}) > 1
    rows, levels = [], []
    for method, css, by_ratio in found:
        if several and method.is_full:
            levels.append(Level(method.label, by_ratio[1.0].mean, css))
            continue
        spans = [_span(each.mean, each.deviation) for each in by_ratio.values()]
        rows.append(Dots(method.label, list(by_ratio), [each.mean for each in by_ratio.values()], css, spans))
    title = f"{name} against the kept share"
    ticks = sorted({ratio for row in rows for ratio in row.x})
    svg = dot_chart(
        described(title, _summary(rows, levels)),
        rows,
        x_label="kept share of the images",
        y_label=name,
        levels=levels,
        x_ticks=[(ratio, percent(ratio)) for ratio in ticks],
        side_by_side=len(ticks) < 3 or any(any(row.spans) for row in rows),
    )
    head = ("method", "kept", name, "standard deviation", "runs")
    table_rows = [
        (
            method.label,
            percent(ratio),
            number(each.mean),
            "–" if each.deviation is None else number(each.deviation),
            str(each.count),
        )
        for method, _, by_ratio in found
        for ratio, each in by_ratio.items()
    ]
    note = "Whiskers: one standard deviation over runs." if any(any(row.spans) for row in rows) else ""
    return Figure(title, svg, note, _keys(shown), Table(head, tuple(table_rows)))


def _against_costs(
    name: str, results: Results, shown: Sequence[tuple[Method, str]], runs: Sequence[RunData]
) -> list[Figure]:
    found = [
        _against_cost(name, results, shown, runs, stages, words)
        for stages, words in (((TRAINING,), "the cost of training"), (None, "all costs"))
    ]
    return [figure for figure in found if figure is not None]


def _against_cost(
    name: str,
    results: Results,
    shown: Sequence[tuple[Method, str]],
    runs: Sequence[RunData],
    stages: tuple[str, ...] | None,
    words: str,
) -> Figure | None:
    """Means over the mean cost of the same runs, a method's points joined in the order of its ratios.

    None where fewer than two methods have costs, or all cost the same.
    """
    unit, costs = compared_costs(runs, stages)
    rows, table_rows = [], []
    for method, css in shown:
        spent = summarised_costs(method, costs, results.values[name])
        means = {ratio: each for ratio, each in summaries(method, results.values[name]).items() if ratio in spent}
        if not means:
            continue
        spans = [_span(each.mean, each.deviation) for each in means.values()]
        xs = [spent[ratio] for ratio in means]
        rows.append(Dots(method.label, xs, [each.mean for each in means.values()], css, spans))
        table_rows += [
            (method.label, percent(ratio), number(spent[ratio]), number(each.mean)) for ratio, each in means.items()
        ]
    places = [place for row in rows for place in row.x]
    if len(rows) < 2 or max(places) < _ALIKE * min(places):
        return None
    title = f"{name} against {words}"
    svg = dot_chart(described(title, _summary(rows, ())), rows, x_label=unit, y_label=name)
    left_out = "What chose the images and weighted the classes is not counted."
    note = left_out if stages else "Every stage that a run needed is counted."
    keys = _keys([(method, css) for method, css in shown if any(row.label == method.label for row in rows)])
    return Figure(title, svg, note, keys, Table(("method", "kept", unit, name), tuple(table_rows)))


def _span(mean: float, deviation: float | None) -> tuple[float, float] | None:
    return None if deviation is None else (mean - deviation, mean + deviation)


def _summary(rows: Sequence[Dots], levels: Sequence[Level]) -> str:
    found = [(row.label, row.y) for row in rows] + [(level.label, [level.value]) for level in levels]
    words = [f"{label} {' to '.join(number(y) for y in dict.fromkeys((ys[0], ys[-1])))}" for label, ys in found]
    return f"{'; '.join(words)}."


def _keys(shown: Sequence[tuple[Method, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((css, method.label) for method, css in shown)
