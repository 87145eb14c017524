"""Curves over a common axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dcprune.report.charts.axes import (
    CHARACTER,
    NAME_LIMIT,
    TOP,
    WIDTH,
    X_AXIS,
    Scale,
    padded,
    polyline,
    shortened,
    spread_apart,
    svg,
    text,
    x_axis,
    y_axis,
    y_margin,
)


@dataclass(frozen=True)
class Line:
    """One curve. `css` names its colour; `label` stands at its end, none when empty."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    css: str


def line_chart(
    title: str, lines: Sequence[Line], *, x_label: str, y_label: str, log_y: bool = False, height: float = 290
) -> str:
    """Curves over a common axis that starts at 0; those with a label are named at the right end."""
    bottom = height - X_AXIS
    low, high = padded([value for each in lines for value in each.y], log=log_y)
    left = y_margin(low, high, log_y)
    longest = max(len(shortened(each.label, NAME_LIMIT)) for each in lines)
    right = WIDTH - (14 + CHARACTER * longest if longest else 10)
    x = Scale(0, max(1.0, *(max(each.x) for each in lines)), left, right)
    y = Scale(low, high, bottom, TOP, log_y)
    body = [*y_axis(y, left, right, y_label), *x_axis(x, bottom, bottom, x_label, 4)]
    for each in lines:
        if len(each.x) > 1:
            body.append(polyline(each.x, each.y, x, y, f"line {each.css}"))
        else:  # a curve of one point becomes a dot
            body.append(polyline(2 * list(each.x), 2 * list(each.y), x, y, f"line {each.css} dot"))
    named = [each for each in lines if each.label]
    heights = spread_apart([y(each.y[-1]) + 4 for each in named], TOP + 4, bottom)
    for each, position in zip(named, heights, strict=True):
        body.append(text(right + 6, position, shortened(each.label, NAME_LIMIT), f"name {each.css}"))
    return svg(title, height, body)
