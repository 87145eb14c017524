from __future__ import annotations

import numpy as np
import pytest

from dcprune.artifacts import Embeddings
from dcprune.plugins import registry
from dcprune.scorers.random import Random
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


@pytest.mark.parametrize("name", [name for name in registry().names("scorer") if name != "difficulty"])
def test_contract(name: str) -> None:
    check_scorer(registry().items["scorer", name].load())


def class_rows(embeddings: Embeddings) -> list[np.ndarray]:
    assert embeddings.labels is not None
    return [np.flatnonzero(embeddings.labels == label) for label in np.unique(embeddings.labels)]


def test_random_depends_on_the_seed() -> None:
    embeddings = gaussian_embeddings()
    one, other = (Random().score(embeddings, scoring_context(seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)
    assert 0 <= one.min() < one.max() < 1
