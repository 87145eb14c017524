"""A training step of the sd backend against diffusers' own fine-tuning loop, in one run.

Run by hand, from the repository:

    python tests/benchmarks/train_latent.py        on a GPU: Stable Diffusion 1 at 256 pixels, batch 32, bf16
    python tests/benchmarks/train_latent.py --size tiny --batch-size 4 --steps 3 --warmup 1 --rounds 1 --num-images 16

What is compared, in interleaved rounds on one network, batch and precision (weights are random; that changes no time):

- `sd`: `dcprune.training.trainer.Trainer` on cached latents and prompts, all of it except files, compiled on a GPU as
  in long runs.
- `diffusers`: the steps of the public script `train_text_to_image.py`, written anew: PIL images through its transforms
  and a DataLoader with its default of no workers, autoencoder and text model in the precision of training at every
  step, accelerate, AdamW, a moving average, the loss gathered and read back at every step.
- `diffusers-cached`: the same on latents and texts that are on the device already, so that what caching saves can be
  told from the rest.
- `reweight`: our step with the robust objective and a reference of the same shape.

`prepare` is the time of one image in the autoencoder ahead of time, mirror image included, in float32; after
`repaid_after_epochs` over the data the caching has paid for itself. The step of the mdt backend against the public loop
of MDT is in train_mdt.py.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import steps
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dcprune.api.preparing import preparation_context
from dcprune.backends.stable_diffusion.backend import StableDiffusion
from dcprune.devices import dtype_name
from dcprune.interfaces import TrainingData
from dcprune.testing import ShapesDataset

NUM_CLASSES = 3
# Stable Diffusion 1, and the smallest network with every kind of layer.
SIZES: dict[str, dict[str, Any]] = {
    "sd1": {"unet": (320, 640, 1280, 1280), "heads": 8, "vae": (128, 256, 512, 512), "text": (768, 12, 12, 77)},
    "tiny": {"unet": (32, 64), "heads": 4, "vae": (16, 32), "text": (32, 2, 2, 24)},
}


@dataclass(frozen=True)
class Setting(steps.Watch):
    """What both train, and how they are watched."""

    folder: Path
    backend: StableDiffusion
    dataset: ShapesDataset
    data: TrainingData

    @property
    def captions(self) -> list[str]:
        return [f"a photo of a {self.dataset.class_names[label]}" for label in self.dataset.labels.tolist()]  # type: ignore[union-attr]


# --- what is trained --------------------------------------------------------------------------------------------------


def write_pipeline(size: str, folder: Path) -> None:
    """A pipeline with random weights from a seed, in the folder that both read."""
    shape = SIZES[size]
    torch.manual_seed(0)
    width, layers, heads, length = shape["text"]
    words = tokenizer(folder.with_name("words"), length)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=length,
            hidden_act="quick_gelu",
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )
    levels, halvings = len(shape["unet"]), len(shape["vae"])
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * halvings,
            up_block_types=("UpDecoderBlock2D",) * halvings,
            block_out_channels=shape["vae"],
            layers_per_block=2,
            norm_num_groups=8,
            latent_channels=4,
            scaling_factor=0.18215,
        ),
        text_encoder=text,
        tokenizer=words,
        unet=UNet2DConditionModel(
            sample_size=64,
            block_out_channels=shape["unet"],
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D",) * (levels - 1) + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (levels - 1),
            cross_attention_dim=width,
            attention_head_dim=shape["heads"],
            norm_num_groups=32,
        ),
        scheduler=DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def tokenizer(folder: Path, length: int) -> Any:
    """One that knows single bytes; the number of tokens decides the time, and they are always filled up to `length`."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, kept), *(chr(256 + number) for number in range(256 - len(kept)))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


# --- competitors, each giving the seconds of one step -----------------------------------------------------------------


class PilImages(Dataset[dict[str, Any]]):
    """Images that lie decoded in memory, which is kinder than the script's datasets, through its transforms."""

    def __init__(self, setting: Setting, words: Any) -> None:
        size = setting.backend.resolution
        self.images = [Image.fromarray(each) for each in setting.dataset.array]
        self.tokens = words(
            setting.captions, padding="max_length", max_length=words.model_max_length, truncation=True
        ).input_ids
        self.transform = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.5], [0.5]),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.transform(self.images[index]), "input_ids": torch.tensor(self.tokens[index])}


