"""`compare`: metrics of several runs or sets of images side by side, where they were measured alike."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcprune import formats
from dcprune.api.provenance import provenance
from dcprune.artifacts import ComparedMetrics, Metrics, MetricsComparison
from dcprune.errors import MissingInput, OptionError, ProtocolMismatch, UnknownName
from dcprune.evaluation import differences
from dcprune.formats.documents import RUN_FILE
from dcprune.report.collect import run_names

StrPath = str | os.PathLike[str]

METRICS_FILE = "metrics.json"
_LISTED = 6


def compare_metrics(files: Sequence[StrPath], *, metrics: Sequence[str] = ()) -> MetricsComparison:
    """Put the values of metrics side by side.

    Args:
        files: what `evaluate` found, as files, or runs that have a `metrics.json`.
        metrics: names of some metrics only; all by default.

    Raises:
        OptionError: no file, or one given twice.
        UnknownName: no file has a metric of this name.
        ProtocolMismatch: values of a metric that were not measured alike; the message says what differs.
        MissingInput, ArtifactError: a file that is not there, or does not hold metrics.
    """
    paths = [metrics_path(each) for each in files]
    if not paths:
        raise OptionError("Name at least one file of metrics to compare.")
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise OptionError(f"{twice[0]} is given twice.")
    found = [formats.read_metrics(path) for path in paths]
    known = list(dict.fromkeys(value.name for each in found for value in each.metrics))
    for name in metrics:
        if name not in known:
            raise UnknownName("metric in these files", name, known)
    names = [name for name in known if name in metrics or not metrics]
    columns = [_column(name, each, names) for name, each in zip(_names(paths), found, strict=True)]
    _check_alike(columns, names)
    return MetricsComparison(
        dataset=found[0].dataset,
        metrics=tuple(names),
        columns=tuple(columns),
        provenance=provenance(
            "compare",
            {"input": [str(path) for path in paths], "metric": list(metrics)},
            seed=0,
            inputs=[str(path) for path in paths],
        ),
    )


def metrics_path(path: StrPath) -> Path:
    """The file of metrics that is meant: that of a run, where it is a run folder.

    Raises:
        MissingInput: a run that was not evaluated.
    """
    path = Path(path)
    if not (path / RUN_FILE).is_file():
        return path
    if not (path / METRICS_FILE).is_file():
        raise MissingInput(f"The run {path} has no {METRICS_FILE}. `dcprune eval {path}` makes it.")
    return path / METRICS_FILE


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders of files that are all called `metrics.json`, else the files."""
    folders = all(path.name == METRICS_FILE for path in paths) and len({path.parent for path in paths}) == len(paths)
    return run_names([path.absolute().parent if folders else path for path in paths])


def _column(name: str, metrics: Metrics, names: Sequence[str]) -> ComparedMetrics:
    return ComparedMetrics(name=name, values={each.name: each for each in metrics.metrics if each.name in names})


def _check_alike(columns: Sequence[ComparedMetrics], names: Sequence[str]) -> None:
    """Compare every value of a metric with the first one.

    Raises:
        ProtocolMismatch: with what differs.
    """
    complaints = []
    for name in names:
        holders = [column for column in columns if name in column.values]
        for column in holders[1:]:
            unlike = differences(holders[0].values[name], column.values[name])
            if unlike:
                complaints.append(f"{name} of {holders[0].name} and {column.name}: {_in_words(unlike)}")
    if complaints:
        raise ProtocolMismatch(
            "These values were not measured alike. "
            + ". ".join(complaints)
            + ". Measure them in the same way, or name the --metric that was."
        )


def _in_words(unlike: dict[str, tuple[Any, Any]]) -> str:
    words = [f"{term} {_shortened(first)} against {_shortened(second)}" for term, (first, second) in unlike.items()]
    more = f", and {len(words) - _LISTED} more" if len(words) > _LISTED else ""
    return ", ".join(words[:_LISTED]) + more


def _shortened(entry: Any) -> str:
    """An entry of a protocol; of a hash its start."""
    return f"{entry[:12]!r}" if isinstance(entry, str) and re.fullmatch("[0-9a-f]{64}", entry) else repr(entry)
