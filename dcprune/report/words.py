"""Shares and lists as people write them."""

from __future__ import annotations

from collections.abc import Sequence

from dcprune.report.charts.axes import number


def percent(share: float) -> str:
    """A share as a percentage, the sign kept on the line of its number."""
    return f"{number(100 * share, 2 if share < 0.995 else 3)}\N{NO-BREAK SPACE}%"


def enumerated(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)
