"""Histograms of what was kept and what was dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dcprune.report.charts.axes import (
    LINE,
    NAME_LIMIT,
    TOP,
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
    y_axis,
    y_margin,
)

Window = tuple[float, float]
BINS = 48


def histogram(
    title: str,
    kept: NDArray[np.float64],
    dropped: NDArray[np.float64],
    *,
    x_label: str,
    y_label: str,
    window: Window | None = None,
    bins: int = BINS,
    height: float = 290,
) -> str:
    """Stacked counts, the kept samples at the bottom, over the window that was kept.

    Values beyond a far tail are counted in the outermost bins.
    """
    edges = np.linspace(*bin_range(np.concatenate([kept, dropped])), bins + 1)
    below, above = (np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for part in (kept, dropped))
    highest = float((below + above).max()) * 1.04
    bottom, left, right = height - X_AXIS, y_margin(0, highest), WIDTH - 12.0
    x, y = Scale(float(edges[0]), float(edges[-1]), left, right), Scale(0, highest, bottom, TOP)
    body = [*y_axis(y, left, right, y_label), *x_axis(x, bottom, bottom, x_label)]
    marks = _marked(x, window, TOP, bottom)
    body += marks[:1]
    for index, (first, second) in enumerate(zip(below.tolist(), above.tolist(), strict=True)):
        start, width = x(float(edges[index])), x(float(edges[index + 1])) - x(float(edges[index])) - 0.8
        tip = f"{number(edges[index])} to {number(edges[index + 1])}: {first:,} kept, {second:,} dropped"
        if second:
            body.append(rect(start, y(first + second), width, y(first) - y(first + second), "bar dropped", tip))
        if first:
            body.append(rect(start, y(first), width, bottom - y(first), "bar kept", tip))
    return svg(title, height, [*body, *marks[1:], line(left, bottom, right, bottom, "axis")])


def histogram_rows(
    title: str,
    categories: Sequence[str],
    kept: Sequence[NDArray[np.float64]],
    dropped: Sequence[NDArray[np.float64]],
    *,
    x_label: str,
    windows: Sequence[Window | None] = (),
    own_axes: bool = False,
    bins: int = BINS,
) -> str:
    """A small stacked histogram per category, each scaled to its own highest bin, over its window.

    All are over one axis, or, with `own_axes`, each over the range of its own values.
    """
    row, top, left, right = 32.0, 4.0, gutter(categories), WIDTH - 12.0
    bottom = top + row * len(categories)
    common = bin_range(np.concatenate([*kept, *dropped]))
    if own_axes:
        body = [text((left + right) / 2, bottom + LINE, x_label, "label", "middle")]
    else:
        body = x_axis(Scale(*common, left, right), top, bottom, x_label)
    for index, name in enumerate(categories):
        some, others = kept[index], dropped[index]
        x = Scale(*(bin_range(np.concatenate([some, others])) if own_axes else common), left, right)
        base = top + row * (index + 1)
        marks = _marked(x, windows[index] if windows else None, base - row + 2, base)
        body += [*marks[:1], *_row_bars(x, some, others, base, row - 5, bins), *marks[1:]]
        body += [
            line(left, base, right, base, "grid"),
            text(left - 8, base - 6, shortened(name, NAME_LIMIT), anchor="end"),
        ]
    return svg(title, bottom + (2 * LINE if own_axes else X_AXIS), body)


def _row_bars(
    x: Scale, kept: NDArray[np.float64], dropped: NDArray[np.float64], base: float, height: float, bins: int
) -> Iterator[str]:
    edges = np.linspace(x.low, x.high, bins + 1)
    below, above = (np.histogram(np.clip(part, edges[0], edges[-1]), edges)[0] for part in (kept, dropped))
    y = Scale(0, max(1, int((below + above).max())), base, base - height)
    width = x(float(edges[1])) - x.start - 0.8
    for start, first, second in zip(edges.tolist(), below.tolist(), above.tolist(), strict=False):
        if second:
            yield rect(x(start), y(first + second), width, y(first) - y(first + second), "bar dropped")
        if first:
            yield rect(x(start), y(first), width, base - y(first), "bar kept")


def _marked(x: Scale, window: Window | None, top: float, bottom: float) -> list[str]:
    """The ground of a window, for behind the bars, and its edges, for above them; all of it ends with the axis."""
    if window is None:
        return []
    start, stop = (min(max(x(value), x.start), x.stop) for value in window)
    edges = [line(place, top, place, bottom, "edge") for place in (start, stop)]
    return [rect(start, top, stop - start, bottom - top, "window"), *edges]


def bin_range(values: NDArray[np.float64]) -> tuple[float, float]:
    """The range a histogram shows: all of it, or the middle 99 % when the tails would take more than half the width."""
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = (float(each) for each in np.quantile(values, (0.005, 0.995)))
    if high - low > 2 * (inner_high - inner_low) > 0:
        return inner_low, inner_high
    return (low, high) if high > low else (low - 0.5, high + 0.5)
