"""`dcprune config`, and the files that it shows, read back by the commands themselves."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner, Result

from dcprune.cli.app import app

TINY = [
    "--set",
    "resolution=8",
    "--set",
    "block_out_channels=[8]",
    "--set",
    "log_every=1",
    "--set",
    "attention_levels=[]",
]
TRAIN = ["train", "fashion-mini", "--preset", "tiny", "--steps", "2", "--batch-size", "4", *TINY]
TRAIN += ["--device", "cpu", "--dtype", "fp32"]


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def as_toml(document: dict[str, Any]) -> str:
    """Tables in tables, in one line each."""
    return "\n".join(f"{key} = {inline(value)}" for key, value in document.items())


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def shown_commands(schema: dict[str, Any]) -> list[str]:
    return [name for name, found in schema["properties"].items() if found.get("type") == "object" and name != "set"]


def shown(*words: str) -> dict[str, Any]:
    done = run("config", "show", *words)
    assert done.exit_code == 0, done.stderr
    return tomllib.loads(done.stdout)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    done = run("config", "schema")
    assert done.exit_code == 0
    found: dict[str, Any] = json.loads(done.stdout)
    jsonschema.Draft202012Validator.check_schema(found)
    return found


COMMANDS = ("embed", "score", "select", "reweight", "train", "eval", "sample", "report", "export")


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_shown_fits_the_schema_and_names_every_option(name: str, schema: dict[str, Any]) -> None:
    document = shown(name)
    jsonschema.validate(document, schema)
    text = run("config", "show", name).stdout
    for option in schema["properties"][name]["properties"]:
        assert f"{option} =" in text or option == "set", option


@pytest.mark.parametrize(
    "document",
    [
        {"train": {"batch_size": "many"}},
        {"train": {"batch_size": 0}},
        {"train": {"dtype": "fp8"}},
        {"train": {"bach_size": 3}},
        {"trian": {}},
        {"train": {"set": {"ema_decay": 1.5}}},
        {"train": {"tracker": "wandb"}},
        {"train": 3},
        {"bach_size": 3},
        {"train": {"set": 3}},
    ],
)
def test_the_schema_refuses_what_the_commands_refuse(
    document: dict[str, Any], schema: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, schema)
    file = tmp_path / "options.toml"
    file.write_text(as_toml(document))
    done = run("train", "fashion-mini", "--config", str(file), "-o", str(tmp_path / "run"), "--dry-run")
    assert done.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_no_command_is_called_like_an_option(schema: dict[str, Any]) -> None:
    properties = [set(table["properties"]) for name, table in schema["properties"].items() if "properties" in table]
    assert not set().union(*properties) & set(shown_commands(schema))


def test_a_recipe_is_shown_whole() -> None:
    paper, tiny = shown("train"), shown("train", "--preset", "tiny")
    assert (paper["train"]["epochs"], paper["train"]["learning_rate"]) == (2000, 1e-4)
    assert paper["train"]["set"]["block_out_channels"] == [128, 256, 256, 256]
    assert (tiny["train"]["preset"], tiny["train"]["batch_size"], tiny["train"]["set"]["ema_decay"]) == (
        "tiny", 32, 0.995
    )  # fmt: skip
    assert "sigma_data" in shown("train", "--backend", "edm", "--preset", "tiny")["train"]["set"]


def test_a_file_goes_before_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(
        'seed = 4\n[train]\npreset = "tiny"\nsteps = 7\ntracker = ["wandb"]\n[train.set]\nema_decay = 0.5\n'
    )
    document = shown("train", "--config", str(file))["train"]
    assert (document["seed"], document["steps"], document["tracker"]) == (4, 7, ["wandb"])
    assert "epochs" not in document
    assert document["set"]["ema_decay"] == 0.5
    assert document["set"]["lr_warmup_steps"] == 50


def test_a_shown_file_makes_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dcprune.api.runs._GRID_CLASSES", 1)
    monkeypatch.setattr("dcprune.api.runs._GRID_COLUMNS", 1)
    done = run(*TRAIN, "-o", str(tmp_path / "plain"))
    assert done.exit_code == 0, done.stderr
    brief = tmp_path / "brief.toml"
    brief.write_text(
        '[train]\ndataset = "fashion-mini"\npreset = "tiny"\nsteps = 2\nbatch-size = 4\n'
        'device = "cpu"\ndtype = "fp32"\n'
        "[train.set]\nresolution = 8\nblock_out_channels = [8]\nlog_every = 1\nattention_levels = []\n"
    )
    whole = tmp_path / "whole.toml"
    whole.write_text(run("config", "show", "train", "--config", str(brief)).stdout)
    assert tomllib.loads(whole.read_text())["train"]["steps"] == 2
    hashes = set()
    for name, words in (("brief", [str(brief)]), ("whole", [str(whole)])):
        done = run("train", "--config", *words, "-o", str(tmp_path / name))
        assert done.exit_code == 0, done.stderr
        hashes.add(json.loads((tmp_path / name / "run.json").read_text())["model_sha256"])
    assert hashes == {json.loads((tmp_path / "plain" / "run.json").read_text())["model_sha256"]}


def test_a_flag_goes_before_a_file_that_says_the_same_by_another_name(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("[train]\nepochs = 3\n")
    words = [*TRAIN, "--config", str(file), "--dry-run", "--json"]
    assert json.loads(run(*words).stdout)["updates"] == 2
    file.write_text("[train]\nepochs = 3\nsteps = 2\n")
    done = run("train", "fashion-mini", "--preset", "tiny", *TINY, "--config", str(file), "--dry-run")
    assert done.exit_code == 2
    assert "not both" in done.stderr


def test_a_recipe_without_a_value_fits_the_schema(schema: dict[str, Any]) -> None:
    done = run("config", "show", "train", "--backend", "edm", "--preset", "paper")
    assert 'max_grad_norm = "null"' in done.stdout
    jsonschema.validate(tomllib.loads(done.stdout), schema)


def test_one_value_where_a_list_belongs_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text('tracker = "tensorboard"')
    done = run("train", "fashion-mini", "--config", str(file))
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert 'where a list is expected, such as tracker = ["tensorboard"]' in done.stderr


def test_mistakes_are_named(tmp_path: Path) -> None:
    done = run("config", "show", "trian")
    assert done.exit_code == 2
    assert "Did you mean 'train'" in done.stderr
    done = run("config", "show", "train", "--preset", "papre")
    assert done.exit_code == 2
    assert "Did you mean 'paper'" in done.stderr
    file = tmp_path / "options.toml"
    file.write_text("[train]\nbach-size = 3\n")
    for words in (["config", "show", "train", "--config", str(file)], ["train", "--config", str(file)]):
        done = run(*words)
        assert done.exit_code == 2
        assert "bach_size" in done.stderr
