"""JSON artifacts: coreset, class weights, metrics, comparison, run record, sweep results, export record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dcprune.artifacts import (
    ClassWeights,
    Comparison,
    Coreset,
    ExportRecord,
    JsonArtifact,
    LatentsRecord,
    Metrics,
    MetricsComparison,
    RunRecord,
    SweepResults,
)
from dcprune.errors import ArtifactError, DcpruneError
from dcprune.formats.costs import read_costs, write_costs
from dcprune.formats.files import STDIO, StrPath, atomic_write, check_input, restored_path, stored_path

Document = TypeVar("Document", bound=JsonArtifact)
Model = TypeVar("Model", bound=BaseModel)

# Which command makes a file, for the message when it is missing.
MAKERS = {
    "embeddings": "dcprune embed DATASET",
    "classes": "dcprune embed DATASET --pseudo-classes K",
    "scores": "dcprune score",
    "coreset": "dcprune select --ratio 0.2",
    "class-weights": "dcprune reweight",
    "metrics": "dcprune eval RUN",
    "comparison": "dcprune compare CORESET... -o compare.json",
    "metrics-comparison": "dcprune compare METRICS... -o compare.json",
    "run": "dcprune train -o RUN",
    "sweep": "dcprune sweep -o FOLDER",
    "export": "dcprune export --to FORM -o FOLDER",
    "reference": "dcprune eval --reference DATASET --export-reference FILE",
    "latents": "dcprune prepare DATASET -o FOLDER",
}
RUN_FILE = "run.json"
LATENTS_FILE = "latents.json"
SWEEP_FILE = "results.json"
EXPORT_FILE = ".dcprune.json"  # hidden, so that no other program takes it for data


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object; NaN and infinity are refused.

    Raises:
        ArtifactError: not a JSON object.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number that a file may hold")

    try:
        document = json.loads(text, parse_constant=refuse)
    except (ValueError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{where} is not valid JSON (truncated or corrupt): {error}.") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{where} is JSON, but not an object.")
    return document


def check_format(document: dict[str, Any], expected: str, where: str) -> None:
    """Compare the `format` of a file with the one that is wanted (`"dcprune.coreset/1"`).

    Raises:
        ArtifactError: another kind, a newer version, or no dcprune artifact at all.
    """
    found = str(document.get("format", ""))
    kind, _, version = found.partition("/")
    wanted_kind, _, wanted_version = expected.partition("/")
    if not kind.startswith("dcprune."):
        raise ArtifactError(f"{where} is not a dcprune artifact (expected format {expected!r}).")
    if kind != wanted_kind:
        name = wanted_kind.removeprefix("dcprune.")
        raise ArtifactError(
            f"{where} holds {kind.removeprefix('dcprune.')}, not {name}. `{MAKERS.get(name, 'dcprune')}` makes one."
        )
    if version != wanted_version:
        newer = version.isdigit() and int(version) > int(wanted_version)
        fix = "Update dcprune: pip install -U dcprune." if newer else "Make it again."
        raise ArtifactError(f"{where} has format {found!r}; this dcprune reads {expected!r}. {fix}")


def validated(model: type[Model], document: dict[str, Any], where: str) -> Model:
    """A pydantic model made from parsed JSON.

    Raises:
        ArtifactError: with the first field that does not fit.
    """
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ArtifactError(f"{where} is damaged at {field}: {first['msg']}.") from error


def _input_files(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every reference to another file inside an artifact's JSON."""
    listed = document.get("provenance", {}).get("inputs", ()) if isinstance(document.get("provenance"), dict) else ()
    own = [document.get(name) for name in ("coreset", "class_weights", "run")]
    for cell in _dicts(document.get("cells")):
        own += [cell.get("run"), *_dicts(cell.get("metrics"))]
    return [each for each in (*listed, *own) if isinstance(each, dict) and isinstance(each.get("path"), str)]


def _dicts(value: object) -> list[dict[str, Any]]:
    """The objects of a JSON list that nobody has validated yet."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def with_stored_paths(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make every reference to another file relative to `folder`, in place."""
    for reference in _input_files(document):
        reference["path"] = stored_path(reference["path"], folder)
    return document


