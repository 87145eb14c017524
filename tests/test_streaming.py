"""Tensor files written block by block: what the safetensors library reads from them, and pseudo-classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch

from dcprune import formats
from dcprune.artifacts import Classes
from dcprune.errors import ArtifactError
from dcprune.formats.streaming import Blocks, write_tensors
from dcprune.testing import gaussian_embeddings


def test_the_library_reads_what_was_written_in_blocks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole: dict[str, Any] = {
        "b": rng.normal(size=(7, 3)).astype(np.float16),
        "a": rng.integers(0, 9, 5),
        "c": np.frombuffer("é name".encode(), np.uint8),
        "d": rng.normal(size=(4, 2)),
    }
    blocks = Blocks("float16", (7, 3), (whole["b"][start : start + 3] for start in (0, 3, 6)))
    write_tensors(tmp_path / "x.safetensors", {**whole, "b": blocks}, {"note": "ü"})
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == whole.keys()
    assert all(np.array_equal(read[name], whole[name]) and read[name].dtype == whole[name].dtype for name in whole)
    with safe_open(tmp_path / "x.safetensors", framework="np") as file:
        assert file.metadata() == {"note": "ü"}


def test_bfloat16_is_kept_as_its_bits(tmp_path: Path) -> None:
    values = torch.randn(5, 4).bfloat16()
    write_tensors(tmp_path / "x", {"v": Blocks("bfloat16", (5, 4), [values.view(torch.uint16).numpy()])}, {})
    assert torch.equal(load_torch(tmp_path / "x")["v"], values)


def test_blocks_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        write_tensors(tmp_path / "x", {"v": Blocks("float32", (3, 2), [np.zeros((2, 2), np.float32)])}, {})


def classes() -> Classes:
    embeddings = gaussian_embeddings(num_samples=30)
    return Classes(
        labels=np.arange(30, dtype=np.int64) % 4,
        centroids=np.eye(4, 8, dtype=np.float32),
        class_names=("a", "b", "c", "d"),
        encoder=embeddings.encoder,
        seed=3,
        inertia=2.5,
        dataset=embeddings.dataset,
        provenance=embeddings.provenance,
    )


def test_pseudo_classes_come_back(tmp_path: Path) -> None:
    path = tmp_path / "classes.safetensors"
    written = classes()
    formats.write_classes(written, path)
    read = formats.read_classes(path)
    assert read.header == written.header
    assert np.array_equal(read.labels, written.labels)
    assert np.array_equal(read.centroids, written.centroids)
    assert formats.artifact_kind(path) == "classes"
    formats.write_classes(written, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    with pytest.raises(ArtifactError, match="holds classes, not embeddings"):
        formats.read_embeddings(path)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"labels": np.full(30, 4, dtype=np.int64)}, "outside the 4 classes"),
        ({"labels": np.zeros(29, dtype=np.int64)}, "30 samples but labels"),
        ({"class_names": ("a", "b", "c", "c")}, "not distinct"),
        ({"centroids": np.full((4, 8), np.nan, dtype=np.float32)}, "not finite"),
    ],
)
def test_classes_that_contradict_themselves_cannot_exist(changes: dict[str, Any], reason: str) -> None:
    good = classes()
    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}
    with pytest.raises(ArtifactError, match=reason):
        Classes(**{**fields, **changes})
