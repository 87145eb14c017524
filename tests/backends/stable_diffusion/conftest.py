from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dcprune.api.provenance import provenance
from dcprune.artifacts import Coreset, Selection
from dcprune.interfaces import DatasetSource
from dcprune.sources import identify
from dcprune.testing import ShapesDataset

LENGTH = 24


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Networks this small only get slower with more, and the bits of a result depend on how many there are."""


def tokenizer(folder: Path) -> Any:
    """A CLIP tokenizer that knows single bytes and no words, written as older versions of transformers write it."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, kept), *(chr(256 + number) for number in range(256 - len(kept)))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "pad_token": "<|endoftext|>"})
    )
    return CLIPTokenizer.from_pretrained(folder)


def pipeline_folder(folder: Path, **scheduler: Any) -> Path:
    """A Stable Diffusion pipeline with random weights, as small as it can be, in a folder that diffusers wrote."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        words = tokenizer(folder.with_name(f"{folder.name}-tokenizer"))
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                eos_token_id=words.eos_token_id,
                bos_token_id=words.bos_token_id,
                pad_token_id=words.pad_token_id,
            )
        )
        for parameter in text.parameters():
            parameter.data *= 4  # so that texts differ enough to be seen in the images
        unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            latent_channels=4,
        )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=words,
        unet=unet,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
            **scheduler,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pipeline_folder(tmp_path_factory.mktemp("pretrained") / "pipeline")


class Captioned(ShapesDataset):
    """Shapes whose captions count."""

    def __init__(self, num_samples: int = 24, num_classes: int = 3) -> None:
        super().__init__(num_samples, num_classes)
        self.uri = f"captioned-{self.uri}"
        kinds = np.arange(num_samples) % max(1, num_classes)
        self.captions = [f"{number % 5} and {kind}" for number, kind in enumerate(kinds)]  # type: ignore[assignment]


@pytest.fixture
def captioned() -> type[Captioned]:
    return Captioned


@pytest.fixture(scope="session")
def make_coreset() -> Callable[[DatasetSource, NDArray[np.int64]], Coreset]:
    """A coreset of some rows."""

    def make(source: DatasetSource, rows: NDArray[np.int64]) -> Coreset:
        counts = np.bincount(np.asarray(source.labels)[rows], minlength=len(source.class_names)).tolist()
        return Coreset(
            dataset=identify(source),
            selection=Selection(
                scorer="random", params={}, keep="random", scope="class", ratio=None, budget=len(rows), seed=0
            ),
            num_selected=len(rows),
            class_counts=dict(zip(source.class_names, counts, strict=True)),
            indices=tuple(rows.tolist()),
            ids=tuple(source.ids[row] for row in rows) if source.ids is not None else None,
            provenance=provenance("select", {}, seed=0),
        )

    return make


@pytest.fixture(scope="session")
def settings(pretrained: Path) -> dict[str, Any]:
    """Of the backend, for images of 16 pixels."""
    return {"pretrained": str(pretrained), "resolution": 16}
