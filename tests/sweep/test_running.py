"""Sweeps that run: stages done once, failures, and kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dcprune import formats
from dcprune.api.inspection import verify
from dcprune.api.sweep_estimate import estimate_sweep
from dcprune.api.sweeping import sweep
from dcprune.cli.app import app
from dcprune.errors import DcpruneError, MissingInput
from tests.sweep.conftest import SWEEP, Write

BROKEN = '\n[[grid]]\nencoder = "pixels"\nscorer = "difficulty"\nparams = {run = "no-such-run"}\n'
LONG = SWEEP.replace("steps = 4", "steps = 200").replace("checkpoint_every = 2", "checkpoint_every = 20")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def files(folder: Path) -> dict[str, int]:
    """When each file of the stages was written."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.suffix != ".lock"}


def test_what_only_finished_stages_need_is_not_made_again(write: Write, tmp_path: Path) -> None:
    path, output = write(), tmp_path / "out"
    results = sweep([path], output=output, devices=["cpu"])
    deleted = list(output.glob("embed/*/embeddings.safetensors"))
    assert deleted
    for file in deleted:
        file.unlink()
    assert sweep([path], output=output, devices=["cpu"]).cells == results.cells
    assert estimate_sweep([path], output=output)["device_hours"] == 0
    assert not any(file.exists() for file in deleted)


def test_a_failed_cell_stops_only_itself_and_nothing_is_done_twice(write: Write, tmp_path: Path) -> None:
    path, output = write(SWEEP + BROKEN), tmp_path / "out"
    with pytest.raises(
        DcpruneError, match=r"1 stages failed\. 1 cells could not be finished(.|\n)*no-such-run"
    ) as error:
        sweep([path], output=output, devices=["cpu"], workers=2)
    assert error.value.exit_code == 1
    results = formats.read_sweep(output)
    assert len(results.cells) == 4
    assert [(cell.scorer, cell.weights, cell.anneal) for cell in results.cells] == [
        (None, False, None),
        ("random", False, None),
        ("moderate", True, None),
        ("moderate", True, 0.5),
    ]
    assert all(len(cell.metrics) == 1 for cell in results.cells)
    assert {cost.stage for cost in results.cells[2].cost} == {"embed", "score", "reference", "proxy", "train"}
    assert all(check.holds for check in verify(output))

    # the same again, with the cell gone that fails: nothing to do, and the same results
    before = files(output)
    again = sweep([write()], output=output, devices=["cpu"])
    assert again.cells == results.cells
    unchanged = {path: when for path, when in files(output).items() if not path.endswith("results.json")}
    assert unchanged.items() <= before.items()

    # a part of it: the results keep the other cells
    part = sweep([write()], output=output, only=["random*"], seeds=[0], devices=["cpu"])
    assert part.cells == results.cells

    # another folder of results over the same stages measures anew and trains nothing
    other = sweep(
        [write(SWEEP.replace("num_inference_steps = 1", "num_inference_steps = 2"))],
        output=tmp_path / "other",
        cache=output,
        only=["random*"],
        devices=["cpu"],
    )
    assert other.cells[0].run.sha256 == results.cells[1].run.sha256
    assert other.cells[0].metrics[0].sha256 != results.cells[1].metrics[0].sha256

    # a run that was tampered with is not taken for done
    run = Path(results.cells[1].run.path)
    run.write_text(run.read_text().replace('"step": 4', '"step": 3'))
    plan = estimate_sweep([path], output=output)
    undone = {(stage["command"], stage["name"]) for stage in plan["stages"] if not stage["done"]}
    assert undone >= {("train", "random-0.1-seed0")}
    assert ("train", "full-seed0") not in undone
    assert plan["device_hours"] > 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_killed_at_any_moment_it_goes_on(write: Write, tmp_path: Path) -> None:
    path, output = write(LONG), tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "dcprune",
        "sweep",
        str(path),
        "-o",
        str(output),
        "--only",
        "full*",
        "--devices",
        "cpu",
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    while not reached(output, 20):
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    threading.Thread(target=terminate_when_reached, args=(output, 60), daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep([path], output=output, only=["full*"], devices=["cpu"])
    assert not (output / "results.json").exists()
    assert sweep([path], output=output, only=["full*"], devices=["cpu"]).cells[0].metrics
    (log,) = output.glob("train/*.log")
    assert log.read_text().count("Resuming at step") == 2
    sweep([path], output=tmp_path / "straight", only=["full*"], devices=["cpu"])
    assert len({run["model_sha256"] for run in records(tmp_path)}) == 1


def records(folder: Path) -> list[dict[str, object]]:
    found = [json.loads(path.read_text()) for path in folder.glob("*/train/*/run.json")]
    assert len(found) == 2
    return found


def reached(folder: Path, step: int) -> bool:
    """Whether a training has a checkpoint of the step."""
    os.sched_yield()
    return any(folder.glob(f"train/*/checkpoints/step-{step:08d}"))


def terminate_when_reached(folder: Path, step: int) -> None:
    while not reached(folder, step):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_cost_is_known_before_the_dataset_is_there(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "caches"))
    text = SWEEP.replace('"fashion-mini"', '"cifar10"').replace('"fd:pixels"', '"fd:resnet18"')
    text = text.replace("set = {image_size = 2}", "set = {width = 4}")
    more = '\n[[grid]]\nencoder = "resnet18"\nscorer = "moderate"\n[encoders.resnet18]\nset = {width = 4}\n'
    plan = estimate_sweep([write(text + more)], output=tmp_path / "out", data_dir=tmp_path / "no-data")
    assert plan["not_estimated"] == 0
    assert plan["missing"][0] == "dataset cifar10"
    assert plan["missing"][1].startswith("No surrogate of this dataset is cached")
    hours = {(stage["command"], stage["name"]): stage["device_hours"] for stage in plan["stages"]}
    # its training is counted where the surrogate is first needed, and once
    assert hours["eval", "full-seed0"] > hours["eval", "random-0.1-seed0"] > 0
    assert hours["eval", "full-seed0"] > hours["embed", "resnet18"] > 0
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_unknown_size_has_to_be_there(write: Write, tmp_path: Path) -> None:
    path = write(SWEEP.replace('"fashion-mini"', '"./no-such-folder"'))
    with pytest.raises(MissingInput, match="no-such-folder"):
        estimate_sweep([path], output=tmp_path / "out")


