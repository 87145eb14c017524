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

# They decide when files are written and how fast and in how much memory, not what is learned, up to rounding.
FREE_ON_RESUME = frozenset(
    {
        "log_every",
        "checkpoint_every",
        "sample_every",
        "keep_checkpoints",
        "gradient_accumulation_steps",
        "compile",
    }
)


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
    presets = item.load_presets()
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
    check_same(_decisive(known), _decisive(asked), "The run to resume")


def check_same(known: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    """Refuse options that differ from those of what is to be resumed.

    Args:
        known: the options it was started with.
        asked: those of now.
        what: what is to be resumed, at the start of a sentence.

    Raises:
        OptionError: naming the first option that differs.
    """
    for name in {**known, **asked}:
        before, now = known.get(name), asked.get(name)
        if before != now:
            raise OptionError(
                f"{what} has {name}={before}, and now it is {now}. Use the same options, or start over with "
                "--overwrite or another --output."
            )


def _decisive(run: RunRecord) -> dict[str, Any]:
    """Everything that decides what a run learns."""
    everything = {
        "backend": run.backend,
        "preset": run.preset,
        "dtype": run.provenance.environment.dtype,
        "dataset fingerprint": run.dataset.fingerprint,
        "coreset": _hash(run.coreset),
        "class_weights": _hash(run.class_weights),
        **run.model,
        **run.training,
        **run.sampling,
    }
    return {name: value for name, value in everything.items() if name not in FREE_ON_RESUME}


def _hash(file: Any) -> str | None:
    return None if file is None else f"file {file.sha256[:12]}"
