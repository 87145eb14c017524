"""`export`, `compare` and `explain` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dcprune import formats
from dcprune.api.exporting import FORMS, LINK_KINDS
from dcprune.cli.app import app
from dcprune.cli.export import Form, Link
from dcprune.testing import gaussian_embeddings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with embeddings, scores and two coresets of a dataset that is not on this machine."""
    monkeypatch.chdir(tmp_path)
    formats.write_embeddings(gaussian_embeddings(), tmp_path / "embeddings.safetensors")
    for line in (
        "score --scorer moderate",
        "select --ratio 0.25",
        "select --keep random --ratio 0.25 -o random.json",
    ):
        assert dcprune(*line.split())[0] == 0
    return tmp_path


def dcprune(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_choices_of_export_are_those_of_the_library() -> None:
    assert [each.value for each in Form] == list(FORMS)
    assert [each.value for each in Link] == list(LINK_KINDS)


def test_export_prints_the_path_it_wrote(folder: Path) -> None:
    assert dcprune("export", "--to", "numpy", "-o", "kept.npy")[:2] == (0, "kept.npy\n")
    kept = formats.read_coreset(folder / "coreset.json")
    assert np.load(folder / "kept.npy").tolist() == list(kept.indices)
    _, out, _ = dcprune("export", "random.json", "--to", "list", "-o", "kept.txt", "--json")
    assert json.loads(out) == {"path": "kept.txt", "form": "list", "num_samples": 30, "dataset": "gaussian"}
    assert (folder / "kept.txt").read_text().split() == [
        str(index) for index in formats.read_coreset(folder / "random.json").indices
    ]


def test_compare_prints_tables_and_writes_what_it_prints(folder: Path) -> None:
    arguments = ("compare", "coreset.json", "random.json", "--embeddings", "embeddings.safetensors", "--seeds", "2")
    code, out, _ = dcprune(*arguments, "-o", "compare.json", "--plot", "compare.svg", "-q")
    assert code == 0
    found = formats.read_comparison(folder / "compare.json")
    for title in ("Kept of every class", "Overlap", "Distance to all samples in gaussian (8-d), 5 neighbours"):
        assert title in out
    assert f"{found.jaccard[0][1]:.3f} ({found.jaccard_by_chance[0][1]:.3f})" in out
    assert "random, 30, class" in out
    assert all(line == line.rstrip() and line.isascii() for line in out.splitlines())
    assert (folder / "compare.svg").read_text().startswith("<svg xmlns=")
    _, out, _ = dcprune(*arguments, "--json")
    assert json.loads(out)["coresets"] == json.loads((folder / "compare.json").read_text())["coresets"]
    _, out, _ = dcprune("compare", "coreset.json", "-o", "-")
    assert json.loads(out)["format"] == "dcprune.comparison/1"


def test_repeating_the_recorded_comparison_repeats_the_file(folder: Path) -> None:
    from dcprune.api.provenance import command_line

    dcprune("compare", "coreset.json", "random.json", "--embeddings", "embeddings.safetensors", "-o", "one.json")
    words = command_line(formats.read_comparison(folder / "one.json").provenance).split()
    assert dcprune(*words[1:], "-o", "two.json")[0] == 0
    assert (folder / "one.json").read_bytes() == (folder / "two.json").read_bytes()


def test_inspect_and_verify_know_a_comparison(folder: Path) -> None:
    dcprune("compare", "coreset.json", "random.json", "-o", "compare.json")
    code, out, _ = dcprune("inspect", "compare.json", "--json")
    assert code == 0
    assert json.loads(out)["coresets"] == ["coreset.json", "random.json"]
    dcprune("select", "--ratio", "0.5", "--overwrite")
    code, out, _ = dcprune("verify", "compare.json")
    assert code == 3
    assert any(line.startswith("DIFFERS") and "coreset.json" in line for line in out.splitlines())


def test_explain_prints_a_block_for_every_sample(folder: Path) -> None:
    code, out, err = dcprune("explain", "3", "17", "--neighbours", "2")
    assert code == 0
    assert err == ""
    blocks = out.split("\n\n")
    assert [block.partition(":")[0] for block in blocks] == ["3", "17"]
    for block in blocks:
        for words in ("rank in class", "kept scores", "all scores", "nearest kept", "nearest dropped"):
            assert words in block
    formats.write_embeddings(gaussian_embeddings(), folder / "embeddings.safetensors", overwrite=True)
    dcprune("score", "--scorer", "gaussian", "-o", "other.safetensors")
    code, _, err = dcprune("explain", "3", "--scores", "other.safetensors")
    assert code == 0
    assert "are those of 'gaussian'" in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "--to", "folder", "-o", "out"], "gaussian"),
        (["export", "--to", "numpy"], "--output"),
        (["export", "-o", "out"], "--to"),
        (["export", "absent.json", "--to", "numpy", "-o", "out"], "absent.json"),
        (["export", "embeddings.safetensors", "--to", "numpy", "-o", "out"], "embeddings.safetensors"),
        (["export", "--to", "numpy", "-o", "coreset.json"], "--overwrite"),
        (["export", "--to", "numpy", "-o", "out", "--shard-size", "3"], "--to webdataset"),
        (["compare"], "CORESET"),
        (["compare", "coreset.json", "coreset.json"], "given twice"),
        (["compare", "coreset.json", "scores.safetensors"], "scores.safetensors"),
        (["compare", "coreset.json", "--plot", "plot.png"], ".svg"),
        (["compare", "coreset.json", "--plot", "plot.svg"], "--embeddings"),
        (["compare", "coreset.json", "-o", "random.json"], "--overwrite"),
        (["explain", "nobody"], "nobody"),
        (["explain", "120"], "0 to 119"),
        (["explain", "1", "--coreset", "absent.json"], "absent.json"),
        (["explain", "1", "--scores", "embeddings.safetensors"], "holds embeddings, not scores"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(folder: Path, arguments: list[str], says: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = dcprune(*arguments)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
