"""`sd`: fine-tunes the U-Net of a Stable Diffusion pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from dcprune.backends.denoising import DenoisingLoss
from dcprune.backends.noise import ImageNoise
from dcprune.backends.pixels import fit_square
from dcprune.backends.samplers import PredictionType, check_steps
from dcprune.backends.stable_diffusion.lora import add_adapters, has_adapters, merged, save_adapters
from dcprune.backends.stable_diffusion.pipeline import PipelineFolder, downloads
from dcprune.backends.stable_diffusion.presets import PRESETS
from dcprune.backends.stable_diffusion.prompts import (
    EMPTY,
    UNCONDITIONAL,
    Prompts,
    PromptSource,
    check_template,
    doubts,
    prompted,
)
from dcprune.devices import layout
from dcprune.errors import OptionError, UnknownName, WeightsError
from dcprune.interfaces import (
    Batch,
    DatasetSource,
    Download,
    PreparationContext,
    Preset,
    Progress,
    Sampling,
    TrainingData,
)
from dcprune.progress import SILENT

_SAMPLERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": (EulerDiscreteScheduler, {}),
}
# Texts whose embeddings are kept between batches of samples.
_KEPT_TEXTS = 1024


class PromptedLatents:
    """Latents with the embedding of every sample's text; a `TrainingData` that is `Conditioned`.

    Args:
        latents: of the N samples.
        embeddings: rows int64 [B] of the texts -> float32 [B, L, D].
        of_sample: int64 [N], the text of every sample, on the device.
    """

    def __init__(
        self,
        latents: TrainingData,
        embeddings: Callable[[torch.Tensor], torch.Tensor],
        of_sample: torch.Tensor,
    ) -> None:
        self.latents = latents
        self.embeddings = embeddings
        self.of_sample = of_sample
        self.labels = latents.labels
        self.sample_shape = latents.sample_shape

    def __len__(self) -> int:
        return len(self.latents)

    def x0(self, rows: torch.Tensor, flip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """See `dcprune.latents.Latents.x0`."""
        return self.latents.x0(rows, flip, generator)

    def images(self, rows: torch.Tensor) -> torch.Tensor:
        """See `dcprune.latents.Latents.images`."""
        return self.latents.images(rows)

    def condition(self, rows: torch.Tensor) -> torch.Tensor:
        """Embeddings float32 [B, L, D] of the texts of `rows` int64 [B]."""
        return self.embeddings(self.of_sample[rows])


class StableDiffusion:
    """Latent diffusion conditioned on text (Rombach et al. 2022, arXiv 2112.10752), fine-tuned.

    The U-Net of a pipeline learns; its autoencoder and text encoder are frozen, and what they say about the samples is
    computed once, before training. The forward process and what is predicted are those of the pipeline's scheduler.
    A sample's text is its caption, or its class put into a template; the null condition is the empty text. A finished
    model is a whole pipeline again, which `StableDiffusionPipeline.from_pretrained` opens; with LoRA the adapters are
    merged into its U-Net, and lie alone in its folder `lora`, too.

    Samplers, all of diffusers: `ddim` (eta 0), `dpmsolver++` (second order, multistep), `euler`. Images of captioned
    data are drawn for captions of their class, chosen by their seeds.

    Args:
        pretrained: a repository of the hub, `org/name[@revision]`, or a folder of a Stable Diffusion 1 or 2 pipeline.
        resolution: side of the square images in pixels.
        prompts: `captions`, or `classes` put into the template; `auto` takes captions where the dataset has some.
        template: text for a class, with `{class}` in it.
        flips: encode mirror images, too, for training with `horizontal_flip`; without, latents are mirrored.
        snr_gamma: see `dcprune.backends.min_snr`; None leaves the loss unweighted.
        lora_rank: train adapters of this rank on the attention instead of all weights; None trains all weights.
        gradient_checkpointing: compute activations twice instead of keeping them: less memory, a third more work.
        num_train_timesteps: T of the pipeline's scheduler, which must agree.

    Raises:
        OptionError: settings out of range.
    """

    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    samplers: ClassVar[Sequence[str]] = tuple(_SAMPLERS)

    def __init__(
        self,
        *,
        pretrained: str = "CompVis/stable-diffusion-v1-4",
        resolution: int = 256,
        prompts: PromptSource = "auto",
        template: str = "a photo of a {class}",
        flips: bool = True,
        snr_gamma: float | None = None,
        lora_rank: int | None = None,
        gradient_checkpointing: bool = False,
        num_train_timesteps: int = 1000,
    ) -> None:
        check_template(template)
        for name, value in (("resolution", resolution), ("snr_gamma", snr_gamma), ("lora_rank", lora_rank)):
            if value is not None and not value > 0:
                raise OptionError(f"{name}={value} is not above 0.")
        self.pretrained = pretrained
        self.resolution = resolution
        self.prompts: PromptSource = prompts
        self.template = template
        self.flips = flips
        self.snr_gamma = snr_gamma
        self.lora_rank = lora_rank
        self.gradient_checkpointing = gradient_checkpointing
        self.num_train_timesteps = num_train_timesteps
        self._found: PipelineFolder | None = None
        self._asked = UNCONDITIONAL
        self._null: torch.Tensor | None = None
        self._loss: DenoisingLoss | None = None
        self._embedded: dict[tuple[str, torch.device], torch.Tensor] = {}

    def settings(self) -> dict[str, Any]:
        """Every constructor argument."""
        return {
            "pretrained": self.pretrained,
            "resolution": self.resolution,
            "prompts": self.prompts,
            "template": self.template,
            "flips": self.flips,
            "snr_gamma": self.snr_gamma,
            "lora_rank": self.lora_rank,
            "gradient_checkpointing": self.gradient_checkpointing,
            "num_train_timesteps": self.num_train_timesteps,
        }

    def downloads(self, cache_dir: Path) -> list[Download]:
        """Files of the pipeline, where it comes from the hub."""
        return downloads(self.pretrained, cache_dir)

    def to_resolution(self, images: torch.Tensor) -> torch.Tensor:
        """Images uint8 [B, C, H, W] -> uint8 [B, C, resolution, resolution]."""
        return fit_square(images, self.resolution)

    def prepare(self, dataset: DatasetSource, context: PreparationContext) -> PromptedLatents:
        """Latents, and the embeddings of all distinct texts.

        Raises:
            OptionError: captions or classes that the dataset does not have, or a resolution that does not fit.
            WeightsError: the pipeline cannot be loaded.
            DatasetError: an image cannot be decoded.
        """
        pipeline = self._pipeline(context.progress)
        samples = prompted(dataset, self.prompts, self.template)
        if doubt := doubts(dataset, self.prompts):
            context.progress.warn(doubt)
        latents = context.latents(dataset, vae=pipeline.vae, resolution=self.resolution, flips=self.flips)
        embeddings = context.texts(
            (*samples.texts, *(() if EMPTY in samples.texts else (EMPTY,))),
            lambda texts: pipeline.texts(texts, context.device),
            key=pipeline.texts.key(),
        )
        pipeline.texts.model.to("cpu")  # training needs the memory of its device
        null = samples.texts.index(EMPTY) if EMPTY in samples.texts else len(samples.texts)
        self._null = embeddings(torch.tensor([null], device=context.device))
        self._asked = samples.prompts
        return PromptedLatents(latents, embeddings, torch.from_numpy(samples.of_sample).to(context.device))

    def build(self, *, num_classes: int, sample_shape: tuple[int, ...], seed: int) -> torch.nn.Module:
        """The pretrained network; the seed is that of the adapters.

        Raises:
            OptionError: a network for other latents, such as one that paints into images, or peft is not installed.
            WeightsError: the network cannot be loaded.
        """
        unet: Any = PipelineFolder.fetch(self.pretrained, SILENT).unet()
        if unet.config.in_channels != sample_shape[0]:
            raise OptionError(
                f"The U-Net of {self.pretrained} takes {unet.config.in_channels} channels, and the latents have "
                f"{sample_shape[0]}: a text-to-image pipeline is needed."
            )
        _check_edge(unet, sample_shape[1])
        if num_classes == 0 and len(self._asked.by_label) > 1:
            self._asked = UNCONDITIONAL  # the run was asked not to look at the classes
        if self.lora_rank is None:
            unet.requires_grad_(True)
        else:
            add_adapters(unet, self.lora_rank, seed)
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return cast(torch.nn.Module, unet)

    def per_sample_loss(
        self,
        model: torch.nn.Module,
        batch: Batch,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        generator: torch.Generator,
    ) -> torch.Tensor:
        """Mean squared error of the prediction over latents, float32 [B]; nothing is drawn."""
        if batch.condition is None or self._null is None:
            raise TypeError("A batch of the sd backend has the embeddings of its texts, from data that it prepared.")
        texts = torch.where(batch.dropped[:, None, None], self._null, batch.condition)
        loss = self._denoising_loss()
        return loss(lambda x_t: _forward(model, x_t, timesteps, texts), batch.x0, timesteps, noise)

    def sample(
        self, model: torch.nn.Module, labels: torch.Tensor, seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] on the model's device, for the prompts of their labels.

        Raises:
            UnknownName: no such sampler.
            OptionError: more steps than the model was trained with.
        """
        by_label = self._asked.by_label
        asked = [
            self._asked.choose(label if len(by_label) > 1 else 0, seed)
            for label, seed in zip(labels.tolist(), seeds, strict=True)
        ]
        return self.sample_prompts(model, asked, seeds, sampling)

    @torch.inference_mode()
    def sample_prompts(
        self, model: torch.nn.Module, prompts: Sequence[str], seeds: Sequence[int], sampling: Sampling
    ) -> torch.Tensor:
        """Images uint8 [B, 3, H, W] on the model's device for B texts; image i depends on its text and seed alone.

        All noise of image i is drawn on the CPU by a generator seeded with `seeds[i]`, as diffusers' pipelines do.

        Raises:
            UnknownName: no such sampler.
            OptionError: more steps than the model was trained with.
        """
        if sampling.sampler not in _SAMPLERS:
            raise UnknownName("sampler of backend 'sd'", sampling.sampler, self.samplers)
        check_steps(sampling.num_inference_steps, self.num_train_timesteps)
        kind, options = _SAMPLERS[sampling.sampler]
        pipeline = self._pipeline()
        scheduler = kind.from_config(pipeline.scheduler.config, **options)
        with warnings.catch_warnings():  # of numpy, about how diffusers asks for arrays
            warnings.simplefilter("ignore", DeprecationWarning)
            scheduler.set_timesteps(sampling.num_inference_steps)
        device = next(model.parameters()).device
        autoencoder = pipeline.autoencoder.to(device)
        scale = sampling.guidance_scale
        texts = self._embeddings([EMPTY] * len(prompts) if scale == 0 else prompts, device)
        if scale not in (0, 1):
            texts = torch.cat([self._embeddings([EMPTY] * len(prompts), device), texts])
        noise = ImageNoise(seeds, autoencoder.sample_shape(self.resolution), device)
        x_t = noise() * float(scheduler.init_noise_sigma)
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x_t, timestep)
            both = torch.cat([scaled, scaled]) if len(texts) > len(x_t) else scaled
            times = torch.full((len(both),), float(timestep), device=device)
            output = _forward(model, both, times, texts)
            if len(texts) > len(x_t):
                unconditional, conditional = output.chunk(2)
                output = torch.lerp(unconditional, conditional, scale)
            x_t = scheduler.step(output, timestep, x_t, return_dict=False)[0]
        return autoencoder.decode(x_t)

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write a pipeline folder, and `prompts.json`, which says what images of a label are asked for."""
        if has_adapters(model):
            save_adapters(model, folder)
            model = merged(model)
        self._pipeline().write(model, folder)
        self._asked.save(folder)

    def load(self, folder: Path) -> torch.nn.Module:
        """The network of a folder that `save` wrote, on the CPU; its other parts are taken from there from now on.

        Raises:
            WeightsError: the folder does not hold such a model.
        """
        if not (folder / "model_index.json").is_file():
            raise WeightsError(f"{folder} does not hold a model of the sd backend: it has no model_index.json.")
        self._use(PipelineFolder(str(folder), folder).checked())
        self._asked = Prompts.load(folder)
        return self._pipeline().unet()

    @property
    def _prediction_type(self) -> PredictionType:
        found = str(self._pipeline().scheduler.config.get("prediction_type", "epsilon"))
        return cast(PredictionType, found)

    def _pipeline(self, progress: Progress = SILENT) -> PipelineFolder:
        """Where the frozen parts come from: the model that was loaded last, or else the pretrained pipeline."""
        if self._found is None:
            self._use(PipelineFolder.fetch(self.pretrained, progress))
        return cast(PipelineFolder, self._found)

    def _use(self, pipeline: PipelineFolder) -> None:
        found = int(pipeline.scheduler.config.num_train_timesteps)
        if found != self.num_train_timesteps:
            raise OptionError(
                f"num_train_timesteps={self.num_train_timesteps}, but {pipeline.name} was trained with {found}."
            )
        self._found = pipeline
        self._loss = None
        self._embedded.clear()

    def _denoising_loss(self) -> DenoisingLoss:
        """The loss on the chain of the pipeline that is used."""
        if self._loss is None:
            scheduler = DDPMScheduler.from_config(self._pipeline().scheduler.config)
            self._loss = DenoisingLoss(scheduler.alphas_cumprod, self._prediction_type, self.snr_gamma)
        return self._loss

    def _embeddings(self, texts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Embeddings float32 [B, L, D], computed text by text, so that they do not depend on one another."""
        found = {text: self._embedded.get((text, device)) for text in texts}
        for text, embedding in found.items():
            if embedding is None:
                found[text] = self._embedded[text, device] = self._pipeline().texts([text], device)
        while len(self._embedded) > _KEPT_TEXTS:
            self._embedded.pop(next(iter(self._embedded)))
        return torch.cat([cast(torch.Tensor, found[text]) for text in texts])


def _check_edge(unet: Any, edge: int) -> None:
    halvings = len(unet.config.block_out_channels) - 1
    if edge % 2**halvings:
        raise OptionError(
            f"Latents of {edge}x{edge} do not fit the U-Net, which halves them {halvings} times: choose a resolution "
            f"that is {2**halvings} times a multiple of what the autoencoder divides by."
        )


def _forward(model: torch.nn.Module, x: torch.Tensor, times: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    """The network's output [B, C, h, w] in float32, whatever autocast made of it."""
    output: torch.Tensor = model(x.contiguous(memory_format=layout(x.device)), times, texts, return_dict=False)[0]
    return output.float()
