"""Classes that are scored at the same time: the same scores, and errors that come out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune import class_scores
from dcprune.artifacts import ClassRows
from dcprune.class_scores import score_classes, threads_for_classes, threads_that_fit
from dcprune.errors import OptionError
from dcprune.plugins import registry
from dcprune.testing import gaussian_embeddings, scoring_context

CPU = torch.device("cpu")


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["gaussian", "moderate"])
def test_threads_change_no_score(name: str, monkeypatch: pytest.MonkeyPatch, three_threads: None) -> None:
    embeddings = gaussian_embeddings(1200, num_classes=8, dim=70)
    scorer = registry().create("scorer", name, {})
    assert threads_for_classes(embeddings, CPU, 0) == 3
    together = scorer.score(embeddings, scoring_context())
    torch.set_num_threads(1)
    # `gaussian` multiplies in float32, and how a product is rounded may depend on the threads that share it.
    np.testing.assert_allclose(scorer.score(embeddings, scoring_context()), together, rtol=1e-6)


def test_scores_go_to_their_rows() -> None:
    embeddings = gaussian_embeddings(90, num_classes=7)

    def number(part: ClassRows) -> NDArray[np.float64]:
        return (1000 * part.label + part.rows).astype(np.float64)

    scores = score_classes(embeddings, number, scoring_context(), "count", threads=4)
    assert embeddings.labels is not None
    np.testing.assert_array_equal(scores, 1000 * embeddings.labels + np.arange(90))


def test_an_error_of_one_class_is_that_of_all() -> None:
    def refuse(part: ClassRows) -> NDArray[np.float64]:
        if part.label == 3:
            raise OptionError("class 3")
        return np.zeros(len(part))

    with pytest.raises(OptionError, match="class 3"):
        score_classes(gaussian_embeddings(90, num_classes=7), refuse, scoring_context(), "refuse", threads=2)


def test_a_large_class_or_large_matrices_leave_the_threads_to_the_products(
    monkeypatch: pytest.MonkeyPatch, three_threads: None
) -> None:
    embeddings = gaussian_embeddings(90, num_classes=7)
    assert threads_for_classes(embeddings, CPU, 1000) == 3
    assert threads_for_classes(embeddings, torch.device("cuda"), 1000) == 1
    assert threads_for_classes(gaussian_embeddings(90, num_classes=2), CPU, 1000) == 1
    monkeypatch.setattr(class_scores, "_BYTES", 2999)
    assert threads_for_classes(embeddings, CPU, 1000) == 1
    assert [threads_that_fit(num_bytes) for num_bytes in (1, 1000, 2000, 5000)] == [3, 2, 1, 1]
