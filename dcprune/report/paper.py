"""The paper's own numbers, beside which a sweep on one of its datasets is shown.

`data/paper_tables.json` holds the five tables of Li et al., "Pruning then Reweighting: Towards Data-Efficient Training
of Diffusion Models" (arXiv 2409.19128).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from dcprune.artifacts import DatasetIdentity

SOURCE: Final = "arXiv 2409.19128"
# The paper's datasets: images and classes of the training split, and the tables of each.
_SIZES: Final = {"cifar10": (50_000, 10), "imagenet": (1_281_167, 1_000), "imagenette": (9_469, 10)}
_VALUES: Final = {
    "cifar10": ("table1_cifar10_ddpm_fid", "table2_cifar10_ddpm_annealing_fid"),
    "imagenet": ("table4_imagenet256_mdt_s_fid_cmmd",),
    "imagenette": ("table5_imagenette256_sd14_fid",),
}
_SPEED_UPS: Final = {"cifar10": "table3_cifar10_ddpm_speedup"}
_MODELS: Final = {"cifar10": "a DDPM", "imagenet": "MDT-S at 256 px", "imagenette": "Stable Diffusion 1.4 at 256 px"}
_SCORERS: Final = {"uniform random": "random"}
_SURROGATE: Final = "resnet18"


@dataclass(frozen=True)
class Recipe:
    """How a training set was chosen and used, as far as the paper's tables tell methods apart.

    Attributes:
        scorer: registered name; None is the full data.
        encoder: registered name; None where the choice needs no embeddings.
    """

    scorer: str | None
    encoder: str | None
    weights: bool
    anneal: bool
    dynamic: bool


@dataclass(frozen=True)
class PaperRow:
    """One row of a table: values by ratio, 1 being the full data."""

    recipe: Recipe
    values: Mapping[float, float]


@cache
def _tables() -> dict[str, Any]:
    text = resources.files("dcprune.report").joinpath("data/paper_tables.json").read_text(encoding="utf-8")
    tables: dict[str, Any] = json.loads(text)
    return tables


def paper_dataset(dataset: DatasetIdentity) -> str | None:
    """`cifar10`, `imagenet` or `imagenette` when this is the training split of one of those, under whichever name."""
    size = (dataset.num_samples, dataset.num_classes)
    return next((name for name, its in _SIZES.items() if its == size and name in dataset.uri.lower()), None)


def paper_model(dataset: DatasetIdentity) -> str:
    """What the paper trained on a dataset of its own, in words."""
    return _MODELS[str(paper_dataset(dataset))]


def paper_values(dataset: DatasetIdentity, metric: str) -> list[PaperRow]:
    """The paper's values of `fid` or `cmmd` on a dataset of its own; empty for other metrics and datasets."""
    name = paper_dataset(dataset)
    if name is None:
        return []
    rows: list[PaperRow] = []
    for table in (_tables()[key] for key in _VALUES[name]):
        rows += _rows(table, metric)
        full = _picked(table.get("full_data"), table, metric)
        if full is not None:
            rows.append(PaperRow(Recipe(None, None, weights=False, anneal=False, dynamic=False), {1.0: full}))
    return rows


def paper_speed_ups(dataset: DatasetIdentity) -> list[PaperRow]:
    """How many times faster the paper trained than on the full data, counting the training alone."""
    table = _tables().get(_SPEED_UPS.get(str(paper_dataset(dataset)), ""))
    if table is None:
        return []
    # Each row of the table adds something to the one above it.
    ladder = ("moderate", "moderate + reweighting", "moderate + reweighting + annealing")
    return [
        PaperRow(_recipe(words, _SURROGATE), dict(zip(table["ratios"], row["speedup"], strict=True)))
        for words, row in zip(ladder, table["rows"], strict=True)
    ]


def _rows(table: Mapping[str, Any], metric: str) -> Iterator[PaperRow]:
    for row in table["rows"]:
        found = row.get("fid", row.get("fid_cmmd"))
        values = {ratio: _picked(value, table, metric) for ratio, value in zip(table["ratios"], found, strict=True)}
        known = {ratio: value for ratio, value in values.items() if value is not None}
        if known:
            yield PaperRow(_recipe(row["selection"], row.get("encoder", _SURROGATE)), known)


def _picked(value: object, table: Mapping[str, Any], metric: str) -> float | None:
    """The metric of a cell, which in one table is a pair of FID and CMMD."""
    if isinstance(value, list):
        position = {"fid": 0, "cmmd": 1}.get(metric)
        return None if position is None else float(value[position])
    return float(value) if isinstance(value, int | float) and metric == "fid" else None


def _recipe(selection: str, encoder: str | None) -> Recipe:
    """A row such as `moderate + reweighting + annealing`."""
    first, *more = selection.split(" + ")
    dynamic = first == "infobatch"
    scorer = None if dynamic else _SCORERS.get(first, first)
    needs_none = scorer in (None, "random")
    anneal = "annealing" in more and not dynamic  # which returns to the full data by itself
    return Recipe(scorer, None if needs_none else encoder, "reweighting" in more, anneal, dynamic)