def diffusers_step(setting: Setting, *, cached: bool) -> float:
    """The public script's loop; `cached` leaves out the autoencoder, the text model and the images."""
    precision = {"fp32": "no"}.get(dtype_name(setting.dtype), dtype_name(setting.dtype))
    accelerator = Accelerator(mixed_precision=precision, cpu=setting.device.type == "cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(setting.folder)
    unet, vae, text = pipeline.unet, pipeline.vae, pipeline.text_encoder
    vae.requires_grad_(False)
    text.requires_grad_(False)
    unet.train()
    noise_scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
    loader: Any = DataLoader(
        PilImages(setting, pipeline.tokenizer),
        batch_size=setting.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=0,
    )
    lr_scheduler = get_scheduler("constant", optimizer)
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    average.to(accelerator.device)
    vae.to(accelerator.device, dtype=setting.dtype)
    text.to(accelerator.device, dtype=setting.dtype)
    if cached:
        batches = cached_batches(setting, text, pipeline.tokenizer)
        del vae, text
    else:
        batches = encoded_batches(loader, vae, text, setting.dtype)
    stopwatch = steps.Stopwatch(setting)
    for latents, texts in batches:
        with accelerator.accumulate(unet):
            noise = torch.randn_like(latents)
            timesteps = torch.randint(
                0, noise_scheduler.config.num_train_timesteps, (len(latents),), device=latents.device
            ).long()
            noisy = noise_scheduler.add_noise(latents, noise, timesteps)
            prediction = unet(noisy, timesteps, texts, return_dict=False)[0]
            loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
            accelerator.gather(loss.repeat(setting.batch_size)).mean().detach().item()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            average.step(unet.parameters())
        stopwatch.advance()
        if stopwatch.finished():
            break
    return stopwatch.seconds_per_step


def encoded_batches(
    loader: Any, vae: Any, text: Any, dtype: torch.dtype
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Latents and texts as the script gets them: anew at every step."""
    while True:
        for batch in loader:
            with torch.no_grad():
                latents = vae.encode(batch["pixel_values"].to(dtype)).latent_dist.sample() * vae.config.scaling_factor
                texts = text(batch["input_ids"], return_dict=False)[0]
            yield latents, texts


def cached_batches(setting: Setting, text: Any, words: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One batch on the device, again and again."""
    shape = (setting.batch_size, *setting.data.sample_shape)
    latents = torch.randn(shape, device=setting.device, dtype=setting.dtype)
    tokens = words(
        setting.captions[: setting.batch_size],
        padding="max_length",
        max_length=words.model_max_length,
        return_tensors="pt",
    ).input_ids
    with torch.no_grad():
        texts = text(tokens.to(setting.device), return_dict=False)[0]
    while True:
        yield latents, texts


# --- report -----------------------------------------------------------------------------------------------------------


def run(setting: Setting, rounds: int) -> list[dict[str, Any]]:
    recipe = setting.backend.presets["paper"].training
    ours = steps.Ours(setting, setting.backend, recipe, NUM_CLASSES, lambda: setting.data)
    competitors: dict[str, Callable[[], float]] = {
        "sd": ours.train,
        "diffusers": partial(diffusers_step, setting, cached=False),
        "diffusers-cached": partial(diffusers_step, setting, cached=True),
        "reweight": ours.reweight,
    }
    return steps.compared(*steps.interleaved(competitors, rounds, setting.device), "sd")


def main() -> None:
    parser = steps.parser(__doc__, batch_size=32, warmup=10, steps=30)
    parser.add_argument("--size", default="sd1", choices=tuple(SIZES))
    parser.add_argument("--resolution", type=int, help="side of the images; 256, and 32 for tiny")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="for ours")
    options = parser.parse_args()
    watched = steps.watch(options)
    resolution = options.resolution or (32 if options.size == "tiny" else 256)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pipeline"
        write_pipeline(options.size, folder)
        backend = StableDiffusion(
            pretrained=str(folder), resolution=resolution, gradient_checkpointing=options.gradient_checkpointing
        )
        dataset = ShapesDataset(options.num_images, NUM_CLASSES, size=resolution)
        started = time.perf_counter()
        data = backend.prepare(dataset, preparation_context(watched.device, cache_dir=Path(temporary)))
        prepare_seconds = (time.perf_counter() - started) / len(dataset)
        setting = Setting(
            folder=folder,
            backend=backend,
            dataset=dataset,
            data=data,
            **vars(watched),
        )
        results = run(setting, options.rounds)
    steps.write_rows(results)
    saved = (results[1]["seconds"] - results[0]["seconds"]) / options.batch_size
    repaid = prepare_seconds / saved if saved > 0 else None
    sys.stdout.write(f"prepare {prepare_seconds:.4f} s an image, repaid after {repaid and round(repaid, 1)} epochs\n")
    report = {"results": results, "prepare_seconds_per_image": prepare_seconds, "repaid_after_epochs": repaid}
    steps.save(options, watched, report)


if __name__ == "__main__":
    main()
