"""`dcprune prepare`: what it writes, refuses and goes on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dcprune import formats
from dcprune.cli.app import app
from dcprune.latents import encoding
from dcprune.testing import random_autoencoder

OPTIONS = ["--resolution", "8", "--device", "cpu"]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An autoencoder with random weights that divides by 4."""
    folder = tmp_path_factory.mktemp("vae")
    random_autoencoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    from PIL import Image

    from dcprune.testing import ShapesDataset

    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(ShapesDataset(12).array):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / "ab"[number % 2] / f"{number:02d}.png")
    return str(folder)


def dcprune(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    return result.stderr if exit_code else result.stdout


def facts(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(dcprune(*arguments, "--json"))
    return found


def test_latents_are_written_inspected_and_verified(images: str, vae: str, tmp_path: Path) -> None:
    folder = tmp_path / "latents"
    assert dcprune("prepare", images, "--vae", vae, *OPTIONS, "-o", str(folder)).strip() == str(folder)
    found = facts("inspect", str(folder))
    assert (found["kind"], found["rows"], found["sample_shape"]) == ("latents", 12, [4, 2, 2])
    assert found["made_by"].startswith(f"dcprune prepare {images} --split train --vae {vae} --resolution 8")
    assert "has sha256" in dcprune("verify", str(folder))
    (shard,) = folder.glob("latents-*")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert dcprune("verify", str(folder), exit_code=3)


def test_the_help_names_everything(images: str) -> None:
    text = dcprune("prepare", "--help")
    for word in ("ORG/NAME@REVISION", "--no-flips", "--backend", "--resume", "train --latents"):
        assert word in " ".join(text.replace("│", " ").split())


def test_an_existing_folder(images: str, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_ROWS", 8)
    folder = tmp_path / "latents"
    command = ["prepare", images, "--vae", vae, *OPTIONS, "-o", str(folder)]
    dcprune(*command)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".cost"}
    assert "pass --resume or --overwrite" in dcprune(*command, exit_code=2)
    (folder / "latents-00001-of-00002.safetensors").unlink()
    (folder / "latents.json").unlink()
    dcprune(*command, "--resume")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".cost"} == before
    assert "have flips=True, and False is needed" in dcprune(*command, "--resume", "--no-flips", exit_code=2)
    dcprune(*command, "--overwrite", "--no-flips")
    assert formats.read_latents(folder).flips is False
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("years of work")
    other = [*command[:-1], str(tmp_path / "other")]
    assert "holds no latents" in dcprune(*other, "--overwrite", exit_code=2)


def test_the_cache_is_where_trainings_look(images: str, vae: str) -> None:
    first = facts("prepare", images, "--vae", vae, *OPTIONS)
    assert first == facts("prepare", images, "--vae", vae, *OPTIONS)
    assert Path(first["path"]).parent.name == "latents"


def test_options_that_exclude_each_other(images: str, vae: str) -> None:
    assert "brings its own autoencoder" in dcprune("prepare", images, "--backend", "sd", "--vae", vae, exit_code=2)
    assert "Settings are those of a backend" in dcprune("prepare", images, "--vae", vae, "--set", "a=1", exit_code=2)
    assert "resolution=10 is not a multiple of 4" in dcprune(
        "prepare", images, "--vae", vae, "--resolution", "10", exit_code=2
    )


def test_a_backend_without_latents_is_refused_before_images_are_read(images: str, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(images, tmp_path / "images"))
    last = sorted(copy.rglob("*.png"))[-1]
    last.write_bytes(last.read_bytes()[:40])  # its size can be read, its pixels cannot
    message = dcprune("prepare", str(copy), "--backend", "ddpm", "--preset", "tiny", "--device", "cpu", exit_code=2)
    assert "'ddpm' trains on no latents" in message


def test_a_dry_run_says_what_encoding_takes(
    images: str, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    words = ["prepare", images, "--vae", vae, *OPTIONS]
    plan = facts(*words, "--dry-run")
    # mean and deviation in float16 of 4 x 2 x 2 latents, of every image and of its mirror
    assert (plan["encoded_images"], plan["latent_bytes"]) == (12, 12 * 2 * 2 * 2 * 16)
    assert plan["encoding_seconds"] > 0
    assert facts(*words, "--dry-run", "--no-flips")["latent_bytes"] == plan["latent_bytes"] / 2
    written = facts(*words)["path"]
    files = sum(file.stat().st_size for file in Path(written).glob("*.safetensors"))
    assert files == pytest.approx(plan["latent_bytes"], abs=300)  # and a header
    assert facts(*words, "--dry-run")["encoded_images"] == 0
    assert facts(*words, "--dry-run", "-o", str(tmp_path / "elsewhere"))["encoded_images"] == 12
    assert not (tmp_path / "elsewhere").exists()


def test_a_dry_run_of_a_backend(images: str, vae: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    mdt = ["--backend", "mdt", "--preset", "tiny", "--set", f"vae={vae}", "--set", "resolution=16"]
    small = ["--set", "hidden_size=16", "--set", "depth=3", "--set", "num_heads=2", "--set", "decode_layer=1"]
    plan = facts("prepare", images, *mdt, *small, "--device", "cpu", "--dry-run")
    assert (plan["num_samples"], plan["encoded_images"], plan["missing"]) == (12, 12, [])
    training = facts("train", images, *mdt, *small, "--set", "batch_size=4", "--device", "cpu", "--dry-run")
    assert (training["encoded_images"], training["latent_bytes"]) == (12, plan["latent_bytes"])
    assert training["encoding_seconds"] > 0
    assert not (tmp_path / "cache").exists()
    missing = facts("prepare", images, "--backend", "mdt", "--dry-run")
    assert missing.keys() == {"num_samples", "missing"}
    assert "trains on no latents" in dcprune("prepare", images, "--backend", "ddpm", "--dry-run", exit_code=2)
