from __future__ import annotations

import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from dcprune import compare, formats, select
from dcprune.artifacts import Coreset, Embeddings, Rows
from dcprune.errors import ArtifactError, DatasetMismatch, OptionError
from dcprune.report.comparison import comparison_svg
from dcprune.testing import gaussian_embeddings


@pytest.fixture
def embeddings(tmp_path: Path) -> Embeddings:
    formats.write_embeddings(gaussian_embeddings(400, num_classes=4, dim=6), tmp_path / "embeddings.safetensors")
    return formats.read_embeddings(tmp_path / "embeddings.safetensors")


def written(coreset: Coreset, path: Path) -> Path:
    formats.write_coreset(coreset, path)
    return path


def frechet_by_the_formula(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    offset = one.mean(axis=0) - other.mean(axis=0)
    first, second = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    return float(offset @ offset + np.trace(first + second - 2 * np.real(sqrtm(first @ second))))


def test_overlap_and_classes_need_no_embeddings(embeddings: Embeddings, tmp_path: Path) -> None:
    chosen = [select(embeddings, "moderate", ratio=0.3), select(embeddings, "gaussian", num=60, scope="global")]
    paths = [written(each, tmp_path / name / "coreset.json") for each, name in zip(chosen, "ab", strict=True)]
    found = compare(paths)
    one, other = (set(each.indices) for each in chosen)
    assert found.jaccard[0][1] == found.jaccard[1][0] == len(one & other) / len(one | other)
    shared = len(one) * len(other) / 400
    assert found.jaccard_by_chance[0][1] == pytest.approx(shared / (len(one) + len(other) - shared))
    assert [each.name for each in found.coresets] == ["a/coreset.json", "b/coreset.json"]
    counts = np.array(list(chosen[1].class_counts.values())) / 60
    entropy = -sum(share * math.log(share) for share in counts if share) / math.log(4)
    assert found.coresets[1].class_entropy == pytest.approx(entropy)
    assert found.encoder is None
    assert {each.distances for each in found.coresets} == {None}
    assert [Path(each.path) for each in found.provenance.inputs] == paths


def test_chance_is_what_random_choices_have_on_average(embeddings: Embeddings) -> None:
    chosen = [select(embeddings, "random", num=80, scope="global", seed=seed) for seed in range(20)]
    found = compare(chosen)
    pairs = [found.jaccard[i][j] for i in range(20) for j in range(i)]
    assert np.mean(pairs) == pytest.approx(found.jaccard_by_chance[0][1], abs=0.01)


def test_distances_are_those_of_the_formulas(embeddings: Embeddings) -> None:
    coreset = select(embeddings, "moderate", ratio=0.3)
    found = compare([coreset], embeddings=embeddings, seeds=2)
    values = embeddings.embeddings[:].astype(np.float64)
    (entry,) = found.coresets
    assert entry.distances is not None
    assert entry.distances.frechet == pytest.approx(frechet_by_the_formula(values[list(coreset.indices)], values))
    nearest = np.linalg.norm(values[:, None] - values[list(coreset.indices)], axis=2).min(axis=1)
    assert entry.distances.mean_radius == pytest.approx(nearest.mean())
    assert entry.distances.max_radius == pytest.approx(nearest.max())
    assert (found.num_neighbours, found.num_queries, len(entry.random)) == (5, 400, 2)


@pytest.mark.parametrize("scope", ["class", "global"])
def test_random_choices_are_those_of_select(embeddings: Embeddings, scope: str) -> None:
    coreset = select(embeddings, "gaussian", num=90, scope=scope)  # type: ignore[arg-type]
    found = compare([coreset], embeddings=embeddings, seeds=3)
    for seed in range(3):
        random = select(embeddings, "gaussian", num=90, scope=scope, keep="random", seed=seed)  # type: ignore[arg-type]
        alone = compare([random], embeddings=embeddings, seeds=0)
        assert alone.coresets[0].distances == found.coresets[0].random[seed]


def test_the_order_of_rows_and_shards_does_not_matter(embeddings: Embeddings) -> None:
    coreset = select(embeddings, "moderate", ratio=0.2)
    order = np.random.default_rng(0).permutation(400)
    values = embeddings.embeddings[:][order]
    assert embeddings.labels is not None
    shuffled = Embeddings(
        embeddings=Rows([values[:150], values[150:]]),
        labels=embeddings.labels[order],
        indices=embeddings.indices[order],
        ids=None,
        encoder=embeddings.encoder,
        dataset=embeddings.dataset,
        provenance=embeddings.provenance,
    )
    one, other = (compare([coreset], embeddings=each, seeds=1).coresets[0] for each in (embeddings, shuffled))
    assert one.distances is not None
    assert other.distances is not None
    assert other.distances.model_dump() == pytest.approx(one.distances.model_dump(), rel=1e-9)
    assert other.random[0].model_dump() == pytest.approx(one.random[0].model_dump(), rel=1e-9)


def test_everything_is_at_no_distance(embeddings: Embeddings) -> None:
    (entry,) = compare([select(embeddings, "random", ratio=1)], embeddings=embeddings, seeds=1).coresets
    assert entry.distances == entry.random[0]
    assert entry.distances is not None
    assert entry.distances.frechet == pytest.approx(0, abs=1e-9)
    assert (entry.distances.recall, entry.distances.coverage, entry.distances.max_radius) == (1, 1, 0)


def test_queries_are_drawn_only_when_asked_for(embeddings: Embeddings) -> None:
    coreset = select(embeddings, "moderate", ratio=0.2)
    some = compare([coreset], embeddings=embeddings, seeds=0, num_queries=100, seed=1)
    assert some.num_queries == 100
    assert some == compare([coreset], embeddings=embeddings, seeds=0, num_queries=100, seed=1)
    assert compare([coreset], embeddings=embeddings, seeds=0, num_queries=9999).num_queries == 400


def test_a_comparison_survives_its_file(embeddings: Embeddings, tmp_path: Path) -> None:
    path = written(select(embeddings, "moderate", ratio=0.2), tmp_path / "coreset.json")
    found = compare([path], embeddings=embeddings, seeds=2)
    formats.write_comparison(found, tmp_path / "deep" / "compare.json")
    read = formats.read_artifact(tmp_path / "deep" / "compare.json")
    assert read.coresets == found.coresets
    assert [Path(each.path) for each in read.provenance.inputs] == [path, tmp_path / "embeddings.safetensors"]


def test_refusals(embeddings: Embeddings, tmp_path: Path) -> None:
    coreset = select(embeddings, "moderate", ratio=0.2)
    other = select(gaussian_embeddings(400, num_classes=4, dim=6, seed=1), "random", ratio=0.2)
    path = written(coreset, tmp_path / "a.json")
    with pytest.raises(DatasetMismatch, match="one dataset"):
        compare([coreset, other])
    with pytest.raises(DatasetMismatch, match="one dataset"):
        compare([other], embeddings=embeddings)
    with pytest.raises(OptionError, match="given twice"):
        compare([path, path])
    with pytest.raises(OptionError, match="at least one"):
        compare([])
    with pytest.raises(OptionError, match="fewer neighbours"):
        compare([select(embeddings, "random", num=4)], embeddings=embeddings)
    with pytest.raises(OptionError, match="--seeds"):
        compare([coreset], seeds=-1)
    with pytest.raises(OptionError, match="--queries"):
        compare([coreset], embeddings=embeddings, num_queries=0)
    with pytest.raises(ArtifactError, match=r"holds embeddings|not valid JSON"):
        compare([tmp_path / "embeddings.safetensors"])


def test_embeddings_without_a_kept_sample_are_refused(embeddings: Embeddings) -> None:
    assert embeddings.labels is not None
    part = Embeddings(
        embeddings=Rows([embeddings.embeddings[:][1:]]),
        labels=embeddings.labels[1:],
        indices=embeddings.indices[1:],
        ids=None,
        encoder=embeddings.encoder,
        dataset=embeddings.dataset,
        provenance=embeddings.provenance,
    )
    with pytest.raises(ArtifactError, match="1 samples without an embedding, the first is 0"):
        compare([select(embeddings, "random", ratio=1)], embeddings=part)


def test_class_less_data_has_no_class_entropy() -> None:
    embeddings = gaussian_embeddings(100, num_classes=0)
    (entry,) = compare([select(embeddings, "moderate", ratio=0.3)], embeddings=embeddings, seeds=1).coresets
    assert entry.class_entropy is None
    assert entry.class_counts == {}


def test_the_plot_is_well_formed_and_says_everything(embeddings: Embeddings, tmp_path: Path) -> None:
    path = written(select(embeddings, "moderate", ratio=0.2), tmp_path / "a<b>&c.json")
    found = compare([path], embeddings=embeddings, seeds=2)
    root = ElementTree.fromstring(comparison_svg(found))  # noqa: S314 - made here
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("a<b>&c.json") == 6
    assert any("random choice" in text for text in texts if text)
    bars = [each for each in root.iter("{http://www.w3.org/2000/svg}rect") if "bar" in str(each.get("class"))]
    assert len(bars) == 6 * 2 + 2
    with pytest.raises(OptionError, match="--embeddings"):
        comparison_svg(compare([path]))
