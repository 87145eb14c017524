"""What artifacts cost: a file beside each, because an artifact holds no time, so that its bytes stay the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from dcprune.artifacts import CostRecord, StageCost
from dcprune.errors import ArtifactError
from dcprune.formats.files import STDIO, StrPath, atomic_write, remove

_INDEX = "embeddings.index.json"
_HEAD_BYTES = 1 << 20


def cost_path(path: StrPath) -> Path:
    """Where the costs of an artifact lie: `coreset.json.cost` for `coreset.json`."""
    path = Path(path)
    return path.with_name(f"{path.name}.cost")


def write_costs(costs: Sequence[StageCost], path: StrPath) -> None:
    """Write what the artifact at `path` and everything before it cost; costs of an artifact that lay there go.

    Args:
        costs: all stages so far; none writes no file.
        path: the artifact, which is there already; `-` writes nothing.
    """
    if str(path) == STDIO:
        return
    if not costs:
        remove(cost_path(path))
        return
    record = CostRecord(artifact=_identity(Path(path)), ledger=tuple(costs))
    text = json.dumps(record.model_dump(mode="json"), indent=1) + "\n"
    atomic_write(cost_path(path), text.encode(), overwrite=True)


def read_costs(path: StrPath) -> tuple[StageCost, ...]:
    """What the artifact at `path` and everything before it cost; nothing when no file says so, or one of another file.

    Raises:
        ArtifactError: the file of costs is damaged.
    """
    file = cost_path(path)
    if not file.is_file():
        return ()
    try:
        record = CostRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise ArtifactError(
            f"{file} is damaged: {error.errors()[0]['msg']}. It only says what {path} cost: remove it to go on without."
        ) from error
    return record.ledger if record.artifact == _identity(Path(path)) else ()


def _identity(path: Path) -> str:
    """Tells an artifact from others without reading all of a large one: its size and the hash of its first MiB."""
    file = path / _INDEX if path.is_dir() else path
    with file.open("rb") as stream:
        head = hashlib.sha256(stream.read(_HEAD_BYTES)).hexdigest()
    return f"{file.stat().st_size}-{head}"
