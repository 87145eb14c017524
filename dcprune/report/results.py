"""Tables of a sweep as the paper has them: methods by ratios, means and standard deviations over runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dcprune.artifacts import DatasetIdentity
from dcprune.report.cells import FULL, Method, Statistics, methods, recipe_words, summarised
from dcprune.report.charts.axes import number
from dcprune.report.collect import RunData
from dcprune.report.compare import comparable_values, metric_names
from dcprune.report.costs import TRAINING, compared_costs, ledger
from dcprune.report.paper import SOURCE, PaperRow, Recipe, paper_model, paper_speed_ups, paper_values
from dcprune.report.words import enumerated, percent

_HIGHER_IS_BETTER: Final = ("isc", "precision", "recall", "density", "coverage")
_NO_BEST: Final = ("authpct",)  # neither end is good

Values = Mapping[str, float]
Better = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class ResultCell:
    """A value in words, empty where there is none, and the paper's beside it."""

    value: str = ""
    spread: str = ""
    runs: int = 0
    paper: str = ""
    best: bool = False


@dataclass(frozen=True)
class ResultRow:
    """A method; `ours` is false for one that only the paper has."""

    label: str
    cells: tuple[ResultCell, ...]
    ours: bool = True


@dataclass(frozen=True)
class ResultTable:
    """Methods by ratios."""

    title: str
    ratios: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    note: str


@dataclass(frozen=True)
class Results:
    """What several runs on one dataset have in common to compare.

    Attributes:
        methods: the rows of every table.
        values: by metric, the values of the runs that were measured in the same way, by the runs' names.
        tables: of metrics.
        speed_tables: of costs, where there is more than one ratio.
    """

    methods: tuple[Method, ...] = ()
    values: Mapping[str, Values] = field(default_factory=dict)
    tables: tuple[ResultTable, ...] = ()
    speed_tables: tuple[ResultTable, ...] = ()


def results(runs: Sequence[RunData]) -> Results:
    """Everything that can be tabled of the runs on the headline's dataset; empty when that is a single method."""
    dataset = runs[0].record.dataset
    alike = [run for run in runs if run.record.dataset.fingerprint == dataset.fingerprint]
    rows = methods(alike)
    if sum(len(row.runs) for row in rows) < 2:
        return Results()
    values: dict[str, Values] = {}
    tables = []
    for name in metric_names(alike):
        measured = comparable_values(alike, name)
        values[name] = {run.name: metric.value for run, metric in measured}
        if len(measured) > 1:
            paper = paper_values(dataset, name)
            notes = [_measured_note(alike, rows, name, values[name]), _paper_note(dataset, "values") if paper else ""]
            tables.append(_table(name, rows, values[name], paper, " ".join(filter(None, notes)), _better(name)))
    several = len({ratio for row in rows if not row.is_full for ratio in row.runs}) > 1
    return Results(tuple(rows), values, tuple(tables), tuple(_speed_tables(alike, rows)) if several else ())


def _better(metric: str) -> Better | None:
    base = metric.partition(":")[0].partition(" ")[0]
    return None if base in _NO_BEST else max if base in _HIGHER_IS_BETTER else min


def _measured_note(runs: Sequence[RunData], rows: Sequence[Method], name: str, values: Values) -> str:
    """How many values there are, what they can tell, and that others were measured in another way."""
    have = sum(any(metric.name == name for metric in run.metrics.metrics) for run in runs if run.metrics is not None)
    repeated = any(each.count > 1 for row in rows for each in summaries(row, values).values())
    spread = "± one standard deviation over runs" if repeated else "one run of each, so a difference may be chance"
    best = "; bold, the best mean of a column" if _better(name) is not None else ""
    left = have - len(values)
    odd = f" {left} more were measured under another protocol and are left out." if left else ""
    return f"Of {len(values)} runs: {spread}{best}.{odd}"


def _paper_note(dataset: DatasetIdentity, what: str) -> str:
    return (
        f"In grey the {what} that the paper ({SOURCE}) reports for {paper_model(dataset)}, of its own code, schedule "
        "and measurement: for orientation."
    )


def _table(
    title: str,
    rows: Sequence[Method],
    values: Values,
    paper: Sequence[PaperRow],
    note: str,
    better: Better | None,
) -> ResultTable:
    """Methods by ratios, those of the paper beside their own, and after them those that only the paper has."""
    measured = [(row, found) for row in rows if (found := summaries(row, values))]
    theirs: dict[Recipe, dict[float, float]] = {}
    for each in paper:
        theirs.setdefault(each.recipe, {}).update(each.values)
    ratios = sorted({ratio for _, found in measured for ratio in found} | {r for each in theirs.values() for r in each})
    best = {ratio: _best([found[ratio].mean for _, found in measured if ratio in found], better) for ratio in ratios}
    table_rows = []
    for row, found in measured:
        beside = theirs.get(row.recipe, {})
        cells = tuple(_cell(found.get(ratio), beside.get(ratio), best[ratio]) for ratio in ratios)
        table_rows.append(ResultRow(row.label, cells))
    ours = {row.recipe for row, _ in measured}
    for recipe in (recipe for recipe in theirs if recipe not in ours):
        cells = tuple(_cell(None, theirs[recipe].get(ratio), None) for ratio in ratios)
        table_rows.append(ResultRow(recipe_words(recipe), cells, ours=False))
    return ResultTable(title, tuple(percent(ratio) for ratio in ratios), tuple(table_rows), note)


