"""Charts as SVG strings: lines, horizontal bars, shares, a stacked histogram, a scatter plot. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcprune.report.axes import (
    CHARACTER,
    LINE,
    WIDTH,
    Scale,
    line,
    number,
    padded,
    pixel,
    rect,
    shortened,
    spread_apart,
    svg,
    text,
    x_axis,
    y_axis,
    y_margin,
)

TOP = 28
X_AXIS = 2 * LINE + 10
_NAME_LIMIT = 18
_BAR = 13.0


@dataclass(frozen=True)
class Line:
    """One curve. `css` names its colour; `label` stands at its end, none when empty."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    css: str


@dataclass(frozen=True)
class Bars:
    """One bar per category; None leaves a gap. `spreads` are half the lengths of whiskers at their ends."""

    label: str
    values: Sequence[float | None]
    css: str
    spreads: Sequence[float] = ()


@dataclass(frozen=True)
class Points:
    """A cloud: float [n, 2] and the class of its marks."""

    label: str
    xy: NDArray[np.float64]
    css: str


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, y_label: str, log_y: bool = False, height: float = 290
) -> str:
    """Curves over a common axis that starts at 0; those with a label are named at the right end."""
    bottom = height - X_AXIS
    low, high = padded([value for each in lines for value in each.y], log=log_y)
    left = y_margin(low, high, log_y)
    longest = max(len(shortened(each.label, _NAME_LIMIT)) for each in lines)
    right = WIDTH - (14 + CHARACTER * longest if longest else 10)
    x = Scale(0, max(1.0, *(max(each.x) for each in lines)), left, right)
    y = Scale(low, high, bottom, TOP, log_y)
    body = [*y_axis(y, left, right, y_label), *x_axis(x, bottom, bottom, x_label, 4)]
    for each in lines:
        points = [f"{pixel(x(a))},{pixel(y(b))}" for a, b in zip(each.x, each.y, strict=True)]
        drawn = points if len(points) > 1 else 2 * points  # a curve of one point becomes a dot
        body.append(
            f'<polyline points="{" ".join(drawn)}" class="line {each.css}{"" if len(points) > 1 else " dot"}"/>'
        )
    named = [each for each in lines if each.label]
    heights = spread_apart([y(each.y[-1]) + 4 for each in named], TOP + 4, bottom)
    for each, position in zip(named, heights, strict=True):
        body.append(text(right + 6, position, shortened(each.label, _NAME_LIMIT), f"name {each.css}"))
    return svg(title, height, body)


def _gutter(categories: Sequence[str]) -> float:
    return 12 + CHARACTER * max(len(shortened(name, _NAME_LIMIT)) for name in categories)


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
    left, room = _gutter(categories), 10 + CHARACTER * max(len(show(value)) for value in values)
    spread = max(max(abs(value - baseline) for value in ends), 1e-9)
    low = baseline - spread if min(values) < baseline else baseline
    high = baseline + spread if max(values) > baseline else baseline + (spread if low == baseline else 0)
    x = Scale(low, high, left + (room if low < baseline else 0), WIDTH - room)
    top, bottom = 6.0, 6 + row * len(categories)
    body = [*x_axis(x, top, bottom, x_label, 4), line(x(baseline), top, x(baseline), bottom, "axis")]
    size = "value small" if len(groups) > 1 else "value"
    for index, name in enumerate(categories):
        start = top + index * row + 4.5
        body.append(text(left - 8, start + (row - 9) / 2 + 4, shortened(name, _NAME_LIMIT), anchor="end"))
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
    left, room = _gutter(categories), 8 + CHARACTER * max(map(len, labels))
    bottom = top + row * len(categories)
    x = Scale(0, max(*wholes, 1), left, WIDTH - room)
    body = [*x_axis(x, top, bottom, x_label, 4), line(left, top, left, bottom, "axis")]
    for index, (name, whole, part, label) in enumerate(zip(categories, wholes, parts, labels, strict=True)):
        start = top + index * row + (row - thick) / 2
        body.append(text(left - 8, start + thick - 2.5, shortened(name, _NAME_LIMIT), anchor="end"))
        body.append(rect(x(part), start, x(whole) - x(part), thick, "bar dropped"))
        body.append(rect(left, start, x(part) - left, thick, "bar kept", f"{name}: {label}"))
        body.append(text(x(whole) + 6, start + thick - 2.5, label, "value"))
    return svg(title, bottom + X_AXIS, body)


