"""Write a Stable Diffusion pipeline with random weights, so small that tables 4 and 5 run anywhere in seconds.

    python examples/paper/random_pipeline.py FOLDER

Its images mean nothing: it stands in for `CompVis/stable-diffusion-v1-4` and, its `vae` alone, for `sd-vae-ft-mse`
under `--scale small`. The tokenizer knows single bytes and no words.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

_LENGTH = 24
_WIDTH = 16


def main() -> None:
    folder = Path(sys.argv[1])
    torch.manual_seed(0)
    words = tokenizer(folder / "tokenizer")
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=text_encoder(words),
        tokenizer=words,
        unet=network(),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)


def tokenizer(folder: Path) -> CLIPTokenizer:
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, kept), *(chr(256 + number) for number in range(256 - len(kept)))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": _LENGTH, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(words: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=_LENGTH,
            eos_token_id=words.eos_token_id,
            bos_token_id=words.bos_token_id,
            pad_token_id=words.pad_token_id,
        )
    )


def network() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=_WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def autoencoder() -> AutoencoderKL:
    """Latents of a quarter of the side, in 4 channels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        mid_block_add_attention=False,
    )


if __name__ == "__main__":
    main()
