from __future__ import annotations

import math
from itertools import pairwise

import pytest

from dcprune.report.charts.axes import Scale, linear_ticks, number, padded, pixel, spread_apart, tick_numbers, trimmed


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.14159, "3.14"),
        (12345.6, "12,346"),
        (0.00123, "0.00123"),
        (-2.5, "\N{MINUS SIGN}2.50"),
        (1.5e7, "1.5e7"),
        (2e-6, "2e\N{MINUS SIGN}6"),
    ],
)
def test_numbers_read_well(value: float, text: str) -> None:
    assert number(value) == text


def test_numbers_of_an_axis_can_be_told_apart() -> None:
    assert tick_numbers([0.1, 0.2]) == ["0.1", "0.2"]
    assert tick_numbers(linear_ticks(0.17042, 0.17058)) == ["0.17045", "0.1705", "0.17055"]
    assert tick_numbers([10_000.0, 10_001.0]) == ["10,000", "10,001"]
    assert tick_numbers([]) == []


def test_settings_have_no_trailing_zeros() -> None:
    assert [trimmed(value) for value in (1.0, 0.001, 100.0, 0.25)] == ["1", "0.001", "100", "0.25"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3.7, 4.2), (1e-6, 3e-6), (0, 12345), (0.93, 1.08)])
def test_linear_ticks_are_round_inside_and_evenly_spaced(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    steps = [b - a for a, b in pairwise(ticks)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0] * (1 + 1e-9)))
    assert any(mantissa == pytest.approx(round_value) for round_value in (1, 2, 5))


def test_scale_maps_its_ends_and_logarithms() -> None:
    scale = Scale(0.01, 100, 10, 50, log=True)
    assert (scale(0.01), scale(1), scale(100)) == pytest.approx((10, 30, 50))
    assert scale.ticks() == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_range_of_one_value_is_not_empty() -> None:
    for value in (0.0, 5.0, -2.0):
        low, high = padded([value])
        assert low < value < high


def test_coordinates_have_no_negative_zero() -> None:
    assert [pixel(value) for value in (-0.01, 0.04, 2.0, -1.25)] == ["0", "0", "2", "-1.2"]


def test_labels_are_spread_without_changing_their_order() -> None:
    placed = spread_apart([50, 51, 52, 10, 99], 0, 100, gap=15)
    ordered = sorted(placed)
    assert all(b - a >= 15 - 1e-9 for a, b in pairwise(ordered))
    assert max(placed) <= 100
    assert placed[0] < placed[1] < placed[2]
    assert placed[3] == 10