def histogram(
    title: str,
    kept: NDArray[np.float64],
    dropped: NDArray[np.float64],
    *,
    x_label: str,
    y_label: str,
    bins: int = 48,
    height: float = 290,
) -> str:
    """Stacked counts, the kept samples at the bottom. Values beyond a far tail are counted in the outermost bins."""
    edges = np.linspace(*bin_range(np.concatenate([kept, dropped])), bins + 1)
    below, above = (np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for part in (kept, dropped))
    highest = float((below + above).max()) * 1.04
    bottom, left, right = height - X_AXIS, y_margin(0, highest), WIDTH - 12.0
    x, y = Scale(float(edges[0]), float(edges[-1]), left, right), Scale(0, highest, bottom, TOP)
    body = [*y_axis(y, left, right, y_label), *x_axis(x, bottom, bottom, x_label)]
    for index, (first, second) in enumerate(zip(below.tolist(), above.tolist(), strict=True)):
        start, width = x(float(edges[index])), x(float(edges[index + 1])) - x(float(edges[index])) - 0.8
        tip = f"{number(edges[index])} to {number(edges[index + 1])}: {first:,} kept, {second:,} dropped"
        if second:
            body.append(rect(start, y(first + second), width, y(first) - y(first + second), "bar dropped", tip))
        if first:
            body.append(rect(start, y(first), width, bottom - y(first), "bar kept", tip))
    body.append(line(left, bottom, right, bottom, "axis"))
    return svg(title, height, body)


def histogram_rows(
    title: str,
    categories: Sequence[str],
    kept: Sequence[NDArray[np.float64]],
    dropped: Sequence[NDArray[np.float64]],
    *,
    x_label: str,
    bins: int = 48,
) -> str:
    """A small stacked histogram per category over one axis, each scaled to its own highest bin."""
    edges = np.linspace(*bin_range(np.concatenate([*kept, *dropped])), bins + 1)
    row, top, left, right = 32.0, 4.0, _gutter(categories), WIDTH - 12.0
    bottom = top + row * len(categories)
    x = Scale(float(edges[0]), float(edges[-1]), left, right)
    body = x_axis(x, top, bottom, x_label)
    width = x(float(edges[1])) - left - 0.8
    for index, name in enumerate(categories):
        base = top + row * (index + 1)
        below, above = (np.histogram(np.clip(part[index], edges[0], edges[-1]), edges)[0] for part in (kept, dropped))
        y = Scale(0, max(1, int((below + above).max())), base, base - row + 5)
        for start, first, second in zip(edges.tolist(), below.tolist(), above.tolist(), strict=False):
            if second:
                body.append(rect(x(start), y(first + second), width, y(first) - y(first + second), "bar dropped"))
            if first:
                body.append(rect(x(start), y(first), width, base - y(first), "bar kept"))
        body.append(line(left, base, right, base, "grid"))
        body.append(text(left - 8, base - 6, shortened(name, _NAME_LIMIT), anchor="end"))
    return svg(title, bottom + X_AXIS, body)


def bin_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """The range a histogram shows: all of it, or the middle 99 % when the tails would take more than half the width."""
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = (float(each) for each in np.quantile(values, (0.005, 0.995)))
    if high - low > 2 * (inner_high - inner_low) > 0:
        return inner_low, inner_high
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def scatter(
    title: str,
    clouds: Sequence[Points],
    *,
    x_label: str,
    y_label: str,
    names: Sequence[tuple[str, float, float]] = (),
    height: float = 400,
) -> str:
    """Points on two axes of one unit; `names` are written at their places."""
    everything = np.concatenate([cloud.xy for cloud in clouds])
    (x_low, x_high), (y_low, y_high) = (padded(everything[:, axis].tolist()) for axis in (0, 1))
    bottom, left, right = height - X_AXIS, y_margin(y_low, y_high), WIDTH - 10.0
    x, y = Scale(x_low, x_high, left, right), Scale(y_low, y_high, bottom, TOP)
    body = [*y_axis(y, left, right, y_label), *x_axis(x, TOP, bottom, x_label)]
    for cloud in clouds:
        # One path of zero-length strokes with round caps is a tenth of the size of as many circles.
        marks = "".join(f"M{pixel(x(a))} {pixel(y(b))}h0" for a, b in cloud.xy.tolist())
        body.append(f'<path d="{marks}" class="points {cloud.css}"/>')
    heights = spread_apart([y(place) + 4 for _, _, place in names], TOP + 10, bottom - 4)
    for (name, place, _), position in zip(names, heights, strict=True):
        half = CHARACTER * len(shortened(name, _NAME_LIMIT)) / 2
        middle = min(max(x(place), left + half), right - half)
        body.append(text(middle, position, shortened(name, _NAME_LIMIT), "halo", "middle"))
    return svg(title, height, body)
