"""From the metrics that a user names to metrics with all of their settings, and the encoders that they need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import EncoderChoice, Metric
from dcprune.plugins import converted, registry

# Constructor arguments that have a way of their own to be given.
_NO_SETTINGS = ("argument", "weights")

Weights = Mapping[str, Path | str] | Path | str | None


def weights_by_metric(entries: Sequence[str]) -> Weights:
    """`PATH` for all metrics, or a `METRIC=PATH` for each that is named, as a command line has them.

    Raises:
        OptionError: neither the one nor the other.
    """
    if not entries:
        return None
    if len(entries) == 1 and "=" not in entries[0]:
        return Path(entries[0])
    pairs = [entry.rpartition("=") for entry in entries]
    if not all(name for name, _, _ in pairs):
        raise OptionError("--weights takes one PATH, or METRIC=PATH for each metric.")
    return {name: Path(path) for name, _, path in pairs}


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
