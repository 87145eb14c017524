"""`sweep --dry-run`: what there is to do, and how long a device would take for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from dcprune.api.embedding_estimate import estimate_embedding
from dcprune.api.embeddings import EmbedOptions
from dcprune.api.proxy import PROXY_SHARE
from dcprune.api.sweeping import StrPath, Sweep, open_sweep
from dcprune.api.training_estimate import estimate_training
from dcprune.api.training_job import TrainingRequest
from dcprune.datasets.stand_in import StandIn
from dcprune.evaluation import create_metrics, needs_reference
from dcprune.evaluation.choosing import weights_by_metric
from dcprune.interfaces import DatasetSource
from dcprune.plugins import registry
from dcprune.presets import Preset
from dcprune.sources import open_or_imagine
from dcprune.sweep.plan import updates
from dcprune.sweep.stages import Stage

# A training pass is a forward pass and a backward pass of twice its cost; a proxy adds a forward pass of the reference.
_PASSES: Final = 3
_WITH_REFERENCE: Final = 4 / 3
_COSTLY: Final = ("backend", "preset", "batch_size", "set", "unconditional", "dtype", "gradient_accumulation_steps")


def estimate_sweep(
    files: Sequence[StrPath],
    *,
    output: StrPath,
    cache: StrPath | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    data_dir: StrPath | None = None,
) -> dict[str, Any]:
    """What `sweep` would do with the same arguments; nothing is downloaded, trained or written.

    A few updates of every training that differs, and a few batches of every encoder, are timed on this machine's best
    device; of a dataset whose size is known and which is not here, on noise, and of encoders without their weights, on
    random ones. Proxies, sampling and embedding by a run are counted from those: a proxy's update as 4/3 of a
    training's, a network evaluation as a third of an update's per image. An evaluation is sampling and, where its
    encoder can be timed, the encoding of what was sampled, of the reference, for the first one that compares with it,
    and of the coreset's own images if they are not part of the reference; what older sweeps left in the cache of
    references is not looked up. The first training on latents encodes the dataset. `select` takes seconds, and is not
    counted.

    Returns:
        `cells`, `stages` (`command`, `name`, `done`, `device_hours`; None where nothing can be known yet, such as for
        a model whose weights have to be fetched), `done_stages`, `device_hours` (the sum of what is not done),
        `not_estimated` (how many stages are not in it), `missing` (what would be fetched or trained first) and
        `device`.

    Raises:
        InputError: whatever `sweep` would refuse before its first stage, or a dataset of unknown size that would have
            to be fetched.
    """
    found = open_sweep(files, output=output, cache=cache, only=only, seeds=seeds, data_dir=data_dir, imagine=True)
    clock = _Clock(found)
    rows: list[dict[str, Any]] = []
    for stage in found.stages():
        done = found.cache.done(stage) is not None
        seconds = 0.0 if done else clock.seconds(stage)
        hours = None if seconds is None else float(f"{seconds / 3600:.3g}")
        rows.append({"command": stage.command, "name": stage.name, "done": done, "device_hours": hours})
    return {
        "cells": len(found.cells),
        "stages": rows,
        "done_stages": sum(bool(row["done"]) for row in rows),
        "device_hours": float(f"{sum(row['device_hours'] or 0.0 for row in rows):.3g}"),
        "not_estimated": sum(row["device_hours"] is None for row in rows),
        "missing": clock.missing,
        "device": clock.device,
    }


class _Clock:
    """Times what differs, once, and counts the rest.

    Attributes:
        device: what was timed on.
        missing: what would be fetched or trained first.
    """

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._measured: dict[str, tuple[float, int] | None] = {}
        self._encoders: dict[str, dict[str, Any]] = {}
        self._trained: set[str] = set()
        self._compared: set[tuple[str, str]] = set()
        self._latents: float | None = None
        self.device = "not used"
        self.missing: list[str] = []
        if isinstance(sweep.source, StandIn):
            self.missing.append(f"dataset {sweep.source.uri}")

    def seconds(self, stage: Stage) -> float | None:
        """Of one stage on one device."""
        if stage.command == "embed":
            return self._embedding(stage)
        if stage.command == "train":
            update = self._update(stage)
            return None if update is None else sum(self._updates(stage)) * update[0] + self._latents_once()
        if stage.command == "reweight":
            return self._proxy(stage)
        return self._evaluation(stage) if stage.command == "eval" else 0.0

    def _embedding(self, stage: Stage) -> float | None:
        if "weights" in stage.inputs:  # a forward pass of a run of the sweep
            update = self._update(stage.inputs["weights"])
            return None if update is None else self._num_samples * update[0] / update[1] / _PASSES
        if stage.inputs:
            return None
        names = {each.name for each in fields(EmbedOptions)} - {"settings"}
        given = {name: value for name, value in stage.options.items() if name in names}
        return self._encoding(str(stage.options["encoder"]), stage.options.get("set", {}), self._num_samples, **given)

    def _encoding(self, encoder: str, settings: Mapping[str, Any], num_images: int, **options: Any) -> float | None:
        """Of so many images of the dataset; the first time, with the training of an encoder that has to be."""
        kind = repr((encoder, sorted(settings.items()), options.get("weights"), options.get("seed", 0)))
        if kind not in self._encoders:
            asked = EmbedOptions(**{**options, "settings": settings, "data_dir": self._sweep.data_dir})
            self._encoders[kind] = estimate_embedding(self._sweep.source, encoder, asked)
            self._miss(self._encoders[kind]["missing"])
        found = self._encoders[kind]
        if "seconds" not in found:
            return None
        training = 0.0
        if "training_seconds" in found and found["missing"][0] not in self._trained:
            training = found["training_seconds"]
            self._trained.add(found["missing"][0])
        return float(num_images * found["seconds"] / found["num_samples"] + training)

    def _latents_once(self) -> float:
        """Of encoding the dataset for all trainings, which the first one does."""
        seconds, self._latents = self._latents, 0.0
        return seconds or 0.0

    def _miss(self, files: Sequence[str]) -> None:
        self.missing += [each for each in files if each not in self.missing]

    def _proxy(self, stage: Stage) -> float | None:
        reference = stage.inputs["reference"]
        update = self._update(reference)
        if update is None:
            return None
        options = {**reference.options, **stage.options}
        lengths = {name: stage.options.get(name) for name in ("epochs", "steps")}
        if any(value is not None for value in lengths.values()):
            options |= lengths
        else:
            preset = _preset(options)
            own = stage.options.get("preset") is not None
            length = {name: reference.options.get(name) or preset.training.get(name) for name in ("epochs", "steps")}
            shorter = {name: PROXY_SHARE * value for name, value in length.items() if value is not None}
            options.update({"epochs": None, "steps": None}, **({"epochs": preset.proxy_epochs} if own else shorter))
            if options["steps"] is not None:
                options["steps"] = max(1, round(options["steps"]))
        count = sum(updates(options, _preset(options), self._num_samples, _ratio(stage.inputs["coreset"]), None))
        return count * update[0] * _WITH_REFERENCE

    def _evaluation(self, stage: Stage) -> float | None:
        train = stage.inputs["images"]
        preset = _preset(train.options)
        count: int = max(int(each) for each in str(stage.options.get("num_samples", preset.num_samples)).split(","))
        steps: int = stage.options.get("num_inference_steps", preset.sampling.num_inference_steps)
        guidance: float = stage.options.get("guidance_scale", preset.sampling.guidance_scale)
        update = self._update(train)
        if update is None:
            return None
        sampling = count * steps * (1 if guidance == 1 else 2) * update[0] / update[1] / _PASSES
        given = stage.options.get("weights") or []
        weights = weights_by_metric([given] if isinstance(given, str) else given)
        named = create_metrics(stage.options["metric"], stage.options.get("set", {}), weights)
        compared = {repr(each.encoder) for each in named if needs_reference(each.metric)}
        for kind, each in {repr(each.encoder): each.encoder for each in named}.items():
            images = count + (self._real_images(kind, stage, train) if kind in compared else 0)
            sampling += self._encoding(each.name, each.settings, images, weights=each.weights) or 0.0
        return sampling

    def _real_images(self, encoder: str, stage: Stage, train: Stage) -> int:
        """How many an evaluation encodes: the reference, unless another one has, and a coreset's that are not in it."""
        own = self._sweep.declaration.split
        split: str = stage.options.get("split") or own
        count = 0
        if (encoder, split) not in self._compared:
            self._compared.add((encoder, split))
            count = self._num_samples if split == own else len(self._open(split))
        if split != own and "coreset" in train.inputs:
            count += round(_ratio(train.inputs["coreset"]) * self._num_samples)
        return count

    def _open(self, split: str) -> DatasetSource:
        place = self._sweep.data_dir
        return open_or_imagine(
            self._sweep.declaration.dataset, split=split, data_dir=None if place is None else Path(place)
        )

    @property
    def _num_samples(self) -> int:
        return self._sweep.identity.num_samples

    def _updates(self, stage: Stage) -> tuple[int, int]:
        ratio = _ratio(stage.inputs["coreset"]) if "coreset" in stage.inputs else 1.0
        return updates(stage.options, _preset(stage.options), self._num_samples, ratio, stage.options.get("anneal"))

    def _update(self, stage: Stage) -> tuple[float, int] | None:
        """Seconds of an update, and the images in it; None where the model's weights are not there."""
        kind = repr([(name, stage.options.get(name)) for name in _COSTLY])
        if kind not in self._measured:
            names = {each.name for each in fields(TrainingRequest)} & set(_COSTLY)
            given = {name: stage.options[name] for name in names if stage.options.get(name) is not None}
            request = TrainingRequest(
                self._sweep.source,
                settings=stage.options.get("set", {}),
                **given,
            )
            found = estimate_training(request, self._sweep.cache.folder)
            self._miss(found["missing"])
            self._measured[kind] = None
            if "seconds_per_update" in found:
                self.device = found["device"]
                if self._latents is None:
                    self._latents = found.get("encoding_seconds", 0.0)
                self._measured[kind] = found["seconds_per_update"], found["images_seen"] // found["updates"]
        return self._measured[kind]


def _ratio(coreset: Stage) -> float:
    return float(coreset.options["ratio"])


def _preset(options: Mapping[str, Any]) -> Preset:
    backend, preset = str(options.get("backend") or "ddpm"), str(options.get("preset") or "paper")
    return registry().get("backend", backend)[0].load_presets()[preset]
