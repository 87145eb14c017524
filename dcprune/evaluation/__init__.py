"""From names of metrics and the features of images to values with intervals."""

from dcprune.evaluation.choosing import NamedMetric, Weights, create_metrics
from dcprune.evaluation.comparing import differences
from dcprune.evaluation.measuring import measure
from dcprune.evaluation.resampling import Plan
from dcprune.evaluation.sides import Reference, aligned_labels, needs_reference, select_rows

__all__ = [
    "NamedMetric",
    "Plan",
    "Reference",
    "Weights",
    "aligned_labels",
    "create_metrics",
    "differences",
    "measure",
    "needs_reference",
    "select_rows",
]
