"""Finds the scores and embeddings that an artifact was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dcprune.artifacts import Embeddings, InputFile, Scores


def traced(
    inputs: Iterable[InputFile],
    scores: Scores | None,
    embeddings: Embeddings | None,
    read: Callable[[InputFile], Scores | Embeddings | None],
) -> tuple[Scores | None, Embeddings | None]:
    """Scores and embeddings, those that are missing looked for among inputs, and among the inputs of scores found.

    Args:
        inputs: where to begin.
        scores: when they are known.
        embeddings: when they are known.
        read: what lies at an input; None when it is not to be had, or is something else.
    """
    pending = list(inputs)
    while pending and (scores is None or embeddings is None):
        found = read(pending.pop(0))
        if isinstance(found, Scores) and scores is None:
            scores = found
            pending += found.provenance.inputs
        elif isinstance(found, Embeddings) and embeddings is None:
            embeddings = found
    return scores, embeddings
