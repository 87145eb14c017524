"""What the page says about results: names of runs, metrics side by side, the summary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dcprune.artifacts import Interval, MetricValue
from dcprune.report.charts.axes import number
from dcprune.report.collect import Material, RunData
from dcprune.report.words import enumerated, percent

_MOST_BESIDE = 3


@dataclass(frozen=True)
class MetricRow:
    """One value of a metric.

    Attributes:
        images: what was measured, in words.
        interval: the value's interval or spread, in words; empty where there is none.
        num_generated: None for the limit of ever more images.
        headline: whether the headline run generated them.
        comparable: false where the protocol or the numbers of images are not those of the first run that was measured.
        floor: whether these are real images, measured for orientation.
    """

    run: str
    images: str
    value: str
    interval: str
    num_generated: int | None
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

    @property
    def has_interval(self) -> bool:
        return any(row.interval for row in self.rows)


def trained_on(run: RunData) -> str:
    """The training set of a run in a few words: `moderate 20 %, weighted, annealed`, `all data`."""
    record = run.record
    if run.has_coreset:
        share = percent(record.num_trained_samples / record.dataset.num_samples)
        words = f"{run.coreset.selection.scorer if run.coreset else 'coreset'} {share}"
    else:
        words = "all data"
    more = (
        (str(record.training.get("dynamic")), run.is_dynamic),
        ("weighted", record.class_weights is not None),
        ("annealed", record.training.get("anneal") is not None),
    )
    return ", ".join([words, *(word for word, used in more if used)])


def interval_words(interval: Interval | None) -> str:
    """`2.41 to 2.66`; empty without one."""
    return "" if interval is None else f"{number(interval.low, 4)} to {number(interval.high, 4)}"


def spread_words(metric: MetricValue) -> str:
    """The interval of a value, or the standard deviation over the parts that it is the mean of."""
    if metric.interval is not None:
        return interval_words(metric.interval)
    return "" if metric.std is None else f"standard deviation {number(metric.std)}"


def interval_note(runs: Sequence[RunData]) -> str:
    """What the intervals of the metrics are, and what they leave out; empty when there are none."""
    kinds: dict[str, None] = {}
    for run in runs:
        for metric in generated_metrics(run):
            if metric.interval is not None:
                kinds[_interval_kind(metric.interval)] = None
    if not kinds:
        return "Each value is of one training run; the spread between training seeds is not in it."
    return f"Intervals: {'; '.join(kinds)}. The spread between training runs is not in them."


def _interval_kind(interval: Interval) -> str:
    level = percent(interval.level)
    if interval.method == "bootstrap":
        return f"{level} by bootstrap of the generated images ({interval.num_resamples:,} resamples)"
    return f"{level} of the mean over {len(interval.seeds)} sampling seeds (Student's t)"


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
            row
            for run, metric in found
            for row in _generated_rows(run, metric, run is runs[0], _terms(metric) == _terms(found[0][1]))
        ]
        groups.append(MetricGroup(name, (*generated, *_floors(runs, name)), _protocols(found)))
    return groups


def _generated_rows(run: RunData, metric: MetricValue, headline: bool, comparable: bool) -> Iterator[MetricRow]:
    """The value of a run's images, and its limit for ever more of them where that was extrapolated."""
    images = f"generated, trained on {trained_on(run)}"
    row = MetricRow(
        run=run.name,
        images=images,
        value=number(metric.value, 4),
        interval=spread_words(metric),
        num_generated=metric.num_generated,
        num_reference=metric.num_reference,
        headline=headline,
        comparable=comparable,
    )
    yield row
    limit = metric.extrapolated
    if limit is not None:
        yield replace(row, value=number(limit.value, 4), interval=interval_words(limit.interval), num_generated=None)


def _floors(runs: Sequence[RunData], name: str) -> Iterator[MetricRow]:
    """What real images, such as the coreset's own, reach in the same metric."""
    for run in runs:
        for metric, label in split_metrics(run):
            if label and metric.name == f"{name} ({label})":
                yield MetricRow(
                    run=run.name,
                    images=f"real: {label}",
                    value=number(metric.value, 4),
                    interval=spread_words(metric),
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


def selection_sentence(material: Material) -> str:
    """What was kept, of what, and how."""
    run, dataset = material.headline, material.dataset
    name = f"{dataset.uri} ({dataset.split})"
    if not run.has_coreset:
        left = f", some of them left out in every epoch by {run.record.training['dynamic']}" if run.is_dynamic else ""
        return f"This run was trained on all {dataset.num_samples:,} images of {name}{left}."
    kept = f"{run.record.num_trained_samples:,} of the {dataset.num_samples:,} images of {name}"
    share = percent(run.record.num_trained_samples / dataset.num_samples)
    if run.coreset is None:
        return f"This run was trained on {kept}, {share}; its coreset file is not at hand."
    selection = run.coreset.selection
    scope = " within each class" if selection.scope == "class" else " over all classes together"
    by = f"{selection.scorer}{scope if dataset.num_classes > 1 else ''}"
    return f"{kept} were kept ({share}), chosen by {by} with the {selection.keep} policy."


def result_sentence(material: Material, runs: Sequence[RunData]) -> str:
    """What the headline run reached, beside the first of the other `runs` that were measured in the same way."""
    run = material.headline
    weighted = " with learned class weights" if run.record.class_weights is not None else ""
    trained = f"A model of the backend {run.record.backend} was trained{weighted} for {run.record.step:,} updates"
    metrics = generated_metrics(run)
    if not metrics:
        return f"{trained}; it has not been evaluated yet."
    first = metrics[0]
    others = [each for each in comparable_values(runs, first.name) if each[0] is not run][:_MOST_BESIDE]
    beside = [f"{number(metric.value)} for {other.name} ({trained_on(other)})" for other, metric in others]
    against = f", against {enumerated(beside)}" if beside else ""
    return f"{trained}. Its {first.name} is {number(first.value)} on {first.num_generated:,} generated images{against}."
