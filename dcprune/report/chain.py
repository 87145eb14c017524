"""The chain from dataset to metrics as the page draws it, and the provenance records that rebuild it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dcprune import formats
from dcprune.artifacts import ClassWeights, Embeddings, JsonArtifact, Provenance, Scores
from dcprune.errors import DcpruneError
from dcprune.formats.documents import RUN_FILE
from dcprune.report.charts.axes import number, trimmed
from dcprune.report.collect import Material, RunData
from dcprune.report.compare import generated_metrics
from dcprune.report.words import percent


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
        facts = (f"{encoder.name}, {encoder.dim}-d", f"weights {encoder.weights}", *list(details)[:1])
        steps.append(_file_step("Embeddings", material.embeddings.origin, material, facts))
    if run.coreset is not None:
        steps += _selection_steps(material)
    if run.class_weights is not None:
        objective = run.class_weights.objective
        facts = (
            f"{objective.steps:,} updates",
            f"eta {trimmed(objective.eta)}",
            f"reference {run.class_weights.provenance.config.get('reference', '')} {objective.reference_sha256[:10]}",
        )
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


@dataclass(frozen=True)
class Made:
    """An artifact on the page: how it was made, and where it lies."""

    record: Provenance
    path: Path


def made(material: Material) -> list[Made]:
    """Everything on the page in an order in which it can be made again, without repetition.

    Full-data runs come before class weights, because those are learned against one of them. A sweep makes its runs.
    """
    ranked: list[tuple[int, Made]] = [(0, _made(sweep)) for sweep in material.sweeps]
    given = [run for run in material.runs if run.cell is None]
    if material.headline in given and material.headline.coreset is not None:
        if material.embeddings is not None:
            ranked.append((1, _made(material.embeddings)))
        if material.scores is not None and material.scores.origin is not None:
            ranked.append((2, _made(material.scores)))
    for run in given:
        ranked += _run_parts(run)
    ordered = [each for _, each in sorted(ranked, key=lambda pair: pair[0])]
    return [each for index, each in enumerate(ordered) if each.record not in [one.record for one in ordered[:index]]]


def _made(artifact: Embeddings | Scores | JsonArtifact) -> Made:
    return Made(artifact.provenance, Path(artifact.origin or ""))


def _run_parts(run: RunData) -> Iterator[tuple[int, Made]]:
    if run.coreset is not None:
        yield 3, _made(run.coreset)
    yield (6 if run.has_coreset else 4), Made(run.record.provenance, run.folder)
    if run.class_weights is not None:
        yield from ((4, each) for each in _references(run.class_weights))
        yield 5, _made(run.class_weights)
    if run.metrics is not None:
        yield 7, _made(run.metrics)


def _references(weights: ClassWeights) -> Iterator[Made]:
    """The run whose model the class weights were learned against, where it still is."""
    for each in weights.provenance.inputs:
        folder = Path(each.path).parent
        if Path(each.path).is_dir() and (folder / RUN_FILE).is_file():
            try:
                yield Made(formats.read_run(folder).provenance, folder)
            except DcpruneError:  # a broken run is not how anything was made
                continue


def working_folder(material: Material) -> Path:
    """Where the commands ran, as far as the names of sweeps and runs tell; else where the first run lies."""
    sweeps = [(each.provenance, Path(each.origin).parent) for each in material.sweeps if each.origin is not None]
    for provenance, place in (*sweeps, *((run.record.provenance, run.folder) for run in material.runs)):
        output = Path(str(provenance.config.get("output") or "/"))
        folder = place.absolute()
        if not output.is_absolute() and folder.parts[-len(output.parts) :] == output.parts:
            return folder.parents[len(output.parts) - 1]
    return material.headline.folder.absolute().parent


def within(path: Path, folder: Path) -> str:
    """A path as it is typed in `folder`."""
    path = path.absolute()
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
