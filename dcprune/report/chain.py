"""The chain from dataset to metrics as the page draws it, and the provenance records that rebuild it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dcprune.artifacts import Provenance
from dcprune.report.axes import number, trimmed
from dcprune.report.collect import Material, RunData
from dcprune.report.compare import generated_metrics, percent


@dataclass(frozen=True)
class Step:
    """One box of the diagram: what it is, its file, the hash of that, and a few facts."""

    title: str
    file: str
    sha256: str
    facts: tuple[str, ...]


def chain_steps(material: Material) -> list[Step]:
    """The boxes of the headline run, those at hand."""
    run, dataset = material.headline, material.dataset
    classes = f"{dataset.num_classes} classes" if dataset.num_classes else "no classes"
    facts: tuple[str, ...] = (f"{dataset.num_samples:,} images", classes, f"split {dataset.split}")
    steps = [Step("Dataset", dataset.uri, dataset.fingerprint, facts)]
    if material.embeddings is not None and run.coreset is not None:
        encoder = material.embeddings.encoder
        details = (f"{name.replace('_', ' ')} {_fact(value)}" for name, value in encoder.details.items())
        facts = (f"{encoder.name}, {encoder.dim}-d", f"weights {encoder.weights}", *list(details)[:2])
        steps.append(_file_step("Embeddings", material.embeddings.origin, material, facts))
    if run.coreset is not None:
        steps += _selection_steps(material)
    if run.class_weights is not None:
        objective = run.class_weights.objective
        facts = (f"{objective.steps:,} updates", f"eta {trimmed(objective.eta)}")
        steps.append(_file_step("Class weights", run.class_weights.origin, material, facts))
    record = run.record
    preset = f"{record.backend}, preset {record.preset}" if record.preset else record.backend
    unfinished = f" of {record.total_steps:,}" if record.step < record.total_steps else ""
    steps.append(Step("Run", run.name, record.model_sha256 or "", (preset, f"{record.step:,}{unfinished} updates")))
    if run.metrics is not None:
        facts = tuple(f"{metric.name} {number(metric.value)}" for metric in generated_metrics(run))
        steps.append(_file_step("Metrics", run.metrics.origin, material, facts))
    return steps


def _fact(value: object) -> str:
    return trimmed(value) if isinstance(value, float) else str(value)


def _file_step(title: str, origin: str | None, material: Material, facts: tuple[str, ...]) -> Step:
    return Step(title, Path(origin or "").name, material.hashes.get(origin or "", ""), facts)


def _selection_steps(material: Material) -> list[Step]:
    coreset = material.headline.coreset
    if coreset is None:
        return []
    selection = coreset.selection
    settings = tuple(f"{name} {_fact(value)}" for name, value in selection.params.items())
    scored = (selection.scorer, *settings[:2])
    steps = []
    if material.scores is not None and material.scores.origin is not None:
        steps.append(_file_step("Scores", material.scores.origin, material, scored))
        scored = ()
    share = percent(coreset.num_selected / coreset.dataset.num_samples)
    facts = (*scored, selection.keep, f"{coreset.num_selected:,} kept, {share}")
    steps.append(_file_step("Coreset", coreset.origin, material, facts))
    return steps


def provenance_records(material: Material) -> list[Provenance]:
    """Records of everything on the page in an order in which the commands can be run again, without repetition.

    Full-data runs come before class weights, because those are learned against one of them.
    """
    ranked: list[tuple[int, Provenance]] = []
    if material.embeddings is not None and material.headline.coreset is not None:
        ranked.append((0, material.embeddings.provenance))
    if material.scores is not None and material.scores.origin is not None:
        ranked.append((1, material.scores.provenance))
    for run in material.runs:
        ranked += _run_records(run)
    ordered = [record for _, record in sorted(ranked, key=lambda pair: pair[0])]
    return [record for index, record in enumerate(ordered) if record not in ordered[:index]]


def _run_records(run: RunData) -> Iterable[tuple[int, Provenance]]:
    if run.coreset is not None:
        yield 2, run.coreset.provenance
    yield (3 if run.is_full else 5), run.record.provenance
    if run.class_weights is not None:
        yield 4, run.class_weights.provenance
    if run.metrics is not None:
        yield 6, run.metrics.provenance
