"""A training step of the mdt backend against the public training loop of MDT, in one run.

Run by hand, from the repository, with a checkout of github.com/sail-sg/MDT:

    python tests/benchmarks/train_mdt.py ../MDT            on a GPU: MDTv2-S/2 on 32x32 latents, batch 256, bf16
    python tests/benchmarks/train_mdt.py ../MDT --size tiny --pixels 64 --batch-size 8 --steps 3 --warmup 1 --rounds 1

What is compared, in interleaved rounds on one network, batch and precision:

- `mdt`: `dcprune.training.trainer.Trainer` on cached latents, all of it except files, compiled on a GPU.
- `public`: the loop of the repository's `train_util.py` around its own network and `training_losses`, under autocast to
  the same precision: images through the autoencoder at every step, the whole and the masked pass, timesteps drawn by
  numpy, every loss read back for the log as it does, clipped gradients, Adan (timm's; its own fused kernels are another
  package) and the moving average.
- `public-cached`: the same without the autoencoder, so that what caching saves can be told from the rest.
- `public-float32`: with `--float32`, the loop as it was released, which is not under autocast.
- `masks`: our step with all tokens in the masked pass, which shows what leaving tokens out saves.

Its modules are imported from the path that is given; nothing of them is copied here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from timm.optim.adan import Adan

from dcprune.backends.mdt.backend import Mdt
from dcprune.backends.mdt.network import SIZES
from dcprune.devices import autocast, device_name, dtype_name, resolve_device, resolve_dtype
from dcprune.training.config import TrainingConfig
from dcprune.training.objectives import WeightedLoss
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer

NUM_CLASSES = 1000
CHANNELS = 4
TINY = (96, 4, 3)


@dataclass(frozen=True)
class Setting:
    """What both train, and for how long they are watched."""

    repository: Path
    width: int
    depth: int
    heads: int
    decode_layer: int
    patch_size: int
    input_size: int
    pixels: int
    batch_size: int
    warmup: int
    steps: int
    device: torch.device
    dtype: torch.dtype
    compile: bool

    @property
    def latents(self) -> tuple[int, int, int]:
        return CHANNELS, self.input_size, self.input_size


class RandomLatents:
    """A `TrainingData` of random posteriors on the device, as the cache holds them."""

    def __init__(self, setting: Setting, count: int = 4096) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (count, *setting.latents)
        self.mean = torch.randn(shape, generator=generator).to(setting.device, torch.float16)
        self.std = (0.1 * torch.rand(shape, generator=generator)).to(setting.device, torch.float16)
        self.labels = torch.randint(NUM_CLASSES, (count,), generator=generator).to(setting.device)
        self.sample_shape: tuple[int, ...] = setting.latents

    def __len__(self) -> int:
        return len(self.labels)

    def x0(self, rows: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        noise = torch.randn((len(rows), *self.sample_shape), generator=generator, device=rows.device)
        return self.mean[rows].float() + self.std[rows].float() * noise

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("A benchmark draws no grids.")


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


# --- ours -------------------------------------------------------------------------------------------------------------


def our_step(setting: Setting, data: RandomLatents, mask_ratio: tuple[float, float]) -> float:
    """Seconds of one step of our trainer."""
    backend = Mdt(
        hidden_size=setting.width,
        depth=setting.depth,
        num_heads=setting.heads,
        decode_layer=setting.decode_layer,
        patch_size=setting.patch_size,
        mask_ratio=mask_ratio,
    )
    steps = setting.warmup + setting.steps
    options = {
        "epochs": None,
        "steps": steps,
        "batch_size": setting.batch_size,
        "log_every": max(1, min(100, setting.steps)),
        "compile": "on" if setting.compile else "off",
    }
    stopwatch = Stopwatch(setting)
    trainer = Trainer(
        backend,
        data,
        TrainingConfig.resolve(backend.presets["paper"].training, options),
        [
            Phase(
                torch.arange(len(data)),
                steps,
                WeightedLoss(np.ones(NUM_CLASSES), data.labels.cpu().numpy(), setting.device),
            )
        ],
        num_classes=NUM_CLASSES,
        device=setting.device,
        dtype=setting.dtype,
        progress=stopwatch,
    )
    trainer.run()
    return stopwatch.seconds / setting.steps


# --- theirs -----------------------------------------------------------------------------------------------------------


def public_modules(repository: Path) -> tuple[Any, Any]:
    """Its `masked_diffusion` package without what its training script needs besides, and its `models`."""
    folder = repository / "masked_diffusion"
    if not (folder / "models.py").is_file():
        raise SystemExit(
            f"{repository} is no checkout of github.com/sail-sg/MDT: it has no masked_diffusion/models.py."
        )
    import timm.layers

    sys.modules.setdefault("timm.models.layers", timm.layers)
    package = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location(  # type: ignore[arg-type]
            "masked_diffusion", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
    )
    sys.modules["masked_diffusion"] = package
    package.__spec__.loader.exec_module(package)  # type: ignore[union-attr]
    return package, importlib.import_module("masked_diffusion.models")


def public_step(setting: Setting, *, cached: bool, precision: torch.dtype) -> float:
    """Seconds of one step of the public loop."""
    package, models = public_modules(setting.repository)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = models.MDTv2(
            input_size=setting.input_size,
            patch_size=setting.patch_size,
            hidden_size=setting.width,
            depth=setting.depth,
            num_heads=setting.heads,
            num_classes=NUM_CLASSES,
            mask_ratio=0.3,
            decode_layer=setting.decode_layer,
        ).to(setting.device)
    diffusion = package.create_diffusion(timestep_respacing="")
    optimizer: Any = Adan(network.parameters(), lr=5e-4, betas=(0.98, 0.92, 0.99))
    average = [each.detach().clone() for each in network.parameters()]
    encode = random_latents(setting) if cached else autoencoded(setting)
    logged: list[float] = []
    stopwatch = Stopwatch(setting)
    network.train()
    while stopwatch.count < setting.warmup + setting.steps:
        optimizer.zero_grad()
        latents = encode()
        timesteps = torch.from_numpy(np.random.default_rng().choice(1000, setting.batch_size)).to(setting.device)
        labels = torch.randint(NUM_CLASSES, (setting.batch_size,), device=setting.device)
        total = torch.zeros((), device=setting.device)
        for extra in ({}, {"enable_mask": True}):
            with autocast(setting.device, precision):
                losses = diffusion.training_losses(network, latents, timesteps, model_kwargs={"y": labels, **extra})
            total = total + losses["loss"].mean()
            for values in losses.values():
                logged.append(values.mean().item())
                logged += values.detach().cpu().tolist()
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for target, source in zip(average, network.parameters(), strict=True):
                target.mul_(0.9999).add_(source, alpha=1 - 0.9999)
        logged.clear()
        stopwatch.advance()
    return stopwatch.seconds / setting.steps


def random_latents(setting: Setting) -> Callable[[], torch.Tensor]:
    data, rows = RandomLatents(setting), torch.arange(setting.batch_size, device=setting.device)
    generator = torch.Generator(setting.device)
    return lambda: data.x0(rows, rows.bool(), generator)


def autoencoded(setting: Setting) -> Callable[[], torch.Tensor]:
    """Images through an autoencoder of Stable Diffusion's shape, or of a small one where the factor is not 8."""
    factor = setting.pixels // setting.input_size
    levels = factor.bit_length()
    channels = (128, 256, 512, 512) if levels == 4 else (32,) * levels
    vae: Any = (
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=channels,
            layers_per_block=2 if levels == 4 else 1,
            latent_channels=CHANNELS,
        )
        .to(setting.device)
        .eval()
        .requires_grad_(requires_grad=False)
    )
    if setting.compile:
        vae.encoder = torch.compile(vae.encoder)
    pixels = torch.randn(setting.batch_size, 3, setting.pixels, setting.pixels)

    def encode() -> torch.Tensor:
        with torch.no_grad():
            latents: torch.Tensor = vae.encode(pixels.to(setting.device)).latent_dist.sample() * 0.18215
        return latents

    return encode


