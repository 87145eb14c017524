"""Whole runs of the sd backend: captions on disk, train, stop, resume, reweight, sample."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from dcprune import formats
from dcprune.api import runs
from dcprune.api.generation import open_run
from dcprune.api.preparing import prepare
from dcprune.errors import OptionError, OutOfTime, WeightsError
from dcprune.testing import ShapesDataset

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 shapes in folders of classes, with captions."""
    folder, shapes = tmp_path_factory.mktemp("data") / "shapes", ShapesDataset(48)
    lines = []
    for number, (image, label) in enumerate(zip(shapes.array, shapes.labels, strict=True)):  # type: ignore[arg-type]
        name = f"{shapes.class_names[label]}/{number:02d}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name)
        lines.append((name, f"{shapes.class_names[label]} on black, {'left' if number % 2 else 'right'}"))
    with (folder / "metadata.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("file_name", "text"), *lines])
    return folder


@pytest.fixture(autouse=True)
def _small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_GRID_CLASSES", 2)
    monkeypatch.setattr(runs, "_GRID_COLUMNS", 1)


@pytest.fixture(scope="module")
def options(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "backend": "sd",
        "preset": "tiny",
        "settings": {**settings, "log_every": 5, "ema_decay": 0.9},
        "steps": 8,
        "batch_size": 8,
        "learning_rate": 5e-3,
        "checkpoint_every": 4,
    }


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(images: Path, options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not interrupted."""
    run = tmp_path_factory.mktemp("run") / "full"
    runs.train(images, output=run, **{**options, "steps": 40})
    return run


def test_the_loss_falls(finished: Path) -> None:
    found = losses(finished)
    assert np.mean(found[-3:]) < 0.8 * found[0]


def test_diffusers_alone_opens_and_samples_a_run(finished: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(finished / "model")
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": 16, "width": 16, "num_inference_steps": 4}
    images = pipeline("disc on black, left", generator=torch.Generator().manual_seed(0), **options).images
    assert images[0].size == (16, 16)


def test_prompts_are_drawn_into_a_folder(finished: Path, tmp_path: Path) -> None:
    prompts = ["disc on black, left", "stripes"]
    options: dict[str, Any] = {"num_inference_steps": 3, "device": "cpu", "dtype": "fp32"}
    folder = runs.sample(finished, output=tmp_path / "drawn", prompts=prompts, num_samples=4, **options)
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [*prompts, *prompts]
    assert sorted(path.name for path in folder.glob("*.png")) == [line["file_name"] for line in lines]
    run = open_run(finished)
    model = run.load(torch.device("cpu"))
    seeds = runs.image_seeds(0, 4)
    sampling = run.sampling.__class__("ddim", 3, run.sampling.guidance_scale)
    expected = run.backend.sample_prompts(model, [prompts[1]], [seeds[3]], sampling)  # type: ignore[attr-defined]
    found = torch.from_numpy(np.array(Image.open(folder / "000003.png"))).permute(2, 0, 1)
    assert (found.int() - expected[0].int()).abs().max() <= 1
    with pytest.raises(OptionError, match="for classes or for prompts"):
        runs.sample(finished, output=tmp_path / "both", prompts=prompts, class_names=["disc"])
    by_class = runs.sample(finished, output=tmp_path / "classes", class_names=["disc"], num_samples=2, **options)
    assert [path.parent.name for path in by_class.rglob("*.png")] == ["disc", "disc"]


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(
    lora: bool, images: Path, options: dict[str, Any], tmp_path: Path
) -> None:
    if lora:
        options = {**options, "settings": {**options["settings"], "lora_rank": 2}}
    runs.train(images, output=tmp_path / "whole", **options)
    with pytest.raises(OutOfTime):
        runs.train(images, output=tmp_path / "stopped", max_time=1e-3, **options)
    (checkpoint,) = (tmp_path / "stopped" / "checkpoints").iterdir()
    weights = load_file(checkpoint / "model.safetensors")
    assert all(("lora" in name) is lora for name in weights)
    runs.train(images, output=tmp_path / "stopped", resume=True, **options)
    whole, stopped = (formats.read_run(tmp_path / name) for name in ("whole", "stopped"))
    assert whole.model_sha256 == stopped.model_sha256
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")


def test_a_run_without_conditions(images: Path, options: dict[str, Any], tmp_path: Path) -> None:
    runs.train(images, output=tmp_path / "run", unconditional=True, **{**options, "steps": 2})
    assert json.loads((tmp_path / "run" / "model" / "prompts.json").read_text()) == {"by_label": [[""]]}
    record = open_run(tmp_path / "run")
    assert record.class_names == ()


def test_the_chain_warns_where_every_margin_is_clipped(
    images: Path, options: dict[str, Any], make_coreset: Callable[..., Any], tmp_path: Path
) -> None:
    from dcprune.sources import open_dataset

    runs.train(images, output=tmp_path / "full", **{**options, "steps": 1, "learning_rate": 1e-9})
    source = open_dataset(images)
    coreset = make_coreset(source, np.arange(0, 48, 2))
    formats.write_coreset(coreset, tmp_path / "coreset.json")
    weak = formats.read_run(tmp_path / "full")
    training = {**weak.training, "learning_rate": 2e-2, "lr_schedule": "constant", "lr_warmup_steps": 0}
    formats.write_run(weak.model_copy(update={"training": training}), tmp_path / "full")
    clipped = runs.reweight(tmp_path / "coreset.json", tmp_path / "full", steps=40, batch_size=8)
    assert clipped.diagnostics.fraction_clipped > 0.95
    assert any("losses were below the reference" in warning for warning in clipped.diagnostics.warnings)
    formats.write_class_weights(clipped, tmp_path / "weights.json")
    annealed = runs.train(
        coreset=tmp_path / "coreset.json",
        class_weights=tmp_path / "weights.json",
        output=tmp_path / "core",
        anneal=0.5,
        **options,
    )
    assert annealed.step == 8


def test_an_estimate_of_reweighting_encodes_a_few_images_into_no_cache(
    images: Path,
    options: dict[str, Any],
    make_coreset: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from dcprune.api.proxy import ReweightingRequest
    from dcprune.api.training_estimate import estimate_reweighting
    from dcprune.sources import open_dataset

    runs.train(images, output=tmp_path / "full", **{**options, "steps": 1})
    formats.write_coreset(make_coreset(open_dataset(images), np.arange(0, 48, 2)), tmp_path / "coreset.json")
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    for held_out in (False, True):
        request = ReweightingRequest(
            tmp_path / "coreset.json", tmp_path / "full", steps=4, batch_size=4, held_out=held_out
        )
        plan = estimate_reweighting(request, tmp_path / "weights.json")
        assert (plan["num_trained_samples"], plan["updates"]) == (24, 4)
    assert not (tmp_path / "cache").exists()


def test_a_network_that_does_not_fit_is_refused_before_anything_is_encoded(
    images: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    whole = Path(options["settings"]["pretrained"])
    pipeline = shutil.copytree(whole, tmp_path / "inpainting")
    config = json.loads((pipeline / "unet" / "config.json").read_text())
    (pipeline / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 9}))
    settings = {**options["settings"], "pretrained": str(pipeline)}
    with pytest.raises((OptionError, WeightsError)):
        runs.train(images, output=tmp_path / "run", **{**options, "settings": settings})
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


def test_latents_that_were_prepared_are_used(images: Path, options: dict[str, Any], tmp_path: Path) -> None:
    settings = options["settings"]
    made = prepare(images, vae=f"{settings['pretrained']}/vae", resolution=16, flips=False, output=tmp_path / "latents")
    short = {**options, "steps": 2}
    given = runs.train(images, output=tmp_path / "given", latents=made.folder, **short)
    cached = runs.train(images, output=tmp_path / "cached", **short)
    assert given.model_sha256 == cached.model_sha256
    with pytest.raises(OptionError, match="have flips=False, and True is needed"):
        runs.train(
            images,
            output=tmp_path / "other",
            latents=made.folder,
            **{**short, "settings": {**settings, "flips": "true"}},
        )
