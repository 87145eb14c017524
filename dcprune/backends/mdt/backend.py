"""MDT: masked diffusion transformers on latents, as the paper trains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import torch

from dcprune.autoencoder import STABLE_DIFFUSION, Autoencoder, autoencoder_files, load_autoencoder
from dcprune.backends.mdt import sampling as samplers
from dcprune.backends.mdt import storage
from dcprune.backends.mdt.masking import draw_kept
from dcprune.backends.mdt.network import (
    SIZES,
    MaskedTransformer,
    Shape,
    Size,
    VaeReference,
    Version,
    build,
    check_depth,
    unwrapped,
)
from dcprune.backends.mdt.objective import NUM_TRAIN_TIMESTEPS, LearnedVarianceLoss
from dcprune.backends.mdt.presets import PRESETS
from dcprune.backends.noise import ImageNoise
from dcprune.backends.pixels import fit_square
from dcprune.devices import cache_dir
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import Batch, DatasetSource, Download, PreparationContext, Preset, Sampling, TrainingData
from dcprune.progress import SILENT

_SAMPLERS: Final = {"ddpm": samplers.ancestral, "ddim": samplers.ddim, "dpmsolver++": samplers.dpm_solver}

# Decoder blocks of the published recipes of S/2 (which B follows here) and XL/2 (which L follows).
_DECODE_LAYER: Final[Mapping[Version, Mapping[Size, int]]] = {
    1: {"S": 2, "B": 2, "L": 2, "XL": 2},
    2: {"S": 6, "B": 6, "L": 4, "XL": 4},
}
_MASK_RATIO: Final[Mapping[Version, tuple[float, float]]] = {1: (0.3, 0.3), 2: (0.3, 0.5)}


class Mdt:
    """Masked diffusion transformer (Gao et al. 2023, arXiv 2303.14389) in the latent space of an autoencoder.

    A training sample is seen twice at one timestep with independent noise: whole, and with a part of its tokens masked.
    Its loss is the sum of both, each as in `dcprune.backends.mdt.objective.LearnedVarianceLoss`. The network is the
    authors' own, tensor for tensor: S, B, L and XL have 38.5M, 152M, 507M and 742M parameters with patches of 2, of
    which 2.7M, 10.6M, 18.9M and 23.9M are the side block's, which only masked passes need.

    Samplers: `ddpm` (respaced, ancestral, with the learned variance), `ddim` (eta 0), `dpmsolver++` (second order,
    multistep). Guidance follows `dcprune.backends.mdt.sampling.PowerCosineGuidance`, so that `guidance_scale` is where
    its scale ends.

    Args:
        size: hidden size, depth and heads of the published networks, each of which can be replaced.
        patch_size: side of the square of latents that is a token.
        version: 2, or 1 for the network and the masks of the first version, which also took `snr_gamma=null`.
        decode_layer: blocks of the decoder; None takes 6 for S and B, 4 for L and XL, and 2 for version 1.
        hidden_size, depth, num_heads: in place of those of `size`.
        mask_ratio: lowest and highest share of masked tokens; one is drawn for every batch. None takes (0.3, 0.5), or
            (0.3, 0.3) for version 1.
        snr_gamma: weighs the error of the noise by min(SNR, gamma) / SNR; None leaves it unweighted.
        vae: the autoencoder, a repository of the hub or a folder; see `dcprune.autoencoder.load_autoencoder`.
        resolution: side of the square images in pixels.
        flips: encode mirror images, too, for training with `horizontal_flip`; without, latents are mirrored.
        guidance_power: the later guidance rises the larger it is.
        guided_channels: how many of the latents' channels are guided.
        weights: a checkpoint to start from instead of random weights: a file (`.safetensors`, or a `.pt` state dict as
            the authors release them), an address, or `released` for the authors' MDT-XL/2 of this version.
        new_classes: with `weights`, learn the classes anew and keep the rest; for data of other classes.

    Raises:
        OptionError: settings that contradict each other.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    samplers: ClassVar[Sequence[str]] = tuple(_SAMPLERS)
    num_train_timesteps = NUM_TRAIN_TIMESTEPS

    def __init__(
        self,
        *,
        size: Size = "S",
        patch_size: int = 2,
        version: int = 2,
        decode_layer: int | None = None,
        hidden_size: int | None = None,
        depth: int | None = None,
        num_heads: int | None = None,
        mask_ratio: tuple[float, float] | None = None,
        snr_gamma: float | None = 5.0,
        vae: str = STABLE_DIFFUSION,
        resolution: int = 256,
        flips: bool = True,
        guidance_power: float = 4.0,
        guided_channels: int = 3,
        weights: str | None = None,
        new_classes: bool = False,
    ) -> None:
        if size not in SIZES:
            raise UnknownName("size of mdt", size, SIZES)
        if version not in _MASK_RATIO:
            raise OptionError(f"version={version} of mdt is neither 1 nor 2.")
        known_width, known_depth, known_heads = SIZES[size]
        self.size = size
        self.patch_size = patch_size
        self.version = cast(Version, version)
        self.decode_layer = _DECODE_LAYER[self.version][size] if decode_layer is None else decode_layer
        self.hidden_size = known_width if hidden_size is None else hidden_size
        self.depth = known_depth if depth is None else depth
        self.num_heads = known_heads if num_heads is None else num_heads
        self.mask_ratio = _MASK_RATIO[self.version] if mask_ratio is None else (mask_ratio[0], mask_ratio[1])
        self.snr_gamma = snr_gamma
        self.vae = _absolute(vae)
        self.resolution = resolution
        self.flips = flips
        self.guidance_power = guidance_power
        self.guided_channels = guided_channels
        self.weights = None if weights is None else _absolute(weights)
        self.new_classes = new_classes
        self.knows_null_condition = weights is not None
        self._check()
        self._loss = LearnedVarianceLoss(snr_gamma)

    def settings(self) -> dict[str, Any]:
        """Every constructor argument as it was resolved, tuples as lists."""
        return {
            "size": self.size,
            "patch_size": self.patch_size,
            "version": self.version,
            "decode_layer": self.decode_layer,
            "hidden_size": self.hidden_size,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "mask_ratio": list(self.mask_ratio),
            "snr_gamma": self.snr_gamma,
            "vae": self.vae,
            "resolution": self.resolution,
            "flips": self.flips,
            "guidance_power": self.guidance_power,
            "guided_channels": self.guided_channels,
            "weights": self.weights,
            "new_classes": self.new_classes,
        }

    def downloads(self, cache_dir: Path) -> list[Download]:
        """Files that training fetches unless they are there: the autoencoder, and a checkpoint to start from."""
        found = autoencoder_files(self.vae, cache_dir)
        if self.weights is not None:
            found += storage.checkpoint_downloads(self.weights, self.version, cache_dir)
        return found

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

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> torch.nn.Module:
        """A network with random weights, or with those of `weights`.

        Raises:
            OptionError: a shape of latents that `patch_size` does not divide.
            WeightsError: weights that cannot be had, or do not fit.
        """
        channels, height, width = sample_shape
        if height != width:
            raise OptionError(f"The mdt backend needs square latents, not {height}x{width}.")
        shape = Shape(
            version=self.version,
            hidden_size=self.hidden_size,
            depth=self.depth,
            num_heads=self.num_heads,
            patch_size=self.patch_size,
            decode_layer=self.decode_layer,
            input_size=height,
            in_channels=channels,
            num_classes=num_classes,
        )
        network = build(shape, seed)
        if self.weights is None:
            return network
        path = storage.checkpoint_path(self.weights, self.version, cache_dir(), SILENT)
        classes = network.y_embedder.embedding_table.weight.detach() if self.new_classes else None
        return storage.from_checkpoint(shape, path, classes).train()

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Loss of the whole pass plus loss of the masked one, float32 [B]; its noise and masks are drawn here.

        A label is dropped in both passes or in neither, where the authors drop it in each by itself: the expectation is
        the same.
        """
        shape = unwrapped(model).shape
        other_noise = batch.drawn(torch.randn, generator, *batch.x0.shape[1:])
        kept = draw_kept(batch, generator, shape.num_tokens, self.mask_ratio)
        x0, noises, times = torch.cat([batch.x0, batch.x0]), torch.cat([noise, other_noise]), timesteps.repeat(2)
        labels = torch.where(batch.dropped, shape.num_classes, batch.labels if shape.num_classes else 0).repeat(2)
        x_t = self._loss.noised(x0, noises, times)
        output = model(x_t, times, labels, kept.order, kept.present).float()
        whole, masked = self._loss(output, x0, noises, times).chunk(2)
        return whole + masked

    @torch.inference_mode()
    def sample(
        self, model: torch.nn.Module, labels: torch.Tensor, seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, 3, R, R] on the model's device.

        All noise of image i is drawn on the CPU by a generator seeded with `seeds[i]`.

        Raises:
            UnknownName: no such sampler.
            OptionError: more steps than the model was trained with.
            WeightsError: no autoencoder, or another one than the model was trained with.
        """
        draw = _SAMPLERS.get(sampling.sampler)
        if draw is None:
            raise UnknownName("sampler of backend 'mdt'", sampling.sampler, self.samplers)
        network = unwrapped(model)
        shape, device = network.shape, next(model.parameters()).device
        decoder = self._decoder_of(network).to(device)
        guided = samplers.PowerCosineGuidance(
            model,
            labels.to(device),
            guidance_scale=sampling.guidance_scale,
            power=self.guidance_power,
            channels=self.guided_channels,
        )
        noise = ImageNoise(seeds, (shape.in_channels, shape.input_size, shape.input_size), device)
        return decoder.decode(draw(guided, sampling.num_inference_steps, noise))

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write `model.safetensors` and `config.json`, which names the autoencoder and its hash; see `storage.save`."""
        vae = self._autoencoder
        storage.save(unwrapped(model), folder, VaeReference(vae.name, vae.sha256))

    def load(self, folder: Path) -> torch.nn.Module:
        """The model of a folder that `save` wrote, on the CPU, in inference mode.

        Raises:
            WeightsError: the folder does not hold such a model.
        """
        return storage.load(folder)

    @cached_property
    def _autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.vae)

    def _decoder_of(self, network: MaskedTransformer) -> Autoencoder:
        """The autoencoder, which must be the one that a model from a folder was trained with.

        Raises:
            WeightsError: it is another one.
        """
        found = self._autoencoder
        if network.vae is not None and network.vae.sha256 != found.sha256:
            raise WeightsError(
                f"The model was trained with the autoencoder {network.vae.name} (sha256 {network.vae.sha256[:9]}), but "
                f"{self.vae} now holds another (sha256 {found.sha256[:9]}). Put the first one back."
            )
        return found

    def _check(self) -> None:
        check_depth(self.version, self.depth, self.decode_layer)
        lowest, highest = self.mask_ratio
        if not 0 <= lowest <= highest < 1:
            raise OptionError(f"mask_ratio={list(self.mask_ratio)}: need 0 <= lowest <= highest < 1.")
        if self.snr_gamma is not None and not self.snr_gamma > 0:
            raise OptionError(f"snr_gamma={self.snr_gamma} is not above 0.")
        if self.resolution < 1:
            raise OptionError(f"resolution={self.resolution} is not a positive number of pixels.")
        if not self.guidance_power > 0:
            raise OptionError(f"guidance_power={self.guidance_power} is not above 0.")
        if self.guided_channels < 1:
            raise OptionError(f"guided_channels={self.guided_channels} is below 1.")
        if self.new_classes and self.weights is None:
            raise OptionError("new_classes=true needs weights to start from.")


def _absolute(name: str) -> str:
    """A file or folder so that it is found from every working directory; any other name as it is."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
