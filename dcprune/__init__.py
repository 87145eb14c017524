"""dcprune: keep the images that matter, weigh their classes, train the diffusion model on those.

Everything public is importable from here and loaded on first use, so that importing dcprune costs nothing. Packages
that extend it also use `dcprune.interfaces`, `dcprune.errors`, `dcprune.presets` and `dcprune.parts`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcprune.api import (
        compare,
        compare_metrics,
        embed,
        evaluate,
        explain,
        export,
        export_reference,
        prepare,
        report,
        reweight,
        sample,
        score,
        select,
        torch_subset,
        train,
    )
    from dcprune.errors import DcpruneError
    from dcprune.hookspecs import hookimpl

__version__ = "0.1.0"

_HOME = {"hookimpl": "dcprune.hookspecs", "DcpruneError": "dcprune.errors"}
_VERBS = (
    "embed",
    "score",
    "select",
    "reweight",
    "train",
    "sample",
    "evaluate",
    "report",
    "export",
    "export_reference",
    "prepare",
    "compare",
    "compare_metrics",
    "explain",
    "torch_subset",
)
_MODULES = ("api", "artifacts", "formats", "metrics", "reweighting", "testing")

__all__ = [
    "DcpruneError",
    "__version__",
    "compare",
    "compare_metrics",
    "embed",
    "evaluate",
    "explain",
    "export",
    "export_reference",
    "hookimpl",
    "prepare",
    "report",
    "reweight",
    "sample",
    "score",
    "select",
    "torch_subset",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in _HOME or name in _VERBS:
        return getattr(importlib.import_module(_HOME.get(name, "dcprune.api")), name)
    if name in _MODULES:
        return importlib.import_module(f"dcprune.{name}")
    raise AttributeError(f"module 'dcprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
