from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dcprune.artifacts import Coreset, RunRecord, StageCost
from dcprune.report.collect import RunData
from dcprune.report.costs import cost_rows, speed_ups, uncounted


def run(name: str, *ledger: StageCost, coreset: bool, dynamic: str | None = None) -> RunData:
    nothing: dict[str, Any] = {}
    chosen = Coreset.model_construct(**nothing) if coreset else None
    fields: dict[str, Any] = {"ledger": ledger, "coreset": chosen, "training": {"dynamic": dynamic}}
    return RunData(name, Path(name), RunRecord.model_construct(**fields), None, None, None, chosen, None)


def stage(name: str, updates: int, seconds: float | None = None) -> StageCost:
    return StageCost(
        stage=name, images_seen=updates * 10, updates=updates, flops=updates * 1000, device_seconds=seconds
    )


CORE = run(
    "core",
    stage("embed", 0, 1.0),
    stage("score", 0, 1.0),
    stage("reference", 100, 50.0),
    stage("proxy", 5, 3.0),
    stage("train", 20, 10.0),
    coreset=True,
)
FULL = run("full", stage("train", 100, 50.0), coreset=False)


def test_speed_is_told_as_the_paper_does_without_the_reference_and_in_total() -> None:
    alone, without, total = speed_ups([CORE, FULL])
    assert (alone.counted, alone.updates, alone.flops, alone.seconds) == ("training alone", 5.0, 5.0, 5.0)
    assert without.counted == "embed, score, proxy and train"
    assert [without.updates, without.flops, without.seconds] == pytest.approx([4.0, 4.0, 50 / 15])
    assert total.counted == "embed, score, reference, proxy and train"
    assert [total.updates, total.seconds] == pytest.approx([100 / 125, 50 / 65])
    assert uncounted([CORE, FULL]) == ""


def test_dynamic_pruning_is_no_baseline_of_full_data() -> None:
    dynamic = run("dynamic", stage("train", 100, 50.0), coreset=False, dynamic="infobatch")
    assert speed_ups([CORE, dynamic]) == []
    assert [each.against for each in speed_ups([dynamic, FULL])] == ["full"]


def test_a_total_is_unknown_as_soon_as_a_part_of_it_is() -> None:
    unmeasured = run("core", stage("proxy", 5), stage("train", 20, 10.0), coreset=True)
    total = cost_rows([unmeasured])[-1]
    assert (total.stage, total.updates, total.flops, total.seconds) == ("total", 25, 25_000, None)
    assert "Not counted: embedding" in uncounted([unmeasured])
