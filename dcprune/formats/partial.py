"""Rows that are computed part by part: a folder with a plan and one file for every part of the rows.

A part appears only when it is complete, so that a run that was killed goes on from the parts that are there. Several
processes may write different parts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dcprune.artifacts import Rows, SkippedSample
from dcprune.errors import ArtifactError, OptionError, OutputExists
from dcprune.formats.documents import parse_json
from dcprune.formats.files import StrPath, atomic_file, atomic_write, remove
from dcprune.formats.streaming import Blocks, write_tensors
from dcprune.formats.tensors import is_whole, map_matrix

PLAN_FILE = "plan.json"
_KEY = "dcprune"


def partial_path(output: StrPath) -> Path:
    """Where the unfinished embeddings of `output` lie."""
    return Path(output).with_name(f"{Path(output).name}.partial")


def check_partial(output: StrPath, *, resume: bool, overwrite: bool) -> None:
    """Refuse to begin anew where an unfinished run could go on.

    Raises:
        OutputExists: there are unfinished embeddings, and neither `resume` nor `overwrite` says what to do with them.
    """
    folder = partial_path(output)
    if folder.exists() and not resume and not overwrite:
        raise OutputExists(
            f"{folder} holds embeddings that were not finished. Pass --resume to go on, or --overwrite to begin anew."
        )


@dataclass(frozen=True)
class Part:
    """A range of the dataset's rows: its number and the half-open range."""

    number: int
    start: int
    stop: int


@dataclass(frozen=True)
class Parts:
    """The folder of an unfinished run.

    Attributes:
        folder: where it lies.
        parts: all parts, in order.
    """

    WHAT: ClassVar[str] = "work"

    folder: Path
    parts: tuple[Part, ...]

    @classmethod
    def create(cls, folder: Path, plan: Mapping[str, Any], num_samples: int, part_rows: int) -> Self:
        """Start in `folder`, or go on there when it was made with the same plan.

        Args:
            folder: is made when it is not there.
            plan: everything that the bytes of the rows depend on, as JSON values.
            num_samples: rows of the dataset.
            part_rows: rows of a part.

        Raises:
            OptionError: another plan lies there.
        """
        path = folder / PLAN_FILE
        plan = {**plan, "num_samples": num_samples, "part_rows": part_rows}
        if path.exists():
            _check_same(parse_json(path.read_bytes(), str(path)), plan, f"{cls.WHAT} in {folder}")
        else:
            remove(folder)
            folder.mkdir(parents=True)
            atomic_write(path, json.dumps(plan, indent=1, ensure_ascii=False).encode() + b"\n")
        starts = range(0, num_samples, part_rows)
        parts = tuple(Part(number, start, min(start + part_rows, num_samples)) for number, start in enumerate(starts))
        return cls(folder, parts)

    def path(self, part: Part) -> Path:
        """File of a part."""
        return self.folder / f"part-{part.number:06d}.safetensors"

    def unfinished(self) -> list[Part]:
        """Parts that are not there, or not whole."""
        return [part for part in self.parts if not is_whole(self.path(part))]


class PartialEmbeddings(Parts):
    """Unfinished embeddings, beside their output."""

    WHAT = "embeddings"

    def write(
        self, part: Part, vectors: NDArray[Any], dtype: str, indices: NDArray[np.int64], skipped: list[SkippedSample]
    ) -> None:
        """Write a part, all or nothing.

        Args:
            part: which.
            vectors: [n, D] in the storage of `dtype` (bfloat16 as uint16 bits).
            dtype: `float32`, `float16` or `bfloat16`.
            indices: int64 [n], rows of the dataset.
            skipped: samples of the part that have no row.
        """
        metadata = {_KEY: json.dumps([each.model_dump() for each in skipped], ensure_ascii=False)}
        with atomic_file(self.path(part), overwrite=True) as temporary:
            write_tensors(
                temporary, {"embeddings": Blocks(dtype, vectors.shape, [vectors]), "indices": indices}, metadata
            )

    def collect(self) -> tuple[Rows, NDArray[np.int64], tuple[SkippedSample, ...]]:
        """All rows, memory-mapped; their indices int64 [N]; and what was skipped.

        Raises:
            ArtifactError: a part is missing or damaged, or no sample could be read.
        """
        matrices, indices, skipped, dtype = [], [], [], "float32"
        for part in self.parts:
            path = self.path(part)
            try:
                with safe_open(path, framework="np") as file:
                    rows = file.get_tensor("indices")
                    skipped += [SkippedSample(**each) for each in json.loads(file.metadata()[_KEY])]
            except (OSError, SafetensorError) as error:
                raise ArtifactError(f"{path} is missing or damaged: {error}. Remove it and pass --resume.") from error
            if len(rows):
                matrix, dtype = map_matrix(path, "embeddings", str(path))
                matrices.append(matrix)
                indices.append(rows)
        if not matrices:
            raise ArtifactError(f"Not one sample could be read; the first: {skipped[0].reason}")
        return Rows(matrices, dtype), np.concatenate(indices), tuple(skipped)


def _check_same(known: Mapping[str, Any], asked: Mapping[str, Any], what: str) -> None:
    for name in sorted({*known, *asked}):
        if known.get(name) != asked.get(name):
            raise OptionError(
                f"The unfinished {what} were begun with {name}={_short(known.get(name))}, and now it is "
                f"{_short(asked.get(name))}. Use the same options, or begin anew with --overwrite."
            )


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
