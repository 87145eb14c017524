"""Which kind of artifact a path holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dcprune.errors import ArtifactError
from dcprune.formats import documents, references, tensors
from dcprune.formats.files import StrPath, check_input

READERS: dict[str, Callable[[StrPath], Any]] = {
    "embeddings": tensors.read_embeddings,
    "classes": tensors.read_classes,
    "scores": tensors.read_scores,
    "coreset": documents.read_coreset,
    "class-weights": documents.read_class_weights,
    "metrics": documents.read_metrics,
    "comparison": documents.read_comparison,
    "metrics-comparison": documents.read_metrics_comparison,
    "run": documents.read_run,
    "sweep": documents.read_sweep,
    "export": documents.read_export,
    "latents": documents.read_latents,
    "reference": references.read_reference,
}


def artifact_kind(path: StrPath) -> str:
    """One of the keys of `READERS`.

    Raises:
        MissingInput: nothing is there.
        ArtifactError: it is no dcprune artifact.
    """
    path = check_input(path, "The file")
    if path.is_dir():
        if (path / documents.RUN_FILE).is_file():
            return "run"
        if (path / tensors.INDEX_FILE).is_file():
            return "embeddings"
        if (path / documents.SWEEP_FILE).is_file():
            return "sweep"
        if (path / documents.EXPORT_FILE).is_file():
            return "export"
        if (path / documents.LATENTS_FILE).is_file():
            return "latents"
        raise ArtifactError(
            f"{path} is neither a run folder, nor a sweep, nor a folder of embeddings or latents, nor an export."
        )
    found = str(_document(path).get("format", ""))
    kind = found.removeprefix("dcprune.").partition("/")[0]
    if not found.startswith("dcprune.") or kind not in READERS:
        raise ArtifactError(f"{path} is not a dcprune artifact.")
    return kind


def _document(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors" and path.read_bytes()[:64].lstrip().startswith(b"{"):
        return documents.parse_json(path.read_bytes(), str(path))
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is neither JSON nor a safetensors file, or is damaged: {error}.") from error
    return documents.parse_json(metadata.get("dcprune", "{}"), str(path))


def read_artifact(path: StrPath) -> Any:
    """Read any artifact, fully validated.

    Raises:
        MissingInput: nothing is there.
        ArtifactError: it is no dcprune artifact, or a damaged one.
    """
    kind = artifact_kind(path)
    path = Path(path)
    if kind in ("run", "export", "latents") and path.is_file():
        path = path.parent
    return READERS[kind](path)
