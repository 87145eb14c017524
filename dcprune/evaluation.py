"""From the metrics that a user names to their values: which settings go where, overall values and values per class."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import MetricValue
from dcprune.errors import DcpruneError, OptionError, UnknownName
from dcprune.interfaces import EncoderChoice, Features, Metric, Progress
from dcprune.plugins import converted, registry

# Constructor arguments that have a way of their own to be given.
_NO_SETTINGS = ("argument", "weights")

Weights = Mapping[str, Path | str] | Path | str | None


@dataclass(frozen=True)
class NamedMetric:
    """A metric under the name it was asked for, and the encoder it needs with all of its settings."""

    name: str
    metric: Metric
    encoder: EncoderChoice


def create_metrics(names: Sequence[str], settings: Mapping[str, Any], weights: Weights) -> tuple[NamedMetric, ...]:
    """Construct metrics; each setting goes to every metric and every encoder that has it.

    Args:
        names: registered metrics (`"fid"`, `"fd:resnet18"`), each of which counts once.
        settings: of the metrics and of their encoders; strings are converted.
        weights: the encoders' weights: one path for all, or a path for each metric that is named.

    Raises:
        OptionError: no names, a value that does not fit, or weights for a metric that takes none.
        UnknownName: an unknown metric or encoder, a setting that none of them has, or weights for an absent metric.
        PluginError: a metric or an encoder does not load.
    """
    if not names:
        raise OptionError(f"Name a metric. Known: {', '.join(registry().names('metric'))}.")
    settings = {name.replace("-", "_"): value for name, value in settings.items()}
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in names:
                raise UnknownName("metric with weights", name, names)
    known: set[str] = set()
    found = []
    for name in dict.fromkeys(names):
        path = weights.get(name) if isinstance(weights, Mapping) else weights
        named, its_settings = _create(name, settings, path)
        found.append(named)
        known |= its_settings
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of {', '.join(names)}:", name, known)
    return tuple(found)


def _create(name: str, settings: Mapping[str, Any], weights: Path | str | None) -> tuple[NamedMetric, set[str]]:
    """One metric, and the names of all settings that it and its encoder have."""
    target = registry().get("metric", name)[0].load()
    own = _setting_names(target)
    fixed = {}
    if weights is not None:
        if "weights" not in inspect.signature(target).parameters:
            raise OptionError(f"The metric {name!r} takes no weights.")
        fixed["weights"] = str(weights)
    metric: Metric = registry().create("metric", name, {k: v for k, v in settings.items() if k in own}, **fixed)
    choice = metric.encoder
    encoder = registry().get("encoder", choice.name)[0].load()
    its = _setting_names(encoder)
    passed = {k: v for k, v in settings.items() if k in its and k not in choice.settings}
    resolved = converted(encoder, {**choice.settings, **passed}, f"encoder {choice.name!r}")
    return NamedMetric(name, metric, replace(choice, settings=resolved)), own | its


def _setting_names(target: Callable[..., Any]) -> set[str]:
    parameters = inspect.signature(target).parameters.values()
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {each.name for each in parameters if each.kind in kinds and each.name not in _NO_SETTINGS}


def measure(
    named: NamedMetric,
    generated: Features,
    reference: Features,
    *,
    label: str = "",
    protocol: Mapping[str, Any],
    class_names: Sequence[str] = (),
    progress: Progress,
) -> MetricValue:
    """The value of one metric.

    Args:
        named: the metric.
        generated: at least two images.
        reference: at least two images, through the same encoder, with labels in the same class order.
        label: what the images are when they are not generated; put behind the metric's name.
        protocol: what else must agree before two values may be compared.
        class_names: names of the classes, to have values per class as well.
        progress: for warnings.

    Raises:
        DcpruneError: the value is not finite.
    """
    name = f"{named.name} ({label})" if label else named.name
    counts = len(generated.features), len(reference.features)
    value = _finite(named, generated, reference)
    needed = named.metric.min_samples(reference.features.shape[1])
    if min(counts) < needed:
        progress.warn(
            f"{name}: {counts[0]} images against {counts[1]}; below {needed} each, its value says little and may only "
            "be compared at the same numbers."
        )
    classes = _class_values(named, generated, reference, class_names)
    if classes is not None and len(classes.values) < len(class_names) and min(counts) >= needed:
        progress.note(
            f"{name}: no values for {len(class_names) - len(classes.values)} of {len(class_names)} classes, which have "
            f"fewer than {needed} generated or reference images."
        )
    full_protocol = {**named.metric.protocol(), **protocol}
    if classes is not None and classes.values:
        full_protocol["per_class"] = {
            "num_generated": classes.num_generated,
            "num_reference": classes.num_reference,
        }
    return MetricValue(
        name=name,
        value=value,
        num_generated=counts[0],
        num_reference=counts[1],
        protocol=full_protocol,
        per_class=classes.values if classes is not None and classes.values else None,
    )


def _finite(named: NamedMetric, generated: Features, reference: Features) -> float:
    value = float(named.metric.value(generated, reference))
    if not math.isfinite(value):
        raise DcpruneError(f"The metric {named.name!r} came out as {value}.")
    return value


@dataclass(frozen=True)
class ClassValues:
    """A metric within every class that has images enough, always with the same number of images."""

    values: dict[str, float]
    num_generated: int
    num_reference: int


def _class_values(
    named: NamedMetric, generated: Features, reference: Features, class_names: Sequence[str]
) -> ClassValues | None:
    """Values per class, from the first images of each; None without labels.

    The numbers of images are equal in all classes, because the bias of most metrics depends on them.
    """
    if not class_names or generated.labels is None or reference.labels is None:
        return None
    sides = generated, reference
    rows = [[np.flatnonzero(side.labels == label) for label in range(len(class_names))] for side in sides]
    needed = max(2, named.metric.min_samples(reference.features.shape[1]))
    kept = [label for label in range(len(class_names)) if min(len(rows[0][label]), len(rows[1][label])) >= needed]
    numbers = [min((len(rows[side][label]) for label in kept), default=0) for side in (0, 1)]
    values = {
        class_names[label]: _finite(
            named,
            select_rows(generated, rows[0][label][: numbers[0]]),
            select_rows(reference, rows[1][label][: numbers[1]]),
        )
        for label in kept
    }
    return ClassValues(values, *numbers)


def select_rows(features: Features, rows: NDArray[np.int64]) -> Features:
    """Some of the images."""
    labels = None if features.labels is None else features.labels[rows]
    return replace(features, features=features.features[rows], labels=labels)


def features_sha256(features: Features) -> str:
    """Hash of features and labels, as 64 hex digits."""
    digest = hashlib.sha256(np.ascontiguousarray(features.features, dtype="<f4").data)
    if features.labels is not None:
        digest.update(np.ascontiguousarray(features.labels, dtype="<i8").data)
    return digest.hexdigest()


def aligned_labels(
    labels: NDArray[np.int64] | None, class_names: Sequence[str], onto: Sequence[str]
) -> NDArray[np.int64] | None:
    """Labels in another order of classes; None when there are none, or a class is not in `onto`.

    Args:
        labels: int64 [N] in the order of `class_names`.
        class_names: names of the classes of `labels`.
        onto: the order that is wanted.
    """
    if labels is None or not set(class_names) <= set(onto):
        return None
    positions = {name: position for position, name in enumerate(onto)}
    return np.array([positions[name] for name in class_names], dtype=np.int64)[labels]