# --- report -----------------------------------------------------------------------------------------------------------


def run(setting: Setting, rounds: int, *, float32: bool) -> list[dict[str, Any]]:
    data = RandomLatents(setting)
    competitors: dict[str, Callable[[], float]] = {
        "mdt": partial(our_step, setting, data, (0.3, 0.5)),
        "public": partial(public_step, setting, cached=False, precision=setting.dtype),
        "public-cached": partial(public_step, setting, cached=True, precision=setting.dtype),
        "masks": partial(our_step, setting, data, (0.0, 0.0)),
    }
    if float32:
        competitors["public-float32"] = partial(public_step, setting, cached=False, precision=torch.float32)
    seconds: dict[str, list[float]] = {name: [] for name in competitors}
    memory: dict[str, float] = {}
    for _ in range(rounds):
        for name, competitor in competitors.items():
            if setting.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            seconds[name].append(competitor())
            memory[name] = peak_memory(setting.device)
    own = statistics.median(seconds["mdt"])
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
    parser.add_argument("repository", type=Path, help="a checkout of github.com/sail-sg/MDT")
    parser.add_argument("--size", default="S", choices=(*SIZES, "tiny"))
    parser.add_argument("--patch-size", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=256, help="side of the images; latents have an eighth of it")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--warmup", type=int, default=20, help="steps before the clock starts, compilation among them")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--float32", action="store_true", help="also time the public loop without autocast")
    parser.add_argument(
        "--compile", choices=("auto", "on", "off"), default="auto", help="torch.compile for ours; auto: on a GPU"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = resolve_device(options.device)
    width, depth, heads = TINY if options.size == "tiny" else SIZES[options.size]
    setting = Setting(
        repository=options.repository,
        width=width,
        depth=depth,
        heads=heads,
        decode_layer=2 if options.size == "tiny" else 4 if "L" in options.size else 6,
        patch_size=options.patch_size,
        input_size=options.pixels // 8,
        pixels=options.pixels,
        batch_size=options.batch_size,
        warmup=options.warmup,
        steps=options.steps,
        device=device,
        dtype=resolve_dtype(options.dtype, device),
        compile=options.compile == "on" or (options.compile == "auto" and device.type == "cuda"),
    )
    results = run(setting, options.rounds, float32=options.float32)
    for each in results:
        sys.stdout.write(
            "{ratio:6.2f} x our step  {case:22} {seconds:.4f} s ({fastest:.4f} to {slowest:.4f})  {0:.2f} GB\n".format(
                each["peak_memory_bytes"] / 1e9, **each
            )
        )
    if options.json:
        given = {name: str(value) for name, value in vars(options).items() if name != "json"}
        machine = {
            "device": device_name(device),
            "dtype": dtype_name(setting.dtype),
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps({"options": given, "machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
