"""Measured points with whiskers, joined by lines, and horizontal lines to compare them with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from dcprune.report.charts.axes import (
    CHARACTER,
    LINE,
    TOP,
    WIDTH,
    X_AXIS,
    Scale,
    line,
    padded,
    pixel,
    polyline,
    spread_apart,
    svg,
    text,
    told_apart,
    x_axis,
    y_axis,
    y_margin,
)
from dcprune.report.charts.lines import Line

_LOG_FROM = 20.0  # ratio of the largest to the smallest x from which an axis is logarithmic
_MOST_TICKS = 8
_NAME_LIMIT = 20
_BESIDE = 4.0  # between rows that stand side by side, in units of the charts' width


@dataclass(frozen=True)
class Dots:
    """One row of points, ascending in x; `spans` are the ends of their whiskers, None where there is none."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    css: str
    spans: Sequence[tuple[float, float] | None] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line at a value, such as that of the full data."""

    label: str
    value: float
    css: str


def dot_chart(
    title: str,
    rows: Sequence[Dots],
    *,
    x_label: str,
    y_label: str,
    levels: Sequence[Level] = (),
    curves: Sequence[Line] = (),
    x_ticks: Sequence[tuple[float, str]] = (),
    side_by_side: bool = False,
    height: float = 300,
) -> str:
    """Points of every row, named at the right end of each.

    Args:
        title: accessible name.
        rows: at least one, each with at least one point.
        x_label: of the horizontal axis.
        y_label: of the vertical axis.
        levels: lines across the chart.
        curves: lines through the points that have no name of their own.
        x_ticks: places on the horizontal axis and what they are called; round numbers when empty or too many.
        side_by_side: points of several rows at one place stand beside each other, so that none covers another.
        height: in units of the charts' width.
    """
    places = [place for row in rows for place in row.x]
    log = min(places) > 0 and max(places) / min(places) >= _LOG_FROM
    ends = [value for row in rows for span in row.spans if span is not None for value in span]
    heights = [*(row.y for row in rows), *(curve.y for curve in curves), [level.value for level in levels], ends]
    values = [value for each in heights for value in each]
    low, high = padded(values, 0.08)
    bottom, left = height - X_AXIS, y_margin(low, high)
    labels = told_apart([*(row.label for row in rows), *(each.label for each in levels)], _NAME_LIMIT)
    right = WIDTH - (14 + CHARACTER * max(map(len, labels)))
    x = Scale(*padded(places, 0.06, log), left, right, log)
    y = Scale(low, high, bottom, TOP)
    body = [*y_axis(y, left, right, y_label), *_bottom_axis(x, bottom, x_label, x_ticks)]
    body += [line(left, y(level.value), right, y(level.value), f"level {level.css}") for level in levels]
    body += [polyline(curve.x, curve.y, x, y, f"fit {curve.css}") for curve in curves]
    for position, row in enumerate(rows):
        aside = _BESIDE * (position - (len(rows) - 1) / 2) if side_by_side else 0.0
        body += _row(row, replace(x, start=x.start + aside, stop=x.stop + aside), y, joined=not curves)
    ends_at = [*((y(row.y[-1]), row.css) for row in rows), *((y(level.value), level.css) for level in levels)]
    body += _names(labels, ends_at, bottom, right)
    return svg(title, height, body)


def _bottom_axis(x: Scale, bottom: float, label: str, ticks: Sequence[tuple[float, str]]) -> Iterable[str]:
    if not ticks or len(ticks) > _MOST_TICKS:
        return x_axis(x, TOP, bottom, label, 4)
    marks = [text(x(place), bottom + LINE, words, anchor="middle") for place, words in ticks]
    grid = [line(x(place), TOP, x(place), bottom, "grid") for place, _ in ticks]
    return [*grid, *marks, text((x.start + x.stop) / 2, bottom + 2 * LINE + 4, label, "label", "middle")]


def _row(row: Dots, x: Scale, y: Scale, joined: bool) -> Iterator[str]:
    for place, span in zip(row.x, row.spans, strict=False):
        if span is not None:
            yield line(x(place), y(span[0]), x(place), y(span[1]), f"span {row.css}")
    if joined and len(row.x) > 1:
        yield polyline(row.x, row.y, x, y, f"line {row.css}")
    # Zero-length strokes with round caps.
    marks = "".join(f"M{pixel(x(a))} {pixel(y(b))}h0" for a, b in zip(row.x, row.y, strict=True))
    yield f'<path d="{marks}" class="dots {row.css}"/>'


def _names(labels: Sequence[str], ends: Sequence[tuple[float, str]], bottom: float, right: float) -> Iterator[str]:
    """The names of rows and levels on the right, moved apart where they would cover each other."""
    heights = spread_apart([place + 4 for place, _ in ends], TOP + 4, bottom)
    for label, (_, css), height in zip(labels, ends, heights, strict=True):
        yield text(right + 6, height, label, f"name {css}")
