"""JSON Schemas of the JSON artifacts, generated from the models and shipped beside this file.

`python -m dcprune.schemas` writes them anew.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dcprune.artifacts import (
    ClassesHeader,
    ClassWeights,
    Comparison,
    Coreset,
    CostRecord,
    EmbeddingsHeader,
    ExportRecord,
    LatentsRecord,
    Metrics,
    MetricsComparison,
    Record,
    ReferenceHeader,
    RunRecord,
    ScoresHeader,
    SweepResults,
)

MODELS: Final[dict[str, type[Record]]] = {
    "embeddings": EmbeddingsHeader,
    "classes": ClassesHeader,
    "scores": ScoresHeader,
    "coreset": Coreset,
    "class-weights": ClassWeights,
    "metrics": Metrics,
    "comparison": Comparison,
    "metrics-comparison": MetricsComparison,
    "run": RunRecord,
    "sweep": SweepResults,
    "costs": CostRecord,
    "export": ExportRecord,
    "latents": LatentsRecord,
    "reference": ReferenceHeader,
}


def path(name: str) -> Path:
    """Where the schema of `name`, a key of `MODELS`, is shipped."""
    return Path(__file__).with_name(f"{name}.schema.json")


def generate() -> dict[str, dict[str, Any]]:
    """Every schema, generated from the models."""
    draft = "https://json-schema.org/draft/2020-12/schema"
    return {name: {"$schema": draft, **model.model_json_schema()} for name, model in MODELS.items()}


def to_text(schema: dict[str, Any]) -> str:
    """The text of a schema file."""
    return json.dumps(schema, indent=1) + "\n"
