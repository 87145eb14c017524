"""Small image folders of real files, and coresets of any dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dcprune import formats, sources
from dcprune.artifacts import ClassWeights, Coreset, Diagnostics, Environment, Objective, Provenance, Selection
from dcprune.interfaces import DatasetSource

PROVENANCE = Provenance(
    dcprune_version="0.1.0",
    command="select",
    config={},
    seed=0,
    environment=Environment(python="3.11", torch="2.11", device="cpu", dtype="fp32"),
)


def coreset_of(source: DatasetSource, rows: Sequence[int]) -> Coreset:
    """The coreset of `source` that keeps `rows`."""
    counts = dict.fromkeys(source.class_names, 0)
    if source.labels is not None:
        for row in rows:
            counts[source.class_names[source.labels[row]]] += 1
    return Coreset(
        dataset=sources.identify(source),
        selection=Selection(
            scorer="random", params={}, keep="highest", scope="class", ratio=None, budget=len(rows), seed=0
        ),
        num_selected=len(rows),
        class_counts=counts,
        indices=tuple(rows),
        ids=None if source.ids is None else tuple(source.ids[row] for row in rows),
        provenance=PROVENANCE,
    )


def weights_of(source: DatasetSource, values: Sequence[float]) -> ClassWeights:
    return ClassWeights(
        dataset=sources.identify(source),
        weights=dict(zip(source.class_names, values, strict=True)),
        objective=Objective(eta=1.0, smoothing=1e-3, clip=True, steps=10, backend="ddpm", reference_sha256="7" * 64),
        diagnostics=Diagnostics(trajectory=(), entropy=1.0, fraction_clipped=0.0, final_excess=()),
        provenance=PROVENANCE,
    )


def write_image(path: Path, seed: int, size: tuple[int, int] = (12, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Two classes in five formats, with a folder in a class, odd names, and two names that differ in suffix alone."""
    root = tmp_path / "pets"
    names = ("cats/tom.png", "cats/old/kit ten.jpg", "cats/v1.2.webp", "dogs/rex.JPEG", "dogs/rex.png", "dogs/__x.bmp")
    for seed, name in enumerate(names):
        write_image(root / name, seed)
    return root


@pytest.fixture
def kept_pets(pets: Path, tmp_path: Path) -> Path:
    """A coreset file that keeps four of the six pets."""
    source = sources.open_dataset(pets)
    path = tmp_path / "coreset.json"
    formats.write_coreset(coreset_of(source, [0, 2, 3, 5]), path)
    return path


@pytest.fixture
def make_coreset() -> Callable[[DatasetSource, Sequence[int]], Coreset]:
    return coreset_of


@pytest.fixture
def make_weights() -> Callable[[DatasetSource, Sequence[float]], ClassWeights]:
    return weights_of
