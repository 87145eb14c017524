"""The backend: its contract, its loss put together by hand, checkpoints to start from, and a run of two steps."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

import dcprune
from dcprune.api import runs
from dcprune.backends.mdt.backend import Mdt
from dcprune.backends.mdt.masking import draw_kept
from dcprune.backends.mdt.network import MaskedTransformer, unwrapped
from dcprune.backends.mdt.objective import LearnedVarianceLoss
from dcprune.errors import OptionError, OutOfTime, UnknownName, WeightsError
from dcprune.interfaces import Batch, Sampling
from dcprune.plugins import registry
from dcprune.testing import check_backend

SMALL: dict[str, Any] = {"hidden_size": 16, "depth": 4, "num_heads": 2, "decode_layer": 2, "resolution": 32}
LATENTS = (4, 8, 8)


def backend_of(vae: Path | str = "unused/unused", **settings: Any) -> Mdt:
    return Mdt(**{**SMALL, "vae": str(vae), **settings})


def built(backend: Mdt, num_classes: int = 3, seed: int = 0) -> MaskedTransformer:
    """A network whose output is not zero, as it is at the start."""
    model = backend.build(num_classes=num_classes, sample_shape=LATENTS, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return unwrapped(model)


def draw(size: int = 6) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    x0, noise = (torch.randn(size, *LATENTS, generator=generator) for _ in range(2))
    labels = torch.arange(size) % 3
    return Batch(x0, labels, labels == 1), torch.randint(1000, (size,), generator=generator), noise


def inside() -> torch.Generator:
    return torch.Generator().manual_seed(9)


@pytest.mark.parametrize("settings", [{}, {"version": 1, "snr_gamma": None, "patch_size": 4}], ids=["v2", "v1"])
def test_contract(settings: dict[str, Any], vae: Path) -> None:
    check_backend(Mdt, settings={**SMALL, **settings, "vae": str(vae)})


def test_it_is_registered() -> None:
    item, _ = registry().get("backend", "mdt")
    assert item.load() is Mdt


def test_presets_are_what_they_say() -> None:
    paper, tiny = Mdt.presets["paper"], Mdt.presets["tiny"]
    assert paper.training["epochs"] == 10 * paper.proxy_epochs == 60
    assert (paper.sampling.num_inference_steps, paper.sampling.guidance_scale) == (250, 3.8)

    def parameters(settings: dict[str, Any], latents: tuple[int, ...], classes: int) -> int:
        with torch.device("meta"):
            model = Mdt(**settings).build(num_classes=classes, sample_shape=latents, seed=0)
        return sum(each.numel() for each in model.parameters())

    assert f"{parameters(dict(paper.model), (4, 32, 32), 1000) / 1e6:.3f}" == "38.455"
    assert parameters(dict(tiny.model), (4, 16, 16), 10) < 1_000_000


def test_the_loss_is_that_of_a_whole_and_a_masked_pass() -> None:
    backend, (batch, timesteps, noise) = backend_of(), draw()
    model = built(backend).eval()
    generator = inside()
    other = torch.randn(6, *LATENTS, generator=generator)
    kept = draw_kept(batch, generator, 16, (0.3, 0.5))
    labels = torch.where(batch.dropped, 3, batch.labels)
    loss = LearnedVarianceLoss(5.0)
    with torch.no_grad():
        whole = model(loss.noised(batch.x0, noise, timesteps), timesteps, labels)
        x_t = loss.noised(batch.x0, other, timesteps)
        both = model(torch.cat([x_t, x_t]), timesteps.repeat(2), labels.repeat(2), kept.order, kept.present)
        expected = loss(whole, batch.x0, noise, timesteps) + loss(both[6:], batch.x0, other, timesteps)
        found = backend.per_sample_loss(model, batch, timesteps, noise, inside())
    torch.testing.assert_close(found, expected)


def test_losses_do_not_depend_on_how_a_batch_is_divided() -> None:
    backend, (batch, timesteps, noise) = backend_of(), draw(7)
    model = built(backend).eval()
    with torch.no_grad():
        whole = backend.per_sample_loss(model, batch, timesteps, noise, inside())
        parts = []
        for where in (slice(0, 2), slice(2, 7)):
            part = Batch(batch.x0[where], batch.labels[where], batch.dropped[where], where.start, 7)
            parts.append(backend.per_sample_loss(model, part, timesteps[where], noise[where], inside()))
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_class_less_network_ignores_labels() -> None:
    backend, (batch, timesteps, noise) = backend_of(), draw()
    model = built(backend, num_classes=0).eval()
    relabelled = Batch(batch.x0, batch.labels + 5, ~batch.dropped)
    with torch.no_grad():
        losses = [backend.per_sample_loss(model, each, timesteps, noise, inside()) for each in (batch, relabelled)]
    assert torch.equal(*losses)


def test_a_folder_holds_names_of_the_release_and_the_autoencoder(vae: Path, tmp_path: Path) -> None:
    backend = backend_of(vae)
    model = built(backend).eval()
    backend.save(model, tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["_class_name"] == "MDTv2"
    assert config["vae"]["name"] == str(vae)
    assert len(config["vae"]["sha256"]) == 64


def test_another_autoencoder_in_the_place_of_the_first_is_refused(vae: Path, tmp_path: Path) -> None:
    backend_of(vae).save(built(backend_of(vae)), tmp_path)
    autoencoder = AutoencoderKL.from_pretrained(vae)
    with torch.no_grad():
        autoencoder.post_quant_conv.bias += 1
    autoencoder.save_pretrained(tmp_path / "other")
    other = backend_of(tmp_path / "other")
    with pytest.raises(WeightsError, match=r"was trained with the autoencoder .* now holds another"):
        other.sample(other.load(tmp_path), torch.tensor([0]), [1], Sampling("ddim", 2, 1.0))


@pytest.mark.parametrize("content", ["{", "{}", '{"shape": {}, "vae": 1}', None])
def test_a_folder_without_a_network_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="does not hold a model of the mdt backend"):
        backend_of().load(tmp_path)


@pytest.mark.parametrize("version", [1, 2])
def test_training_starts_from_a_released_state_dict(version: int, tmp_path: Path) -> None:
    """A pickle of tensors under the released names, as `torch.save(model.state_dict())` writes it."""
    released = built(backend_of(version=version))
    torch.save(released.state_dict(), tmp_path / "released.pt")
    backend = backend_of(version=version, weights=str(tmp_path / "released.pt"))
    model = unwrapped(backend.build(num_classes=3, sample_shape=LATENTS, seed=5))
    assert model.training
    for name, tensor in released.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert all(each.requires_grad for each in model.parameters())
    with pytest.raises(WeightsError, match=r"do not fit MDTv. of this shape: .* is (missing|unknown)"):
        backend_of(version=3 - version, weights=str(tmp_path / "released.pt")).build(
            num_classes=3, sample_shape=LATENTS, seed=5
        )


def test_other_classes_are_learned_anew_when_that_is_asked_for(tmp_path: Path) -> None:
    released = built(backend_of())
    torch.save(released.state_dict(), tmp_path / "released.pt")
    settings = {"weights": str(tmp_path / "released.pt")}
    with pytest.raises(WeightsError, match=r"know 3 classes, the data has 5.*new_classes=true"):
        backend_of(**settings).build(num_classes=5, sample_shape=LATENTS, seed=0)
    model = backend_of(**settings, new_classes=True).build(num_classes=5, sample_shape=LATENTS, seed=0)
    table, before = (unwrapped(each).y_embedder.embedding_table.weight for each in (model, released))
    assert table.shape == (6, 16)
    assert backend_of(**settings).knows_null_condition
    assert not backend_of().knows_null_condition
    assert torch.equal(table[-1], before[-1])
    assert not any(torch.equal(row, old) for row in table[:-1] for old in before)


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    torch.save({"model": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(WeightsError, match="Cannot read the weights"):
        backend_of(weights=str(tmp_path / "code.pt")).build(num_classes=3, sample_shape=LATENTS, seed=0)
    with pytest.raises(WeightsError, match=r"'absent\.pt' are not a file.*'released'"):
        backend_of(weights="absent.pt").build(num_classes=3, sample_shape=LATENTS, seed=0)


def test_files_that_training_fetches_are_declared(vae: Path, tmp_path: Path) -> None:
    def urls(**settings: Any) -> list[str]:
        return [each.url for each in Mdt(**settings).downloads(tmp_path)]

    assert all(url.startswith("hf://stabilityai/sd-vae-ft-mse/") for url in urls())
    assert len(urls()) == 2
    assert urls(vae=str(vae)) == []
    assert urls(vae=str(vae), weights="released") == ["hf://shgao/MDT-XL2/mdt_xl2_v2_ckpt.pt"]
    assert urls(vae=str(vae), weights="released", version=1) == ["hf://shgao/MDT-XL2/mdt_xl2_v1_ckpt.pt"]
    assert urls(vae=str(vae), weights="https://host/file.pt") == ["https://host/file.pt"]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"size": "M"}, "size of mdt 'M'"),
        ({"version": 3}, "version=3"),
        ({"decode_layer": 3}, "decode_layer=3 is odd"),
        ({"mask_ratio": (0.5, 0.3)}, r"mask_ratio=\[0\.5, 0\.3\]"),
        ({"snr_gamma": 0.0}, "snr_gamma=0"),
        ({"resolution": 0}, "resolution=0"),
        ({"guidance_power": -1.0}, "guidance_power=-1"),
        ({"guided_channels": 0}, "guided_channels=0"),
        ({"new_classes": True}, "new_classes=true needs weights"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], named: str) -> None:
    with pytest.raises((OptionError, UnknownName), match=named):
        backend_of(**settings)


def test_latents_that_do_not_fit(vae: Path) -> None:
    with pytest.raises(OptionError, match="square latents, not 8x4"):
        backend_of().build(num_classes=1, sample_shape=(4, 8, 4), seed=0)
    with pytest.raises(UnknownName, match="sampler of backend 'mdt'"):
        backend_of(vae).sample(built(backend_of()), torch.tensor([0]), [1], Sampling("heun", 2, 1.0))


def test_a_run_that_stops_goes_on_to_the_same_weights_and_can_be_sampled(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_GRID_CLASSES", 1)
    monkeypatch.setattr(runs, "_GRID_COLUMNS", 1)
    own = Path(shutil.copytree(vae, tmp_path / "autoencoder"))
    options: dict[str, Any] = {
        "split": "test",
        "backend": "mdt",
        "preset": "tiny",
        "settings": {**SMALL, "vae": str(own)},
        "steps": 3,
        "batch_size": 8,
        "device": "cpu",
        "dtype": "fp32",
    }
    whole, stopped, refused = tmp_path / "whole", tmp_path / "stopped", tmp_path / "refused"
    wrong = {**options, "settings": {**options["settings"], "weights": str(tmp_path / "absent.pt")}}
    with pytest.raises(WeightsError):
        dcprune.train("fashion-mini", output=refused, **wrong)
    assert not refused.exists()
    record = dcprune.train("fashion-mini", output=whole, **options)
    assert [cost.stage for cost in record.ledger] == ["encode", "train"]
    assert (record.backend, record.training["optimizer"]) == ("mdt", "adan")
    with pytest.raises(OutOfTime):
        dcprune.train("fashion-mini", output=stopped, max_time=1e-6, **options)
    dcprune.train("fashion-mini", output=stopped, resume=True, **options)
    weights = [(run / "model" / "model.safetensors").read_bytes() for run in (whole, stopped)]
    assert weights[0] == weights[1]
    images = dcprune.sample(whole, output=tmp_path / "images", num_samples=10, num_inference_steps=2, device="cpu")
    assert len(list(images.glob("*/*.png"))) == 10

    # the run and its autoencoder move together
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in (whole, own):
        shutil.move(folder, moved)
    again = dcprune.sample(
        moved / "whole", output=tmp_path / "again", num_samples=10, num_inference_steps=2, device="cpu"
    )
    for image in images.glob("*/*.png"):
        assert (again / image.relative_to(images)).read_bytes() == image.read_bytes()
    shutil.rmtree(moved / "autoencoder")
    with pytest.raises(OptionError, match=r"autoencoder.* is neither a folder"):
        dcprune.sample(moved / "whole", output=tmp_path / "none", num_samples=10, num_inference_steps=2, device="cpu")