def test_a_model_that_has_to_be_fetched_is_not_estimated(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path / "caches"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "caches" / "hub"))
    text = (
        SWEEP.partition("[train]")[0]
        + '[train]\nbackend = "sd"\npreset = "paper"\n[eval]\n'
        + ('metric = ["fd:pixels"]\n[[grid]]\n[[grid]]\nscorer = "random"\n')
    )
    plan = estimate_sweep([write(text)], output=tmp_path / "out")
    assert plan["not_estimated"] == 4  # two runs and their evaluations
    assert all("stable-diffusion" in line for line in plan["missing"])


def test_an_embedding_by_a_run_of_the_sweep_is_estimated(write: Write, tmp_path: Path) -> None:
    more = '\n[[grid]]\nencoder = "ddae"\nscorer = "moderate"\n[encoders.ddae]\nweights = "run:base"\n'
    path = write(f"{SWEEP}{more}[runs.base]\nunconditional = true\n")
    plan = estimate_sweep([path], output=tmp_path / "out", only=["ddae*"])
    (embed,) = (stage for stage in plan["stages"] if stage["command"] == "embed")
    assert embed["device_hours"] > 0
    assert plan["not_estimated"] == 0


@pytest.mark.parametrize(("split", "reference", "kept"), [("train", 4000, 0), ("test", 1000, 400)])
def test_an_evaluation_also_encodes_real_images(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, reference: int, kept: int
) -> None:
    hour_per_image = {"seconds": 3600.0, "num_samples": 1, "missing": []}
    monkeypatch.setattr("dcprune.api.sweep_estimate.estimate_embedding", lambda *_: hour_per_image)
    path = write(SWEEP.replace("[eval]", f'[eval]\nsplit = "{split}"'))
    plan = estimate_sweep([path], output=tmp_path / "out", seeds=[0])
    hours = {stage["name"]: stage["device_hours"] for stage in plan["stages"] if stage["command"] == "eval"}
    assert hours.pop("full-seed0") == pytest.approx(20 + reference, abs=1)
    assert set(hours) == {
        "random-0.1-seed0",
        "pixels-moderate-0.1-weights-seed0",
        "pixels-moderate-0.1-weights-anneal-seed0",
    }
    assert list(hours.values()) == pytest.approx([20 + kept] * 3, abs=1)


@pytest.mark.parametrize(("proxy", "share"), [("epochs = 0.2", 10 / 400), ("steps = 2", 2 / 400), ("", 0.1)])
def test_the_length_of_a_proxy_is_its_own(write: Write, tmp_path: Path, proxy: str, share: float) -> None:
    text = SWEEP.replace("[reweight]\nsteps = 2", f"[reweight]\n{proxy}").replace("steps = 4\n", "steps = 400\n")
    plan = estimate_sweep([write(text)], output=tmp_path / "out", seeds=[0])
    hours = {(stage["command"], stage["name"]): stage["device_hours"] for stage in plan["stages"]}
    proxy_hours, full_hours = hours["reweight", "pixels-moderate-0.1-seed0"], hours["train", "full-seed0"]
    assert proxy_hours / full_hours == pytest.approx(share * 4 / 3, rel=0.05)


def test_the_command_plans_and_names_mistakes(write: Write, tmp_path: Path) -> None:
    command = ["sweep", str(write()), "-o", str(tmp_path / "out"), "--seeds", "0,1", "--dry-run", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["cells"], plan["done_stages"], plan["not_estimated"]) == (8, 0, 0)
    assert plan["device_hours"] == pytest.approx(sum(stage["device_hours"] for stage in plan["stages"]), rel=0.01)
    assert not (tmp_path / "out").exists()
    for wrong, says in ((["--seeds", "a"], "whole numbers"), (["--only", "nothing"], "No cell is called")):
        done = CliRunner().invoke(app, [*command, *wrong])
        assert done.exit_code == 2
        assert says in done.stderr
