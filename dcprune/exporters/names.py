"""File names for ids and class names, which may hold anything."""

from __future__ import annotations

import re
from collections.abc import Sequence

_LONGEST = 120  # characters; a file system takes 255 bytes, and a character may have two


def safe_names(names: Sequence[str], fallback: str) -> list[str]:
    """Each name as one component of a path, distinct also where upper and lower case are the same.

    Args:
        names: any texts.
        fallback: what stands for a name of which nothing is left.
    """
    safe = [re.sub(r"[^\w.+-]+", "_", name)[:_LONGEST].strip("._") or fallback for name in names]
    if len({name.lower() for name in safe}) == len(safe):
        return safe
    return [f"{name}-{position}" for position, name in enumerate(safe)]


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Class names as folder names."""
    return safe_names(class_names, "class")
