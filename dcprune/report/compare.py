"""What the page says about results: names of runs, metrics side by side, the summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dcprune.artifacts import MetricValue
from dcprune.report.axes import number
from dcprune.report.collect import Material, RunData


@dataclass(frozen=True)
class MetricRow:
    """One value of a metric.

    Attributes:
        images: what was measured, in words.
        headline: whether the headline run generated them.
        comparable: false where the protocol or the numbers of images are not those of the first run that was measured.
        floor: whether these are real images, measured for orientation.
    """

    run: str
    images: str
    value: str
    num_generated: int
    num_reference: int
    headline: bool = False
    comparable: bool = True
    floor: bool = False


@dataclass(frozen=True)
class MetricGroup:
    """One metric over all runs, and the protocols it was computed with, each with the runs that used it."""

    name: str
    rows: tuple[MetricRow, ...]
    protocols: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]

    @property
    def has_floor(self) -> bool:
        return any(row.floor for row in self.rows)


def percent(share: float) -> str:
    """A share as a percentage, the sign kept on the line of its number."""
    return f"{number(100 * share, 2 if share < 0.995 else 3)}\N{NO-BREAK SPACE}%"


def trained_on(run: RunData) -> str:
    """The training set of a run in a few words: `moderate 20 %, weighted`, `all data`."""
    record = run.record
    if run.is_full:
        words = "all data"
    else:
        share = percent(record.num_trained_samples / record.dataset.num_samples)
        words = f"{run.coreset.selection.scorer if run.coreset else 'coreset'} {share}"
    return f"{words}, weighted" if record.class_weights is not None else words


def split_metrics(run: RunData) -> Iterator[tuple[MetricValue, str]]:
    """Metrics of a run and, for those of real images such as `fid (coreset images)`, what stands in the brackets."""
    values = run.metrics.metrics if run.metrics else ()
    names = {metric.name for metric in values}
    for metric in values:
        base, _, rest = metric.name.rpartition(" (")
        yield metric, rest.removesuffix(")") if base in names and rest.endswith(")") else ""


def generated_metrics(run: RunData) -> list[MetricValue]:
    """Metrics of the images that a run generated."""
    return [metric for metric, label in split_metrics(run) if not label]


def metric_names(runs: Sequence[RunData]) -> list[str]:
    """Metrics of generated images, in the order in which they first appear."""
    return list(dict.fromkeys(metric.name for run in runs for metric in generated_metrics(run)))


def _terms(metric: MetricValue) -> str:
    """Everything two values must share before they may be compared, as one string."""
    return json.dumps([metric.protocol, metric.num_generated, metric.num_reference], sort_keys=True)


def _found(runs: Sequence[RunData], name: str) -> list[tuple[RunData, MetricValue]]:
    return [(run, metric) for run in runs for metric in generated_metrics(run) if metric.name == name]


def comparable_values(runs: Sequence[RunData], name: str) -> list[tuple[RunData, MetricValue]]:
    """The first run's value of a metric and those of the runs that were measured in the same way."""
    found = _found(runs, name)
    return [each for each in found if _terms(each[1]) == _terms(found[0][1])]


def metric_groups(runs: Sequence[RunData]) -> list[MetricGroup]:
    """Every metric with its values for all runs, those of real images last."""
    groups = []
    for name in metric_names(runs):
        found = _found(runs, name)
        generated = [
            MetricRow(
                run=run.name,
                images=f"generated, trained on {trained_on(run)}",
                value=number(metric.value, 4),
                num_generated=metric.num_generated,
                num_reference=metric.num_reference,
                headline=run is runs[0],
                comparable=_terms(metric) == _terms(found[0][1]),
            )
            for run, metric in found
        ]
        groups.append(MetricGroup(name, (*generated, *_floors(runs, name)), _protocols(found)))
    return groups


def _floors(runs: Sequence[RunData], name: str) -> Iterator[MetricRow]:
    """What real images, such as the coreset's own, reach in the same metric."""
    for run in runs:
        for metric, label in split_metrics(run):
            if label and metric.name == f"{name} ({label})":
                yield MetricRow(
                    run=run.name,
                    images=f"real: {label}",
                    value=number(metric.value, 4),
                    num_generated=metric.num_generated,
                    num_reference=metric.num_reference,
                    floor=True,
                )


def _protocols(found: Sequence[tuple[RunData, MetricValue]]) -> tuple[tuple[str, tuple[tuple[str, str], ...]], ...]:
    """Each distinct protocol with its sampler, under the names of its runs."""
    users: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for run, metric in found:
        sampler = run.metrics.sampler if run.metrics else {}
        items = [*metric.protocol.items(), *((f"sampler: {name}", value) for name, value in sampler.items())]
        users.setdefault(tuple((name.replace("_", " "), _plain(value)) for name, value in items), []).append(run.name)
    return tuple((", ".join(names), items) for items, names in users.items())


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


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
    scope = " within each class" if selection.scope == "class" else " over all classes together"
    by = f"{selection.scorer}{scope if dataset.num_classes > 1 else ''}"
    return f"{kept} were kept ({share}), chosen by {by} with the {selection.keep} policy."


def result_sentence(material: Material) -> str:
    """What the headline run reached, beside the other runs that were measured in the same way."""
    run = material.headline
    weighted = " with learned class weights" if run.record.class_weights is not None else ""
    trained = f"A {run.record.backend} model was trained{weighted} for {run.record.step:,} updates"
    metrics = generated_metrics(run)
    if not metrics:
        return f"{trained}; it has not been evaluated yet."
    first = metrics[0]
    others = [each for each in comparable_values(material.runs, first.name) if each[0] is not run]
    beside = [f"{number(metric.value)} for {other.name} ({trained_on(other)})" for other, metric in others]
    against = f", against {enumerated(beside)}" if beside else ""
    return f"{trained}. Its {first.name} is {number(first.value)} on {first.num_generated:,} generated images{against}."
