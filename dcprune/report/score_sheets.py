"""Contact sheets of what a scorer puts first, in the middle and last."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dcprune.artifacts import Coreset, Scores
from dcprune.interfaces import DatasetSource, Progress
from dcprune.report.charts.axes import number
from dcprune.report.images import Picture, contact_sheet, readable, some_classes

PER_SHEET = 5
SHEET_WIDTH = 306  # pixels that a sheet has on a wide screen
SHEETS_BYTES = 900_000  # all of them together, before base64
PLACES = ("highest", "middle", "lowest")


@dataclass(frozen=True)
class ScoreSheet:
    """Images of one of `PLACES` in the order of the scores; `words` say which scores, and how many are kept."""

    place: str
    picture: Picture | None
    words: str


@dataclass(frozen=True)
class ScoreRow:
    """The sheets of one class, in the order of `PLACES`."""

    name: str
    sheets: tuple[ScoreSheet, ...]


def score_sheets(
    source: DatasetSource, scores: Scores, coreset: Coreset, progress: Progress
) -> tuple[list[ScoreRow], list[str]]:
    """The images with the highest, middle and lowest scores of some classes, and what could not be read.

    The highest scores come first in each sheet. Equal scores go by index.
    """
    shown = some_classes(scores.labels, len(scores.scores))
    kept = set(coreset.indices)
    budget = SHEETS_BYTES // (len(PLACES) * len(shown))
    problems: list[str] = []
    rows = []
    with progress.task("images by score", len(shown), "class") as task:
        for label, members in shown:
            name = scores.dataset.class_names[label] if scores.dataset.class_names else "all images"
            order = members[np.lexsort((scores.indices[members], -scores.scores[members]))]
            sheets = []
            for place, ranked in zip(PLACES, _places(order), strict=True):
                images = readable(source, scores.indices[ranked], problems)
                sheets.append(_sheet(place, name, ranked, images, scores, kept, budget))
            rows.append(ScoreRow(name, tuple(sheets)))
            task.advance()
    return rows, list(dict.fromkeys(problems))


def _places(order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """First, middle and last rows of an order; the same ones where there are few."""
    count = min(PER_SHEET, len(order))
    middle = (len(order) - count) // 2
    return order[:count], order[middle : middle + count], order[len(order) - count :]


def _sheet(
    place: str,
    name: str,
    ranked: NDArray[np.int64],
    images: dict[int, NDArray[np.uint8]],
    scores: Scores,
    kept: set[int],
    max_bytes: int,
) -> ScoreSheet:
    indices = scores.indices[ranked].tolist()
    first, last = (number(float(scores.scores[row])) for row in (ranked[0], ranked[-1]))
    marked = [index in kept for index in indices]
    words = f"{first} to {last}, {sum(marked)} of {len(indices)} kept"
    there = [index for index in indices if index in images]
    if not there:
        return ScoreSheet(place, None, words)
    picture = contact_sheet(
        [images[index] for index in there],
        f"{place} scores of {name}: {words}",
        max_bytes,
        PER_SHEET,
        room=SHEET_WIDTH,
        marked=[index in kept for index in there],
    )
    return ScoreSheet(place, picture, words)
