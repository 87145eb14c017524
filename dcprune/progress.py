"""Progress for library callers: silence."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Final

from dcprune.interfaces import Progress, Task


class _SilentTask:
    def advance(self, amount: int = 1, **values: float | str) -> None:
        """Count nothing."""


class _Silent:
    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        return nullcontext(_SilentTask())

    def note(self, message: str) -> None:
        """Say nothing."""

    def warn(self, message: str) -> None:
        """Say nothing."""


SILENT: Final[Progress] = _Silent()
