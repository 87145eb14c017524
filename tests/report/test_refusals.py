"""What `report` refuses, before it writes anything."""

from __future__ import annotations

import builtins
from typing import TYPE_CHECKING, Any

import pytest

from dcprune import formats
from dcprune.artifacts import Embeddings
from dcprune.errors import ArtifactError, DatasetMismatch, DcpruneError, MissingInput, OptionError, OutputExists
from dcprune.report.render import template
from tests.report.conftest import report

if TYPE_CHECKING:
    from pathlib import Path

    from tests.report.conftest import Chain


def test_named_files_must_be_right(shared_chain: Chain, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    with pytest.raises(MissingInput):
        report([shared_chain.core], output=output, coreset=tmp_path / "absent.json")
    with pytest.raises(ArtifactError, match="not coreset"):
        report([shared_chain.core], output=output, coreset=shared_chain.folder / "weights.json")
    embeddings = formats.read_embeddings(shared_chain.folder / "embeddings.safetensors")
    other = embeddings.dataset.model_copy(update={"fingerprint": "0" * 64})
    foreign = Embeddings(
        embeddings=embeddings.embeddings,
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=None,
        encoder=embeddings.encoder,
        dataset=other,
        provenance=embeddings.provenance,
    )
    formats.write_embeddings(foreign, tmp_path / "foreign.safetensors")
    with pytest.raises(DatasetMismatch, match=r"foreign\.safetensors"):
        report([shared_chain.core], output=output, embeddings=tmp_path / "foreign.safetensors")
    assert not output.exists()


def test_wrong_runs_and_existing_outputs_are_refused(shared_chain: Chain, tmp_path: Path) -> None:
    output = tmp_path / "report.html"
    with pytest.raises(OptionError, match="at least one run"):
        report([], output=output)
    with pytest.raises(MissingInput):
        report([tmp_path / "nowhere"], output=output)
    with pytest.raises(ArtifactError, match=r"run\.json"):
        report([tmp_path], output=output)
    with pytest.raises(ArtifactError, match=r"coreset\.json holds coreset\. A page is about runs"):
        report([shared_chain.folder / "coreset.json"], output=output)
    output.write_text("mine")
    with pytest.raises(OutputExists):
        report([shared_chain.full], output=output)
    assert output.read_text() == "mine"
    assert report([shared_chain.full], output=output, overwrite=True) == output
    assert output.read_text() != "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_missing_jinja_says_what_to_install(
    shared_chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without_jinja(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *rest)

    template.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_jinja)
    with pytest.raises(DcpruneError, match=r'pip install "dcprune\[report\]"'):
        report([shared_chain.full], output=tmp_path / "report.html")
