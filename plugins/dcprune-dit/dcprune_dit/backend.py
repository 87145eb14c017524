"""Diffusion transformers of diffusers on latents, trained on the noise or on the velocity of a flow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import nn

from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Batch, DatasetSource, Download, PreparationContext, Preset, Sampling, TrainingData
from dcprune.parts import (
    STABLE_DIFFUSION,
    Autoencoder,
    ImageNoise,
    autoencoder_files,
    fit_square,
    load_autoencoder,
    load_model,
)
from dcprune_dit.paths import Diffusion, Flow
from dcprune_dit.presets import PRESETS

Objective = Literal["epsilon", "flow"]

NETWORK = "transformer"
VAE_FILE = "vae.json"


class Dit:
    """DiT (Peebles and Xie 2023, arXiv 2212.09748) and SiT (Ma et al. 2024, arXiv 2401.08740) with guidance.

    The network is diffusers' `DiTTransformer2DModel` with K + 1 learned class embeddings, of which the last is the null
    condition; class-less data is one class. It starts as DiT does: every block is the identity and the output is zero.
    Diffusers would also drop labels inside the network, from the global generator and in every block anew; that is
    turned off, because the trainer drops them. Unlike DiT the network predicts no variance.

    Samplers: `ddim` for `epsilon`; `heun` and `euler` for `flow`.

    Args:
        objective: `epsilon` predicts the noise of DDPM's chain, `flow` the velocity of the straight path.
        num_layers, num_attention_heads, attention_head_dim: 12, 6 and 64 are DiT-S.
        patch_size: side of the square of latents that is a token.
        vae: the autoencoder, a repository of the hub or a folder; see `dcprune.autoencoder.load_autoencoder`.
        resolution: side of the square images in pixels.
        flips: encode mirror images, too, for training with `horizontal_flip`; without, latents are mirrored.

    Raises:
        OptionError: a setting out of range.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __init__(
        self,
        *,
        objective: Objective = "epsilon",
        num_layers: int = 12,
        num_attention_heads: int = 6,
        attention_head_dim: int = 64,
        patch_size: int = 2,
        vae: str = STABLE_DIFFUSION,
        resolution: int = 256,
        flips: bool = True,
    ) -> None:
        if objective not in get_args(Objective):
            raise UnknownName("objective of dit", objective, get_args(Objective))
        self.objective = objective
        self.num_layers = num_layers
        self.num_attention_heads = num_attention_heads
        self.attention_head_dim = attention_head_dim
        self.patch_size = patch_size
        folder = Path(vae).expanduser()
        self.vae = str(folder.resolve()) if folder.is_dir() else vae
        self.resolution = resolution
        self.flips = flips
        for name in ("num_layers", "num_attention_heads", "attention_head_dim", "patch_size", "resolution"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}={getattr(self, name)} of dit is below 1.")
        if num_attention_heads * attention_head_dim % 4:
            raise OptionError(
                f"num_attention_heads={num_attention_heads} times attention_head_dim={attention_head_dim} is no "
                "multiple of 4, which the position embedding needs."
            )
        self.path = Flow() if objective == "flow" else Diffusion()
        self.samplers = self.path.samplers
        self.num_train_timesteps = self.path.num_train_timesteps

    def settings(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "objective": self.objective,
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "attention_head_dim": self.attention_head_dim,
            "patch_size": self.patch_size,
            "vae": self.vae,
            "resolution": self.resolution,
            "flips": self.flips,
        }

    def downloads(self, cache_dir: Path) -> list[Download]:
        """Files of the autoencoder, unless it is a folder."""
        return autoencoder_files(self.vae, cache_dir)

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """Images of any size at the model's: uint8 [B, C, H, W] -> uint8 [B, C, R, R]."""
        return fit_square(images, self.resolution)

    def prepare(self, dataset: DatasetSource, context: PreparationContext) -> TrainingData:
        """Latents of all images, encoded once and cached.

        Raises:
            DatasetError: an image cannot be decoded.
            WeightsError: no autoencoder.
        """
        return context.latents(dataset, vae=self.vae, resolution=self.resolution, flips=self.flips)

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> nn.Module:
        """A network with random weights.

        Raises:
            OptionError: a shape of latents that `patch_size` does not divide.
        """
        channels, height, width = sample_shape
        if height != width or height % self.patch_size:
            raise OptionError(f"patch_size={self.patch_size} of dit does not fit latents of {height}x{width}.")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = DiTTransformer2DModel(
                num_layers=self.num_layers,
                num_attention_heads=self.num_attention_heads,
                attention_head_dim=self.attention_head_dim,
                in_channels=channels,
                sample_size=height,
                patch_size=self.patch_size,
                num_embeds_ada_norm=max(1, num_classes),
            )
            _start(model)
        return _without_label_drops(model)

    def per_sample_loss(
        self,
        model: nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Mean squared error over the latents, float32 [B]; nothing is drawn."""
        x = self.path.noised(batch.x0, noise, timesteps)
        null = null_label(model)
        labels = torch.where(batch.dropped, null, batch.labels if null > 1 else 0)
        answer = _answer(model, x, self.path.times(timesteps), labels)
        return F.mse_loss(answer, self.path.target(batch.x0, noise), reduction="none").flatten(1).mean(1)

    @torch.inference_mode()
    def sample(self, model: nn.Module, labels: torch.Tensor, seeds: Sequence[int], sampling: Sampling) -> torch.Tensor:
        """Images uint8 [B, 3, R, R] on the model's device.

        All noise of image i is drawn on the CPU by a generator seeded with `seeds[i]`.

        Raises:
            UnknownName: no such sampler.
            OptionError: a number of steps out of range.
            WeightsError: no autoencoder, or another one than the model was trained with.
        """
        if sampling.sampler not in self.samplers:
            raise UnknownName("sampler of backend 'dit'", sampling.sampler, self.samplers)
        steps = sampling.num_inference_steps
        if not 1 <= steps <= self.num_train_timesteps:
            raise OptionError(f"num_inference_steps={steps} is outside [1, {self.num_train_timesteps}].")
        settings, device = config(model), next(model.parameters()).device
        decoder = self._decoder_of(model).to(device)
        shape = (settings.in_channels, settings.sample_size, settings.sample_size)
        network = _Guided(model, labels.to(device), sampling.guidance_scale)
        noise = ImageNoise(seeds, shape, device)()
        return decoder.decode(self.path.sample(sampling.sampler, network, noise, steps))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write `transformer/` and `scheduler/`, which diffusers opens, and `vae.json`: the autoencoder and its hash.

        Guidance and decoding aside, a sampler for diffusers alone is, for `flow`,

            model = DiTTransformer2DModel.from_pretrained(folder / "transformer").eval()
            scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
            scheduler.set_timesteps(100)
            x = torch.randn(1, 4, 32, 32)
            for t in scheduler.timesteps:
                x = scheduler.step(model(x, t[None], torch.tensor([0])).sample, t, x).prev_sample
        """
        settings = {name: value for name, value in config(model).items() if name != "_name_or_path"}
        with torch.device("meta"):
            network = DiTTransformer2DModel.from_config(settings)
        state = {name: tensor.cpu().contiguous() for name, tensor in unwrapped(model).state_dict().items()}
        network.load_state_dict(state, assign=True)
        network.save_pretrained(folder / NETWORK)
        self.path.scheduler().save_pretrained(folder / "scheduler")
        vae = {"name": self._autoencoder.name, "sha256": self._autoencoder.sha256}
        (folder / VAE_FILE).write_text(json.dumps(vae, indent=2) + "\n")

    def load(self, folder: Path) -> nn.Module:
        """The model of a folder that `save` wrote, on the CPU, in inference mode.

        Raises:
            WeightsError: the folder does not hold such a model.
        """
        try:
            vae = json.loads((folder / VAE_FILE).read_bytes())["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{folder} does not hold a model of the dit backend: {error}.") from error
        model, _ = load_model(DiTTransformer2DModel, folder / NETWORK)
        model.vae_sha256 = vae
        return _without_label_drops(model)

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.vae)

    def _decoder_of(self, model: nn.Module) -> Autoencoder:
        trained_with = getattr(unwrapped(model), "vae_sha256", None)
        if trained_with is not None and trained_with != self._autoencoder.sha256:
            raise WeightsError(
                f"The model was trained with an autoencoder of sha256 {trained_with[:12]}, but {self.vae} now holds "
                f"another (sha256 {self._autoencoder.sha256[:12]}). Put the first one back."
            )
        return self._autoencoder


