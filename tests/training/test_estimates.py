"""`train --dry-run` and `reweight --dry-run`: numbers of a run that is not made, and nothing fetched for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcprune.api.proxy import ReweightingRequest
from dcprune.api.training_estimate import estimate_reweighting, estimate_training
from dcprune.api.training_job import TrainingRequest
from dcprune.cli.app import app
from dcprune.errors import DatasetError

SMALL = {"resolution": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
TINY = TrainingRequest("fashion-mini", preset="tiny", settings=SMALL, batch_size=8)


def test_the_figures_are_those_of_the_run(tmp_path: Path) -> None:
    plan = estimate_training(TINY, tmp_path / "run")
    assert plan["missing"] == []
    assert (plan["num_trained_samples"], plan["images_seen"]) == (4000, 8 * plan["updates"])
    assert plan["seconds"] == pytest.approx(plan["seconds_per_update"] * plan["updates"], rel=0.02)
    assert list(tmp_path.iterdir()) == []


def test_what_a_backend_would_fetch_is_named_and_left_there(caches: Path, tmp_path: Path) -> None:
    plan = estimate_training(TrainingRequest("fashion-mini", backend="mdt", preset="xl-2"), tmp_path / "run")
    assert plan.keys() == {"num_trained_samples", "missing"}
    assert [line.partition(" -> ")[0].rpartition("/")[2] for line in plan["missing"]] == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "mdt_xl2_v2_ckpt.pt",
    ]
    assert not caches.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_dataset_that_would_be_fetched_is_refused(tmp_path: Path) -> None:
    request = TrainingRequest("cifar10", preset="tiny", data_dir=tmp_path / "data")
    with pytest.raises(DatasetError, match=r"cifar-10-python\.tar\.gz"):
        estimate_training(request, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_figures_of_reweighting(files: Path, reference: Path, tmp_path: Path) -> None:
    plan = estimate_reweighting(ReweightingRequest(files / "coreset.json", reference, steps=4), tmp_path / "w.json")
    assert (plan["missing"], plan["updates"]) == ([], 4)
    assert list(tmp_path.iterdir()) == []


def test_the_command_names_a_missing_file_on_a_line_of_its_own(caches: Path) -> None:
    words = ["train", "fashion-mini", "--backend", "mdt", "--dry-run"]
    lines = CliRunner().invoke(app, words).stdout.splitlines()
    assert lines[:2] == ["num_trained_samples: 4000", "missing:"]
    assert all(line.startswith("  https://huggingface.co/stabilityai/sd-vae-ft-mse/") for line in lines[2:])
    assert len(json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)["missing"]) == len(lines) - 2
