"""`embed` with an output: parts, kills, resuming, several processes, images that cannot be read, pseudo-classes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import dcprune
from dcprune import formats
from dcprune.api import embeddings as api
from dcprune.errors import DatasetError, DcpruneError, OptionError, OutputExists
from dcprune.sources import identify, open_dataset
from dcprune.testing import ShapesDataset

OPTIONS: dict[str, Any] = {"encoder": "pixels", "settings": {"image_size": 16}, "device": "cpu", "batch_size": 16}

# Kills itself when the given number of parts has been written: at that moment nothing has been said or closed.
PROGRAM = """
import os, signal, sys
from dcprune.api import embeddings as api
from dcprune.formats import PartialEmbeddings
from dcprune.testing import ShapesDataset

api.PART_ROWS = 32
write, left = PartialEmbeddings.write, [int(sys.argv[2])]

def write_or_die(*arguments):
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    write(*arguments)

PartialEmbeddings.write = write_or_die
options = dict(encoder="pixels", settings={"image_size": 16}, device="cpu", batch_size=16)
api.embed(ShapesDataset(num_samples=200), output=sys.argv[1], resume=True, **options)
"""


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PART_ROWS", 32)


def run(*arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    command = [sys.executable, *(launcher if processes > 1 else []), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    data = ShapesDataset(num_samples=200)
    dcprune.embed(data, output=tmp_path / "whole.safetensors", **OPTIONS)
    output = tmp_path / "killed.safetensors"
    for parts in (0, 2, 3):
        assert run("-c", PROGRAM, str(output), str(parts)).returncode == -signal.SIGKILL
    partial = formats.partial_path(output)
    assert len(list(partial.glob("part-*"))) == 5
    assert not output.exists()
    with pytest.raises(OutputExists, match="not finished"):
        dcprune.embed(data, output=output, **OPTIONS)
    with pytest.raises(OptionError, match="begun with store=fp32, and now it is fp16"):
        dcprune.embed(data, output=output, resume=True, store="fp16", **OPTIONS)
    with pytest.raises(OptionError, match="dataset=shapes-200"):
        dcprune.embed(ShapesDataset(num_samples=201), output=output, resume=True, **OPTIONS)
    dcprune.embed(data, output=output, resume=True, **OPTIONS)
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not partial.exists()


def test_resuming_what_is_finished_changes_nothing(tmp_path: Path) -> None:
    data, output = ShapesDataset(), tmp_path / "e.safetensors"
    dcprune.embed(data, output=output, **OPTIONS)
    before = output.read_bytes()
    dcprune.embed(data, output=output, resume=True, **OPTIONS)
    assert output.read_bytes() == before
    with pytest.raises(OptionError, match="other options"):
        dcprune.embed(ShapesDataset(num_samples=25), output=output, resume=True, **OPTIONS)
    with pytest.raises(OutputExists):
        dcprune.embed(data, output=output, **OPTIONS)


def test_begin_anew_on_request(tmp_path: Path) -> None:
    output = tmp_path / "e.safetensors"
    assert run("-c", PROGRAM, str(output), "1").returncode == -signal.SIGKILL
    found = dcprune.embed(ShapesDataset(num_samples=50), output=output, overwrite=True, **OPTIONS)
    assert len(found.embeddings) == 50
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.safetensors", "e.safetensors.cost"]


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    arguments = ("fashion-mini", "--split", "test", "--encoder", "pixels", "--batch-size", "100", "--device", "cpu")
    outputs = [tmp_path / f"{count}.safetensors" for count in (1, 2)]
    for count, output in zip((1, 2), outputs, strict=True):
        result = run("-m", "dcprune", "embed", *arguments, "-o", str(output), processes=count)
        assert result.returncode == 0, result.stderr
        assert result.stdout == f"{output}\n"
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize("changes", [{"num_workers": 0}, {"num_workers": 3}, {"batch_size": 7}, {"batch_size": 1000}])
def test_rows_do_not_depend_on_batches_and_workers(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = ShapesDataset(num_samples=100, size=20)
    whole = dcprune.embed(data, output=tmp_path / "a.safetensors", **OPTIONS)
    other = dcprune.embed(data, output=tmp_path / "b.safetensors", **{**OPTIONS, **changes})
    in_memory = dcprune.embed(data, **OPTIONS)
    assert np.array_equal(other.embeddings[:], whole.embeddings[:])
    assert np.array_equal(in_memory.embeddings[:], whole.embeddings[:])


class Torn(ShapesDataset):
    """Some images cannot be read."""

    array: NDArray[np.uint8] | None  # type: ignore[assignment]

    def __init__(self, broken: tuple[int, ...], **options: Any) -> None:
        super().__init__(**options)
        self.images, self.array = np.asarray(self.array), None
        self.broken = broken

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> NDArray[np.uint8]:
        if index in self.broken:
            raise DatasetError(f"Cannot decode the image {index}: torn.")
        image: NDArray[np.uint8] = self.images[index]
        return image


def test_unreadable_images_stop_the_run_or_are_left_out(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_samples": 150, "num_classes": 3}
    data, output = Torn((149, *range(40, 62), 3), **options), tmp_path / "e.safetensors"
    with pytest.raises(DatasetError, match=r"image 3: torn"):
        dcprune.embed(data, output=output, **OPTIONS)
    found = dcprune.embed(data, output=output, on_error="skip", resume=True, **OPTIONS)
    assert [each.index for each in found.skipped] == [3, *range(40, 62), 149]
    assert found.skipped[0].reason == "Cannot decode the image 3: torn."
    kept = np.setdiff1d(np.arange(150), data.broken)
    assert np.array_equal(found.indices, kept)
    assert found.labels is not None
    assert np.array_equal(found.labels, kept % 3)
    whole = dcprune.embed(ShapesDataset(**options), **OPTIONS)
    assert np.array_equal(found.embeddings[:], whole.embeddings[kept])
    with pytest.raises(DcpruneError, match="Not one sample"):
        dcprune.embed(Torn(tuple(range(9)), num_samples=9), on_error="skip", **OPTIONS)


@pytest.mark.parametrize(("store", "tolerance"), [("fp32", 0), ("fp16", 1e-3), ("bf16", 8e-3)])
def test_precision_of_what_is_stored(tmp_path: Path, store: str, tolerance: float) -> None:
    data = ShapesDataset(num_samples=40)
    exact = dcprune.embed(data, **OPTIONS).embeddings[:]
    stored = dcprune.embed(data, output=tmp_path / "e.safetensors", store=store, **OPTIONS)
    assert stored.embeddings.dtype == {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[store]
    assert np.allclose(stored.embeddings[:], exact, rtol=tolerance, atol=0)


def test_pseudo_classes_are_classes_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {**OPTIONS, "batch_size": 100}
    found = dcprune.embed("fashion-mini", output="e.safetensors", split="test", pseudo_classes=4, **options)
    assert found.dataset.uri == "pseudo:e.classes.safetensors"
    classes = formats.read_classes("e.classes.safetensors")
    assert found.labels is not None
    assert np.array_equal(found.labels, classes.labels)
    assert set(classes.labels) == {0, 1, 2, 3}
    vectors = found.embeddings[:].astype(np.float64)
    distances = np.square(vectors[:, None] - classes.centroids[None]).sum(2)
    assert np.array_equal(distances.argmin(1), classes.labels)
    coreset = dcprune.select(found, "random", ratio=0.1)
    assert len(coreset.class_counts) == 4
    assert identify(open_dataset(found.dataset.uri, split="test")) == coreset.dataset
    with pytest.raises(OptionError, match="an output"):
        dcprune.embed("fashion-mini", pseudo_classes=4, **options)
    with pytest.raises(OutputExists):
        dcprune.embed("fashion-mini", output="e.safetensors", split="test", pseudo_classes=3, **options)


def test_values_that_do_not_fit_the_storage_are_refused(tmp_path: Path) -> None:
    from dcprune.api.embeddings import EmbedOptions, prepare
    from dcprune.processes import ALONE
    from dcprune.progress import SILENT

    data = ShapesDataset(num_samples=20)
    job = prepare(data, "pixels", EmbedOptions(device="cpu", store="fp16"), progress=SILENT)
    encode = job.pipeline._encode
    job.pipeline._encode = lambda pixels: encode(pixels) * 1e6
    with pytest.raises(DcpruneError, match=r"sample 0 is not finite in fp16 \(largest value .*Use --store fp32"):
        api._in_memory(job, ALONE, SILENT)


def test_compiled_rows_are_the_same(tmp_path: Path) -> None:
    data = ShapesDataset(num_samples=40, size=32)
    options: dict[str, Any] = {"settings": {"width": 8, "epochs": 1}, "device": "cpu", "dtype": "fp32"}
    eager = dcprune.embed(data, "resnet18", compile="off", **options)
    compiled = dcprune.embed(data, "resnet18", compile="on", **options)
    assert compiled.provenance.config["compile"] == "on"
    assert np.allclose(compiled.embeddings[:], eager.embeddings[:], rtol=1e-4, atol=1e-5)


def test_a_process_that_waits_for_one_that_is_gone_says_so(tmp_path: Path) -> None:
    for number, image in enumerate(ShapesDataset(40).array):
        (tmp_path / "images" / "ab"[number // 20]).mkdir(exist_ok=True, parents=True)
        Image.fromarray(image).save(tmp_path / "images" / "ab"[number // 20] / f"{number:02d}.png")
    (tmp_path / "images" / "b" / "39.png").write_bytes(b"no image")
    words = ["-m", "dcprune", "embed", str(tmp_path / "images"), "--encoder", "pixels", "--set", "image_size=8"]
    done = run(*words, "--device", "cpu", "-o", str(tmp_path / "e.safetensors"), processes=2)
    assert done.returncode == 1
    assert "Cannot decode the image 'b/39.png'" in done.stderr
    assert "bug in dcprune" not in done.stderr
