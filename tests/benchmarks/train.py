"""Training against diffusers' own loop, its FLOPs against the device's, and the reweighting step against both.

Run by hand, from the repository:

    python tests/benchmarks/train.py                       on a GPU: the 38.3M U-Net at 32x32, batch 128, bf16
    python tests/benchmarks/train.py --preset tiny --batch-size 8 --steps 4 --warmup 2 --num-images 64 --samples 8

What is compared, in interleaved rounds on one model, batch and precision:

- `train`: `dcprune.training.trainer.Trainer`, all of it except files, compiled on a GPU as it is in long runs.
- `diffusers`: the steps of the public script `train_unconditional.py`, written anew: PIL images through torchvision
  transforms and a DataLoader with the script's default of no workers, accelerate, AdamW, a cosine schedule with
  warm-up, EMAModel, and the loss read back at every step. The model has class embeddings on both sides.
- `reweight`: the trainer with the robust objective and a reference of the same shape; three forward passes where the
  preset has dropout, else two.
- `shared`: the same with `--shared-dropout`, two forward passes.
- `sample`: the backend's sampler in its preset's setting, as images a second.

The ceiling is the largest matrix product that the same run reaches in the same precision. FLOPs are those of
convolutions and matrix products, forward and backward, counted by PyTorch.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import steps
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dcprune.backends import unet
from dcprune.backends.pixels import ResidentPixels
from dcprune.devices import autocast, dtype_name
from dcprune.interfaces import Backend, Preset
from dcprune.plugins import registry
from dcprune.training.draws import Drawing
from dcprune.training.flops import Flops, count_flops

NUM_CLASSES = 10


@dataclass(frozen=True)
class Setting(steps.Watch):
    """What every competitor trains, and how it is watched."""

    backend: Backend
    preset: Preset
    pixels: torch.Tensor
    labels: torch.Tensor

    @property
    def data(self) -> ResidentPixels:
        return ResidentPixels(self.pixels.to(self.device), self.labels.to(self.device))

    def build(self, seed: int = 0) -> torch.nn.Module:
        shape = tuple(self.pixels.shape[1:])
        return self.backend.build(num_classes=NUM_CLASSES, sample_shape=shape, seed=seed)


# --- competitors, each giving the seconds of one step -----------------------------------------------------------------


class PilImages(Dataset[dict[str, Any]]):
    """Images that lie decoded in memory, which is kinder than the script's datasets, through its transforms."""

    def __init__(self, pixels: torch.Tensor, labels: torch.Tensor, *, flip: bool) -> None:
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        self.images = [Image.fromarray(each[..., 0] if each.shape[-1] == 1 else each) for each in arrays]
        self.labels = labels.tolist()
        size, channels = pixels.shape[-1], pixels.shape[1]
        self.transform = transforms.Compose(
            [
                transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
                transforms.CenterCrop(size),
                *([transforms.RandomHorizontalFlip()] if flip else []),
                transforms.ToTensor(),
                transforms.Normalize([0.5] * channels, [0.5] * channels),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.transform(self.images[index]), "label": self.labels[index]}


def diffusers_step(setting: Setting) -> float:
    """Seconds of one step of the public script."""
    precision = {"fp32": "no"}.get(dtype_name(setting.dtype), dtype_name(setting.dtype))
    accelerator = Accelerator(mixed_precision=precision, cpu=setting.device.type == "cpu")
    network = setting.build()
    model = UNet2DModel.from_config(dict(unet.config(network)))
    model.load_state_dict(network.state_dict())
    noise_scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    flip = bool(setting.preset.training["horizontal_flip"])
    loader: Any = DataLoader(
        PilImages(setting.pixels, setting.labels, flip=flip), batch_size=setting.batch_size, shuffle=True, num_workers=0
    )
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=500, num_training_steps=10_000)
    model, optimizer, loader, lr_scheduler = accelerator.prepare(model, optimizer, loader, lr_scheduler)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    average.to(accelerator.device)
    weight_dtype = setting.dtype
    stopwatch = steps.Stopwatch(setting)
    model.train()
    while not stopwatch.finished():
        for batch in loader:
            clean = batch["input"].to(weight_dtype)
            noise = torch.randn(clean.shape, dtype=weight_dtype, device=clean.device)
            timesteps = torch.randint(0, 1000, (len(clean),), device=clean.device)
            noisy = noise_scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(model):
                output = model(noisy, timesteps, class_labels=batch["label"]).sample
                loss = F.mse_loss(output.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                average.step(model.parameters())
            loss.detach().item()
            stopwatch.advance()
            if stopwatch.finished():
                break
    return stopwatch.seconds_per_step


def sample_image(setting: Setting, count: int, batch_size: int) -> float:
    """Seconds of one image of the preset's sampler."""
    model: Any = setting.build().to(setting.device).eval()
    if setting.compile:
        model = torch.compile(model, dynamic=False)

    def draw(start: int, size: int) -> None:
        labels = torch.arange(start, start + size, device=setting.device) % NUM_CLASSES
        with autocast(setting.device, setting.dtype):
            setting.backend.sample(model, labels, range(start, start + size), setting.preset.sampling).cpu()

    size = min(count, batch_size)
    draw(0, size)
    steps.wait(setting.device)
    start = time.perf_counter()
    for begin in range(0, count, size):
        draw(begin, min(size, count - begin))
    return (time.perf_counter() - start) / count


# --- ceilings ---------------------------------------------------------------------------------------------------------


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few large matrix products."""
    best = 0.0
    for size in (4096, 8192) if device.type == "cuda" else (512, 1024):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        for _ in range(3):
            left @ right
        for _ in range(3):
            steps.wait(device)
            start = time.perf_counter()
            repeats = 10 if device.type == "cuda" else 2
            for _ in range(repeats):
                left @ right
            steps.wait(device)
            best = max(best, repeats * 2 * size**3 / (time.perf_counter() - start))
    return best


def flops(setting: Setting) -> Flops:
    """FLOPs of one image."""
    data = ResidentPixels(setting.pixels[:2], setting.labels[:2])
    draw = Drawing(0, setting.backend.num_train_timesteps, 0.0, horizontal_flip=False)(data, torch.arange(2), 0)
    return count_flops(setting.backend, setting.build(), draw)


def evaluations(preset: Preset) -> int:
    """Network evaluations of one image: guided ones count twice, and so do Heun's but for the last."""
    sampling = preset.sampling
    steps = sampling.num_inference_steps
    passes = 2 * steps - 1 if sampling.sampler.startswith("heun") else steps
    return passes * (1 if sampling.guidance_scale in (0, 1) else 2)


# --- report -----------------------------------------------------------------------------------------------------------


def run(setting: Setting, rounds: int, samples: int, sample_batch: int) -> dict[str, Any]:
    ours = steps.Ours(setting, setting.backend, setting.preset.training, NUM_CLASSES, lambda: setting.data)
    competitors: dict[str, Callable[[], float]] = {
        "train": ours.train,
        "diffusers": partial(diffusers_step, setting),
        "reweight": ours.reweight,
        "shared": partial(ours.reweight, shared_dropout=True),
    }
    if samples:
        competitors["sample"] = partial(sample_image, setting, samples, sample_batch)
    peaks: list[float] = []
    seconds, memory = steps.interleaved(
        competitors,
        rounds,
        setting.device,
        before_round=lambda: peaks.append(matmul_peak(setting.device, setting.dtype)),
    )
    counted = flops(setting)
    peak = statistics.median(peaks)
    own = statistics.median(seconds["train"])
    sampling = seconds.pop("sample", None)
    report: dict[str, Any] = {
        "results": steps.compared(seconds, memory, "train"),
        "images_per_second": setting.batch_size / own,
        "train_flops_per_image": counted.training,
        "forward_flops_per_image": counted.forward,
        "matmul_flops_per_second": peak,
        "share_of_peak": counted.training * setting.batch_size / own / peak,
    }
    if sampling is not None:
        each = statistics.median(sampling)
        floor = evaluations(setting.preset) * counted.forward / peak
        report["sampling"] = {
            "seconds_per_image": each,
            "fastest": min(sampling),
            "slowest": max(sampling),
            "minutes_for_50000": each * 50_000 / 60,
            "minutes_for_50000_at_the_peak": floor * 50_000 / 60,
            "share_of_peak": floor / each,
        }
    return report


def write(report: dict[str, Any], setting: Setting) -> None:
    steps.write_rows(report["results"])
    tera = report["matmul_flops_per_second"] / 1e12
    sys.stdout.write(
        f"{report['share_of_peak']:6.1%} of the measured {tera:.3g} TFLOP/s in training, "
        f"{report['images_per_second']:.1f} images/s\n"
    )
    if "sampling" in report:
        sampling = setting.preset.sampling
        sys.stdout.write(
            "{share_of_peak:6.1%} of it in sampling: 50,000 images in {minutes_for_50000:.1f} minutes, "
            "at the peak in {minutes_for_50000_at_the_peak:.2f} ({sampler} {steps}, guidance {scale:g})\n".format(
                **report["sampling"],
                sampler=sampling.sampler,
                steps=sampling.num_inference_steps,
                scale=sampling.guidance_scale,
            )
        )


def main() -> None:
    parser = steps.parser(__doc__, batch_size=128, warmup=30, steps=100)
    parser.add_argument("--backend", default="ddpm")
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--size", type=int, help="side of the images, 32 unless the preset has a resolution")
    parser.add_argument("--channels", type=int, default=3, choices=(1, 3))
    parser.add_argument("--num-images", type=int, default=50_000)
    parser.add_argument("--samples", type=int, default=2048, help="images to draw; 0 leaves sampling out")
    parser.add_argument("--sample-batch", type=int, default=512)
    parser.add_argument("--num-inference-steps", type=int, default=None)
    options = parser.parse_args()

    item, _ = registry().get("backend", options.backend)
    preset: Preset = item.load().presets[options.preset]  # type: ignore[attr-defined]
    if options.num_inference_steps:
        preset = replace(preset, sampling=replace(preset.sampling, num_inference_steps=options.num_inference_steps))
    generator = torch.Generator().manual_seed(0)
    size = options.size or preset.model.get("resolution") or 32
    shape = (options.num_images, options.channels, size, size)
    setting = Setting(
        backend=registry().create("backend", options.backend, preset.model),
        preset=preset,
        pixels=torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
        labels=torch.randint(0, NUM_CLASSES, (options.num_images,), generator=generator),
        **vars(steps.watch(options)),
    )
    report = run(setting, options.rounds, options.samples, options.sample_batch)
    write(report, setting)
    steps.save(options, setting, report)


if __name__ == "__main__":
    main()
