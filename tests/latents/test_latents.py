"""Cached latents against diffusers' own encoder, and against themselves after kills and among processes."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from dcprune import formats
from dcprune.artifacts import Environment, LatentsRecord, Provenance
from dcprune.autoencoder import Autoencoder, load_autoencoder
from dcprune.errors import ArtifactError, DatasetError, OptionError, WeightsError
from dcprune.formats.costs import read_costs
from dcprune.interfaces import DatasetSource
from dcprune.latents import LatentPlan, Latents, cached_latents, cached_texts, encode_latents, encoding
from dcprune.latents.encoding import plan_latents
from dcprune.processes import Processes
from dcprune.subset import Subset
from dcprune.testing import ShapesDataset

CPU = torch.device("cpu")


def provenance(options: Mapping[str, Any]) -> Provenance:
    environment = Environment(python="", torch="", device="cpu", dtype="fp32")
    return Provenance(dcprune_version="0", command="prepare", config=dict(options), seed=0, environment=environment)


def latents_of(dataset: DatasetSource, vae: Path, cache: Path, **options: Any) -> Latents:
    options = {"resolution": 16, **options}
    return cached_latents(dataset, vae=str(vae), device=CPU, cache_dir=cache, provenance=provenance, **options)


def plan_of(dataset: DatasetSource, vae: Path, *, flips: bool = True) -> LatentPlan:
    return plan_latents(dataset, load_autoencoder(str(vae)), resolution=16, flips=flips)


@pytest.fixture(scope="module")
def shapes() -> ShapesDataset:
    return ShapesDataset(21, size=20)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def latents(shapes: ShapesDataset, vae: Path, cache: Path) -> Latents:
    return latents_of(shapes, vae, cache)


def noise_of(seed: int, shape: Sequence[int]) -> torch.Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
@torch.inference_mode()
def test_samples_are_those_of_diffusers(channels: int, model: Any, vae: Path, tmp_path: Path) -> None:
    shapes = ShapesDataset(9, size=16, channels=channels)
    data = latents_of(shapes, vae, tmp_path)
    rows, flip = torch.tensor([3, 0, 8, 3]), torch.tensor([False, True, False, True])
    pixels = torch.from_numpy(shapes.array[rows.numpy()]).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 127.5 - 1
    pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    noise = noise_of(7, (4, 4, 4, 4))
    posterior = model.encode(pixels).latent_dist
    expected = (posterior.mean + posterior.std * noise - 0.1) * 0.5
    found = data.x0(rows, flip, torch.Generator().manual_seed(7))
    assert (found.dtype, data.sample_shape, len(data)) == (torch.float32, (4, 4, 4), 9)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=2e-3)
    assert data.labels.tolist() == shapes.labels.tolist()  # type: ignore[union-attr]


def test_images_are_the_datasets_own(latents: Latents, shapes: ShapesDataset) -> None:
    images = latents.images(torch.tensor([4, 2]))
    assert (images.dtype, tuple(images.shape)) == (torch.uint8, (2, 3, 16, 16))
    whole = latents.to_resolution(torch.from_numpy(shapes.array[[4, 2]]).permute(0, 3, 1, 2))
    assert torch.equal(images, whole)


def test_without_mirror_images_the_latents_are_mirrored(shapes: ShapesDataset, vae: Path, tmp_path: Path) -> None:
    data = latents_of(shapes, vae, tmp_path, flips=False)
    (file,) = data.folder.glob("*.safetensors")
    stored = load_file(file)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        "mean": (21, 1, 4, 4, 4),
        "std": (21, 1, 4, 4, 4),
    }
    rows = torch.tensor([5, 6])
    plain, mirrored = (
        data.x0(rows, torch.full((2,), flip), torch.Generator().manual_seed(0)) for flip in (False, True)
    )
    noise = noise_of(0, plain.shape)
    mean, std = (torch.from_numpy(stored[name][[5, 6], 0]).float() for name in ("mean", "std"))
    torch.testing.assert_close(plain, (mean + std * noise - 0.1) * 0.5)
    torch.testing.assert_close(mirrored, (mean.flip(-1) + std.flip(-1) * noise - 0.1) * 0.5)


def test_the_record_says_what_the_files_hold(latents: Latents, shapes: ShapesDataset, vae: Path) -> None:
    record = formats.read_artifact(latents.folder)
    assert isinstance(record, LatentsRecord)
    assert (formats.artifact_kind(latents.folder), record.dataset.num_samples) == ("latents", 21)
    assert record.autoencoder_sha256 == load_autoencoder(str(vae)).sha256
    for shard in record.shards:
        assert formats.sha256(latents.folder / shard.file) == shard.sha256
    assert record == latents.record


def test_a_subset_takes_rows_of_the_whole(shapes: ShapesDataset, vae: Path, latents: Latents, cache: Path) -> None:
    rows = np.array([2, 3, 11])
    subset = latents_of(Subset(shapes, rows), vae, cache)
    assert subset.folder == latents.folder
    picked, flip = torch.arange(3), torch.tensor([False, True, False])
    found = subset.x0(picked, flip, torch.Generator().manual_seed(1))
    whole = latents.x0(torch.from_numpy(rows), flip, torch.Generator().manual_seed(1))
    assert torch.equal(found, whole)
    assert torch.equal(subset.images(picked), latents.images(torch.from_numpy(rows)))
    assert subset.labels.tolist() == [2, 0, 2]


def test_a_subset_of_all_samples_is_the_whole(shapes: ShapesDataset, vae: Path, latents: Latents, cache: Path) -> None:
    """As a training without a coreset asks for them."""
    assert plan_of(Subset(shapes, np.arange(len(shapes))), vae).rows_sha256 is None
    assert latents_of(Subset(shapes, np.arange(len(shapes))), vae, cache).folder == latents.folder


def test_a_subset_alone_encodes_no_more_than_it_needs(
    shapes: ShapesDataset, vae: Path, latents: Latents, tmp_path: Path
) -> None:
    rows = np.array([2, 3, 11])
    alone = latents_of(Subset(shapes, rows), vae, tmp_path)
    assert (alone.record.num_rows, alone.record.dataset) == (3, latents.record.dataset)
    flip = torch.tensor([False, True, False])
    found = alone.x0(torch.arange(3), flip, torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        found, latents.x0(torch.from_numpy(rows), flip, torch.Generator().manual_seed(1)), rtol=1e-3, atol=1e-3
    )


def test_classes_of_clusters_need_no_encoding_of_their_own(
    shapes: ShapesDataset, vae: Path, latents: Latents, cache: Path
) -> None:
    @dataclass
    class Relabelled(Subset):
        base: DatasetSource

        def __init__(self, base: DatasetSource) -> None:
            super().__init__(base, np.arange(len(base)))
            self.base = base
            self.labels = np.zeros(len(base), dtype=np.int64)

    relabelled: Any = Relabelled(shapes)
    found = latents_of(Subset(relabelled, np.arange(5)), vae, cache)
    assert found.folder == latents.folder
    assert found.labels.tolist() == [0] * 5


# --- kills and processes ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "SHARD_ROWS", 8)


class Dying:
    """A `Progress` that kills the work after so many images."""

    def __init__(self, after: int) -> None:
        self.left = after

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Dying]:
        yield self

    def advance(self, amount: int = 1, **values: float | str) -> None:
        self.left -= amount
        if self.left < 0:
            raise SystemExit(137)

    def note(self, message: str) -> None:
        pass

    warn = note


def contents(folder: Path) -> dict[str, bytes]:
    """All files but that of the costs, which holds a time."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".cost"}


