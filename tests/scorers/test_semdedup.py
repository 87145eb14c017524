from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune.artifacts import Embeddings
from dcprune.clustering import cluster_samples
from dcprune.scorers import semdedup
from dcprune.scorers.semdedup import SemDeDup
from dcprune.selection import select_rows
from dcprune.testing import check_scorer, gaussian_embeddings, scoring_context


def near_duplicates(num: int = 120, copies: int = 4) -> NDArray[np.float32]:
    """Rows in `copies` versions each, some of them so close that they are duplicates at a small eps."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num // copies, 8)) + 1
    noise = rng.uniform(0, 0.4, (num, 1)) * rng.normal(size=(num, 8))
    values: NDArray[np.float64] = np.repeat(centres, copies, axis=0) + noise
    return values.astype(np.float32)


@pytest.mark.parametrize("settings", [{}, {"num_clusters": 5, "prefer": "easy"}, {"prefer": "random"}])
def test_contract(settings: dict[str, object]) -> None:
    check_scorer(SemDeDup, settings=settings)


@pytest.mark.parametrize("prefer", ["hard", "easy"])
@pytest.mark.parametrize("block_rows", [2048, 7])
def test_the_method_drops_what_scores_above_the_threshold(
    monkeypatch: pytest.MonkeyPatch,
    embedded: Callable[..., Embeddings],
    prefer: Literal["hard", "easy"],
    block_rows: int,
) -> None:
    """Against the published rule, pair by pair, for several eps."""
    monkeypatch.setattr(semdedup, "_BLOCK_ROWS", block_rows)
    embeddings = embedded(near_duplicates())
    scores = SemDeDup(3, prefer).score(embeddings, scoring_context())
    clusters = cluster_samples(embeddings, 3, scoring_context(), spherical=True)
    units = embeddings.embeddings[:].astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    for eps in (0.01, 0.05, 0.2):
        dropped = set()
        for label in range(3):
            rows = np.flatnonzero(clusters.labels == label)
            ordered = rows[np.argsort(clusters.distances[rows] * (-1 if prefer == "hard" else 1))]
            for place, row in enumerate(ordered):
                if any(units[row] @ units[better] > 1 - eps for better in ordered[:place]):
                    dropped.add(int(row))
        assert 0 < len(dropped) < 120
        assert set(np.flatnonzero(scores > 1 - eps).tolist()) == dropped


def test_of_exact_duplicates_one_is_kept_until_nothing_else_is_left(embedded: Callable[..., Embeddings]) -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=(30, 16)), 3, axis=0).astype(np.float32)
    embeddings = embedded(values)
    scores = SemDeDup(1).score(embeddings, scoring_context())
    kept = select_rows(scores, None, embeddings.indices, keep=SemDeDup.keep, scope="global", total=30, seed=0)
    assert sorted(kept // 3) == list(range(30))
    assert sorted(scores)[0] == -1
    np.testing.assert_allclose(sorted(scores)[30:], 1, atol=1e-6)


def test_which_of_two_duplicates_is_kept(embedded: Callable[..., Embeddings]) -> None:
    values = np.array([[1, 0, 0], [1, 0.02, 0], [0.5, 0.5, 0.1], [0.9, -0.4, 0.2]], dtype=np.float32)
    for prefer, dropped in (("hard", 1), ("easy", 0)):
        scores = SemDeDup(1, prefer).score(embedded(values), scoring_context())  # type: ignore[arg-type]
        assert int(scores.argmax()) == dropped


def test_random_preference_depends_on_the_seed(embedded: Callable[..., Embeddings]) -> None:
    embeddings = embedded(near_duplicates())
    one, other = (SemDeDup(1, "random").score(embeddings, scoring_context(seed)) for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_says_how_many_a_threshold_leaves(embedded: Callable[..., Embeddings]) -> None:
    class Notes:
        said: list[str] = []  # noqa: RUF012 - one instance

        def task(self, *_: Any) -> Any:
            return nullcontext(self)

        def advance(self, amount: int = 1, **_: Any) -> None: ...

        def note(self, message: str) -> None:
            self.said.append(message)

        def warn(self, message: str) -> None: ...

    notes = Notes()
    embeddings = embedded(near_duplicates())
    scores = SemDeDup(1, eps=0.02).score(embeddings, replace(scoring_context(), progress=notes))
    assert f"{int((scores <= 0.98).sum())} of 120 samples" in notes.said[-1]


def test_rows_of_zeros_resemble_nothing(embedded: Callable[..., Embeddings]) -> None:
    values = gaussian_embeddings(30).embeddings[:].copy()
    values[[4, 9, 11]] = 0
    scores = SemDeDup(1).score(embedded(values), scoring_context())
    assert np.abs(scores[[4, 9, 11]]).max() <= 1
    assert (scores[[4, 9, 11]] <= 0).all()
