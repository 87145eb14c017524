"""What the commands do, as functions: no Typer, no print. Loaded one by one, because most need no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dcprune.api.comparing import compare
    from dcprune.api.comparing_metrics import compare_metrics
    from dcprune.api.coresets import score, select
    from dcprune.api.embeddings import embed
    from dcprune.api.evaluation import evaluate, export_reference
    from dcprune.api.explaining import explain
    from dcprune.api.exporting import export
    from dcprune.api.preparing import prepare
    from dcprune.api.reports import report
    from dcprune.api.runs import reweight, sample, train
    from dcprune.api.torch_data import torch_subset

__all__ = [
    "compare",
    "compare_metrics",
    "embed",
    "evaluate",
    "explain",
    "export",
    "export_reference",
    "prepare",
    "report",
    "reweight",
    "sample",
    "score",
    "select",
    "torch_subset",
    "train",
]

_HOME = {
    "compare": "comparing",
    "compare_metrics": "comparing_metrics",
    "embed": "embeddings",
    "evaluate": "evaluation",
    "explain": "explaining",
    "export": "exporting",
    "export_reference": "evaluation",
    "prepare": "preparing",
    "report": "reports",
    "reweight": "runs",
    "sample": "runs",
    "score": "coresets",
    "select": "coresets",
    "torch_subset": "torch_data",
    "train": "runs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dcprune.api' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dcprune.api.{_HOME[name]}"), name)
