"""Scales, ticks, axes and text of the SVG charts.

Colours are CSS classes, so that the page's style sheet decides them and a chart follows light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 430
CHARACTER = 6.9  # mean width of a character of the 12.8 px chart type, for margins
LINE = 15  # least distance between two lines of text
TOP = 28  # where a chart with a vertical axis starts: below the name of that
X_AXIS = 2 * LINE + 10  # height of a horizontal axis with its numbers and its name
NAME_LIMIT = 18  # characters of a category's name


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` significant digits, thousands separated, a true minus sign."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}".replace("-", "\N{MINUS SIGN}")
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def trimmed(value: float, digits: int = 4) -> str:
    """A tick or a setting: four digits at most, without zeros at the end."""
    text = number(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def tick_numbers(ticks: Sequence[float]) -> list[str]:
    """The numbers of an axis, with as many digits as tell them apart."""
    for digits in range(4, 16):
        found = [trimmed(tick, digits) for tick in ticks]
        if len(set(found)) == len(ticks):
            break
    return found


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to pixels in [start, stop], linearly or by logarithm (low > 0)."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._warp(self.low), self._warp(self.high)
        return self.start + (self._warp(value) - low) / (high - low) * (self.stop - self.start)

    def _warp(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the range: 1, 2 or 5 times a power of ten."""
        if not self.log:
            return linear_ticks(self.low, self.high, count)
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for steps in ((1,), (1, 3), (1, 2, 5)):
            found = [s * 10.0**e for e in range(first, last + 1) for s in steps if self.low <= s * 10.0**e <= self.high]
            if len(found) >= 3:
                return found
        return linear_ticks(self.low, self.high, count)


def linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round values in [low, high]."""
    rough = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor, up_to in ((1, 1.4), (2, 3.2), (5, 7.1), (10, 11)) if rough <= up_to * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.04, log: bool = False) -> tuple[float, float]:
    """The range of `values` with a margin on both sides; never empty."""
    low, high = min(values), max(values)
    if log:
        low, high = math.log10(low), math.log10(high)
    spread = (high - low) or abs(high) or 1.0
    low, high = low - share * spread, high + share * spread
    return (10**low, 10**high) if log else (low, high)


def pixel(value: float) -> str:
    """A coordinate to a tenth of a pixel."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start", rotate: bool = False) -> str:
    """A line of text whose content may come from a user."""
    turned = f' transform="rotate(-90 {pixel(x)} {pixel(y)})"' if rotate else ""
    styled = f' class="{css}"' if css else ""
    aligned = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{pixel(x)}" y="{pixel(y)}"{styled}{aligned}{turned}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    return f'<line x1="{pixel(x1)}" y1="{pixel(y1)}" x2="{pixel(x2)}" y2="{pixel(y2)}" class="{css}"/>'


def rect(x: float, y: float, width: float, height: float, css: str, tip: str = "") -> str:
    place = f'x="{pixel(x)}" y="{pixel(y)}" width="{pixel(max(0.0, width))}" height="{pixel(max(0.0, height))}"'
    return (
        f'<rect {place} class="{css}"><title>{escape(tip)}</title></rect>' if tip else f'<rect {place} class="{css}"/>'
    )


def polyline(xs: Sequence[float], ys: Sequence[float], x: Scale, y: Scale, css: str) -> str:
    """A line through points in the units of two scales."""
    points = " ".join(f"{pixel(x(a))},{pixel(y(b))}" for a, b in zip(xs, ys, strict=True))
    return f'<polyline points="{points}" class="{css}"/>'


def shortened(label: str, limit: int) -> str:
    """`label` cut to `limit` characters."""
    return label if len(label) <= limit else label[: limit - 1].rstrip() + "…"


def told_apart(labels: Sequence[str], limit: int) -> list[str]:
    """Labels cut to `limit` characters, in the middle where cut ends would make some of them equal."""
    cut = [shortened(label, limit) for label in labels]
    if len(set(cut)) == len(set(labels)):
        return cut
    head = limit // 3
    return [each if len(each) <= limit else f"{each[:head]}…{each[head + 1 - limit :]}" for each in labels]


def svg(title: str, height: float, body: Sequence[str]) -> str:
    """A chart with its accessible name; `height` in the units of `WIDTH`."""
    name = escape(title, quote=True)
    joined = "\n".join(body)
    return f'<svg class="chart" role="img" aria-label="{name}" viewBox="0 0 {WIDTH} {pixel(height)}">\n{joined}\n</svg>'


def x_axis(scale: Scale, top: float, bottom: float, label: str, count: int = 5) -> list[str]:
    """Vertical grid lines with numbers below, and the axis label below those."""
    parts = []
    ticks = scale.ticks(count)
    for tick, shown in zip(ticks, tick_numbers(ticks), strict=True):
        parts.append(line(scale(tick), top, scale(tick), bottom, "grid"))
        parts.append(text(scale(tick), bottom + LINE, shown, anchor="middle"))
    parts.append(text((scale.start + scale.stop) / 2, bottom + 2 * LINE + 4, label, "label", "middle"))
    return parts


def y_axis(scale: Scale, left: float, right: float, label: str) -> list[str]:
    """Horizontal grid lines with numbers on the left, and the axis label above them."""
    parts = [text(0, scale.stop - 12, label, "label")]
    ticks = scale.ticks()
    for tick, shown in zip(ticks, tick_numbers(ticks), strict=True):
        parts.append(line(left, scale(tick), right, scale(tick), "grid"))
        parts.append(text(left - 6, scale(tick) + 4, shown, anchor="end"))
    return parts


def y_margin(low: float, high: float, log: bool = False) -> float:
    """Room for the widest tick number of a vertical axis."""
    ticks = Scale(low, high, 1, 0, log).ticks()
    return 12 + CHARACTER * max(map(len, tick_numbers(ticks)), default=1)


def gutter(categories: Sequence[str]) -> float:
    """Room on the left for the names of rows."""
    return 12 + CHARACTER * max(len(shortened(name, NAME_LIMIT)) for name in categories)


def spread_apart(positions: Sequence[float], low: float, high: float, gap: float = LINE) -> list[float]:
    """Label positions moved as little as needed so that neighbours are `gap` apart, kept in [low, high]."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    placed: list[float] = []
    for index in order:
        placed.append(max(positions[index], placed[-1] + gap) if placed else max(low, positions[index]))
    ceiling = high
    for rank in range(len(placed) - 1, -1, -1):
        placed[rank] = min(placed[rank], ceiling)
        ceiling = placed[rank] - gap
    result = [0.0] * len(positions)
    for rank, index in enumerate(order):
        result[index] = placed[rank]
    return result
