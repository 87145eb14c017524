"""Embeddings of texts, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcprune import formats
from dcprune.errors import WeightsError
from dcprune.formats import Parts
from dcprune.formats.streaming import write_tensors
from dcprune.interfaces import Progress
from dcprune.latents.table import Table, load_where_they_fit
from dcprune.processes import ALONE, Processes
from dcprune.progress import SILENT

# Texts of a file, and of a pass through the encoder.
SHARD_TEXTS = 1024
_BATCH_SIZE = 32


class _Shards(Parts):
    """Files of embeddings of texts."""

    WHAT = "embeddings of texts"


def cached_texts(
    texts: Sequence[str],
    encode: Callable[[Sequence[str]], torch.Tensor],
    *,
    key: Mapping[str, Any],
    device: torch.device,
    cache_dir: Path,
    team: Processes = ALONE,
    progress: Progress = SILENT,
) -> Table:
    """Embeddings of distinct texts by row, computed first when they are not there; see `dcprune.interfaces.TextCache`.

    They lie in the folder `texts` of the cache, float16, in files of which each is written all or nothing.

    Raises:
        WeightsError: a value that is not finite, or beyond float16.
    """
    digest = hashlib.sha256(json.dumps(list(texts), ensure_ascii=False).encode()).hexdigest()
    plan = {"format": "dcprune.texts-plan/1", "texts_sha256": digest, **key}
    folder = cache_dir / "texts" / hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:24]
    parts = team.main_first(lambda: _Shards.create(folder, plan, len(texts), SHARD_TEXTS))
    todo = parts.unfinished()
    team.barrier()  # everybody has seen what is there before anybody adds to it
    mine = todo[team.rank :: team.count]
    if mine:
        with progress.task("encode texts", sum(part.stop - part.start for part in mine), "texts") as task:
            for part in mine:
                found = []
                for start in range(part.start, part.stop, _BATCH_SIZE):
                    batch = texts[start : min(start + _BATCH_SIZE, part.stop)]
                    found.append(_stored(encode(batch)))
                    task.advance(len(batch))
                with formats.atomic_file(parts.path(part), overwrite=True) as temporary:
                    write_tensors(temporary, {"embeddings": np.concatenate(found)}, {})
    team.barrier()
    table = Table([parts.path(part) for part in parts.parts], "embeddings", device)
    load_where_they_fit(table)
    return table


def _stored(embeddings: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float16]]:
    stored = embeddings.to(torch.float16)
    if not bool(stored.isfinite().all()):
        raise WeightsError("The text encoder gives values that are not finite in float16: look at its weights.")
    return stored.cpu().numpy()
