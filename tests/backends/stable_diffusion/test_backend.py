"""The sd backend against diffusers' own pipeline, training loss and loaders, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from diffusers import StableDiffusionPipeline as Pipeline
from diffusers.training_utils import compute_snr

from dcprune.api.machine import prefetch
from dcprune.backends.stable_diffusion.backend import StableDiffusion
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Batch, Sampling
from dcprune.testing import ShapesDataset, check_backend, preparation_context
from dcprune.training.ema import Ema

from .conftest import pipeline_folder, tokenizer


@pytest.mark.parametrize("options", [{}, {"lora_rank": "2", "gradient_checkpointing": "true", "snr_gamma": "5"}])
def test_contract(options: dict[str, str], settings: dict[str, Any]) -> None:
    check_backend(StableDiffusion, settings={**settings, **options})


def test_contract_without_classes(settings: dict[str, Any]) -> None:
    check_backend(StableDiffusion, settings=settings, dataset=ShapesDataset(num_classes=0))


@pytest.fixture(scope="module")
def backend(settings: dict[str, Any]) -> StableDiffusion:
    return StableDiffusion(**settings)


@pytest.fixture(scope="module")
def prepared(backend: StableDiffusion) -> Any:
    return backend.prepare(ShapesDataset(), preparation_context())


@pytest.fixture(scope="module")
def model(backend: StableDiffusion, prepared: Any) -> Any:
    return backend.build(num_classes=3, sample_shape=prepared.sample_shape, seed=0).eval()


def batch_of(data: Any, count: int = 6) -> tuple[Batch, torch.Tensor, torch.Tensor]:
    rows, generator = torch.arange(count), torch.Generator().manual_seed(0)
    x0 = data.x0(rows, rows % 2 == 0, generator)
    batch = Batch(x0, data.labels[rows], rows % 3 == 0, condition=data.condition(rows))
    return batch, torch.randint(1000, (count,), generator=generator), torch.randn(x0.shape, generator=generator)


def prompt_embeddings(pretrained: Path, texts: list[str]) -> torch.Tensor:
    pipeline = Pipeline.from_pretrained(pretrained)
    found: torch.Tensor = pipeline.encode_prompt(texts, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
    return found


# --- losses -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("snr_gamma", [None, 5.0])
def test_losses_are_those_of_the_training_script_of_diffusers(
    prediction_type: str, snr_gamma: float | None, tmp_path: Path
) -> None:
    folder = pipeline_folder(tmp_path / "pipeline", prediction_type=prediction_type)
    backend = StableDiffusion(pretrained=str(folder), resolution=16, snr_gamma=snr_gamma)
    shapes = ShapesDataset()
    data = backend.prepare(shapes, preparation_context())
    model: Any = backend.build(num_classes=3, sample_shape=data.sample_shape, seed=0).eval()
    batch, timesteps, noise = batch_of(data)
    found = backend.per_sample_loss(model, batch, timesteps, noise, torch.Generator())

    scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    names = [shapes.class_names[label] for label in batch.labels.tolist()]
    texts = ["" if drop else f"a photo of a {name}" for name, drop in zip(names, batch.dropped.tolist(), strict=True)]
    noisy = scheduler.add_noise(batch.x0, noise, timesteps)
    predicted = model(noisy, timesteps, prompt_embeddings(folder, texts)).sample
    target = noise if prediction_type == "epsilon" else scheduler.get_velocity(batch.x0, noise, timesteps)
    expected = F.mse_loss(predicted, target, reduction="none").mean((1, 2, 3))
    if snr_gamma is not None:
        snr = compute_snr(scheduler, timesteps)
        expected *= snr.clamp(max=snr_gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-4)


def test_gradient_checkpointing_changes_no_gradient(backend: StableDiffusion, prepared: Any, settings: Any) -> None:
    batch, timesteps, noise = batch_of(prepared)
    gradients = []
    for checkpointing in (False, True):
        other = StableDiffusion(**settings, gradient_checkpointing=checkpointing)
        other.prepare(ShapesDataset(), preparation_context())
        network: Any = other.build(num_classes=3, sample_shape=prepared.sample_shape, seed=0).train()
        assert network.is_gradient_checkpointing is checkpointing
        other.per_sample_loss(network, batch, timesteps, noise, torch.Generator()).mean().backward()  # type: ignore[no-untyped-call]
        gradients.append(torch.cat([each.grad.flatten() for each in network.parameters()]))
    torch.testing.assert_close(*gradients)


def test_a_batch_without_texts_is_a_mistake_of_the_caller(backend: StableDiffusion, prepared: Any, model: Any) -> None:
    batch, timesteps, noise = batch_of(prepared)
    bare = Batch(batch.x0, batch.labels, batch.dropped)
    with pytest.raises(TypeError, match="embeddings of its texts"):
        backend.per_sample_loss(model, bare, timesteps, noise, torch.Generator())


# --- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize(
    ("sampler", "kind", "options"),
    [
        ("ddim", DDIMScheduler, {"clip_sample": False}),
        ("dpmsolver++", DPMSolverMultistepScheduler, {}),
        ("euler", EulerDiscreteScheduler, {}),
    ],
)
def test_samples_are_those_of_the_pipeline(
    sampler: str, kind: Any, options: Any, guidance_scale: float, backend: StableDiffusion, model: Any, pretrained: Path
) -> None:
    seeds, labels = [3, 4, 5], [0, 2, 1]
    found = backend.sample(model, torch.tensor(labels), seeds, Sampling(sampler, 6, guidance_scale))
    pipeline = Pipeline.from_pretrained(pretrained)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **options)
    images = pipeline(
        [f"a photo of a {ShapesDataset().class_names[label]}" for label in labels],
        height=16,
        width=16,
        num_inference_steps=6,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="np",
    ).images
    apart = np.abs(found.permute(0, 2, 3, 1).numpy().astype(int) - (images * 255).round().astype(int))
    assert apart.max() <= 1


def test_samples_depend_on_the_prompt_and_the_seed(backend: StableDiffusion, model: Any) -> None:
    how = Sampling("ddim", 4, 7.0)
    one, same, other_text, other_seed = (
        backend.sample_prompts(model, [text], [seed], how)
        for text, seed in (("a disc", 1), ("a disc", 1), ("stripes", 1), ("a disc", 2))
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other_text)
    assert not torch.equal(one, other_seed)
    unguided = Sampling("ddim", 4, 0.0)
    first, second = (backend.sample_prompts(model, [text], [1], unguided) for text in ("a disc", "stripes"))
    assert torch.equal(first, second)


def test_samplers_and_steps_out_of_range(backend: StableDiffusion, model: Any) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'ddim'"):
        backend.sample(model, torch.tensor([0]), [0], Sampling("dim", 2, 1.0))
    with pytest.raises(OptionError, match=r"num_inference_steps=1001 is outside \[1, 1000\]"):
        backend.sample(model, torch.tensor([0]), [0], Sampling("ddim", 1001, 1.0))


# --- folders ----------------------------------------------------------------------------------------------------------


def test_a_model_folder_is_a_pipeline(backend: StableDiffusion, model: Any, pretrained: Path, tmp_path: Path) -> None:
    changed = backend.build(num_classes=3, sample_shape=(4, 8, 8), seed=0)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(1.1)
    backend.save(changed, tmp_path)
    pipeline = Pipeline.from_pretrained(tmp_path)
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, changed.state_dict()[name])
    assert pipeline.safety_checker is None
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        assert (tmp_path / f"{part}.safetensors").read_bytes() == (pretrained / f"{part}.safetensors").read_bytes()


def test_a_run_needs_nothing_but_its_folder(model: Any, pretrained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(pretrained, moved)
    backend = StableDiffusion(pretrained=str(moved), resolution=16)
    data = backend.prepare(ShapesDataset(), preparation_context())
    network = backend.build(num_classes=3, sample_shape=data.sample_shape, seed=0).eval()
    how = Sampling("ddim", 3, 2.0)
    expected = backend.sample(network, torch.tensor([1, 2]), [0, 1], how)
    (tmp_path / "model").mkdir()
    backend.save(network, tmp_path / "model")
    shutil.rmtree(moved)
    again = StableDiffusion(**json.loads(json.dumps(backend.settings())))
    loaded = again.load(tmp_path / "model")
    assert torch.equal(again.sample(loaded, torch.tensor([1, 2]), [0, 1], how), expected)


def test_a_proxy_starts_where_its_reference_started(backend: StableDiffusion, settings: Any, tmp_path: Path) -> None:
    fresh = StableDiffusion(**settings)
    data = fresh.prepare(ShapesDataset(), preparation_context())
    network = fresh.build(num_classes=3, sample_shape=data.sample_shape, seed=0)
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    fresh.save(network, tmp_path)
    fresh.load(tmp_path)
    proxy = fresh.build(num_classes=3, sample_shape=data.sample_shape, seed=0).state_dict()
    assert all(torch.equal(proxy[name], tensor) for name, tensor in start.items())
    assert fresh.prepare(ShapesDataset(), preparation_context()).latents.folder == data.latents.folder  # type: ignore[attr-defined]


@torch.no_grad()
def test_adapters_are_merged_and_kept_alone(settings: dict[str, Any], pretrained: Path, tmp_path: Path) -> None:
    backend = StableDiffusion(**settings, lora_rank=2)
    data = backend.prepare(ShapesDataset(), preparation_context())
    network: Any = backend.build(num_classes=3, sample_shape=data.sample_shape, seed=0).eval()
    trained = {name: each for name, each in network.named_parameters() if each.requires_grad}
    assert trained
    assert all("lora" in name for name in trained)
    generator = torch.Generator().manual_seed(0)
    for parameter in trained.values():
        parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    x, texts = (torch.randn(2, *shape, generator=generator) for shape in ((4, 8, 8), (24, 16)))
    times = torch.tensor([5, 500])
    expected = network(x, times, texts).sample
    backend.save(network, tmp_path)
    assert torch.equal(network(x, times, texts).sample, expected)
    merged = Pipeline.from_pretrained(tmp_path).unet
    torch.testing.assert_close(merged(x, times, texts).sample, expected, rtol=1e-3, atol=1e-3)
    alone = Pipeline.from_pretrained(pretrained)
    assert not torch.allclose(alone.unet(x, times, texts).sample, expected, atol=1e-2)
    alone.load_lora_weights(tmp_path / "lora")
    torch.testing.assert_close(alone.unet(x, times, texts).sample, expected, rtol=1e-3, atol=1e-3)


def test_frozen_weights_are_kept_once(settings: dict[str, Any]) -> None:
    backend = StableDiffusion(**settings, lora_rank=2)
    data = backend.prepare(ShapesDataset(), preparation_context())
    network = backend.build(num_classes=3, sample_shape=data.sample_shape, seed=0)
    average = Ema(network, 0.9).model
    for own, other in zip(network.parameters(), average.parameters(), strict=True):
        assert (own.data_ptr() == other.data_ptr()) is not own.requires_grad
        assert not other.requires_grad


def test_folders_that_do_not_fit(pretrained: Path, model: Any, tmp_path: Path) -> None:
    def broken(name: str, **changes: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(pretrained, folder)
        for file, change in changes.items():
            path = folder / file.replace("__", "/")
            path = path.with_suffix(".json")
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        return folder

    def complaint(pretrained: object, resolution: int = 16) -> str:
        def attempt() -> None:
            backend = StableDiffusion(pretrained=str(pretrained), resolution=resolution)
            data = backend.prepare(ShapesDataset(), preparation_context())
            backend.build(num_classes=3, sample_shape=data.sample_shape, seed=0)

        with pytest.raises((OptionError, WeightsError)) as caught:
            attempt()
        return str(caught.value)

    assert "neither a folder nor a repository" in complaint("/nowhere")
    (tmp_path / "empty").mkdir()
    assert "model_index.json cannot be read" in complaint(tmp_path / "empty")
    large = broken("large", model_index={"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]})
    assert "a Stable Diffusion 1 or 2 pipeline is needed" in complaint(large)
    assert "names 'Nothing', which diffusers does not know" in complaint(
        broken("scheduler", scheduler__scheduler_config={"_class_name": "Nothing"})
    )
    assert "resolution=17 is not a multiple of 2" in complaint(pretrained, 17)
    assert "do not fit the U-Net, which halves them 1 times" in complaint(pretrained, 18)
    speechless = broken("speechless")
    (speechless / "text_encoder" / "model.safetensors").unlink()
    assert "has no model.safetensors" in complaint(speechless)
    shutil.rmtree(speechless / "tokenizer")
    assert "has no folder tokenizer" in complaint(speechless)
    assert "they are not of one pipeline" in complaint(broken("wide", unet__config={"cross_attention_dim": 99}))
    blind = broken("blind")
    shutil.rmtree(blind / "vae")
    assert "has no folder vae" in complaint(blind)
    variant = broken("variant")
    weights = variant / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert "It has diffusion_pytorch_model.fp16.safetensors: save it in one file" in complaint(variant)
    with pytest.raises(WeightsError, match=r"has no model_index\.json"):
        StableDiffusion(pretrained=str(pretrained)).load(tmp_path / "empty")
    with pytest.raises(WeightsError, match=r"prompts\.json cannot be read"):
        StableDiffusion(pretrained=str(pretrained)).load(pretrained)


def test_downloads(pretrained: Path, tmp_path: Path) -> None:
    files = {each.url: each.path for each in StableDiffusion(pretrained="org/name@v2").downloads(tmp_path)}
    assert files["hf://org/name@v2/unet/config.json"] == tmp_path / "hub" / "org--name@v2" / "unet" / "config.json"
    assert len(files) == 11
    assert StableDiffusion(pretrained=str(pretrained)).downloads(tmp_path) == []
    (one, *_) = prefetch(backends=["sd"], settings={"pretrained": "org/other"}, dry_run=True)
    assert (one.kind, one.item, one.found) == ("backend", "sd", None)
    assert prefetch(backends=["sd"], settings={"pretrained": str(pretrained)}) == []
    with pytest.raises(OptionError, match="exactly one"):
        prefetch(backends=["sd", "mdt"], settings={"pretrained": "org/other"})


def test_files_that_were_put_there_by_hand(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("DCPRUNE_CACHE_DIR", str(tmp_path))
    backend = StableDiffusion(pretrained="org/name", resolution=16)
    shutil.copytree(pretrained, tmp_path / "hub" / "org--name")
    tokenizer(tmp_path / "words")
    for file in ("merges.txt", "vocab.json"):
        shutil.copy(tmp_path / "words" / file, tmp_path / "hub" / "org--name" / "tokenizer" / file)
    data = backend.prepare(ShapesDataset(), preparation_context())
    assert data.latents.record.autoencoder == "org/name/vae"  # type: ignore[attr-defined]


def test_downloads_that_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        WeightsError,
        match=r"main/model_index\.json elsewhere .* or name a folder of this machine in the place of CompVis/",
    ):
        StableDiffusion().prepare(ShapesDataset(), preparation_context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "a photo"}, "does not name the class"),
        ({"template": "a {thing}"}, "does not fit"),
        ({"resolution": 0}, "resolution=0 is not above 0"),
        ({"lora_rank": -1}, "lora_rank=-1 is not above 0"),
        ({"snr_gamma": 0.0}, r"snr_gamma=0\.0 is not above 0"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StableDiffusion(**options)
