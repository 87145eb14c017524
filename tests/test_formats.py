from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from dcprune import formats
from dcprune.api.coresets import score, select
from dcprune.artifacts import ClassWeights, Coreset, Embeddings, Rows
from dcprune.errors import ArtifactError, MissingInput, OutputExists
from dcprune.testing import gaussian_embeddings


def in_dtype(embeddings: Embeddings, dtype: str, parts: int = 1) -> Embeddings:
    values = embeddings.embeddings[:]
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    stored = bits if dtype == "bfloat16" else values.astype(dtype)
    return Embeddings(
        embeddings=Rows(np.array_split(stored, parts), dtype),
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=tuple(f"bild-{row}-é" for row in range(len(values))),
        encoder=embeddings.encoder,
        dataset=embeddings.dataset,
        provenance=embeddings.provenance,
    )


@pytest.fixture
def coreset() -> Coreset:
    return select(gaussian_embeddings(), "moderate", ratio=0.25)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_file_and_a_folder_of_shards_read_the_same(tmp_path: Path, dtype: str) -> None:
    original = in_dtype(gaussian_embeddings(), dtype, parts=3)
    formats.write_embeddings(original, tmp_path / "one.safetensors")
    formats.write_embeddings(original, tmp_path / "many", shard_rows=50)
    one, many = formats.read_embeddings(tmp_path / "one.safetensors"), formats.read_embeddings(tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == 3
    rows = np.array([119, 0, 50, 49, 50])
    for read in (one, many):
        assert np.array_equal(read.embeddings[:], original.embeddings[:])
        assert np.array_equal(read.embeddings[rows], original.embeddings[:][rows])
        assert read.labels is not None
        assert original.labels is not None
        assert np.array_equal(read.labels, original.labels)
        assert (read.ids, read.header) == (original.ids, original.header)


def test_bfloat16_rounds_as_torch_reads_it(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    original = in_dtype(gaussian_embeddings(), "bfloat16")
    formats.write_embeddings(original, tmp_path / "e.safetensors")
    stored = load_file(tmp_path / "e.safetensors")["embeddings"]
    assert str(stored.dtype) == "torch.bfloat16"
    assert np.array_equal(stored.float().numpy(), original.embeddings[:])


def test_embeddings_are_mapped_not_loaded(tmp_path: Path) -> None:
    formats.write_embeddings(gaussian_embeddings(), tmp_path / "e.safetensors")
    assert isinstance(formats.read_embeddings(tmp_path / "e.safetensors").embeddings.parts[0], np.memmap)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, coreset: Coreset) -> None:
    embeddings = gaussian_embeddings()
    for name in ("a", "b"):
        formats.write_embeddings(embeddings, tmp_path / name / "e.safetensors")
        scores = score(tmp_path / name / "e.safetensors", "gaussian")
        formats.write_scores(scores, tmp_path / name / "s.safetensors")
        formats.write_coreset(coreset, tmp_path / name / "c.json")
    for file in ("e.safetensors", "c.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_references_survive_a_move_of_the_whole_folder(tmp_path: Path) -> None:
    formats.write_embeddings(gaussian_embeddings(), tmp_path / "old" / "e.safetensors")
    scores = score(tmp_path / "old" / "e.safetensors", "gaussian")
    formats.write_scores(scores, tmp_path / "old" / "deep" / "s.safetensors")
    (tmp_path / "old").rename(tmp_path / "new")
    (reference,) = formats.read_scores(tmp_path / "new" / "deep" / "s.safetensors").provenance.inputs
    assert Path(reference.path) == tmp_path / "new" / "e.safetensors"
    assert formats.sha256(reference.path) == reference.sha256


def test_json_artifacts_round_trip(tmp_path: Path, coreset: Coreset) -> None:
    formats.write_coreset(coreset, tmp_path / "c.json")
    read = formats.read_coreset(tmp_path / "c.json")
    assert read.model_dump() == coreset.model_dump()
    assert read.origin == str(tmp_path / "c.json")
    assert list(json.loads((tmp_path / "c.json").read_text()))[:2] == ["format", "dataset"]


def test_an_existing_output_is_refused_and_kept(tmp_path: Path, coreset: Coreset) -> None:
    (tmp_path / "c.json").write_text("precious")
    with pytest.raises(OutputExists, match="--overwrite"):
        formats.write_coreset(coreset, tmp_path / "c.json")
    assert (tmp_path / "c.json").read_text() == "precious"
    formats.write_coreset(coreset, tmp_path / "c.json", overwrite=True)
    assert formats.read_coreset(tmp_path / "c.json").indices == coreset.indices


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("old")

    def fail_in_a_file() -> None:
        with formats.atomic_file(tmp_path / "kept", overwrite=True) as temporary:
            temporary.write_text("half")
            raise InterruptedError

    def fail_in_a_folder() -> None:
        with formats.atomic_folder(tmp_path / "folder") as temporary:
            (temporary / "part").write_text("half")
            raise InterruptedError

    for write in (fail_in_a_file, fail_in_a_folder):
        with pytest.raises(InterruptedError):
            write()
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept").read_text() == "old"


def _edited(path: Path, **changes: Any) -> None:
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "dcprune.coreset/2"}, "Update dcprune"),
        ({"format": "dcprune.metrics/1"}, "holds metrics, not coreset"),
        ({"format": "other/1"}, "not a dcprune artifact"),
        ({"num_selected": 2, "indices": [3, 2]}, "ascending"),
        ({"num_selected": 2, "indices": [1, 1]}, "ascending"),
        ({"num_selected": 2, "indices": [1, 120]}, "outside"),
        ({"num_selected": 3}, "num_selected"),
        ({"class_counts": {}}, "class_counts"),
        ({"extra": 1}, "extra"),
        ({"indices": "many"}, "indices"),
    ],
)
def test_a_damaged_coreset_is_one_clear_error(
    tmp_path: Path, coreset: Coreset, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "c.json"
    formats.write_coreset(coreset, path)
    _edited(path, **changes)
    with pytest.raises(ArtifactError, match=message) as caught:
        formats.read_coreset(path)
    assert str(path) in str(caught.value)


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, coreset: Coreset) -> None:
    formats.write_coreset(coreset, tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes((tmp_path / "c.json").read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="truncated"):
        formats.read_coreset(tmp_path / "c.json")
    formats.write_embeddings(gaussian_embeddings(), tmp_path / "e.safetensors")
    whole = (tmp_path / "e.safetensors").read_bytes()
    for damaged in (whole[:-5], whole[:100], b"", b"hello" * 50):
        (tmp_path / "e.safetensors").write_bytes(damaged)
        with pytest.raises(ArtifactError, match="safetensors"):
            formats.read_embeddings(tmp_path / "e.safetensors")
    save_file({"x": np.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ArtifactError, match="not a dcprune artifact"):
        formats.read_scores(tmp_path / "foreign.safetensors")
    with pytest.raises(MissingInput, match="dcprune embed"):
        formats.read_embeddings(tmp_path / "absent.safetensors")


def test_scores_are_not_embeddings(tmp_path: Path) -> None:
    formats.write_scores(score(gaussian_embeddings(), "random"), tmp_path / "s.safetensors")
    with pytest.raises(ArtifactError, match="holds scores, not embeddings"):
        formats.read_embeddings(tmp_path / "s.safetensors")


def test_a_lost_shard_is_named(tmp_path: Path) -> None:
    formats.write_embeddings(gaussian_embeddings(), tmp_path / "e", shard_rows=50)
    lost = sorted((tmp_path / "e").glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ArtifactError, match=lost.name):
        formats.read_embeddings(tmp_path / "e")


def test_values_that_are_not_finite_are_refused() -> None:
    embeddings = gaussian_embeddings()
    values = embeddings.embeddings[:].copy()
    values[7, 3] = np.nan
    with pytest.raises(ArtifactError, match="sample 7"):
        Embeddings(
            embeddings=Rows([values]),
            labels=embeddings.labels,
            indices=embeddings.indices,
            ids=None,
            encoder=embeddings.encoder,
            dataset=embeddings.dataset,
            provenance=embeddings.provenance,
        )


@pytest.mark.parametrize("field", ["indices", "labels"])
def test_columns_must_fit(field: str) -> None:
    embeddings = gaussian_embeddings()
    assert embeddings.labels is not None
    columns: dict[str, Any] = {"indices": embeddings.indices, "labels": embeddings.labels}
    for wrong in (columns[field][:-1], np.where(np.arange(120) == 5, 999, columns[field])):
        with pytest.raises(ArtifactError, match=field):
            Embeddings(
                embeddings=embeddings.embeddings,
                ids=None,
                encoder=embeddings.encoder,
                dataset=embeddings.dataset,
                provenance=embeddings.provenance,
                **{**columns, field: wrong},
            )


def test_class_weights_must_have_mean_one() -> None:
    with pytest.raises(ValueError, match="mean"):
        ClassWeights.model_validate(
            {
                "dataset": gaussian_embeddings().dataset.model_dump(),
                "provenance": gaussian_embeddings().provenance.model_dump(),
                "weights": {"class 0": 1.0, "class 1": 1.0, "class 2": 1.5},
                "objective": {
                    "eta": 1,
                    "smoothing": 0,
                    "clip": True,
                    "steps": 1,
                    "backend": "ddpm",
                    "reference_sha256": "0" * 64,
                },
                "diagnostics": {"trajectory": [], "entropy": 1, "fraction_clipped": 0, "final_excess": []},
            }
        )


def test_the_shipped_schemas_are_those_of_the_models(tmp_path: Path, coreset: Coreset) -> None:
    import jsonschema

    from dcprune import schemas

    for name, schema in schemas.generate().items():
        assert schemas.path(name).read_text() == schemas.to_text(schema), "run: python -m dcprune.schemas"
    formats.write_coreset(coreset, tmp_path / "c.json")
    document = json.loads((tmp_path / "c.json").read_text())
    schema = json.loads(schemas.path("coreset").read_text())
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "indices": [-1]}, schema)
