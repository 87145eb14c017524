"""`sweep --dry-run`: what there is to do, and how long a device would take for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Final

from dcprune.api.embedding_estimate import estimate_embedding
from dcprune.api.embeddings import EmbedOptions
from dcprune.api.proxy import PROXY_SHARE
from dcprune.api.sweeping import StrPath, Sweep, open_sweep
from dcprune.api.training_estimate import estimate_training
from dcprune.api.training_job import TrainingRequest
from dcprune.plugins import registry
from dcprune.presets import Preset
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

    A few updates of every training that differs, and a few batches of every embedding, are timed on this machine's best
    device. Proxies, sampling and embedding by a run are counted from those: a proxy's update as 4/3 of a training's, a
    network evaluation as a third of an update's per image. `select` takes seconds, and is not counted.

    Returns:
        `cells`, `stages` (`command`, `name`, `done`, `device_hours`; None where nothing can be known yet, such as for
        an encoder that has to be trained or fetched), `done_stages`, `device_hours` (the sum of what is not done),
        `not_estimated` (how many stages are not in it) and `device`.

    Raises:
        InputError: whatever `sweep` would refuse before its first stage, or a dataset that would have to be fetched.
    """
    found = open_sweep(files, output=output, cache=cache, only=only, seeds=seeds, data_dir=data_dir, download=False)
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
        "device": clock.device,
    }


class _Clock:
    """Times what differs, once, and counts the rest."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._measured: dict[str, tuple[float, int]] = {}
        self.device = "not used"

    def seconds(self, stage: Stage) -> float | None:
        """Of one stage on one device."""
        if stage.command == "embed":
            return self._embedding(stage)
        if stage.command == "train":
            return sum(self._updates(stage)) * self._update(stage)[0]
        if stage.command == "reweight":
            return self._proxy(stage)
        return self._evaluation(stage) if stage.command == "eval" else 0.0

    def _embedding(self, stage: Stage) -> float | None:
        if "weights" in stage.inputs:  # a forward pass of a run of the sweep
            per_update, batch_size = self._update(stage.inputs["weights"])
            return self._num_samples * per_update / batch_size / _PASSES
        if stage.inputs:
            return None
        names = {each.name for each in fields(EmbedOptions)} - {"settings"}
        given = {name: value for name, value in stage.options.items() if name in names}
        given |= {"settings": stage.options.get("set", {}), "data_dir": self._sweep.data_dir}
        encoder, dataset = str(stage.options["encoder"]), self._sweep.declaration.dataset
        found: float | None = estimate_embedding(dataset, encoder, EmbedOptions(**given)).get("seconds")
        return found

    def _proxy(self, stage: Stage) -> float:
        reference = stage.inputs["reference"]
        options = {**reference.options, **stage.options}
        if not {"epochs", "steps"} & {name for name, value in stage.options.items() if value is not None}:
            preset = _preset(options)
            own = stage.options.get("preset") is not None
            length = {name: reference.options.get(name) or preset.training.get(name) for name in ("epochs", "steps")}
            shorter = {name: PROXY_SHARE * value for name, value in length.items() if value is not None}
            options.update({"epochs": None, "steps": None}, **({"epochs": preset.proxy_epochs} if own else shorter))
            if options["steps"] is not None:
                options["steps"] = max(1, round(options["steps"]))
        count = sum(updates(options, _preset(options), self._num_samples, _ratio(stage.inputs["coreset"]), None))
        return count * self._update(reference)[0] * _WITH_REFERENCE

    def _evaluation(self, stage: Stage) -> float:
        train = stage.inputs["images"]
        preset = _preset(train.options)
        count: int = max(int(each) for each in str(stage.options.get("num_samples", preset.num_samples)).split(","))
        steps: int = stage.options.get("num_inference_steps", preset.sampling.num_inference_steps)
        guidance: float = stage.options.get("guidance_scale", preset.sampling.guidance_scale)
        per_update, batch_size = self._update(train)
        return count * steps * (1 if guidance == 1 else 2) * per_update / batch_size / _PASSES

    @property
    def _num_samples(self) -> int:
        return self._sweep.identity.num_samples

    def _updates(self, stage: Stage) -> tuple[int, int]:
        ratio = _ratio(stage.inputs["coreset"]) if "coreset" in stage.inputs else 1.0
        return updates(stage.options, _preset(stage.options), self._num_samples, ratio, stage.options.get("anneal"))

    def _update(self, stage: Stage) -> tuple[float, int]:
        """Seconds of an update, and the images in it."""
        kind = repr([(name, stage.options.get(name)) for name in _COSTLY])
        if kind not in self._measured:
            names = {each.name for each in fields(TrainingRequest)} & set(_COSTLY)
            given = {name: stage.options[name] for name in names if stage.options.get(name) is not None}
            request = TrainingRequest(
                self._sweep.declaration.dataset,
                split=self._sweep.declaration.split,
                data_dir=self._sweep.data_dir,
                settings=stage.options.get("set", {}),
                **given,
            )
            found = estimate_training(request, self._sweep.cache.folder)
            self.device = found["device"]
            self._measured[kind] = found["seconds_per_update"], found["images_seen"] // found["updates"]
        return self._measured[kind]


def _ratio(coreset: Stage) -> float:
    return float(coreset.options["ratio"])


def _preset(options: Mapping[str, Any]) -> Preset:
    backend, preset = str(options.get("backend") or "ddpm"), str(options.get("preset") or "paper")
    return registry().get("backend", backend)[0].load_presets()[preset]
