from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import numpy as np
import pytest

from dcprune.report.charts.axes import WIDTH
from dcprune.report.charts.bars import Bars, bar_chart, share_chart
from dcprune.report.charts.dots import Dots, Level, dot_chart
from dcprune.report.charts.histograms import bin_range, histogram, histogram_rows
from dcprune.report.charts.lines import Line, line_chart
from dcprune.report.charts.scatter import Points, scatter

EVIL = "<script>alert(1)</script>&\"'"
GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.standard_normal(500)

CHARTS: list[Callable[[str], str]] = [
    lambda name: line_chart(name, [Line(name, [1, 2], [0.5, 0.25], "s1")], x_label=name, y_label=name, log_y=True),
    lambda name: bar_chart(name, [name], [Bars(name, [2.0], "s1")], x_label=name),
    lambda name: share_chart(name, [name], [10], [3], x_label=name),
    lambda name: histogram(name, VALUES[:100], VALUES[100:], x_label=name, y_label=name, window=(-9.0, 0.5)),
    lambda name: histogram_rows(name, [name], [VALUES[:100]], [VALUES[100:]], x_label=name, windows=[(0.0, 0.5)]),
    lambda name: dot_chart(
        name,
        [Dots(name, [0.1, 0.2], [3.0, 2.0], "s1", [(2.5, 3.5), None])],
        x_label=name,
        y_label=name,
        levels=[Level(name, 1.0, "full")],
        curves=[Line("", [0.1, 0.2], [3.0, 2.0], "s1")],
        x_ticks=[(0.1, name)],
    ),
    lambda name: scatter(
        name, [Points(name, VALUES.reshape(-1, 2), "kept")], x_label=name, y_label=name, names=[(name, 0.0, 0.0)]
    ),
]


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314 (the chart is our own)


def bars(svg: str, css: str) -> list[dict[str, str]]:
    return [dict(each.attrib) for each in parse(svg).iter("rect") if css in each.attrib["class"].split()]


