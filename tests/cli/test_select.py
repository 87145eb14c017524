"""`dcprune score` and `dcprune select` as a shell sees them, alone and in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dcprune import formats
from dcprune.cli.app import app
from dcprune.testing import gaussian_embeddings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    formats.write_embeddings(gaussian_embeddings(120), "embeddings.safetensors")
    return tmp_path


def dcprune(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_several_ratios_write_a_file_each(folder: Path) -> None:
    code, out, _ = dcprune("select", "--scorer", "moment", "--ratio", "0.1,0.25", "-o", "kept/core.json")
    assert (code, out) == (0, "kept/core-0.1.json\nkept/core-0.25.json\n")
    counts = [formats.read_coreset(folder / name).num_selected for name in out.split()]
    assert counts == [12, 30]
    code, out, _ = dcprune("select", "--scorer", "moderate", "--num", "10,20", "--json")
    listed = json.loads(out)["coresets"]
    assert [(each["path"], each["num_selected"]) for each in listed] == [
        ("coreset-10.json", 10),
        ("coreset-20.json", 20),
    ]
    assert all(sum(each["class_counts"].values()) == each["num_selected"] for each in listed)


def test_what_several_budgets_cannot_do(folder: Path) -> None:
    for arguments, message in (
        (("--ratio", "0.1,0.1"), "not distinct"),
        (("--ratio", "0.1,0.2", "-o", "-"), "stdout"),
        (("--ratio", "0.1,x"), "--ratio takes a number"),
        (("--ratio", "0.1,1.5"), "1.5"),
        (("--num", "1.5"), "--num takes a number"),
        (("--num", "10,121"), "--num 121"),
        (("--ratio", "0.1", "--num", "3"), "either"),
        (("--ratio", ""), "--ratio takes a number"),
    ):
        code, out, err = dcprune("select", "--scorer", "random", *arguments)
        assert (code, out) == (2, "")
        assert message in err.replace("\n", " ")
    dcprune("select", "--scorer", "random", "--ratio", "0.2")
    (folder / "coreset.json").rename(folder / "coreset-0.2.json")
    code, _, err = dcprune("select", "--scorer", "random", "--ratio", "0.1,0.2")
    assert code == 2
    assert "--overwrite" in err
    assert not (folder / "coreset-0.1.json").exists()


def test_a_list_in_a_configuration_file(folder: Path) -> None:
    (folder / "run.toml").write_text('[select]\nscorer = "random"\nratio = [0.1, 0.2]\n')
    assert dcprune("select", "--config", "run.toml")[1] == "coreset-0.1.json\ncoreset-0.2.json\n"


def test_scores_end_where_they_were_told(folder: Path) -> None:
    assert dcprune("score", "--scorer", "k-center", "--ratio", "0.3", "--device", "cpu")[0] == 0
    assert formats.read_scores(folder / "scores.safetensors").ratio == 0.3
    assert dcprune("select", "--ratio", "0.1,0.3")[0] == 0
    code, _, err = dcprune("select", "--ratio", "0.4")
    assert code == 2
    assert "--ratio 0.4" in err
    assert dcprune("score", "--scorer", "k-center", "--ratio", "2", "--overwrite")[0] == 2
    assert dcprune("score", "--device", "nonsense", "--overwrite")[0] == 2


def test_two_processes_write_the_bytes_of_one(folder: Path) -> None:
    labels = np.repeat([0, 1, 2], [70, 30, 20]).astype(np.int64)
    formats.write_embeddings(gaussian_embeddings(120, labels=labels), "embeddings.safetensors", overwrite=True)
    command = ["select", "--scorer", "moment", "--ratio", "0.1,0.3", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DCPRUNE_LOAD_PLUGINS": ""}
    for name, start in (
        ("one", [sys.executable, "-m"]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]),
    ):
        done = subprocess.run(
            [*start, "dcprune", *command, "-o", f"{name}.json"],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{name}-0.1.json\n{name}-0.3.json\n"
    for ratio in ("0.1", "0.3"):
        assert (folder / f"one-{ratio}.json").read_bytes() == (folder / f"two-{ratio}.json").read_bytes()
