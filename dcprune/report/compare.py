"""What the page says in numbers and sentences: names of runs, metrics side by side, costs, the summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dcprune.artifacts import MetricValue, StageCost
from dcprune.report.axes import number
from dcprune.report.collect import Material, RunData

TRAINING = "train"


@dataclass(frozen=True)
class MetricRow:
    """One run's value. `comparable` is false where its protocol or its numbers of images are not the headline's."""

    run: str
    trained_on: str
    value: str
    num_generated: int
    num_reference: int
    headline: bool
    comparable: bool


@dataclass(frozen=True)
class MetricGroup:
    """One metric over all runs, and the protocols it was computed with, each with the runs that used it."""

    name: str
    rows: tuple[MetricRow, ...]
    protocols: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


@dataclass(frozen=True)
class CostRow:
    """Costs of one stage of a run, or of all of them together."""

    run: str
    stage: str
    images: int
    updates: int
    seconds: float
    total: bool = False


@dataclass(frozen=True)
class SpeedUp:
    """How many times less the headline run cost than a full-data run; None where that cannot be said."""

    against: str
    counted: str
    updates: float | None
    images: float | None
    seconds: float | None


def percent(share: float) -> str:
    return f"{number(100 * share, 2 if share < 0.995 else 3)} %"


def trained_on(run: RunData) -> str:
    """The training set of a run in a few words: `moderate 20 %, weighted`, `all data`."""
    record = run.record
    if run.is_full:
        words = "all data"
    else:
        share = percent(record.num_trained_samples / record.dataset.num_samples)
        words = f"{run.coreset.selection.scorer if run.coreset else 'coreset'} {share}"
    return f"{words}, weighted" if record.class_weights is not None else words


def _values(run: RunData) -> Iterator[MetricValue]:
    yield from run.metrics.metrics if run.metrics else ()


def _terms(run: RunData, metric: MetricValue) -> str:
    """Everything two values must share before they may be compared, as one string."""
    return json.dumps([metric.protocol, metric.num_generated, metric.num_reference], sort_keys=True)


def metric_groups(runs: Sequence[RunData]) -> list[MetricGroup]:
    """Every metric that a run has, in the order in which they first appear."""
    names = list(dict.fromkeys(metric.name for run in runs for metric in _values(run)))
    groups = []
    for name in names:
        found = [(run, metric) for run in runs for metric in _values(run) if metric.name == name]
        standard = _terms(*found[0])
        rows = tuple(
            MetricRow(
                run=run.name,
                trained_on=trained_on(run),
                value=number(metric.value, 4),
                num_generated=metric.num_generated,
                num_reference=metric.num_reference,
                headline=run is runs[0],
                comparable=_terms(run, metric) == standard,
            )
            for run, metric in found
        )
        groups.append(MetricGroup(name, rows, _protocols(found)))
    return groups


def _protocols(found: Sequence[tuple[RunData, MetricValue]]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Each distinct protocol with its sampler, under the names of its runs."""
    users: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run, metric in found:
        sampler = run.metrics.sampler if run.metrics else {}
        items = [*metric.protocol.items(), *((f"sampler: {name}", value) for name, value in sampler.items())]
        users.setdefault(tuple((name, _plain(value)) for name, value in items), []).append(run.name)
    return tuple((", ".join(names), items) for items, names in users.items())


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def comparable_values(runs: Sequence[RunData], name: str) -> list[tuple[RunData, MetricValue]]:
    """The headline's value of a metric and those of the runs that were measured in the same way."""
    found = [(run, metric) for run in runs for metric in _values(run) if metric.name == name]
    return [each for each in found if _terms(*each) == _terms(*found[0])]


def cost_rows(runs: Sequence[RunData]) -> list[CostRow]:
    """The ledger of every run, with a total where it has more than one stage."""
    rows = []
    for run in runs:
        ledger = run.record.ledger
        rows += [CostRow(run.name, each.stage, each.images_seen, each.updates, each.device_seconds) for each in ledger]
        if len(ledger) > 1:
            rows.append(CostRow(run.name, "total", *_sums(ledger), total=True))
    return rows


def _sums(ledger: Sequence[StageCost]) -> tuple[int, int, float]:
    return (
        sum(each.images_seen for each in ledger),
        sum(each.updates for each in ledger),
        sum(each.device_seconds for each in ledger),
    )


def speed_ups(runs: Sequence[RunData]) -> list[SpeedUp]:
    """The headline coreset run against every full-data run: training alone, and with all that came before it."""
    ours = runs[0].record.ledger
    if runs[0].is_full or not ours:
        return []
    found = []
    for run in runs[1:]:
        theirs = run.record.ledger
        if not run.is_full or not theirs:
            continue
        pairs = [("training alone", [e for e in ours if e.stage == TRAINING], [e for e in theirs if e.stage == TRAINING])]
        if len(ours) > 1:
            pairs.append(("the whole ledger", list(ours), list(theirs)))
        for counted, mine, full in pairs:
            ratios = [b / a if a and b else None for a, b in zip(_sums(mine), _sums(full), strict=True)]
            found.append(SpeedUp(run.name, counted, updates=ratios[1], images=ratios[0], seconds=ratios[2]))
    return found


def enumerated(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def selection_sentence(material: Material) -> str:
    """What was kept, of what, and how."""
    run, dataset = material.headline, material.dataset
    name = f"{dataset.uri} ({dataset.split})"
    if run.is_full:
        return f"This run was trained on all {dataset.num_samples:,} images of {name}."
    kept = f"{run.record.num_trained_samples:,} of the {dataset.num_samples:,} images of {name}"
    share = percent(run.record.num_trained_samples / dataset.num_samples)
    if run.coreset is None:
        return f"This run was trained on {kept}, {share}; its coreset file is not at hand."
    selection = run.coreset.selection
    scope = "within each class" if selection.scope == "class" else "over all classes together"
    return f"{kept} were kept ({share}), chosen by {selection.scorer} {scope} with the {selection.keep} policy."


def result_sentence(material: Material) -> str:
    """What the headline run reached, beside the other runs that were measured in the same way."""
    run = material.headline
    weighted = " with learned class weights" if run.record.class_weights is not None else ""
    trained = f"A {run.record.backend} model was trained{weighted} for {run.record.step:,} updates"
    first = next(_values(run), None)
    if first is None:
        return f"{trained}; it has not been evaluated yet."
    others = [each for each in comparable_values(material.runs, first.name) if each[0] is not run]
    beside = [f"{number(metric.value)} for {other.name} ({trained_on(other)})" for other, metric in others]
    against = f", against {enumerated(beside)}" if beside else ""
    return f"{trained}. Its {first.name} is {number(first.value)} on {first.num_generated:,} generated images{against}."