@pytest.mark.usefixtures("small_shards")
def test_rows_in_the_memory_of_a_device_are_those_of_the_files(
    shapes: ShapesDataset, vae: Path, tmp_path: Path
) -> None:
    data = latents_of(shapes, vae, tmp_path)
    assert len(data.record.shards) == 3
    rows, flip = torch.tensor([20, 0, 9, 8]), torch.tensor([True, False, False, True])
    mapped = data.x0(rows, flip, torch.Generator().manual_seed(0))
    for table in (data._mean, data._std):
        table.load()
    assert torch.equal(data.x0(rows, flip, torch.Generator().manual_seed(0)), mapped)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("after", [0, 8, 12, 20])
def test_after_a_kill_the_bytes_are_the_same(after: int, shapes: ShapesDataset, vae: Path, tmp_path: Path) -> None:
    plan = plan_of(shapes, vae)
    encode_latents(plan, tmp_path / "whole", device=CPU, provenance=provenance)
    with pytest.raises(SystemExit):
        encode_latents(plan, tmp_path / "killed", device=CPU, provenance=provenance, progress=Dying(after))
    with pytest.raises(ArtifactError):
        formats.artifact_kind(tmp_path / "killed")
    assert len(list((tmp_path / "killed").glob("latents-*"))) == after // 8
    encode_latents(plan, tmp_path / "killed", device=CPU, provenance=provenance)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 3 + 2
    (killed,), (whole,) = (read_costs(tmp_path / name / "latents.json") for name in ("killed", "whole"))
    assert (whole.stage, whole.images_seen) == ("encode", 2 * len(shapes))
    assert killed.flops == whole.flops
    assert (whole.flops or 0) > 0


