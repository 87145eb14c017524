"""Clouds of points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcprune.report.charts.axes import (
    CHARACTER,
    NAME_LIMIT,
    TOP,
    WIDTH,
    X_AXIS,
    Scale,
    padded,
    pixel,
    shortened,
    spread_apart,
    svg,
    text,
    x_axis,
    y_axis,
    y_margin,
)


@dataclass(frozen=True)
class Points:
    """A cloud: float [n, 2] and the class of its marks."""

    label: str
    xy: NDArray[np.float64]
    css: str


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
        half = CHARACTER * len(shortened(name, NAME_LIMIT)) / 2
        middle = min(max(x(place), left + half), right - half)
        body.append(text(middle, position, shortened(name, NAME_LIMIT), "halo", "middle"))
    return svg(title, height, body)
