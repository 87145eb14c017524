"""Whether two values of a metric may be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dcprune.artifacts import MetricValue


def differences(first: MetricValue, second: MetricValue) -> dict[str, tuple[Any, Any]]:
    """What keeps two values of one metric from being compared: names of the terms, and both sides' entries.

    The terms are the protocol, level by level (`preprocessing.size`), and the numbers of images. How many images the
    values per class are about does not count.
    """
    terms = [_terms(each) for each in (first, second)]
    names = dict.fromkeys([*terms[0], *terms[1]])
    sides = {name: (terms[0].get(name), terms[1].get(name)) for name in names}
    return {name: pair for name, pair in sides.items() if pair[0] != pair[1]}


def _terms(value: MetricValue) -> dict[str, Any]:
    protocol = {name: entry for name, entry in value.protocol.items() if name != "per_class"}
    return {
        **_flat(json.loads(json.dumps(protocol))),
        "num_generated": value.num_generated,
        "num_reference": value.num_reference,
    }


def _flat(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in entries.items():
        found |= _flat(entry, f"{prefix}{name}.") if isinstance(entry, dict) else {f"{prefix}{name}": entry}
    return found