@pytest.mark.usefixtures("small_shards")
def test_nothing_is_encoded_twice(shapes: ShapesDataset, vae: Path, tmp_path: Path) -> None:
    plan = plan_of(shapes, vae)
    first = encode_latents(plan, tmp_path, device=CPU, provenance=provenance)
    assert encode_latents(plan, tmp_path, device=CPU, provenance=provenance, progress=Dying(0)) == first


@pytest.mark.usefixtures("small_shards")
def test_processes_share_the_files(shapes: ShapesDataset, vae: Path, tmp_path: Path) -> None:
    barrier = threading.Barrier(3)
    gathered: list[Any] = [None] * 3

    class OfThreads(Processes):
        """Three threads in the place of processes."""

        def gather(self, value: Any) -> list[Any]:
            gathered[self.rank] = value
            barrier.wait()
            found = list(gathered)
            barrier.wait()
            return found

    plan = plan_of(shapes, vae)
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    encode_latents(plan, whole, device=CPU, provenance=provenance)

    plans = [plan_of(shapes, vae) for _ in range(3)]  # diffusers loads in one thread at a time

    def encode(rank: int) -> LatentsRecord:
        return encode_latents(plans[rank], shared, device=CPU, provenance=provenance, team=OfThreads(rank, 3))

    with ThreadPoolExecutor(3) as pool:
        records = list(pool.map(encode, range(3)))
    assert records[0] == records[1] == records[2]
    assert contents(shared) == contents(whole)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_a_folder_of_other_latents(shapes: ShapesDataset, vae: Path, latents: Latents, cache: Path) -> None:
    assert latents_of(shapes, vae, cache, folder=latents.folder).folder == latents.folder
    with pytest.raises(OptionError, match="have flips=True, and False is needed"):
        latents_of(shapes, vae, cache, folder=latents.folder, flips=False)
    with pytest.raises(OptionError, match="resolution=16, and 32"):
        latents_of(shapes, vae, cache, folder=latents.folder, resolution=32)
    with pytest.raises(OptionError, match="have fingerprint="):
        latents_of(ShapesDataset(21, size=20, channels=1), vae, cache, folder=latents.folder)
    with pytest.raises(OptionError, match="have fingerprint="):
        encode_latents(plan_of(ShapesDataset(3), vae), latents.folder, device=CPU, provenance=provenance)


