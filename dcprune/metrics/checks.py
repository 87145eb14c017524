"""What every metric asks of its two sets of features before it starts."""

from __future__ import annotations

from dcprune.artifacts import Rows
from dcprune.errors import InputError
from dcprune.interfaces import Features


def checked_rows(
    metric: str, generated: Features, reference: Features, *, least_generated: int = 1, least_reference: int = 1
) -> tuple[Rows, Rows]:
    """The features of both sides as matrices of one width, all finite, with rows enough.

    Args:
        metric: what messages call the metric, `"CMMD"`.
        generated: features [N, D].
        reference: features [M, D].
        least_generated: fewest generated rows.
        least_reference: fewest reference rows.

    Raises:
        InputError: another shape, unlike widths, values that are not finite, or fewer rows than are needed.
    """
    sides = (("generated", generated, least_generated), ("reference", reference, least_reference))
    found = []
    for name, side, least in sides:
        if side.features.ndim != 2 or not side.features.shape[1]:
            raise InputError(f"The {name} features have shape {side.features.shape}, not [N, D].")
        if len(side.features) < least:
            raise InputError(f"{metric} needs at least {least} {name} images; there {_are(len(side.features))}.")
        rows = Rows([side.features])
        bad = rows.first_not_finite()
        if bad is not None:
            raise InputError(f"The {name} features are not finite (NaN or infinity) in row {bad}.")
        found.append(rows)
    if found[0].shape[1] != found[1].shape[1]:
        raise InputError(
            f"The features have {found[0].shape[1]} and {found[1].shape[1]} dimensions; compare those of one encoder."
        )
    return found[0], found[1]


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"
