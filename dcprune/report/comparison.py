"""A comparison of coresets as one SVG file that stands on its own."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from importlib import resources

from dcprune.artifacts import Comparison, Distances
from dcprune.errors import OptionError
from dcprune.report.charts.axes import LINE, WIDTH, pixel, text
from dcprune.report.charts.bars import Bars, bar_drawing

# Every measure with the words of its axis.
MEASURES = (
    ("frechet", "Frechet distance, lower is nearer"),
    ("mean_radius", "mean distance to the nearest kept sample"),
    ("max_radius", "longest distance to the nearest kept sample"),
    ("recall", "recall, higher is better"),
    ("coverage", "coverage, higher is better"),
    ("density", "density"),
)
_COLUMNS = 2
_MARGIN = 24
_GAP = 40
_ROW_GAP = 26
_HEAD = 5 * LINE


def comparison_svg(comparison: Comparison) -> str:
    """Bars of every coreset beside those of random choices of its size, with a standard deviation as whisker.

    Raises:
        OptionError: a comparison without distances.
    """
    if comparison.encoder is None:
        raise OptionError("A plot shows distances, so it needs --embeddings.")
    names = [each.name for each in comparison.coresets]
    panels = []
    for name, words in MEASURES:
        groups = [Bars("coreset", [getattr(each.distances, name) for each in comparison.coresets], "kept")]
        if all(each.random for each in comparison.coresets):
            found = [_mean_and_deviation(each.random, name) for each in comparison.coresets]
            groups.append(Bars("random", [mean for mean, _ in found], "dropped", [deviation for _, deviation in found]))
        panels.append(bar_drawing(names, groups, x_label=words))
    step = max(height for _, height in panels) + _ROW_GAP
    rows = -(-len(panels) // _COLUMNS)
    width = 2 * _MARGIN + _COLUMNS * WIDTH + (_COLUMNS - 1) * _GAP
    height = _MARGIN + _HEAD + rows * step
    body = [f'<rect width="{pixel(width)}" height="{pixel(height)}" class="ground"/>', *_head(comparison)]
    for position, (marks, _) in enumerate(panels):
        row, column = divmod(position, _COLUMNS)
        place = f"{pixel(_MARGIN + column * (WIDTH + _GAP))} {pixel(_MARGIN + _HEAD + row * step)}"
        body += [f'<g transform="translate({place})">', *marks, "</g>"]
    return _document(_title(comparison), width, height, body)


def _mean_and_deviation(found: Sequence[Distances], name: str) -> tuple[float, float]:
    values = [getattr(each, name) for each in found]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _title(comparison: Comparison) -> str:
    return f"Coresets of {comparison.dataset.uri} ({comparison.dataset.split})"


def _head(comparison: Comparison) -> list[str]:
    encoder = comparison.encoder
    space = f"{encoder.name}, {encoder.dim}-d" if encoder is not None else ""
    seeds = max(len(each.random) for each in comparison.coresets)
    about = f"Distance to all {comparison.dataset.num_samples:,} samples in {space}; k = {comparison.num_neighbours}"
    parts = [
        text(_MARGIN, _MARGIN + LINE, _title(comparison), "title"),
        text(_MARGIN, _MARGIN + 2.4 * LINE, about),
        *_key(0, "kept", "coreset"),
    ]
    if seeds:
        spread = " and standard deviation" if seeds > 1 else ""
        parts += _key(90, "dropped", f"random choice of the same size: mean{spread} of {seeds} seeds")
    return parts


def _key(offset: float, css: str, words: str) -> list[str]:
    base = _MARGIN + 3.8 * LINE
    swatch = f'<rect x="{pixel(_MARGIN + offset)}" y="{pixel(base - 9)}" width="10" height="10" class="bar {css}"/>'
    return [swatch, text(_MARGIN + offset + 16, base, words)]


def _document(title: str, width: float, height: float, body: Sequence[str]) -> str:
    style = resources.files("dcprune.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    size = f'viewBox="0 0 {pixel(width)} {pixel(height)}" width="{pixel(width)}" height="{pixel(height)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart standalone" role="img" {size}>'
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>\n{style}</style>", *body, "</svg>", ""])
