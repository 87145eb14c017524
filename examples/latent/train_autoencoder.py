"""Train a small autoencoder, for latent models of small images on a small machine.

    python examples/latent/train_autoencoder.py DATASET -o vae [--resolution 32] [--steps 1500]

It is a diffusers `AutoencoderKL` of 0.7M parameters: 3 x 32 x 32 pixels become 4 x 8 x 8 latents. The loss is the
absolute error of the pixels plus a little of the divergence from N(0, 1), without the perceptual and adversarial terms
that large autoencoders need for sharp photos. Its scaling factor brings the latents to unit variance. Then

    dcprune train DATASET --backend mdt --preset tiny --set vae=vae --set resolution=32
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dcprune.backends.pixels import fit_square
from dcprune.sources import open_dataset

KL_WEIGHT = 1e-6
BATCH_SIZE = 32
LEARNING_RATE = 2e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="what `dcprune embed` takes")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--resolution", type=int, default=32, help="side of the images, a multiple of 4")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    source = open_dataset(options.dataset, data_dir=options.data_dir)
    device = torch.device(options.device)

    def batch(size: int) -> torch.Tensor:
        """Random images float32 [size, 3, R, R] in [-1, 1]."""
        images = [torch.tensor(source.image(int(row))) for row in torch.randint(len(source), (size,))]
        fitted = [fit_square(image.permute(2, 0, 1)[None], options.resolution) for image in images]
        return torch.cat(fitted).expand(-1, 3, -1, -1).to(device).float() / 127.5 - 1

    model = small_autoencoder().to(device)
    train(model, batch, options.steps)
    with torch.no_grad():
        latents = model.eval().encode(batch(256)).latent_dist.sample()
    model.register_to_config(scaling_factor=round(1 / float(latents.std()), 4))
    model.save_pretrained(options.output)
    sys.stdout.write(f"{options.output}\n")


def small_autoencoder() -> AutoencoderKL:
    """Latents of a quarter of the side, in 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


def train(model: AutoencoderKL, batch: Callable[[int], torch.Tensor], steps: int) -> None:
    """Minimise absolute error plus `KL_WEIGHT` times the divergence, with a cosine learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(1, steps + 1):
        pixels = batch(BATCH_SIZE)
        posterior = model.encode(pixels).latent_dist
        error = F.l1_loss(model.decode(posterior.sample()).sample, pixels)
        loss = error + KL_WEIGHT * posterior.kl().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if step % 100 == 0 or step == steps:
            divergence = posterior.kl().mean().item()
            sys.stderr.write(f"step {step}: absolute error {error.item():.4f}, divergence {divergence:.1f}\n")


if __name__ == "__main__":
    main()