@pytest.mark.parametrize("chart", CHARTS)
def test_any_text_is_harmless_and_the_chart_is_well_formed(chart: Callable[[str], str]) -> None:
    svg = chart(EVIL)
    root = parse(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == EVIL
    assert "<script" not in svg
    assert not [
        each for each in root.iter() if each.tag not in {"svg", "text", "line", "rect", "title", "polyline", "path"}
    ]


@pytest.mark.parametrize("chart", CHARTS)
def test_marks_stay_inside_the_picture(chart: Callable[[str], str]) -> None:
    svg = chart("a class with quite a long name")
    _, _, width, height = map(float, parse(svg).attrib["viewBox"].split())
    for rect in parse(svg).iter("rect"):
        x, y, w, h = (float(rect.attrib[name]) for name in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height


def test_histogram_areas_are_the_counts() -> None:
    kept, dropped = VALUES[:200], VALUES[200:]
    svg = histogram("scores", kept, dropped, x_label="score", y_label="images")
    heights = {css: sum(float(bar["height"]) for bar in bars(svg, css)) for css in ("kept", "dropped")}
    assert heights["kept"] / heights["dropped"] == pytest.approx(200 / 300, rel=0.02)


def test_histogram_gathers_far_tails() -> None:
    low, high = bin_range(np.concatenate([VALUES, [1e6]]))
    assert -4 < low < high < 4
    assert bin_range(np.full(5, 2.0)) == (1.5, 2.5)
    assert bin_range(VALUES) == (VALUES.min(), VALUES.max())


def test_bar_lengths_are_proportional_and_start_at_the_baseline() -> None:
    svg = bar_chart("weights", ["a", "b", "c"], [Bars("w", [0.9, 1.0, 1.2], "s1")], x_label="weight", baseline=1.0)
    down, none, up = bars(svg, "s1")
    assert float(up["width"]) == pytest.approx(2 * float(down["width"]), abs=0.2)
    assert float(none["width"]) == 0
    assert float(down["x"]) + float(down["width"]) == pytest.approx(float(up["x"]), abs=0.11)


def test_missing_bar_leaves_a_gap() -> None:
    svg = bar_chart("fd", ["a", "b"], [Bars("x", [1.0, None], "s1"), Bars("y", [2.0, 3.0], "s2")], x_label="fd")
    assert len(bars(svg, "s1")) == 1
    assert len(bars(svg, "s2")) == 2


def test_bars_of_equal_values_can_be_drawn() -> None:
    assert len(bars(bar_chart("zero", ["a"], [Bars("x", [0.0], "s1")], x_label="x"), "s1")) == 1


def test_share_chart_without_totals_shows_the_parts_alone() -> None:
    svg = share_chart("counts", ["a", "b"], None, [3, 6], x_label="images")
    assert ">3<" in svg
    assert " of " not in svg


def test_curves_are_drawn_over_one_axis_from_zero() -> None:
    lines = [Line("", [10, 20], [1.0, 0.1], "s1"), Line("", [10, 100], [1.0, 0.01], "s2")]
    svg = line_chart("loss", lines, x_label="updates", y_label="loss", log_y=True)
    short, full = [
        [tuple(map(float, pair.split(","))) for pair in each.attrib["points"].split()]
        for each in parse(svg).iter("polyline")
    ]
    assert short[0] == full[0]
    left = full[0][0] - (full[1][0] - full[0][0]) / 9
    assert (short[1][0] - left) == pytest.approx((full[1][0] - left) / 5, abs=0.2)
    assert short[1][1] - short[0][1] == pytest.approx((full[1][1] - full[0][1]) / 2, abs=0.2)


def test_curve_of_one_point_is_a_dot() -> None:
    svg = line_chart("loss", [Line("", [6], [0.5], "s1")], x_label="updates", y_label="loss", log_y=True)
    (curve,) = parse(svg).iter("polyline")
    first, second = curve.attrib["points"].split()
    assert first == second
    assert "dot" in curve.attrib["class"].split()


def test_scatter_draws_every_point_once() -> None:
    clouds = [
        Points("dropped", VALUES[:300].reshape(-1, 2), "dropped"),
        Points("kept", VALUES[300:].reshape(-1, 2), "kept"),
    ]
    paths = [each.attrib["d"] for each in parse(scatter("map", clouds, x_label="x", y_label="y")).iter("path")]
    assert [len(re.findall("M", path)) for path in paths] == [150, 100]
    assert all(0 <= float(x) <= WIDTH for path in paths for x in re.findall(r"M(\S+) ", path))


def test_rows_over_their_own_ranges_show_classes_that_lie_far_apart() -> None:
    kept, dropped = [VALUES[:50], 1000 + VALUES[:50]], [VALUES[50:], 1000 + VALUES[50:]]
    common, own = (
        histogram_rows("scores", ["a", "b"], kept, dropped, x_label="score", own_axes=own) for own in (False, True)
    )
    assert len(bars(common, "dropped")) == 2
    assert len(bars(own, "dropped")) > 30
    first, second = ([each for each in bars(own, "kept") if (float(each["y"]) < 36) == top] for top in (True, False))
    assert [each["x"] for each in first] == [each["x"] for each in second]


def test_rows_side_by_side_cover_nothing() -> None:
    rows = [Dots(f"row {each}", [0.2], [3.0], "s1", [(2.5, 3.5)]) for each in range(3)]

    def places(*, side_by_side: bool) -> set[str]:
        svg = dot_chart("chart", rows, x_label="x", y_label="y", side_by_side=side_by_side)
        return {each.attrib["d"] for each in parse(svg).iter("path") if "dots" in each.attrib["class"].split()}

    assert (len(places(side_by_side=False)), len(places(side_by_side=True))) == (1, 3)
