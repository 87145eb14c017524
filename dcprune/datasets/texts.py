"""Many short texts in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Texts(Sequence[str]):
    """Texts in one block of UTF-8: a million file names take their own length and 8 bytes each, not 80.

    Args:
        texts: the first ones.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._content = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def append(self, text: str) -> None:
        self._content += text.encode()
        self._ends.append(len(self._content))

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[each] for each in range(*index.indices(len(self))))
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"text {index} of {len(self)}")
        return self._content[self._ends[number] : self._ends[number + 1]].decode()

    def distinct(self) -> bool:
        """Whether no text comes twice."""
        hashes = np.fromiter(map(hash, self), dtype=np.int64, count=len(self))
        order = np.argsort(hashes)
        twice = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        alike = {int(row) for pair in (order[twice], order[twice + 1]) for row in pair}
        return len({self[row] for row in alike}) == len(alike)
