"""Reading embeddings: blocks, gathering, classes in the order of the dataset, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dcprune import artifacts
from dcprune.artifacts import Rows
from dcprune.errors import ArtifactError
from dcprune.testing import gaussian_embeddings


def mapped(values: NDArray[Any], path: Path) -> NDArray[Any]:
    written = np.memmap(path, dtype=values.dtype, mode="w+", shape=values.shape)
    written[:] = values
    written.flush()
    return np.memmap(path, dtype=values.dtype, mode="r", shape=values.shape)


@pytest.fixture(params=["whole", "shards", "mapped"])
def rows(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rows:
    values = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float16)
    monkeypatch.setattr(artifacts, "_BLOCK_BYTES", 7 * 6 * 4)
    monkeypatch.setattr(artifacts, "_SCATTERED_ROWS", 5)
    if request.param == "whole":
        return Rows([values], "float16")
    parts = [values[:3], values[3:60], values[60:]]
    if request.param == "mapped":
        parts = [mapped(part, tmp_path / str(number)) for number, part in enumerate(parts)]
    return Rows(parts, "float16")


def test_blocks_are_the_rows(rows: Rows) -> None:
    values = np.concatenate([np.asarray(part) for part in rows.parts]).astype(np.float32)
    index = np.random.default_rng(1).permutation(100)[:40]
    np.testing.assert_array_equal(np.concatenate([block.copy() for block in rows.blocks()]), values)
    np.testing.assert_array_equal(np.concatenate([block.copy() for block in rows.blocks(index)]), values[index])
    np.testing.assert_array_equal(
        np.concatenate([block.copy() for block in rows.blocks(np.arange(2, 77))]), values[2:77]
    )
    np.testing.assert_array_equal(
        np.concatenate([block.copy() for block in rows.stored_blocks(slice(2, 77))]).astype(np.float32), values[2:77]
    )
    np.testing.assert_array_equal(rows[50:70], values[50:70])
    assert len(rows[5:5]) == 0
    taken = rows.take(index)
    assert taken.shape == (40, 6)
    np.testing.assert_array_equal(np.concatenate([block.copy() for block in taken.blocks()]), values[index])
    np.testing.assert_array_equal(taken[np.array([3, 1])], values[index[[3, 1]]])
    assert max(len(block) for block in rows.blocks()) == 7


def resident_kib(file: Path) -> int:
    """Memory of this process that pages of a mapped file fill."""
    total, mine = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):
            mine = line.endswith(str(file))
        elif mine and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says which pages are in memory")
def test_rows_from_all_over_a_mapped_file_leave_no_pages_in_memory(tmp_path: Path) -> None:
    """The system maps up to 2 MiB round every row that is touched."""
    file = tmp_path / "rows"
    rows = Rows([mapped(np.zeros((4096, 1024), dtype=np.float16), file)], "float16")
    assert rows.parts[0][100].sum() == 0
    assert resident_kib(file) > 0
    rows.stored(np.arange(0, 4096, 10))
    assert resident_kib(file) == 0


@pytest.mark.parametrize("room", [16, 40 * 4 * 8, 1 << 20])
def test_classes_come_in_the_order_of_the_dataset(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_READ_AHEAD_BYTES", room)
    monkeypatch.setattr(artifacts, "_BLOCK_BYTES", 5 * 4 * 8)
    straight = gaussian_embeddings(120, num_classes=4, dim=8)
    mixed = straight.take(np.random.default_rng(1).permutation(120))
    assert straight.labels is not None
    for embeddings in (straight, mixed):
        seen = []
        for part in embeddings.by_class():
            mine = np.flatnonzero(straight.labels == part.label)
            np.testing.assert_array_equal(embeddings.indices[part.rows], mine)
            np.testing.assert_array_equal(part.matrix(), straight.embeddings[mine])
            np.testing.assert_array_equal(np.concatenate(list(part.blocks())), straight.embeddings[mine])
            assert len(part) == len(mine)
            seen.append(part.label)
        assert seen == sorted(set(straight.labels.tolist()))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_by_name(dtype: str, value: float) -> None:
    embeddings = gaussian_embeddings(30)
    values = embeddings.embeddings[:].copy()
    values[17, 3] = value
    stored: dict[str, NDArray[Any]] = {
        "float32": values,
        "float16": values.astype(np.float16),
        "bfloat16": (values.view(np.uint32) >> 16).astype(np.uint16),
    }
    with pytest.raises(ArtifactError, match=r"sample 17 \(row 17\) is not finite"):
        replace(embeddings, embeddings=Rows([stored[dtype]], dtype))


def test_float16_overflow_is_named() -> None:
    values = np.array([[1.0, 2.0], [70_000.0, 1.0], [0.0, 1.0]], dtype=np.float32)
    with np.errstate(over="ignore"):
        stored = values.astype(np.float16)
    with pytest.raises(ArtifactError, match="65504"):
        replace(gaussian_embeddings(3, dim=2), embeddings=Rows([stored], "float16"))


def test_large_float32_values_are_finite() -> None:
    values = np.full((3, 2), 3e38, dtype=np.float32)
    assert Rows([values]).first_not_finite() is None


def test_duplicates_are_refused_by_name() -> None:
    embeddings = gaussian_embeddings(5)
    with pytest.raises(ArtifactError, match="duplicate indices; 3"):
        replace(embeddings, indices=np.array([0, 3, 2, 3, 4]))
    with pytest.raises(ArtifactError, match=r"duplicate ids; 'b\.png'"):
        replace(embeddings, ids=("a.png", "b.png", "c.png", "b.png", "d.png"))