def summaries(row: Method, values: Values) -> dict[float, Statistics]:
    """Mean and deviation at every ratio of a method that has values, by ratio."""
    found = {ratio: [values[run.name] for run in runs if run.name in values] for ratio, runs in row.runs.items()}
    return {ratio: summarised(each) for ratio, each in found.items() if each}


def summarised_costs(method: Method, costs: Values, values: Values) -> dict[float, float]:
    """Mean cost at every ratio of the runs that have a value, where all their costs are known."""
    found = {}
    for ratio, runs in method.runs.items():
        measured = [run.name for run in runs if run.name in values]
        if measured and all(name in costs for name in measured):
            found[ratio] = statistics.fmean(costs[name] for name in measured)
    return found


def _best(means: Sequence[float], better: Better | None) -> float | None:
    """The value to set off, when there is anything to choose from."""
    return better(means) if better is not None and len(means) > 1 else None


def _cell(ours: Statistics | None, paper: float | None, best: float | None) -> ResultCell:
    theirs = "" if paper is None else number(paper)
    if ours is None:
        return ResultCell(paper=theirs)
    mean, deviation = plus_minus(ours)
    return ResultCell(mean, deviation, ours.count, theirs, ours.mean == best)


def plus_minus(each: Statistics) -> tuple[str, str]:
    """The mean to four digits and the deviation to as many decimals; an empty one where it is unknown."""
    mean = number(each.mean, 4)
    decimals = len(mean.partition(".")[2]) if "e" not in mean else 0
    if each.deviation is None:
        return mean, ""
    return mean, f"{each.deviation:,.{decimals}f}" if decimals else number(each.deviation, 2)


def _speed_tables(runs: Sequence[RunData], rows: Sequence[Method]) -> list[ResultTable]:
    """How many times less every run cost than one on the full data: the training alone, then all that came before."""
    full = [run for row in rows if row.recipe == FULL for run in row.runs[1.0]]
    dataset = runs[0].record.dataset
    tables = []
    for title, stages, paper in (
        ("Speed-up over the full data, training alone", (TRAINING,), paper_speed_ups(dataset)),
        ("Speed-up over the full data, everything counted", None, []),
    ):
        unit, costs = compared_costs(runs, stages, timed=bool(paper))
        whole = [costs[run.name] for run in full if costs.get(run.name)]
        speeds = {run.name: statistics.fmean(whole) / costs[run.name] for run in runs if whole and costs.get(run.name)}
        pruned = [row for row in rows if row.recipe != FULL]
        if any(run.name in speeds for row in pruned for group in row.runs.values() for run in group):
            notes = [f"In {unit}.", _counted(runs, stages), _paper_note(dataset, "speed-ups") if paper else ""]
            tables.append(_table(title, pruned, speeds, paper, " ".join(filter(None, notes)), None))
    return tables


def _counted(runs: Sequence[RunData], stages: Sequence[str] | None) -> str:
    if stages is not None:
        return "As the paper counts: what it takes to choose and to weight is left out."
    counted = dict.fromkeys(row.stage for run in runs for row in ledger(run))
    return f"Counted where a run needed it: {enumerated(list(counted))}."


def result_title(found: Results) -> str:
    """`3 methods at 2 ratios`."""
    pruned = [method for method in found.methods if not method.is_full]
    ratios = {ratio for method in pruned for ratio in method.runs}
    return f"{_counted_noun(len(pruned), 'method')} at {_counted_noun(len(ratios), 'ratio')}"


def result_sentence(found: Results, runs: Sequence[RunData]) -> str:
    """How many runs there are of what, and which method is best at the smallest ratio, against random choice."""
    pruned = [method for method in found.methods if not method.is_full]
    words = f"{_counted_noun(len(runs), 'run')}: {result_title(found)}."
    for name, values in found.values.items():
        better = _better(name)
        by_ratio = [(method, summaries(method, values)) for method in pruned]
        measured = sorted({ratio for _, each in by_ratio for ratio in each})
        at = [(method, each[measured[0]]) for method, each in by_ratio if measured and measured[0] in each]
        if better is None or len(at) < 2:
            continue
        best = better([each.mean for _, each in at])
        words_of = {method.label: " ± ".join(filter(None, plus_minus(each))) for method, each in at}
        winner = next(method.label for method, each in at if each.mean == best)
        baseline = [words_of[method.label] for method, _ in at if method.is_random and method.label != winner]
        against = f", against {baseline[0]} by random choice" if baseline else ""
        return f"{words} At {percent(measured[0])} the best {name} is {words_of[winner]}, by {winner}{against}."
    return words


def _counted_noun(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
