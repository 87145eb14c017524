"""A run without classes on data that has some: trained, resumed, sampled, evaluated, embedded with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from typer.testing import CliRunner

import dcprune
from dcprune import formats
from dcprune.api.class_weights import reweight
from dcprune.api.evaluation import evaluate
from dcprune.api.generation import sample
from dcprune.api.runs import train
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Objective
from dcprune.cli.app import app
from dcprune.errors import OptionError, UnknownName
from dcprune.testing import ShapesDataset

pytestmark = pytest.mark.usefixtures("small_grids")

Options = dict[str, Any]


@pytest.fixture(scope="module")
def run(files: Path, options: Options) -> Path:
    train(output=files / "unconditional", unconditional=True, **options)
    return files / "unconditional"


def test_the_model_knows_no_classes(run: Path, reference: Path) -> None:
    assert UNet2DModel.from_pretrained(run / "model" / "unet").config.num_class_embeds is None
    assert UNet2DModel.from_pretrained(reference / "model" / "unet").config.num_class_embeds == 11
    record = formats.read_run(run)
    assert record.training["unconditional"] is True
    assert record.provenance.config["unconditional"] is True
    assert record.dataset == formats.read_run(reference).dataset
    assert formats.read_run(reference).training["unconditional"] is False


def test_an_interrupted_run_goes_on_and_stays_unconditional(
    run: Path, tmp_path: Path, options: Options, scripted: Callable[..., Any]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(output=tmp_path / "run", unconditional=True, progress=scripted(3, interrupt), **options)
    with pytest.raises(OptionError, match="unconditional=True, and now it is False"):
        train(output=tmp_path / "run", resume=True, **options)
    resumed = train(output=tmp_path / "run", unconditional=True, resume=True, **options)
    assert resumed.model_sha256 == formats.read_run(run).model_sha256


def test_as_a_setting(run: Path, tmp_path: Path, options: Options) -> None:
    changed = {**options, "settings": {**options["settings"], "unconditional": "true"}}
    assert train(output=tmp_path / "run", **changed).model_sha256 == formats.read_run(run).model_sha256


def test_samples_have_no_class(run: Path, tmp_path: Path) -> None:
    sample(run, output=tmp_path / "samples", num_samples=5, num_inference_steps=2, device="cpu")
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [f"{index:06d}.png" for index in range(5)]
    with pytest.raises(UnknownName, match="There are none"):
        sample(run, output=tmp_path / "more", num_samples=5, class_names=["Bag"], device="cpu")


def test_evaluation_has_no_values_per_class(run: Path) -> None:
    found = evaluate(
        run,
        metrics=["fd:pixels"],
        settings={"image_size": "2"},
        num_samples=20,
        num_inference_steps=2,
        device="cpu",
        dtype="fp32",
    )
    assert found.metrics[0].per_class is None
    assert found.sampler["labels"] == "none"


def test_ddae_embeds_with_it(run: Path) -> None:
    embeddings = dcprune.embed(
        ShapesDataset(size=8),
        "ddae",
        weights=str(run),
        settings={"block": "4"},
        device="cpu",
        dtype="fp32",
    )
    assert embeddings.embeddings.shape == (24, 8)
    assert torch.tensor(embeddings.embeddings[:]).std(0).min() > 0
    assert embeddings.encoder.weights_sha256 is not None


def test_nothing_to_weigh(run: Path, coreset: Coreset, tmp_path: Path, options: Options) -> None:
    record = formats.read_run(run)
    weights = ClassWeights(
        dataset=coreset.dataset,
        weights=dict.fromkeys(coreset.dataset.class_names, 1.0),
        objective=Objective(
            eta=1.0, smoothing=1e-3, clip=True, steps=1, backend="ddpm", reference_sha256=record.model_sha256 or ""
        ),
        diagnostics=Diagnostics(trajectory=(), entropy=0.5, fraction_clipped=0.5, final_excess=(0.0,) * 10),
        provenance=coreset.provenance,
    )
    with pytest.raises(OptionError, match="unconditional model knows no classes"):
        train(output=tmp_path / "run", unconditional=True, class_weights=weights, **options)
    assert not (tmp_path / "run").exists()
    with pytest.raises(OptionError, match=r"reference .*unconditional is unconditional"):
        reweight(coreset, reference=run, steps=1)


def test_on_the_command_line(tmp_path: Path, network: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = [f"--set={name}={json.dumps(value)}" for name, value in network.items()]
    arguments = ["fashion-mini", "--preset=tiny", "--steps=1", "--batch-size=4", "--unconditional", *settings]
    result = CliRunner().invoke(app, ["train", *arguments, "-o", "run"])
    assert result.exit_code == 0, result.output
    assert formats.read_run(tmp_path / "run").training["unconditional"] is True
