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


def test_a_part_of_the_data_without_a_scorer_is_refused(results: SweepResults, chain: Chain) -> None:
    formats.write_sweep(results, chain.folder)
    document = json.loads((chain.folder / "results.json").read_text())
    document["cells"][2]["ratio"] = 0.5
    (chain.folder / "results.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match=r"damaged at cells\.2: .*full data"):
        formats.read_sweep(chain.folder)
