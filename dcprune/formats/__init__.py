"""The only place that reads or writes artifacts."""

from dcprune.formats.detection import artifact_kind, read_artifact
from dcprune.formats.documents import (
    read_class_weights,
    read_coreset,
    read_metrics,
    read_run,
    write_class_weights,
    write_coreset,
    write_metrics,
    write_run,
)
from dcprune.formats.files import (
    atomic_file,
    atomic_folder,
    atomic_write,
    check_input,
    check_output,
    input_file,
    remove,
    sha256,
)
from dcprune.formats.tensors import read_embeddings, read_scores, read_shard_index, write_embeddings, write_scores

__all__ = [
    "artifact_kind",
    "atomic_file",
    "atomic_folder",
    "atomic_write",
    "check_input",
    "check_output",
    "input_file",
    "read_artifact",
    "read_class_weights",
    "read_coreset",
    "read_embeddings",
    "read_metrics",
    "read_run",
    "read_scores",
    "read_shard_index",
    "remove",
    "sha256",
    "write_class_weights",
    "write_coreset",
    "write_embeddings",
    "write_metrics",
    "write_run",
    "write_scores",
]
