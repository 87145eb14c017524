"""Costs that travel beside artifacts: `*.cost`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dcprune import formats
from dcprune.api.coresets import score, select
from dcprune.artifacts import StageCost, joined_costs
from dcprune.errors import ArtifactError
from dcprune.formats.costs import cost_path, read_costs, write_costs
from dcprune.testing import gaussian_embeddings

EMBED = StageCost(stage="embed", images_seen=120, updates=0, flops=10**12, device_seconds=2.5)


def stages(costs: Sequence[StageCost]) -> list[str]:
    return [cost.stage for cost in costs]


def test_they_follow_the_artifacts_and_leave_their_bytes_alone(tmp_path: Path) -> None:
    plain = gaussian_embeddings()
    formats.write_embeddings(plain, tmp_path / "plain.safetensors")
    costly = type(plain)(**{**vars(plain), "costs": (EMBED,)})
    formats.write_embeddings(costly, tmp_path / "embeddings.safetensors")
    assert (tmp_path / "plain.safetensors").read_bytes() == (tmp_path / "embeddings.safetensors").read_bytes()
    assert not cost_path(tmp_path / "plain.safetensors").exists()

    formats.write_scores(score(tmp_path / "embeddings.safetensors", "moderate"), tmp_path / "scores.safetensors")
    coreset = select(tmp_path / "scores.safetensors", ratio=0.5)
    formats.write_coreset(coreset, tmp_path / "coreset.json")
    read = formats.read_coreset(tmp_path / "coreset.json")
    assert read == coreset
    assert stages(read.costs) == ["embed", "score"]
    assert read.costs[0] == EMBED
    assert (read.costs[1].flops, read.costs[1].images_seen) == (0, 0)
    assert (read.costs[1].device_seconds or 0) > 0
    assert stages(select(tmp_path / "embeddings.safetensors", "moderate", ratio=0.5).costs) == ["embed", "score"]
    before = (tmp_path / "coreset.json").read_bytes()
    formats.write_coreset(select(tmp_path / "scores.safetensors", ratio=0.5), tmp_path / "coreset.json", overwrite=True)
    assert (tmp_path / "coreset.json").read_bytes() == before


def test_shards_have_one_file(tmp_path: Path) -> None:
    plain = gaussian_embeddings()
    costly = type(plain)(**{**vars(plain), "costs": (EMBED,)})
    formats.write_embeddings(costly, tmp_path / "embeddings", shard_rows=50)
    assert formats.read_embeddings(tmp_path / "embeddings").costs == (EMBED,)


def test_costs_of_another_file_are_not_taken(tmp_path: Path) -> None:
    artifact = tmp_path / "coreset.json"
    artifact.write_text("one")
    write_costs([EMBED], artifact)
    assert read_costs(artifact) == (EMBED,)
    artifact.write_text("two")
    assert read_costs(artifact) == ()
    write_costs([], artifact)
    assert not cost_path(artifact).exists()
    write_costs([EMBED], "-")
    assert read_costs("-") == ()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    artifact = tmp_path / "coreset.json"
    artifact.write_text("one")
    write_costs([EMBED], artifact)
    text = cost_path(artifact).read_text()
    for broken in (text[:-20], text.replace("2.5", "-2.5")):
        cost_path(artifact).write_text(broken)
        with pytest.raises(ArtifactError, match=r"coreset\.json\.cost is damaged.*remove it"):
            read_costs(artifact)


def test_a_stage_that_ledgers_share_counts_once() -> None:
    other = EMBED.model_copy(update={"device_seconds": 2.6})
    assert joined_costs([EMBED], [EMBED, other], []) == (EMBED, other)
    assert np.isclose(sum(cost.device_seconds or 0 for cost in joined_costs([EMBED], [other])), 5.1)
