from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from dcprune.artifacts import Embeddings, Rows
from dcprune.scorers import moderate
from dcprune.scorers.moderate import Moderate
from dcprune.testing import gaussian_embeddings, scoring_context


def with_ties(num_samples: int, dim: int = 7) -> Embeddings:
    """Rectified values, half of which are zero, and negative ones."""
    embeddings = gaussian_embeddings(num_samples, dim=dim)
    values = embeddings.embeddings[:].copy()
    values[:, ::2] = np.maximum(values[:, ::2], 0)
    values[:, 1] = np.round(values[:, 1])
    return replace(embeddings, embeddings=Rows([values]))


def brute_force(embeddings: Embeddings, centre: str) -> np.ndarray:
    expected = np.empty(len(embeddings.embeddings))
    for _, rows in embeddings.classes():
        values = embeddings.embeddings[rows].astype(np.float64)
        middle = np.median(values, axis=0) if centre == "median" else values.mean(axis=0)
        expected[rows] = np.sqrt(((values - middle) ** 2).sum(axis=1))
    return expected


@pytest.mark.parametrize("centre", ["median", "mean"])
@pytest.mark.parametrize("num_samples", [120, 121, 4])
def test_scores_are_distances_to_the_class_centre(centre: Literal["median", "mean"], num_samples: int) -> None:
    embeddings = with_ties(num_samples)
    scores = Moderate(centre).score(embeddings, scoring_context())
    np.testing.assert_allclose(scores, brute_force(embeddings, centre), rtol=1e-12)


@pytest.mark.parametrize("num_samples", [40, 41])
@pytest.mark.parametrize("order", ["as drawn", "sorted", "extremes where the sample looks", "few values"])
def test_medians_of_large_classes(num_samples: int, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample brackets the median of a class; where it misleads, the column is sorted."""
    monkeypatch.setattr(moderate, "_SAMPLE", 16)
    monkeypatch.setattr(moderate, "_MARGIN", 3)
    embeddings = with_ties(10 * num_samples)
    labels = np.zeros(10 * num_samples, dtype=np.int64)
    values = embeddings.embeddings[:].copy()
    if order == "sorted":
        values.sort(axis=0)
    elif order == "few values":
        values = np.sign(np.round(values))
    elif order != "as drawn":
        values[np.linspace(0, len(values) - 1, 16).astype(int)] += 100
    changed = replace(
        gaussian_embeddings(len(values), num_classes=1, dim=7, labels=labels), embeddings=Rows([values.astype("f4")])
    )
    scores = Moderate().score(changed, scoring_context())
    np.testing.assert_allclose(scores, brute_force(changed, "median"), rtol=1e-12)


@pytest.mark.parametrize("num_samples", [1, 2, 200, 201])
@pytest.mark.parametrize("num_classes", [0, 2])
def test_classes_that_do_not_fit_in_memory(num_samples: int, num_classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from dcprune import artifacts

    monkeypatch.setattr(artifacts, "_BLOCK_BYTES", 16 * 4 * 7)
    monkeypatch.setattr(artifacts, "_READ_AHEAD_BYTES", 0)
    embeddings = with_ties(num_samples)
    if num_classes == 0:
        embeddings = replace(gaussian_embeddings(num_samples, num_classes=0, dim=7), embeddings=embeddings.embeddings)
    expected = Moderate().score(embeddings, scoring_context())
    monkeypatch.setattr(moderate, "_CLASS_BYTES", 0)
    np.testing.assert_array_equal(Moderate().score(embeddings, scoring_context()), expected)


def test_the_published_choice() -> None:
    """Moderate-DS sorts the distances of all classes and keeps positions n (1/2 - r/2) to n (1/2 + r/2)."""
    from dcprune.api.coresets import select

    embeddings = with_ties(200)
    order = np.argsort(brute_force(embeddings, "median"), kind="stable")
    coreset = select(embeddings, "moderate", ratio=0.3, scope="global")
    assert set(coreset.indices) == set(order[70:130].tolist())
