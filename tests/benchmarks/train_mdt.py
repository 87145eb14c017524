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

import contextlib
import importlib
import importlib.util
import io
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import steps
import torch
from diffusers import AutoencoderKL
from timm.optim.adan import Adan

from dcprune.backends.mdt.backend import Mdt
from dcprune.backends.mdt.network import SIZES
from dcprune.devices import autocast

NUM_CLASSES = 1000
CHANNELS = 4
TINY = (96, 4, 3)


@dataclass(frozen=True)
class Setting(steps.Watch):
    """What both train, and how they are watched."""

    repository: Path
    width: int
    depth: int
    heads: int
    decode_layer: int
    patch_size: int
    input_size: int
    pixels: int

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
    recipe = backend.presets["paper"].training
    return steps.Ours(setting, backend, recipe, NUM_CLASSES, lambda: data).train()


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
    stopwatch = steps.Stopwatch(setting)
    network.train()
    while not stopwatch.finished():
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
    return stopwatch.seconds_per_step


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
    return steps.compared(*steps.interleaved(competitors, rounds, setting.device), "mdt")


def main() -> None:
    parser = steps.parser(__doc__, batch_size=256, warmup=20, steps=50)
    parser.add_argument("repository", type=Path, help="a checkout of github.com/sail-sg/MDT")
    parser.add_argument("--size", default="S", choices=(*SIZES, "tiny"))
    parser.add_argument("--patch-size", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=256, help="side of the images; latents have an eighth of it")
    parser.add_argument("--float32", action="store_true", help="also time the public loop without autocast")
    options = parser.parse_args()
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
        **vars(steps.watch(options)),
    )
    results = run(setting, options.rounds, float32=options.float32)
    steps.write_rows(results)
    steps.save(options, setting, {"results": results})


if __name__ == "__main__":
    main()
