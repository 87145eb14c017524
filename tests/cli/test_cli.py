from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcprune import formats
from dcprune.cli.app import app
from dcprune.testing import gaussian_embeddings

HEAVY = ("torch", "numpy", "diffusers", "scipy", "safetensors", "dcprune.artifacts")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with embeddings in it."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    formats.write_embeddings(gaussian_embeddings(), work / "embeddings.safetensors")
    return work


def dcprune(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def loaded_after(*arguments: str) -> tuple[str, list[str]]:
    """Stdout of a command in a new interpreter, and which heavy modules it left loaded."""
    program = f"""
import sys
from dcprune.cli.app import app
try:
    app({list(arguments)!r})
except SystemExit as stop:
    assert not stop.code, stop.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout, ast.literal_eval(result.stderr.strip().splitlines()[-1])


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["train", "--help"], ["reweight", "--help"], ["plugins", "--help"]]
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_after(*arguments)[1] == []


def test_listing_plugins_imports_no_torch() -> None:
    out, heavy = loaded_after("plugins", "--json")
    assert "torch" not in heavy
    listed = {(item["kind"], item["name"]) for item in json.loads(out)["items"]}
    assert {("scorer", "moderate"), ("metric", "fd:ENCODER"), ("backend", "ddpm")} <= listed


def test_the_default_files_chain(folder: Path) -> None:
    assert dcprune("score", "--scorer", "moderate")[:2] == (0, "scores.safetensors\n")
    assert dcprune("select", "--ratio", "0.2")[:2] == (0, "coreset.json\n")
    from_scores = formats.read_coreset(folder / "coreset.json")
    assert dcprune("select", "--scorer", "moderate", "--ratio", "0.2", "-o", "inline.json")[0] == 0
    assert formats.read_coreset(folder / "inline.json").indices == from_scores.indices
    assert [Path(each.path).name for each in from_scores.provenance.inputs] == ["scores.safetensors"]


def test_json_is_one_object_and_a_dash_is_stdout(folder: Path) -> None:
    code, out, _ = dcprune("select", "--scorer", "random", "--ratio", "0.5", "--json")
    assert code == 0
    assert json.loads(out)["num_selected"] == 60
    code, out, _ = dcprune("select", "--scorer", "random", "--ratio", "0.5", "-o", "-")
    assert code == 0
    assert len(json.loads(out)["indices"]) == 60


def test_repeating_the_recorded_command_repeats_the_file(folder: Path) -> None:
    from dcprune.api.provenance import command_line

    assert dcprune("select", "--scorer", "moderate", "--set", "centre=mean", "--num", "17", "--scope", "global")[0] == 0
    first = (folder / "coreset.json").read_bytes()
    words = command_line(formats.read_coreset(folder / "coreset.json").provenance).split()
    assert words[0] == "dcprune"
    assert dcprune(*words[1:], "--overwrite")[0] == 0
    assert (folder / "coreset.json").read_bytes() == first


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["select", "--scorer", "moderate", "--ratio", "0"], "--ratio"),
        (["select", "--scorer", "moderate", "--ratio", "1.5"], "--ratio"),
        (["select", "--scorer", "moderate", "--ratio", "nan"], "--ratio"),
        (["select", "--scorer", "moderate"], "--ratio"),
        (["select", "--scorer", "modrate", "--ratio", "0.2"], "Did you mean 'moderate'"),
        (["select", "--ratio", "0.2"], "--scorer"),
        (["select", "absent.safetensors", "--scorer", "moderate", "--ratio", "0.2"], "absent.safetensors"),
        (["select", "--scorer", "moderate", "--set", "center=mean", "--ratio", "0.2"], "Did you mean 'centre'"),
        (["select", "--scorer", "moderate", "--set", "centre", "--ratio", "0.2"], "KEY=VALUE"),
        (["score", "-o", "embeddings.safetensors"], "--overwrite"),
        (["inspect", "nothing.json"], "nothing.json"),
        (["embed", "no-such-dataset", "-o", "e"], "no-such-dataset"),
        (["embed", "./no/such/folder", "-o", "e"], "no/such/folder"),
        (["train", "--coreset", "absent.json", "-o", "run"], "absent.json"),
        (["eval", "absent"], "absent"),
        (["report", "absent"], "absent"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(folder: Path, arguments: list[str], says: str) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, out, err = dcprune(*arguments)
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_debug_shows_the_traceback(folder: Path) -> None:
    code, _, err = dcprune("inspect", "nothing.json", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "MissingInput" in err


def test_options_come_from_a_toml_file_and_flags_win(folder: Path) -> None:
    (folder / "run.toml").write_text('seed = 5\n[select]\nscorer = "moderate"\nratio = 0.5\nset = {centre = "mean"}\n')
    assert dcprune("select", "--config", "run.toml", "--ratio", "0.25")[0] == 0
    selection = formats.read_coreset(folder / "coreset.json").selection
    assert (selection.scorer, selection.ratio, selection.seed) == ("moderate", 0.25, 5)
    assert selection.params == {"centre": "mean"}
    (folder / "run.toml").write_text("[select]\nratoi = 0.5\n")
    code, _, err = dcprune("select", "--config", "run.toml")
    assert code == 2
    assert "ratoi" in err


def test_inspect_describes_and_verify_finds_a_change(folder: Path) -> None:
    dcprune("score", "--scorer", "gaussian")
    dcprune("select", "--ratio", "0.2")
    code, out, _ = dcprune("inspect", "coreset.json", "--json")
    described = json.loads(out)
    assert code == 0
    assert (described["kind"], described["num_selected"]) == ("coreset", 24)
    assert described["made_by"].startswith("dcprune select scores.safetensors --ratio 0.2")
    dcprune("score", "--scorer", "moderate", "--overwrite")
    code, out, err = dcprune("verify", "coreset.json")
    assert code == 3
    assert any(line.startswith("DIFFERS") and "scores.safetensors" in line for line in out.splitlines())
    assert "difference" in err


def test_verify_tells_what_is_missing_from_what_differs(folder: Path) -> None:
    dcprune("score", "--scorer", "gaussian")
    dcprune("select", "--ratio", "0.2")
    Path("embeddings.safetensors").unlink()
    code, out, err = dcprune("verify", "coreset.json")
    assert code == 3
    assert "DIFFERS" not in out
    assert f"missing  {folder / 'embeddings.safetensors'} is not here" in out.splitlines()
    assert "0 of" in err
    assert dcprune("verify", "coreset.json", "--allow-missing")[0] == 0
    Path("scores.safetensors").write_bytes(b"other")
    code, out, err = dcprune("verify", "coreset.json", "--allow-missing")
    assert code == 3
    assert "DIFFERS" in out


def test_a_broken_plugin_is_one_warning(folder: Path, install_plugin: Callable[[str, str], None]) -> None:
    install_plugin("dcprune-broken", "import a_module_that_is_not_there")
    code, out, err = dcprune("select", "--scorer", "random", "--ratio", "0.5")
    assert (code, out) == (0, "coreset.json\n")
    (line,) = [line for line in err.splitlines() if "dcprune-broken" in line]
    assert "a_module_that_is_not_there" in line
    assert "pip uninstall dcprune-broken" in line
