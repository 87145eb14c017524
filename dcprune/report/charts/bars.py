"""Horizontal bars: values with whiskers, and shares of a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dcprune.report.charts.axes import (
    CHARACTER,
    NAME_LIMIT,
    WIDTH,
    X_AXIS,
    Scale,
    gutter,
    line,
    number,
    rect,
    shortened,
    svg,
    text,
    x_axis,
)

_BAR = 13.0


@dataclass(frozen=True)
class Bars:
    """One bar per category; None leaves a gap. `spreads` are half the lengths of whiskers at their ends."""

    label: str
    values: Sequence[float | None]
    css: str
    spreads: Sequence[float] = ()


def bar_chart(
    title: str,
    categories: Sequence[str],
    groups: Sequence[Bars],
    *,
    x_label: str,
    baseline: float = 0.0,
    show: Callable[[float], str] = number,
) -> str:
    """Horizontal bars from `baseline`, one row per category and one bar per group, with their values as `show` says."""
    body, height = bar_drawing(categories, groups, x_label=x_label, baseline=baseline, show=show)
    return svg(title, height, body)


def bar_drawing(
    categories: Sequence[str],
    groups: Sequence[Bars],
    *,
    x_label: str,
    baseline: float = 0.0,
    show: Callable[[float], str] = number,
) -> tuple[list[str], float]:
    """The marks of `bar_chart`, and the height that they take."""
    values = [value for group in groups for value in group.values if value is not None]
    ends = [value + side * spread for group in groups for value, spread in _spread_bars(group) for side in (-1, 1)]
    row = _BAR * len(groups) + 9
    left, room = gutter(categories), 10 + CHARACTER * max(len(show(value)) for value in values)
    low = min(baseline, *ends)
    high = max(baseline, *ends) if low < baseline else max(baseline + 1e-9, *ends)
    x = Scale(low, high, left + (room if low < baseline else 0), WIDTH - room)
    top, bottom = 6.0, 6 + row * len(categories)
    body = [*x_axis(x, top, bottom, x_label, 4), line(x(baseline), top, x(baseline), bottom, "axis")]
    size = "value small" if len(groups) > 1 else "value"
    for index, name in enumerate(categories):
        start = top + index * row + 4.5
        body.append(text(left - 8, start + (row - 9) / 2 + 4, shortened(name, NAME_LIMIT), anchor="end"))
        for order, group in enumerate(groups):
            value = group.values[index]
            if value is not None:
                spread = group.spreads[index] if group.spreads else 0.0
                tip = f"{name}, {group.label}: {show(value)}"
                body += _bar(x, start + order * _BAR, baseline, value, spread, group.css, (show(value), size, tip))
    return body, bottom + X_AXIS


def _spread_bars(group: Bars) -> Iterator[tuple[float, float]]:
    """Every value of a group with half the length of its whisker."""
    for index, value in enumerate(group.values):
        if value is not None:
            yield value, group.spreads[index] if group.spreads else 0.0


def _bar(
    x: Scale, top: float, baseline: float, value: float, spread: float, css: str, words: tuple[str, str, str]
) -> Iterator[str]:
    """A bar with its whisker and its value; `words` are the value, the class of its text, and the tip."""
    shown, size, tip = words
    start, stop = sorted((x(baseline), x(value)))
    yield rect(start, top, stop - start, _BAR - 1, f"bar {css}", tip)
    middle = top + _BAR / 2 - 0.5
    after = value >= baseline
    if spread:
        low, high = x(max(value - spread, x.low)), x(value + spread)
        yield line(low, middle, high, middle, "whisker")
        start, stop = min(start, low), max(stop, high)
    yield text(stop + 5 if after else start - 5, middle + 3.5, shown, size, "start" if after else "end")


def share_chart(
    title: str, categories: Sequence[str], totals: Sequence[int] | None, parts: Sequence[int], *, x_label: str
) -> str:
    """What was kept of every category: a bar for all, the kept part of it filled, and the two numbers."""
    wholes = parts if totals is None else totals
    labels = [
        f"{part:,}" if totals is None else f"{part:,} of {whole:,}" for part, whole in zip(parts, wholes, strict=True)
    ]
    row, thick, top = 22.0, 13.0, 6.0
    left, room = gutter(categories), 8 + CHARACTER * max(map(len, labels))
    bottom = top + row * len(categories)
    x = Scale(0, max(*wholes, 1), left, WIDTH - room)
    body = [*x_axis(x, top, bottom, x_label, 4), line(left, top, left, bottom, "axis")]
    for index, (name, whole, part, label) in enumerate(zip(categories, wholes, parts, labels, strict=True)):
        start = top + index * row + (row - thick) / 2
        body.append(text(left - 8, start + thick - 2.5, shortened(name, NAME_LIMIT), anchor="end"))
        body.append(rect(x(part), start, x(whole) - x(part), thick, "bar dropped"))
        body.append(rect(left, start, x(part) - left, thick, "bar kept", f"{name}: {label}"))
        body.append(text(x(whole) + 6, start + thick - 2.5, label, "value"))
    return svg(title, bottom + X_AXIS, body)
