"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) on the attention of a U-Net, through peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcprune.errors import OptionError

FOLDER = "lora"
_TARGETS = ["to_k", "to_out.0", "to_q", "to_v"]


def add_adapters(unet: Any, rank: int, seed: int) -> None:
    """Freeze a network and give it adapters, which change nothing at first; the same seed gives the same ones.

    Raises:
        OptionError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise OptionError("LoRA needs peft: pip install 'dcprune[sd]'.") from error
    unet.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=_TARGETS))


def has_adapters(unet: nn.Module) -> bool:
    """Whether `add_adapters` has been here."""
    return getattr(unet, "_hf_peft_config_loaded", False) is True


def merged(unet: nn.Module) -> nn.Module:
    """A copy with the adapters added to the weights they adapt, and gone."""
    own: Any = copy.deepcopy(unet)
    own.fuse_lora()
    own.unload_lora()
    network: nn.Module = own
    return network


def save_adapters(unet: nn.Module, folder: Path) -> None:
    """Write the adapters alone, as `StableDiffusionPipeline.load_lora_weights` takes them."""
    from diffusers import StableDiffusionPipeline
    from peft import get_peft_model_state_dict

    state = {name: tensor.detach().cpu() for name, tensor in get_peft_model_state_dict(unet).items()}
    StableDiffusionPipeline.save_lora_weights(folder / FOLDER, unet_lora_layers=state)
