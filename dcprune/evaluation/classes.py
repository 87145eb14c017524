"""A metric within every class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dcprune.evaluation.choosing import NamedMetric
from dcprune.evaluation.resampling import finite
from dcprune.evaluation.sides import Reference, needs_reference, select_rows
from dcprune.interfaces import Features


@dataclass(frozen=True)
class ClassValues:
    """A metric within every class that has images enough, always with the same number of images."""

    values: dict[str, float]
    num_generated: int
    num_reference: int


def class_values(
    named: NamedMetric, generated: Features, reference: Reference | None, class_names: Sequence[str]
) -> ClassValues | None:
    """Values per class, from the first images of each; None without labels.

    The numbers of images are equal in all classes, because the bias of most metrics depends on them.
    """
    sides = [generated]
    if needs_reference(named.metric):
        if reference is None or reference.features is None:
            return None
        sides.append(reference.features)
    if not class_names or any(side.labels is None for side in sides):
        return None
    rows = [[np.flatnonzero(side.labels == label) for label in range(len(class_names))] for side in sides]
    needed = max(2, named.metric.min_samples(generated.features.shape[1]))
    kept = [label for label in range(len(class_names)) if min(len(of_side[label]) for of_side in rows) >= needed]
    numbers = [min((len(of_side[label]) for label in kept), default=0) for of_side in rows]
    values = {}
    for label in kept:
        parts = [
            select_rows(side, of_side[label][:number])
            for side, of_side, number in zip(sides, rows, numbers, strict=True)
        ]
        values[class_names[label]] = finite(named, named.metric.value(parts[0], parts[1] if len(parts) > 1 else None))
    return ClassValues(values, numbers[0], numbers[1] if len(numbers) > 1 else 0)


def over_seeds(found: Sequence[ClassValues | None]) -> ClassValues | None:
    """The mean of every class over several sets of images, whose numbers are the same."""
    first = found[0]
    if first is None or len(found) == 1:
        return first
    values = [each.values for each in found if each is not None]
    means = {name: float(np.mean([each[name] for each in values])) for name in first.values}
    return replace(first, values=means)
