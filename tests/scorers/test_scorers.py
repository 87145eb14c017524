from __future__ import annotations

import numpy as np
import pytest

from dcprune.artifacts import Embeddings
from dcprune.plugins import registry
from dcprune.scorers.moderate import Moderate
from dcprune.scorers.random import Random
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


@pytest.mark.parametrize("name", registry().names("scorer"))
def test_contract(name: str) -> None:
    check_scorer(registry().items["scorer", name].load())


def class_rows(embeddings: Embeddings) -> list[np.ndarray]:
    assert embeddings.labels is not None
    return [np.flatnonzero(embeddings.labels == label) for label in np.unique(embeddings.labels)]


@pytest.mark.parametrize("centre", ["median", "mean"])
def test_moderate_measures_the_distance_to_the_class_centre(centre: str) -> None:
    embeddings = gaussian_embeddings()
    scores = Moderate(centre).score(embeddings, scoring_context())  # type: ignore[arg-type]
    for rows in class_rows(embeddings):
        values = embeddings.embeddings[rows].astype(np.float64)
        middle = np.median(values, axis=0) if centre == "median" else values.mean(axis=0)
        np.testing.assert_allclose(scores[rows], np.sqrt(((values - middle) ** 2).sum(1)), rtol=1e-6)


def test_moderate_takes_the_median_in_column_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from dcprune.scorers import moderate

    embeddings = gaussian_embeddings(dim=7)
    whole = Moderate().score(embeddings, scoring_context())
    monkeypatch.setattr(moderate, "_COLUMN_BYTES", 4 * 40 * 3)
    np.testing.assert_allclose(Moderate().score(embeddings, scoring_context()), whole, rtol=1e-12)


def test_random_depends_on_the_seed() -> None:
    embeddings = gaussian_embeddings()
    one, other = (Random().score(embeddings, scoring_context(seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)
    assert 0 <= one.min() < one.max() < 1
