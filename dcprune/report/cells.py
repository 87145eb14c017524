"""Runs as cells of a table: methods by ratios, repeated over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dcprune.report.collect import RunData
from dcprune.report.entries import RANDOM
from dcprune.report.paper import Recipe

FULL: Final = Recipe(scorer=None, encoder=None, weights=False, anneal=False, dynamic=False)
# Settings that do not change what a run is a measurement of, and its length, which may differ between ratios.
_NOT_COMPARED: Final = frozenset(
    ("seed", "epochs", "steps", "log_every", "checkpoint_every", "sample_every", "keep_checkpoints", "compile")
)
_LENGTH: Final = ("epochs", "steps")
# It goes back to all images by itself, as the paper has it.
INFOBATCH: Final = "infobatch + annealing"


@dataclass(frozen=True)
class Method:
    """Runs that differ only in ratio and seed: one row of a table.

    Attributes:
        label: what tells it from the others, in words.
        runs: those of every ratio.
    """

    label: str
    recipe: Recipe
    runs: Mapping[float, tuple[RunData, ...]]

    @property
    def is_random(self) -> bool:
        return self.recipe.scorer == RANDOM

    @property
    def is_full(self) -> bool:
        return self.recipe.scorer is None and not self.recipe.dynamic


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of `count` runs; the deviation of one run is unknown."""

    mean: float
    deviation: float | None
    count: int


def summarised(values: Sequence[float]) -> Statistics:
    """Mean and sample standard deviation of at least one value."""
    return Statistics(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def recipe_of(run: RunData) -> Recipe:
    """How a run's training set was chosen and used."""
    training = run.record.training
    scorer = (run.coreset.selection.scorer if run.coreset else "coreset") if run.has_coreset else None
    return Recipe(
        scorer=scorer,
        encoder=None if scorer in (None, RANDOM) else run.encoder,
        weights=run.record.class_weights is not None,
        anneal=training.get("anneal") is not None,
        dynamic=run.is_dynamic,
    )


def recipe_words(recipe: Recipe) -> str:
    """`moderate (resnet18) + reweighting`."""
    if recipe.scorer is None:
        first = INFOBATCH if recipe.dynamic else "all data"
    else:
        first = f"{recipe.scorer} ({recipe.encoder})" if recipe.encoder else recipe.scorer
    dynamic = recipe.dynamic and recipe.scorer is not None
    anneal = recipe.anneal and not recipe.dynamic
    more = ((INFOBATCH, dynamic), ("reweighting", recipe.weights), ("annealing", anneal))
    return " + ".join([first, *(words for words, used in more if used)])


def kept_ratio(run: RunData) -> float:
    """The kept fraction as it was asked for, else as it came out.

    A sweep gives dynamic pruning, which sees all data, the ratio whose number of updates it has.
    """
    if run.cell is not None:
        return run.cell.ratio
    if not run.has_coreset:
        return 1.0
    asked = run.coreset.selection.ratio if run.coreset is not None else None
    return asked or run.record.num_trained_samples / run.record.dataset.num_samples


def methods(runs: Sequence[RunData]) -> list[Method]:
    """The rows of a table of `runs` of one dataset.

    Random choice comes first and the full data last, and every choice before what is added to it. Runs that would be in
    one row, but were trained or chosen with unlike settings, make several rows, whose labels say what differs. The
    length of a run makes rows only where runs of one ratio differ in it.
    """
    found: list[Method] = []
    for recipe, alike in _grouped(runs, recipe_of):
        for words, group in _by_settings(alike):
            for length, part in _by_length(group):
                label = ", ".join(filter(None, (recipe_words(recipe), words, length)))
                found.append(Method(label, recipe, dict(_by_ratio(part))))
    choices = list(dict.fromkeys((method.recipe.scorer, method.recipe.encoder) for method in found))

    def rank(method: Method) -> tuple[object, ...]:
        recipe = method.recipe
        choice = choices.index((recipe.scorer, recipe.encoder))
        return (not method.is_random, method.is_full, choice, recipe.weights, recipe.anneal, recipe.dynamic)

    return sorted(found, key=rank)


def _grouped(runs: Sequence[RunData], key: Callable[[RunData], Any]) -> list[tuple[Any, list[RunData]]]:
    groups: dict[Any, list[RunData]] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return list(groups.items())


def _by_ratio(runs: Sequence[RunData]) -> Iterable[tuple[float, tuple[RunData, ...]]]:
    return sorted((ratio, tuple(group)) for ratio, group in _grouped(runs, kept_ratio))


def _settings(run: RunData) -> dict[str, str]:
    """Everything about a run, as JSON by name, that must agree within a row."""
    record = run.record
    found: dict[str, Any] = {"backend": record.backend, **record.model, **record.training, **record.sampling}
    if run.coreset is not None:
        selection = run.coreset.selection
        found.update(selection.params, keep=selection.keep, scope=selection.scope)
    if run.class_weights is not None:
        objective = run.class_weights.objective.model_dump(exclude={"steps", "backend", "reference_sha256"})
        found.update({f"{name} of the class weights": value for name, value in objective.items()})
    return {name: json.dumps(value, sort_keys=True) for name, value in found.items() if name not in _NOT_COMPARED}


def _by_settings(runs: Sequence[RunData]) -> list[tuple[str, list[RunData]]]:
    """Runs by the settings in which some of them differ, each group with those in words."""
    settings = {run.name: _settings(run) for run in runs}
    names = dict.fromkeys(name for each in settings.values() for name in each)
    differing = [name for name in names if len({each.get(name) for each in settings.values()}) > 1]

    def words(run: RunData) -> str:
        found = ((name, settings[run.name].get(name)) for name in differing)
        return ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in found)

    return _grouped(runs, words)


def _plain(value: str | None) -> str:
    """A setting in words."""
    return "unset" if value is None else value.strip('"')


def _by_length(runs: Sequence[RunData]) -> list[tuple[str, list[RunData]]]:
    """All of them together, or by their length where runs of one ratio differ in that."""
    lengths = [len({_length(run) for run in group}) for _, group in _grouped(runs, kept_ratio)]
    return [("", list(runs))] if max(lengths) == 1 else _grouped(runs, _length)


def _length(run: RunData) -> str:
    given = [f"{run.record.training[name]:g} {name}" for name in _LENGTH if run.record.training.get(name) is not None]
    return given[0] if given else f"{run.record.total_steps:,} steps"