def with_restored_paths(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make every reference to another file absolute, in place."""
    for reference in _input_files(document):
        reference["path"] = restored_path(reference["path"], folder)
    return document


def to_json(artifact: JsonArtifact, folder: Path) -> bytes:
    """The bytes of a JSON artifact that lies in `folder`: one top-level key a line, the same for the same content."""
    document = with_stored_paths(artifact.model_dump(mode="json"), folder)
    head = [name for name in ("format", "dataset") if name in document]
    tail = [name for name in ("provenance",) if name in document]
    names = head + [name for name in document if name not in (*head, *tail)] + tail
    lines = [f" {json.dumps(name)}: {json.dumps(document[name], ensure_ascii=False)}" for name in names]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read_document(model: type[Document], path: StrPath) -> Document:
    """Read one kind of JSON artifact; `-` is standard input.

    Raises:
        MissingInput: no such file.
        ArtifactError: not that kind, a newer version, or damaged.
    """
    expected = str(model.model_fields["format"].default)
    name = expected.removeprefix("dcprune.").partition("/")[0]
    if str(path) == STDIO:
        where, text, folder = "Standard input", sys.stdin.buffer.read(), Path()
    else:
        path = check_input(path, f"The {name} file", f"`{MAKERS[name]}` makes one.")
        if path.is_dir():
            raise ArtifactError(f"{path} is a folder, not a {name} file.")
        where, text, folder = str(path), path.read_bytes(), path.parent
    document = parse_json(text, where)
    check_format(document, expected, where)
    return validated(model, with_restored_paths(document, folder), where).with_origin(str(path))


def write_document(artifact: JsonArtifact, path: StrPath, *, overwrite: bool = False) -> None:
    """Write a JSON artifact; `-` is standard output.

    Raises:
        OutputExists: the file exists and `overwrite` is false.
    """
    if str(path) == STDIO:
        sys.stdout.write(to_json(artifact, Path()).decode())
        return
    atomic_write(path, to_json(artifact, Path(path).parent), overwrite=overwrite)


def read_coreset(path: StrPath) -> Coreset:
    """Read a coreset (`coreset.json`); see `read_document` for the errors."""
    return read_document(Coreset, path).with_costs(read_costs(path))


def write_coreset(coreset: Coreset, path: StrPath, *, overwrite: bool = False) -> None:
    """Write a coreset; see `write_document`."""
    write_document(coreset, path, overwrite=overwrite)
    write_costs(coreset.costs, path)


def read_class_weights(path: StrPath) -> ClassWeights:
    """Read class weights (`weights.json`); see `read_document` for the errors."""
    return read_document(ClassWeights, path).with_costs(read_costs(path))


def write_class_weights(class_weights: ClassWeights, path: StrPath, *, overwrite: bool = False) -> None:
    """Write class weights; see `write_document`."""
    write_document(class_weights, path, overwrite=overwrite)
    write_costs(class_weights.costs, path)


def read_metrics(path: StrPath) -> Metrics:
    """Read metrics (`metrics.json`); see `read_document` for the errors."""
    return read_document(Metrics, path)


def write_metrics(metrics: Metrics, path: StrPath, *, overwrite: bool = False) -> None:
    """Write metrics; see `write_document`."""
    write_document(metrics, path, overwrite=overwrite)


def read_comparison(path: StrPath) -> Comparison:
    """Read a comparison of coresets; see `read_document` for the errors."""
    return read_document(Comparison, path)


def write_comparison(comparison: Comparison, path: StrPath, *, overwrite: bool = False) -> None:
    """Write a comparison; see `write_document`."""
    write_document(comparison, path, overwrite=overwrite)


def read_metrics_comparison(path: StrPath) -> MetricsComparison:
    """Read a comparison of metrics; see `read_document` for the errors."""
    return read_document(MetricsComparison, path)


def write_metrics_comparison(comparison: MetricsComparison, path: StrPath, *, overwrite: bool = False) -> None:
    """Write a comparison of metrics; see `write_document`."""
    write_document(comparison, path, overwrite=overwrite)


def read_export(folder: StrPath) -> ExportRecord:
    """Read what an exported folder says about itself; see `read_document` for the errors."""
    return read_document(ExportRecord, Path(folder) / EXPORT_FILE)


def write_export(record: ExportRecord, folder: StrPath) -> None:
    """Write what an exported folder says about itself."""
    write_document(record, Path(folder) / EXPORT_FILE)


def read_latents(folder: StrPath) -> LatentsRecord:
    """Read what a folder of latents says about itself; see `read_document` for the errors."""
    return read_document(LatentsRecord, Path(folder) / LATENTS_FILE)


def write_latents(record: LatentsRecord, folder: StrPath) -> None:
    """Write what a folder of latents says about itself, once all its shards are there."""
    write_document(record, Path(folder) / LATENTS_FILE, overwrite=True)


def read_sweep(path: StrPath) -> SweepResults:
    """Read the results of a sweep, from the file or the folder that it lies in; see `read_document` for the errors."""
    return read_document(SweepResults, _sweep_file(path))


def write_sweep(results: SweepResults, path: StrPath, *, overwrite: bool = False) -> None:
    """Write the results of a sweep to a file, or as `results.json` into a folder; see `write_document`."""
    write_document(results, _sweep_file(path), overwrite=overwrite)


def _sweep_file(path: StrPath) -> StrPath:
    return Path(path) / SWEEP_FILE if Path(path).is_dir() else path


def read_run(folder: StrPath) -> RunRecord:
    """Read `run.json` of a run folder.

    Raises:
        MissingInput: no such folder, or no run in it.
        ArtifactError: the record is damaged.
    """
    folder = check_input(folder, "The run folder", f"`{MAKERS['run']}` makes one.")
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is a file, not a run folder.")
    try:
        return read_document(RunRecord, folder / RUN_FILE)
    except DcpruneError as error:
        if (folder / RUN_FILE).exists():
            raise
        raise ArtifactError(f"{folder} is not a run folder: it has no {RUN_FILE}.") from error


def write_run(run: RunRecord, folder: StrPath) -> None:
    """Write `run.json` of a run folder, replacing the one that is there."""
    write_document(run, Path(folder) / RUN_FILE, overwrite=True)
