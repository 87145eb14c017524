"""`dcprune eval` and `dcprune compare` of metrics as a shell sees them, alone and in two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from dcprune import formats
from dcprune.api.measuring import together
from dcprune.api.runs import train
from dcprune.artifacts import Metrics
from dcprune.cli.app import app
from dcprune.encoders.residual import initialised
from dcprune.errors import DatasetError
from dcprune.processes import Processes
from dcprune.sources import open_dataset
from dcprune.weights import write_weights

FD = "fd:resnet18"
WEIGHTS = ("--metric", FD, "--weights", "r.safetensors", "--device", "cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`real/` and `made/` of 40 images each, class-less, and a network of 16 dimensions."""
    root = tmp_path_factory.mktemp("images")
    source = open_dataset("fashion-mini")
    for name, start in (("real", 0), ("made", 40)):
        (root / name).mkdir()
        for row in range(start, start + 40):
            Image.fromarray(source.image(row)[..., 0]).save(root / name / f"{row:03d}.png")
    write_weights(root / "r.safetensors", initialised(2, "cifar", 0, seed=0).state_dict(), {})
    return root


@pytest.fixture
def folder(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("real", "made", "r.safetensors"):
        (tmp_path / name).symlink_to(images / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dcprune(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def evaluated(*arguments: str) -> Metrics:
    code, _, err = dcprune("eval", "made", "--reference", "real", *WEIGHTS, *arguments)
    assert code == 0, err
    place = arguments[arguments.index("-o") + 1] if "-o" in arguments else "metrics.json"
    return formats.read_metrics(place)


def test_a_folder_against_a_folder(folder: Path) -> None:
    code, out, err = dcprune("eval", "made", "--reference", "real", *WEIGHTS, "--bootstrap", "50")
    assert (code, out) == (0, "metrics.json\n")
    (value,) = formats.read_metrics("metrics.json").metrics
    assert value.interval is not None
    assert f"{FD} = {value.value:.4g} [{value.interval.low:.4g}, {value.interval.high:.4g}]" in err
    assert "(40 images against 40)" in err
    code, _, err = dcprune("eval", "made", "--reference", "real", *WEIGHTS)
    assert code == 2
    assert "--overwrite" in err


def test_a_sweep_says_where_it_leads(folder: Path) -> None:
    code, out, err = dcprune(
        "eval", "made", "--reference", "real", *WEIGHTS, "--num-samples", "20, 30,40", "-o", "-", "--quiet"
    )
    assert code == 0
    (value,) = json.loads(out)["metrics"]
    assert [each["num_generated"] for each in value["sweep"]] == [20, 30, 40]
    _, _, err = dcprune("eval", "made", "--reference", "real", *WEIGHTS, "--num-samples", "20,30,40")
    assert f"ever more images: {value['extrapolated']['value']:.4g}" in err


def test_its_options_can_come_from_a_file(folder: Path) -> None:
    (folder / "eval.toml").write_text(
        f'[eval]\nreference = "real"\nmetric = ["{FD}"]\nweights = ["r.safetensors"]\nnum-samples = [20, 40]\n'
    )
    code, _, err = dcprune("eval", "made", "--config", "eval.toml", "--device", "cpu")
    assert code == 0, err
    assert len(formats.read_metrics("metrics.json").metrics[0].sweep) == 2


def test_exported_statistics_measure_the_same(folder: Path) -> None:
    code, out, err = dcprune(
        "eval", "--reference", "real", *WEIGHTS, "--export-reference", "real.safetensors", "--json"
    )
    assert code == 0, err
    assert json.loads(out) == {
        "path": "real.safetensors",
        "num_images": 40,
        "encoders": ["resnet18"],
        "with_features": [False],
    }
    direct = evaluated("-o", "direct.json")
    code, _, err = dcprune("eval", "made", "--reference", "real.safetensors", *WEIGHTS)
    assert code == 0, err
    assert formats.read_metrics("metrics.json").metrics[0].value == direct.metrics[0].value
    assert dcprune("inspect", "real.safetensors")[0] == 0
    assert dcprune("verify", "metrics.json")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["made", "--reference", "real", "--num-samples", "ten"], "--num-samples takes numbers"),
        (["made", "--reference", "real", "--num-samples", "41"], "made has 40 images"),
        (["made", "--reference", "real", "--seeds", "0,1"], "that is for drawing images"),
        (["made"], "Say what to compare the images with"),
        (["made", "--reference", "absent/"], "absent"),
        (["absent/", "--reference", "real"], "absent"),
        ([], "runs/core"),
        (["made", "--reference", "real", "--export-reference", "x.safetensors"], "measures nothing"),
        (["--reference", "real", "--export-reference", "x.npz"], "writes a .safetensors file"),
        (["made", "--reference", "real", "--confidence", "95"], "a level in (0, 1)"),
        (["made", "--reference", "r.safetensors"], "not a dcprune artifact"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(folder: Path, arguments: list[str], complaint: str) -> None:
    before = set(folder.iterdir())
    code, out, err = dcprune("eval", *arguments, *WEIGHTS)
    assert (code, out) == (2, "")
    assert complaint in " ".join(err.split())
    assert "Traceback" not in err
    assert set(folder.iterdir()) == before


def test_metrics_side_by_side(folder: Path) -> None:
    evaluated("-o", "a/metrics.json", "--bootstrap", "20")
    evaluated("-o", "b/metrics.json", "--num-samples", "20,40", "--metric", "coverage:resnet18")
    code, out, err = dcprune("compare", "a/metrics.json", "b/metrics.json", "-o", "compare.json")
    assert code == 0, err
    header, row, limit, other = out.splitlines()[1:]
    assert header.split() == ["metric", "images", "a", "b"]
    assert row.split()[:2] == [FD, "40"]
    assert "[" in row
    assert limit.split()[:3] == ["ever", "more", "-"]
    assert other.split()[:3] == ["coverage:resnet18", "40", "-"]
    found = formats.read_metrics_comparison("compare.json")
    assert found.metrics == (FD, "coverage:resnet18")
    one, two = (column.values[FD].value for column in found.columns)
    assert one == pytest.approx(two)  # a sweep takes the images in another order
    code, out, _ = dcprune("compare", "a/metrics.json", "b/metrics.json", "--json")
    assert [each["name"] for each in json.loads(out)["columns"]] == ["a", "b"]
    assert dcprune("inspect", "compare.json")[0] == 0
    assert dcprune("verify", "compare.json")[0] == 0


def test_unlike_protocols_are_not_compared(folder: Path) -> None:
    evaluated("-o", "a.json")
    evaluated("-o", "b.json", "--num-samples", "30")
    dcprune("eval", "made", "--reference", "made", *WEIGHTS, "-o", "c.json")
    code, out, err = dcprune("compare", "a.json", "b.json", "c.json", "-o", "compare.json")
    assert (code, out) == (2, "")
    text = " ".join(err.split())
    assert f"{FD} of a.json and b.json: num_generated 40 against 30" in text
    assert f"{FD} of a.json and c.json: reference_fingerprint '" in text
    assert not (folder / "compare.json").exists()


def test_what_cannot_be_compared(folder: Path) -> None:
    evaluated("-o", "a.json")
    for arguments, complaint in (
        (("a.json", "a.json"), "given twice"),
        (("a.json", "--metric", "fd:resnet"), "Did you mean 'fd:resnet18'"),
        (("a.json", "--queries", "5"), "are for coresets"),
        (("a.json", "absent.json"), "absent.json"),
    ):
        code, out, err = dcprune("compare", *arguments)
        assert (code, out) == (2, "")
        assert complaint in " ".join(err.split())


# --- several processes ------------------------------------------------------------------------------------------------


def in_two_processes(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "dcprune"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment, check=False)


def test_two_processes_measure_what_one_does(folder: Path) -> None:
    """Drawn images, the reference and the coreset's own: each process takes a part of them, of unequal size."""
    embedded = ("embed", "real", "--weights", "r.safetensors", "--device", "cpu")
    assert dcprune(*embedded)[0] == 0
    assert dcprune("select", "--scorer", "random", "--num", "25")[0] == 0
    options: dict[str, Any] = {"preset": "tiny", "settings": {"block_out_channels": [8, 16]}, "device": "cpu"}
    train(coreset="coreset.json", output="run", steps=2, **options)
    arguments = ("eval", "run", *WEIGHTS, "--num-samples", "9,15", "--num-inference-steps", "1", "--bootstrap", "20")
    code, _, err = dcprune(*arguments, "--batch-size", "4")
    assert code == 0, err
    alone = formats.read_metrics("run/metrics.json")
    shared = in_two_processes(*arguments, "-o", "shared.json")
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout == "shared.json\n"
    for one, other in zip(alone.metrics, formats.read_metrics("shared.json").metrics, strict=True):
        assert other.value == pytest.approx(one.value, rel=1e-4)
        assert other.protocol == one.protocol
        for first, second in zip(one.sweep, other.sweep, strict=True):
            assert second.value == pytest.approx(first.value, rel=1e-4)
        assert one.interval is not None
        assert other.interval is not None
        assert other.interval.low == pytest.approx(one.interval.low, rel=1e-3, abs=1e-4)


def test_an_image_that_another_process_cannot_read_ends_this_one_too() -> None:
    """Otherwise this process would wait for the other's features."""

    class Pair(Processes):
        def gather(self, value: Any) -> list[Any]:
            return [value, DatasetError("Cannot decode the image '5.png'.")]

    with pytest.raises(DatasetError, match=r"5\.png"):
        together(Pair(0, 2), lambda: "features")
    with pytest.raises(DatasetError, match=r"4\.png"):  # that of the first process, where both have one
        together(Pair(0, 2), lambda: _raise(DatasetError("4.png")))


def _raise(error: Exception) -> None:
    raise error
