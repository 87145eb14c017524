"""What a run is made with: backend, preset and options, resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dcprune.artifacts import RunRecord
from dcprune.errors import OptionError, UnknownName
from dcprune.interfaces import Backend, Preset
from dcprune.plugins import registry
from dcprune.training.config import TrainingConfig

# They decide when files are written, not what is learned.
FREE_ON_RESUME = frozenset({"log_every", "checkpoint_every", "sample_every", "keep_checkpoints"})


@dataclass(frozen=True)
class Recipe:
    """A backend that is ready to build, and how to train it."""

    backend_name: str
    preset_name: str
    backend: Backend
    preset: Preset
    config: TrainingConfig


def resolve_recipe(backend: str, preset: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> Recipe:
    """A preset with some of its values replaced.

    Args:
        backend: a registered backend.
        preset: one of its presets.
        settings: settings of the backend, and further fields of `TrainingConfig`; strings are converted.
        options: fields of `TrainingConfig`; None leaves the preset's value.

    Raises:
        UnknownName: no such backend, preset or setting.
        OptionError: a value that does not fit.
    """
    item, _ = registry().get("backend", backend)
    presets: Mapping[str, Preset] = item.load().presets  # type: ignore[attr-defined]
    if preset not in presets:
        raise UnknownName(f"preset of backend {backend!r}", preset, presets)
    named = {name.replace("-", "_"): value for name, value in settings.items()}
    training = {name: value for name, value in named.items() if name in TrainingConfig.model_fields}
    for name in training:
        if options.get(name) is not None:
            raise OptionError(f"{name} is given twice: as an option ({options[name]}) and as a setting.")
    model = {name: value for name, value in named.items() if name not in training}
    found = presets[preset]
    return Recipe(
        backend_name=backend,
        preset_name=preset,
        backend=registry().create("backend", backend, {**found.model, **model}),
        preset=found,
        config=TrainingConfig.resolve(found.training, {**options, **training}),
    )


def check_same_options(known: RunRecord, asked: RunRecord) -> None:
    """Refuse to resume a run with options that would make it another run.

    Raises:
        OptionError: naming the first option that differs.
    """
    for name, before, now in _compared(known, asked):
        if before != now:
            raise OptionError(
                f"The run to resume has {name}={before}, and now it is {now}. Use the same options, or start over with "
                "--overwrite or another --output."
            )


def _compared(known: RunRecord, asked: RunRecord) -> list[tuple[str, Any, Any]]:
    rows: list[tuple[str, Any, Any]] = [
        ("backend", known.backend, asked.backend),
        ("preset", known.preset, asked.preset),
        ("dataset fingerprint", known.dataset.fingerprint, asked.dataset.fingerprint),
        ("coreset", _hash(known.coreset), _hash(asked.coreset)),
        ("class_weights", _hash(known.class_weights), _hash(asked.class_weights)),
    ]
    for before, now in ((known.model, asked.model), (known.training, asked.training), (known.sampling, asked.sampling)):
        names = sorted({*before, *now} - FREE_ON_RESUME)
        rows += [(name, before.get(name), now.get(name)) for name in names]
    return [*rows, ("total steps", known.total_steps, asked.total_steps)]


def _hash(file: Any) -> str | None:
    return None if file is None else f"file {file.sha256[:12]}"