class _Guided:
    """A network under classifier-free guidance, null + scale (conditional - null), in one pass over both."""

    def __init__(self, model: nn.Module, labels: torch.Tensor, scale: float) -> None:
        self.model = model
        self.scale = scale
        null = torch.full_like(labels, null_label(model))
        self.both = scale not in (0, 1)
        self.labels = torch.cat([labels, null]) if self.both else labels if scale else null

    def __call__(self, x: torch.Tensor, time: float) -> torch.Tensor:
        latents = torch.cat([x, x]) if self.both else x
        times = torch.full((len(latents),), float(time), device=x.device)
        answer = _answer(self.model, latents, times, self.labels)
        if not self.both:
            return answer
        conditional, null = answer.chunk(2)
        return torch.lerp(null, conditional, self.scale)


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside the wrappers of `torch.compile` and `DistributedDataParallel`."""
    while not isinstance(model, DiTTransformer2DModel):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise TypeError(f"{type(model).__name__} is no network of the dit backend.")
        model = inner
    network: nn.Module = model
    return network


def config(model: nn.Module) -> Any:
    """The settings that diffusers keeps on the network."""
    return unwrapped(model).config


def null_label(model: nn.Module) -> int:
    """Index of the null condition: the number of classes, 1 for class-less data."""
    return int(config(model).num_embeds_ada_norm)


def _answer(model: nn.Module, x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The network's output [B, C, H, W] in float32, whatever autocast made of it."""
    output: torch.Tensor = model(x, times, labels, return_dict=False)[0]
    return output.float()


def _start(model: Any) -> None:
    """DiT's initial weights (its section 3.2): xavier, gates and output zero, small embeddings."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    patches = model.pos_embed.proj
    nn.init.xavier_uniform_(patches.weight.view(len(patches.weight), -1))
    nn.init.zeros_(patches.bias)
    for block in model.transformer_blocks:
        embedder = block.norm1.emb
        nn.init.normal_(embedder.class_embedder.embedding_table.weight, std=0.02)
        nn.init.normal_(embedder.timestep_embedder.linear_1.weight, std=0.02)
        nn.init.normal_(embedder.timestep_embedder.linear_2.weight, std=0.02)
        nn.init.zeros_(block.norm1.linear.weight)
    nn.init.zeros_(model.proj_out_1.weight)
    nn.init.zeros_(model.proj_out_2.weight)


def _without_label_drops(model: Any) -> nn.Module:
    for block in model.transformer_blocks:
        block.norm1.emb.class_embedder.dropout_prob = 0.0
    network: nn.Module = model
    return network
