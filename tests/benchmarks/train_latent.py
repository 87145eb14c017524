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

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
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
from dcprune.devices import device_name, dtype_name, resolve_device, resolve_dtype
from dcprune.interfaces import TrainingData
from dcprune.testing import ShapesDataset
from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import DroObjective, DroSettings, Objective, WeightedLoss
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer, score

NUM_CLASSES = 3
# Stable Diffusion 1, and the smallest network with every kind of layer.
SIZES: dict[str, dict[str, Any]] = {
    "sd1": {"unet": (320, 640, 1280, 1280), "heads": 8, "vae": (128, 256, 512, 512), "text": (768, 12, 12, 77)},
    "tiny": {"unet": (32, 64), "heads": 4, "vae": (16, 32), "text": (32, 2, 2, 24)},
}


@dataclass(frozen=True)
class Setting:
    """What both train, and for how long they are watched."""

    folder: Path
    backend: StableDiffusion
    dataset: ShapesDataset
    data: TrainingData
    batch_size: int
    warmup: int
    steps: int
    device: torch.device
    dtype: torch.dtype
    compile: bool

    @property
    def captions(self) -> list[str]:
        return [f"a photo of a {self.dataset.class_names[label]}" for label in self.dataset.labels.tolist()]  # type: ignore[union-attr]


class Stopwatch:
    """A `Progress` that times the steps after the warm-up, waiting for the device at both ends only."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.count = 0
        self.start = self.seconds = 0.0

    @contextmanager
    def task(self, description: str, total: int | None, unit: str = "it") -> Iterator[Stopwatch]:
        yield self

    def advance(self, amount: int = 1, **values: float | str) -> None:
        before, self.count = self.count, self.count + amount
        for mark in (self.setting.warmup, self.setting.warmup + self.setting.steps):
            if before < mark <= self.count:
                wait(self.setting.device)
                self.start, self.seconds = time.perf_counter(), time.perf_counter() - self.start

    def note(self, message: str) -> None:
        sys.stderr.write(f"{message}\n")

    warn = note


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def our_step(setting: Setting, objective: Objective) -> float:
    steps = setting.warmup + setting.steps
    options = {
        "steps": steps,
        "batch_size": setting.batch_size,
        "log_every": max(1, min(100, setting.steps)),
        "compile": "on" if setting.compile else "off",
    }
    stopwatch = Stopwatch(setting)
    trainer = Trainer(
        setting.backend,
        setting.data,
        TrainingConfig.resolve(setting.backend.presets["paper"].training, options),
        [Phase(torch.arange(len(setting.data)), steps, objective)],
        num_classes=NUM_CLASSES,
        device=setting.device,
        dtype=setting.dtype,
        progress=stopwatch,
    )
    trainer.run()
    return stopwatch.seconds / setting.steps


def train_step(setting: Setting) -> float:
    return our_step(setting, WeightedLoss(np.ones(NUM_CLASSES), setting.data.labels.cpu().numpy(), setting.device))


def reweight_step(setting: Setting) -> float:
    reference = setting.backend.build(num_classes=NUM_CLASSES, sample_shape=setting.data.sample_shape, seed=1)
    objective = DroObjective(
        reference.to(setting.device).eval().requires_grad_(requires_grad=False),
        partial(score, setting.backend, setting.dtype),
        np.full(NUM_CLASSES, 1 / NUM_CLASSES),
        DroSettings(),
        total_steps=setting.warmup + setting.steps,
        held_out=None,
        device=setting.device,
    )
    return our_step(setting, objective)


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
    stopwatch = Stopwatch(setting)
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
        if stopwatch.count >= setting.warmup + setting.steps:
            break
    return stopwatch.seconds / setting.steps


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
    competitors: dict[str, Callable[[], float]] = {
        "sd": partial(train_step, setting),
        "diffusers": partial(diffusers_step, setting, cached=False),
        "diffusers-cached": partial(diffusers_step, setting, cached=True),
        "reweight": partial(reweight_step, setting),
    }
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for name, competitor in competitors.items():
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds[name].append(competitor())
            memory[name] = peak_memory(setting.device)
    own = statistics.median(seconds["sd"])
    return [
        {
            "case": name,
            "ratio": statistics.median(times) / own,
            "seconds": statistics.median(times),
            "fastest": min(times),
            "slowest": max(times),
            "peak_memory_bytes": memory[name],
        }
        for name, times in seconds.items()
    ]


def peak_memory(device: torch.device) -> float:
    """Bytes, of the device since the last reset, or of the process since its start."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="sd1", choices=tuple(SIZES))
    parser.add_argument("--resolution", type=int, help="side of the images; 256, and 32 for tiny")
    parser.add_argument("--num-images", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--gradient-checkpointing", action="store_true", help="for ours")
    parser.add_argument("--warmup", type=int, default=10, help="steps before the clock starts, compilation among them")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile for ours; auto: on a GPU"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    resolution = options.resolution or (32 if options.size == "tiny" else 256)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pipeline"
        write_pipeline(options.size, folder)
        backend = StableDiffusion(
            pretrained=str(folder), resolution=resolution, gradient_checkpointing=options.gradient_checkpointing
        )
        dataset = ShapesDataset(options.num_images, NUM_CLASSES, size=resolution)
        started = time.perf_counter()
        data = backend.prepare(dataset, preparation_context(device, cache_dir=Path(temporary)))
        prepare_seconds = (time.perf_counter() - started) / len(dataset)
        setting = Setting(
            folder=folder,
            backend=backend,
            dataset=dataset,
            data=data,
            batch_size=options.batch_size,
            warmup=options.warmup,
            steps=options.steps,
            device=device,
            dtype=resolve_dtype(options.dtype, device),
            compile=options.compile == "on" or (options.compile == "auto" and device.type == "cuda"),
        )
        results = run(setting, options.rounds)
    for each in results:
        sys.stdout.write(
            "{ratio:6.2f} x our step  {case:17} {seconds:.4f} s ({fastest:.4f} to {slowest:.4f})  {0:.2f} GB\n".format(
                each["peak_memory_bytes"] / 1e9, **each
            )
        )
    saved = (results[1]["seconds"] - results[0]["seconds"]) / options.batch_size
    repaid = prepare_seconds / saved if saved > 0 else None
    sys.stdout.write(f"prepare {prepare_seconds:.4f} s an image, repaid after {repaid and round(repaid, 1)} epochs\n")
    if options.json:
        given = {name: str(value) for name, value in vars(options).items() if name != "json"}
        machine = {
            "device": device_name(device),
            "dtype": dtype_name(setting.dtype),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        report = {
            "options": given,
            "machine": machine,
            "results": results,
            "prepare_seconds_per_image": prepare_seconds,
            "repaid_after_epochs": repaid,
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
