"""The value of one metric, with its intervals, its sweep over numbers of images and its values per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dcprune.artifacts import Extrapolation, MetricValue, SweepValue
from dcprune.evaluation.choosing import NamedMetric
from dcprune.evaluation.classes import ClassValues, class_values, over_seeds
from dcprune.evaluation.resampling import ALONE, Plan, over_sets, points_at
from dcprune.evaluation.sides import Reference, needs_reference
from dcprune.interfaces import Features, Gaussian, Progress


def measure(
    named: NamedMetric,
    sets: Sequence[Features],
    reference: Reference | None,
    *,
    plan: Plan = ALONE,
    label: str = "",
    protocol: Mapping[str, Any],
    class_names: Sequence[str] = (),
    progress: Progress,
) -> MetricValue:
    """The value of one metric, and what `plan` asks for.

    Args:
        named: the metric.
        sets: generated images, a set of at least two for every seed.
        reference: through the same encoder, with labels in the same class order; None where the metric needs none.
        plan: intervals and numbers of images.
        label: what the images are when they are not generated; put behind the metric's name.
        protocol: what else must agree before two values may be compared.
        class_names: names of the classes, to have values per class as well.
        progress: for warnings.

    Raises:
        InputError: a reference that the metric cannot use.
        DcpruneError: the value is not finite.
    """
    name = f"{named.name} ({label})" if label else named.name
    reference = reference if needs_reference(named.metric) else None
    real = None if reference is None else reference.for_metric(named.metric)
    num_reference = 0 if reference is None else reference.count(named.metric)
    numbers = plan.numbers or (len(sets[0].features),)
    points = [points_at(named, each, real, numbers, plan) for each in sets]
    combined = [over_sets([of_set[column] for of_set in points], plan) for column in range(len(points[0]))]
    _warn_about_numbers(name, named, sets[0], real, num_reference, progress)
    classes = over_seeds([class_values(named, each, reference, class_names) for each in sets])
    full_protocol = {**named.metric.protocol(), **protocol}
    if classes is not None:
        _note_missing_classes(name, named, classes, class_names, sets[0], num_reference, progress)
        if classes.values:
            full_protocol["per_class"] = {
                "num_generated": classes.num_generated,
                "num_reference": classes.num_reference,
            }
    at_numbers = combined[: len(numbers)]
    limit = combined[-1] if len(combined) > len(numbers) else None
    return MetricValue(
        name=name,
        value=at_numbers[-1].value,
        num_generated=numbers[-1],
        num_reference=num_reference,
        protocol=full_protocol,
        per_class=classes.values if classes is not None and classes.values else None,
        std=points[0][len(numbers) - 1].std,
        interval=at_numbers[-1].interval,
        seed_values=tuple(of_set[len(numbers) - 1].value for of_set in points) if len(sets) > 1 else (),
        sweep=tuple(
            SweepValue(num_generated=number, value=each.value, interval=each.interval)
            for number, each in zip(numbers, at_numbers, strict=True)
        )
        if len(numbers) > 1
        else (),
        extrapolated=None
        if limit is None
        else Extrapolation(value=limit.value, slope=limit.slope, interval=limit.interval),
        reference_sha256=None if reference is None else reference.sha256(named.metric),
    )


# --- warnings ---------------------------------------------------------------------------------------------------------


def _warn_about_numbers(
    name: str,
    named: NamedMetric,
    generated: Features,
    real: Features | Gaussian | None,
    num_reference: int,
    progress: Progress,
) -> None:
    count, dim = generated.features.shape
    needed = named.metric.min_samples(dim)
    if real is None and count < needed:
        progress.warn(
            f"{name}: {count} images; below {needed}, its value says little and may only be compared at the same "
            "number."
        )
    elif real is not None and min(count, num_reference or count) < needed:
        progress.warn(
            f"{name}: {count} images against {num_reference}; below {needed} each, its value says little and may only "
            "be compared at the same numbers."
        )
    if count > 1 and not np.ptp(generated.features, axis=0).any():
        progress.warn(f"{name}: all {count} images are the same to the encoder.")


def _note_missing_classes(
    name: str,
    named: NamedMetric,
    classes: ClassValues,
    class_names: Sequence[str],
    generated: Features,
    num_reference: int,
    progress: Progress,
) -> None:
    count, dim = generated.features.shape
    needed = named.metric.min_samples(dim)
    if len(classes.values) < len(class_names) and min(count, num_reference or count) >= needed:
        progress.note(
            f"{name}: no values for {len(class_names) - len(classes.values)} of {len(class_names)} classes, which have "
            f"fewer than {needed} generated or reference images."
        )
