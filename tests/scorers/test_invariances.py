"""What must not matter to a score, and what must not break one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings, Rows
from dcprune.plugins import registry
from dcprune.testing import gaussian_embeddings, scoring_context

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "cluster": {"num_clusters": 6, "prefer": "mid"},
    "semdedup": {"num_clusters": 4},
    "prototypicality": {"num_clusters": 6},
    "density": {},
    "d2": {},
    "ccs": {"num_strata": 5},
}

pytestmark = pytest.mark.parametrize("name", SETTINGS)


def score(name: str, embeddings: Embeddings, seed: int = 0) -> NDArray[np.float64]:
    scores: NDArray[np.float64] = (
        registry().create("scorer", name, SETTINGS[name]).score(embeddings, scoring_context(seed))
    )
    assert scores.dtype == np.float64
    assert scores.shape == (len(embeddings.embeddings),)
    assert np.isfinite(scores).all()
    return scores


def test_shards(name: str, tmp_path: Path) -> None:
    embeddings = gaussian_embeddings(200, dim=5)
    values = embeddings.embeddings[:].astype(np.float16)
    mapped = np.memmap(tmp_path / "rows", dtype=np.float16, mode="w+", shape=values.shape)
    mapped[:] = values
    whole, sharded, read_only = (
        score(name, replace(embeddings, embeddings=Rows(parts, "float16")))
        for parts in (
            [values],
            [values[:3], values[3:120], values[120:]],
            [np.memmap(tmp_path / "rows", dtype=np.float16, mode="r", shape=values.shape)],
        )
    )
    np.testing.assert_array_equal(whole, sharded)
    np.testing.assert_array_equal(whole, read_only)


def test_order_of_the_rows(name: str) -> None:
    embeddings = gaussian_embeddings(200)
    order = np.random.default_rng(1).permutation(200)
    assert embeddings.labels is not None
    shuffled = replace(
        embeddings,
        embeddings=Rows([embeddings.embeddings[order]]),
        labels=embeddings.labels[order],
        indices=embeddings.indices[order],
    )
    np.testing.assert_array_equal(score(name, shuffled), score(name, embeddings)[order])


def test_rows_that_are_all_equal(name: str, embedded: Callable[..., Embeddings]) -> None:
    values = np.full((40, 3), 2.5, dtype=np.float32)
    score(name, embedded(values, np.arange(40) % 3))
    score(name, embedded(np.zeros_like(values), np.arange(40) % 3))


def test_duplicates(name: str, embedded: Callable[..., Embeddings]) -> None:
    values = np.repeat(gaussian_embeddings(9).embeddings[:], 8, axis=0)
    score(name, embedded(values, np.arange(72) % 2))
    score(name, embedded(values))


def test_dimensions_without_variance(name: str, embedded: Callable[..., Embeddings]) -> None:
    values = np.pad(gaussian_embeddings(60).embeddings[:], ((0, 0), (0, 4)), constant_values=7)
    score(name, embedded(values, np.arange(60) % 3))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_hardly_any_samples(name: str, embedded: Callable[..., Embeddings], count: int) -> None:
    values = gaussian_embeddings(count).embeddings[:]
    score(name, embedded(values))
    score(name, embedded(values, np.arange(count)))


def test_samples_left_out_and_classes_absent(name: str) -> None:
    embeddings = gaussian_embeddings(100, num_classes=5)
    assert embeddings.labels is not None
    some = np.flatnonzero(np.isin(embeddings.labels, [1, 3]))
    part = replace(
        embeddings,
        embeddings=Rows([embeddings.embeddings[some]]),
        labels=embeddings.labels[some],
        indices=embeddings.indices[some],
    )
    score(name, part)


def test_a_far_away_origin(name: str, embedded: Callable[..., Embeddings]) -> None:
    score(name, embedded(gaussian_embeddings(60).embeddings[:] + np.float32(1e4), np.arange(60) % 3))