@pytest.mark.usefixtures("small_shards")
def test_a_folder_that_was_begun_otherwise(shapes: ShapesDataset, vae: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        encode_latents(plan_of(shapes, vae), tmp_path, device=CPU, provenance=provenance, progress=Dying(8))
    with pytest.raises(OptionError, match=r"unfinished latents .* begun with flips=true, and now it is false"):
        encode_latents(plan_of(shapes, vae, flips=False), tmp_path, device=CPU, provenance=provenance)


def test_finished_latents_may_lie_in_files_of_another_size(
    shapes: ShapesDataset, vae: Path, latents: Latents, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "SHARD_ROWS", 16)
    assert latents_of(shapes, vae, cache).folder == latents.folder


def test_what_cannot_be_encoded(shapes: ShapesDataset, vae: Path, model: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="resolution=18 is not a multiple of 4"):
        latents_of(shapes, vae, tmp_path, resolution=18)
    with pytest.raises(OptionError, match="neither a folder nor a repository"):
        latents_of(shapes, Path("nowhere"), tmp_path)
    model.save_pretrained(tmp_path / "wild")
    from safetensors.torch import load_file, save_file

    path = tmp_path / "wild" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["quant_conv.bias"] += 1e6
    save_file(state, path)
    with pytest.raises(WeightsError, match="latents of sample 0 that are not finite"):
        latents_of(shapes, tmp_path / "wild", tmp_path)

    class Broken(ShapesDataset):
        array = None  # type: ignore[assignment]

        def __init__(self) -> None:
            self.images = ShapesDataset(4)
            self.__dict__.update({name: value for name, value in vars(self.images).items() if name != "array"})

        def __len__(self) -> int:
            return 4

        def image(self, index: int) -> Any:
            if index == 2:
                raise DatasetError("Sample 2 cannot be decoded.")
            return self.images.image(index)

    with pytest.raises(DatasetError, match="Sample 2"):
        latents_of(Broken(), vae, tmp_path)


def test_the_scale_of_an_autoencoder_is_a_part_of_what_it_is(
    shapes: ShapesDataset, vae: Path, latents: Latents, cache: Path, tmp_path: Path
) -> None:
    def scaled(factor: float) -> Path:
        folder = shutil.copytree(vae, tmp_path / f"scale {factor}")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "scaling_factor": factor}))
        return folder

    with pytest.raises(OptionError, match="have autoencoder_sha256="):
        latents_of(shapes, scaled(0.7), cache, folder=latents.folder)
    other = latents_of(shapes, tmp_path / "scale 0.7", cache)
    assert (other.record.scaling_factor, other.folder == latents.folder) == (0.7, False)
    with pytest.raises(WeightsError, match="scaling_factor=0: latents need one above 0"):
        load_autoencoder(str(scaled(0)))


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("size", [None, 0, 5, 100, 700])
def test_a_damaged_file_is_named_and_encoded_again(
    size: int | None, shapes: ShapesDataset, vae: Path, tmp_path: Path
) -> None:
    made = latents_of(shapes, vae, tmp_path)
    file = made.folder / made.record.shards[1].file
    if size is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"latents-00001-of-00003\.safetensors is damaged or gone"):
        latents_of(shapes, vae, tmp_path / "other", folder=made.folder)
    latents_of(shapes, vae, tmp_path)
    assert all(formats.sha256(made.folder / shard.file) == shard.sha256 for shard in made.record.shards)


def test_latents_do_not_keep_the_autoencoder(shapes: ShapesDataset, vae: Path, tmp_path: Path) -> None:
    found: list[weakref.ref[Any]] = []

    def remembered(*arguments: Any, **options: Any) -> Autoencoder:
        autoencoder = load_autoencoder(*arguments, **options)
        found.append(weakref.ref(autoencoder.model))
        return autoencoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "load_autoencoder", remembered)
        data = latents_of(shapes, vae, tmp_path)
    gc.collect()
    assert len(data) == 21
    assert [each() for each in found] == [None]


def test_a_damaged_record(latents: Latents, tmp_path: Path) -> None:
    document = json.loads((latents.folder / "latents.json").read_text())
    document["shards"][0]["rows"] = [1, 21]
    (tmp_path / "latents.json").write_text(json.dumps(document))
    with pytest.raises(ArtifactError, match="gaps or overlap"):
        formats.read_latents(tmp_path)


# --- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_encoded_once(tmp_path: Path) -> None:
    calls: list[str] = []

    def encode(texts: Sequence[str]) -> torch.Tensor:
        calls.extend(texts)
        return torch.tensor([[[len(text), ord(text[0])]] * 3 for text in texts], dtype=torch.float32)

    texts = [f"{chr(97 + number % 26)}{'x' * (number // 26)}" for number in range(70)]
    options: dict[str, Any] = {"key": {"encoder": "letters"}, "device": CPU, "cache_dir": tmp_path}
    for _ in range(2):
        table = cached_texts(texts, encode, **options)
        found = table(torch.tensor([69, 0, 69]))
        assert torch.equal(found, encode([texts[69], texts[0], texts[69]]))
    assert calls[:70] == texts
    assert len(calls) == 70 + 2 * 3
    cached_texts(texts, encode, **{**options, "key": {"encoder": "others"}})
    assert len(calls) == 2 * 70 + 2 * 3
    with pytest.raises(WeightsError, match="not finite"):
        cached_texts(["wild"], lambda _: torch.full((1, 2), 1e9), **options)
