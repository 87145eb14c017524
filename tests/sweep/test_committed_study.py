"""The results of the Fashion-MNIST study that are committed: whole, and what its README says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dcprune.api.inspection import verify

STUDY = Path(__file__).parents[2] / "examples" / "fashion-mnist"
PRDC = ("precision", "recall", "density", "coverage")
METRICS = ("fd:resnet18", "fd:efficientnet-lite0", *(f"{each}:resnet18" for each in PRDC))


@pytest.mark.parametrize(
    ("budget", "metrics"),
    [
        ("epochs", ()),
        ("updates", ()),
        ("updates-rest", ()),
        ("epochs-test", METRICS),
        ("updates-test", METRICS),
        ("updates-training-images", (*METRICS, "authpct:resnet18")),
    ],
)
def test_the_tables_follow_from_the_files_of_the_cells(budget: str, metrics: tuple[str, ...]) -> None:
    table = [sys.executable, str(STUDY / "tables.py"), str(STUDY / "results" / budget / "results.json"), *metrics]
    rows = subprocess.run(table, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(rows) > 6
    assert set(rows) <= set((STUDY / "README.md").read_text().splitlines())


@pytest.mark.parametrize("budget", sorted(each.parent.name for each in STUDY.glob("results/*/results.json")))
def test_every_file_that_is_committed_is_the_one_that_was_used(budget: str) -> None:
    checks = verify(STUDY / "results" / budget)
    assert sum(check.holds for check in checks) > 20
    assert [check for check in checks if not check.holds and not check.missing] == []
