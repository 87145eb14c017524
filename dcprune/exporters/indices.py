"""`numpy`: the kept rows as an array; `list`: the kept ids, one a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dcprune.errors import DatasetError


def write_numpy(rows: NDArray[np.int64], path: Path) -> None:
    """Write rows int64 [n] as a `.npy` file, whatever `path` ends with."""
    with path.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)


def write_list(names: Sequence[str], path: Path) -> None:
    """Write ids or paths as UTF-8 lines.

    Raises:
        DatasetError: one of them has a line break in it.
    """
    for each in names:
        if "\n" in each or "\r" in each:
            raise DatasetError(f"The id {each!r} has a line break, which a list cannot hold: use --to csv.")
    path.write_bytes("".join(f"{each}\n" for each in names).encode())
