"""`results.json` of a sweep as a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dcprune import formats
from dcprune.api.inspection import describe, verify
from dcprune.artifacts import SweepCell, SweepResults
from dcprune.errors import ArtifactError
from tests.report.conftest import provenance

if TYPE_CHECKING:
    from tests.report.conftest import Chain


@pytest.fixture
def results(chain: Chain) -> SweepResults:
    cells = tuple(
        SweepCell(
            encoder=encoder,
            scorer=scorer,
            ratio=ratio,
            weights=scorer == "moderate",
            seed=0,
            run=formats.input_file(folder / "run.json"),
            metrics=(formats.input_file(folder / "metrics.json"),),
            cost=formats.read_run(folder).ledger,
        )
        for folder, encoder, scorer, ratio in (
            (chain.core, "pixels", "moderate", 0.2),
            (chain.random, None, "random", 0.2),
            (chain.full, None, None, 1.0),
        )
    )
    return SweepResults(
        dataset=formats.read_run(chain.core).dataset, cells=cells, provenance=provenance("sweep", output="sweep")
    )


def test_paths_in_it_follow_the_folder(results: SweepResults, chain: Chain, tmp_path: Path) -> None:
    formats.write_sweep(results, chain.folder)
    stored = json.loads((chain.folder / "results.json").read_text())
    assert [cell["run"]["path"] for cell in stored["cells"]] == [
        f"runs/{name}/run.json" for name in ("core", "random", "full")
    ]
    assert formats.read_sweep(chain.folder) == results
    moved = tmp_path / "elsewhere"
    shutil.move(chain.folder, moved)
    found = formats.read_sweep(moved / "results.json").cells[1]
    assert found.metrics[0].path == str(moved / "runs" / "random" / "metrics.json")


def test_inspect_and_verify_know_it(results: SweepResults, chain: Chain) -> None:
    formats.write_sweep(results, chain.folder)
    facts = describe(chain.folder)
    assert (facts["kind"], facts["cells"], facts["evaluated"], facts["scorers"]) == (
        "sweep", 3, 3, ["moderate", "random"]
    )  # fmt: skip
    (chain.random / "metrics.json").write_text("{}")
    wrong = [check for check in verify(chain.folder) if not check.holds and "metrics.json" in check.subject]
    assert [Path(check.subject).parent.name for check in wrong] == ["random"]


@pytest.mark.parametrize(
    ("position", "changes", "named"),
    [
        (0, {"weights": False}, "weights True"),
        (0, {"ratio": 0.3}, "ratio 0.2"),
        (1, {"scorer": "gaussian", "encoder": "pixels"}, "scorer 'random'"),
        (2, {"seed": 5}, "seed 0"),
    ],
)
def test_verify_knows_a_cell_by_its_run(
    results: SweepResults, chain: Chain, position: int, changes: dict[str, object], named: str
) -> None:
    formats.write_sweep(results, chain.folder)
    assert [check.detail for check in verify(chain.folder) if "the cell of" in check.subject] == [
        "is labelled as its run was made"
    ] * 3
    cells = [cell.model_copy(update=changes) if each == position else cell for each, cell in enumerate(results.cells)]
    formats.write_sweep(results.model_copy(update={"cells": tuple(cells)}), chain.folder, overwrite=True)
    wrong = [check.detail for check in verify(chain.folder) if "the cell of" in check.subject and not check.holds]
    assert len(wrong) == 1
    assert named in wrong[0]


def test_a_part_of_the_data_without_a_scorer_is_refused(results: SweepResults, chain: Chain) -> None:
    formats.write_sweep(results, chain.folder)
    document = json.loads((chain.folder / "results.json").read_text())
    document["cells"][2]["ratio"] = 0.5
    (chain.folder / "results.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"damaged at cells\.2: .*full data"):
        formats.read_sweep(chain.folder)
