from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dcprune import explain, formats, score, select
from dcprune.api.explaining import EVERYTHING, told_apart
from dcprune.artifacts import Embeddings, Rows, Scores
from dcprune.errors import DatasetMismatch, OptionError
from dcprune.progress import SILENT
from dcprune.testing import gaussian_embeddings


class Warnings:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    task = staticmethod(SILENT.task)
    note = staticmethod(SILENT.note)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


def with_ids(embeddings: Embeddings, ids: Sequence[str]) -> Embeddings:
    return Embeddings(
        embeddings=embeddings.embeddings,
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=tuple(ids),
        encoder=embeddings.encoder,
        dataset=embeddings.dataset,
        provenance=embeddings.provenance,
    )


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """A folder with embeddings, scores and a coreset that was selected from the scores."""
    embeddings = with_ids(gaussian_embeddings(), [f"img/{row:03d}.png" for row in range(120)])
    formats.write_embeddings(embeddings, tmp_path / "embeddings.safetensors")
    formats.write_scores(score(tmp_path / "embeddings.safetensors", "moderate"), tmp_path / "scores.safetensors")
    formats.write_coreset(select(tmp_path / "scores.safetensors", ratio=0.25), tmp_path / "coreset.json")
    return tmp_path


def test_everything_follows_from_the_coresets_own_origins(chain: Path) -> None:
    coreset = formats.read_coreset(chain / "coreset.json")
    scores = formats.read_scores(chain / "scores.safetensors")
    embeddings = formats.read_embeddings(chain / "embeddings.safetensors")
    found = explain(list(range(120)), chain / "coreset.json", num_neighbours=4)
    assert found.scorer == "moderate"
    assert found.reproduced is True
    assert tuple(each.index for each in found.samples if each.kept) == coreset.indices
    values = embeddings.embeddings[:].astype(np.float64)
    distances = cdist(values, values)
    np.fill_diagonal(distances, np.inf)
    kept = np.isin(np.arange(120), coreset.indices)
    assert scores.labels is not None
    for sample in found.samples:
        standing, row = sample.standing, sample.index
        assert standing is not None
        assert standing.score == scores.scores[row]
        mine = scores.scores[scores.labels == scores.labels[row]]
        assert standing.in_class is not None
        assert (standing.in_class.rank, standing.in_class.of) == (1 + (mine < standing.score).sum(), len(mine))
        assert standing.overall.rank == 1 + (scores.scores < standing.score).sum()
        for near, among in ((sample.nearest_kept, kept), (sample.nearest_dropped, ~kept)):
            order = np.flatnonzero(among)[np.argsort(distances[row, among], kind="stable")][:4]
            assert near is not None
            assert [each.index for each in near] == order.tolist()
            assert [each.distance for each in near] == pytest.approx(distances[row, order].tolist())
            assert [each.class_name for each in near] == [f"class {scores.labels[i]}" for i in order]


def test_the_group_is_the_class_and_its_kept_scores_are_the_window(chain: Path) -> None:
    scores = formats.read_scores(chain / "scores.safetensors")
    coreset = formats.read_coreset(chain / "coreset.json")
    (sample,) = explain(["img/007.png"], coreset).samples
    assert scores.labels is not None
    assert sample.standing is not None
    group = sample.standing.group
    rows = np.flatnonzero(scores.labels == scores.labels[7])
    values, kept = scores.scores[rows], np.isin(rows, coreset.indices)
    assert group.name == sample.class_name == f"class {scores.labels[7]}"
    assert (group.num_samples, group.num_kept) == (len(rows), kept.sum())
    assert (group.mean, group.std) == pytest.approx((values.mean(), values.std()))
    assert group.quantiles == {
        f"{q:g}": pytest.approx(np.quantile(values, q)) for q in (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
    }
    assert (group.kept_low, group.kept_high) == (values[kept].min(), values[kept].max())
    assert group.dropped_between == 0


@pytest.mark.parametrize("scope", ["class", "global"])
def test_reasons_say_on_which_side_of_the_window_a_score_lies(chain: Path, scope: str) -> None:
    coreset = select(chain / "scores.safetensors", ratio=0.3, scope=scope)  # type: ignore[arg-type]
    for sample in explain(list(range(120)), coreset).samples:
        assert sample.standing is not None
        group, value = sample.standing.group, sample.standing.score
        assert group.kept_low is not None
        assert group.kept_high is not None
        assert (group.name == EVERYTHING) == (scope == "global")
        word = "below" if value < group.kept_low else "above" if value > group.kept_high else "within"
        assert sample.reason.startswith("kept" if sample.kept else "dropped")
        assert f" is {word} what is kept of" in sample.reason
        assert sample.kept == (word == "within")


def test_a_policy_without_a_window_says_how_many_are_dropped_inside(chain: Path) -> None:
    coreset = select(chain / "scores.safetensors", ratio=0.5, keep="random", scope="global")
    found = explain(list(range(120)), coreset)
    scores = formats.read_scores(chain / "scores.safetensors").scores
    low, high = scores[list(coreset.indices)].min(), scores[list(coreset.indices)].max()
    inside = [row for row in range(120) if low <= scores[row] <= high and row not in coreset.indices]
    assert inside
    for row in inside:
        assert f"where {len(inside)} samples are dropped" in found.samples[row].reason
    assert found.reproduced is True


def test_ties_go_by_index() -> None:
    base = gaussian_embeddings(12, num_classes=0)
    scores = Scores(
        scores=np.repeat([1.0, 2.0, 3.0], 4),
        labels=None,
        indices=base.indices[::-1].copy(),
        ids=None,
        scorer=score(base, "random").scorer,
        keep="highest",
        dataset=base.dataset,
        provenance=base.provenance,
    )
    coreset = select(scores, num=6)
    assert coreset.indices == (0, 1, 2, 3, 4, 5)
    samples = explain(list(range(12)), coreset, scores=scores).samples
    assert [each.standing.overall.rank for each in samples if each.standing] == [9, 10, 11, 12, 5, 6, 7, 8, 1, 2, 3, 4]
    assert all(each.standing is not None and each.standing.in_class is None for each in samples)
    assert samples[6].reason.endswith("equal scores go by index")
    assert "equal scores" not in samples[4].reason
    assert samples[8].reason.startswith("dropped: its score 1 is below what is kept of all samples")


def test_scores_that_were_never_stored_are_computed_again(chain: Path) -> None:
    inline = select(chain / "embeddings.safetensors", "moderate", ratio=0.25)
    stored = formats.read_coreset(chain / "coreset.json")
    assert inline.indices == stored.indices
    again, read = (explain(["img/003.png", 50], each) for each in (inline, stored))
    assert again.samples == read.samples
    assert again.reproduced is True


def test_an_id_is_not_taken_for_an_index(tmp_path: Path) -> None:
    embeddings = with_ids(gaussian_embeddings(num_samples=10, num_classes=0), [str(9 - row) for row in range(10)])
    coreset = select(embeddings, "random", num=3)
    found = explain(["2", 2], coreset, embeddings=embeddings)
    assert [(each.id, each.index) for each in found.samples] == [("2", 7), ("7", 2)]


def test_a_coreset_alone_still_says_who_was_kept(chain: Path) -> None:
    progress = Warnings()
    coreset = formats.read_coreset(chain / "coreset.json")
    (chain / "scores.safetensors").unlink()
    kept_id = (coreset.ids or ())[0]
    first, second = explain([kept_id, 0], coreset, progress=progress).samples
    assert (first.kept, first.standing, first.nearest_kept) == (True, None, None)
    assert second.kept == (0 in coreset.indices)
    (warning,) = progress.warnings
    assert "scores.safetensors" in warning
    assert "--scores" in warning


def test_a_file_that_has_changed_is_not_believed(chain: Path) -> None:
    progress = Warnings()
    formats.write_scores(
        score(chain / "embeddings.safetensors", "gaussian"), chain / "scores.safetensors", overwrite=True
    )
    found = explain([0], chain / "coreset.json", progress=progress)
    assert found.scorer is None
    assert "has changed" in progress.warnings[0]
    named = explain([0], chain / "coreset.json", scores=chain / "scores.safetensors")
    assert (named.scorer, named.reproduced) == ("gaussian", False)


def test_a_sample_without_an_embedding_has_neither_score_nor_neighbours() -> None:
    base = gaussian_embeddings(20, num_classes=0)
    part = Embeddings(
        embeddings=Rows([base.embeddings[:][1:]]),
        labels=None,
        indices=base.indices[1:],
        ids=None,
        encoder=base.encoder,
        dataset=base.dataset,
        provenance=base.provenance,
    )
    missing, there = explain([0, 1], select(part, "moderate", num=5), embeddings=part).samples
    assert (missing.standing, missing.nearest_kept, missing.kept) == (None, None, False)
    assert there.standing is not None
    assert len(there.nearest_kept or ()) == 5 - there.kept


def test_refusals(chain: Path) -> None:
    coreset = chain / "coreset.json"
    with pytest.raises(OptionError, match=r"Did you mean .*'img/042.png'"):
        explain(["img/O42.png"], coreset)
    with pytest.raises(OptionError, match="0 to 119"):
        explain([120], coreset)
    with pytest.raises(OptionError, match="at least one"):
        explain([], coreset)
    with pytest.raises(OptionError, match="--neighbours"):
        explain([1], coreset, num_neighbours=0)
    with pytest.raises(DatasetMismatch, match="one chain"):
        explain([1], coreset, embeddings=gaussian_embeddings(seed=1))


def test_json_holds_the_whole_explanation(chain: Path) -> None:
    from typer.testing import CliRunner

    from dcprune.cli.app import app

    result = CliRunner().invoke(
        app, ["explain", "img/003.png", "5", "--coreset", str(chain / "coreset.json"), "--json"]
    )
    document = json.loads(result.stdout)
    assert [each["index"] for each in document["samples"]] == [3, 5]
    assert document["samples"][0]["standing"]["group"]["num_samples"] > 0
    assert document["selection"]["scorer"] == "moderate"


def test_unlike_numbers_look_unlike() -> None:
    assert told_apart([3273.6112, 3273.6118, 1.0]) == ["3273.611", "3273.612", "1"]
    assert told_apart([0.5, 0.5, 0.25]) == ["0.5", "0.5", "0.25"]
    assert told_apart([1.0, 1.0 + 2**-52]) == ["1.0", "1.0000000000000002"]
