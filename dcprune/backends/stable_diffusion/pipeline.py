"""The parts of a Stable Diffusion pipeline that are not trained, and how the whole is read and written."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from dcprune.autoencoder import Autoencoder, load_autoencoder
from dcprune.backends.layout import DeviceLayout
from dcprune.devices import cache_dir as default_cache_dir
from dcprune.diffusers_folder import MODEL_FILES, WEIGHTS_FILE, Folder, load_model
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import Download, Progress
from dcprune.weights import reason, sha256

_TEXT_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_VAE_WEIGHTS = (WEIGHTS_FILE, "diffusion_pytorch_model.bin")
_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
_INDEX = ("_class_name", "_diffusers_version", "scheduler", "text_encoder", "tokenizer", "unet", "vae")
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    *(f"{part}/{file}" for part in ("unet", "vae") for file in MODEL_FILES),
)


class UNet(DeviceLayout, UNet2DConditionModel):  # type: ignore[misc]
    """Diffusers' `UNet2DConditionModel`, with its names and weights."""


def downloads(name: str, cache_dir: Path) -> list[Download]:
    """What `PipelineFolder.fetch` gets from the hub; none for a folder."""
    return Folder(name).downloads(FILES, cache_dir)


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that `StableDiffusionPipeline.save_pretrained` wrote; its parts are read when they are asked for.

    Attributes:
        name: what it was asked for by.
        path: the folder on this machine.
    """

    name: str
    path: Path

    @classmethod
    def fetch(cls, name: str, progress: Progress) -> PipelineFolder:
        """A folder, or a repository of the hub that is downloaded if need be.

        Raises:
            OptionError: neither of them.
            WeightsError: a failed download, or another kind of pipeline.
        """
        return cls(name, Folder(name).fetch(FILES, default_cache_dir(), progress)).checked()

    def checked(self) -> PipelineFolder:
        """This, if it holds a Stable Diffusion pipeline.

        Raises:
            WeightsError: it holds none.
        """
        index = self._json("model_index.json")
        encoder = index.get("text_encoder")
        if not isinstance(encoder, list) or encoder[-1] != "CLIPTextModel" or "text_encoder_2" in index:
            raise WeightsError(
                f"{self.path} holds {index.get('_class_name', 'something else')}, whose prompts are not read by one "
                "CLIP text model: a Stable Diffusion 1 or 2 pipeline is needed."
            )
        for part in _PARTS:
            if not (self.path / part).is_dir():
                raise WeightsError(f"{self.path} has no folder {part}: it is no whole Stable Diffusion pipeline.")
        if not any((self.path / "tokenizer" / name).is_file() for name in ("vocab.json", "tokenizer.json")):
            raise WeightsError(f"{self.path / 'tokenizer'} has no vocab.json.")
        width, texts = self._json("unet/config.json"), self._json("text_encoder/config.json")
        if width.get("cross_attention_dim") != texts.get("hidden_size"):
            raise WeightsError(
                f"The U-Net of {self.path} reads texts of width {width.get('cross_attention_dim')}, and its text model "
                f"writes {texts.get('hidden_size')}: they are not of one pipeline."
            )
        if "beta_start" not in self.scheduler.config:
            raise WeightsError(f"{self.path / 'scheduler'} has no betas: a pipeline that adds noise as DDPM is needed.")
        return self

    def unet(self) -> nn.Module:
        """The network, on the CPU, in inference mode and frozen.

        Raises:
            WeightsError: it is not there, or its tensors do not fit.
        """
        return load_model(UNet, self.path / "unet", stored_as="UNet2DConditionModel")[0]

    @property
    def vae(self) -> str:
        """The name of its autoencoder."""
        return f"{self.name}/vae"

    @cached_property
    def autoencoder(self) -> Autoencoder:
        return load_autoencoder(self.path)

    @cached_property
    def scheduler(self) -> Any:
        """The scheduler that the pipeline brings, of whichever class of diffusers.

        Raises:
            WeightsError: it cannot be read.
        """
        name = self._json("scheduler/scheduler_config.json").get("_class_name", "")
        kind = getattr(diffusers, str(name), None)
        if kind is None or not hasattr(kind, "from_pretrained"):
            raise WeightsError(f"{self.path / 'scheduler'} names {name!r}, which diffusers does not know.")
        return kind.from_pretrained(self.path / "scheduler", local_files_only=True)

    @cached_property
    def texts(self) -> TextEncoder:
        """Tokenizer and text model.

        Raises:
            WeightsError: they cannot be read.
            OptionError: transformers is not installed.
        """
        try:
            from transformers import CLIPTextModel, CLIPTokenizer
            from transformers.utils import logging as transformers_logging
        except ImportError as error:
            raise OptionError("The sd backend needs transformers: pip install 'dcprune[sd]'.") from error
        files = [self.path / "text_encoder" / name for name in _TEXT_WEIGHTS]
        weights = next((file for file in files if file.is_file()), None)
        if weights is None:
            raise WeightsError(f"{self.path / 'text_encoder'} has no {_TEXT_WEIGHTS[0]}.")
        logging: Any = transformers_logging
        bars = logging.is_progress_bar_enabled()
        try:
            logging.disable_progress_bar()
            tokenizer = CLIPTokenizer.from_pretrained(self.path / "tokenizer", local_files_only=True)
            model: Any = CLIPTextModel.from_pretrained(self.path / "text_encoder", local_files_only=True)
        except Exception as error:  # a file may hold anything, and transformers raises what comes
            raise WeightsError(f"The text encoder of {self.path} cannot be read: {reason(error)}.") from error
        finally:
            if bars:
                logging.enable_progress_bar()
        return TextEncoder(tokenizer, model.to(torch.float32).eval().requires_grad_(False), sha256(weights))

    def write(self, unet: nn.Module, folder: Path) -> None:
        """Write a whole pipeline into `folder`: the files of this one's frozen parts, and another network."""
        for part, weights in (
            ("scheduler", ()),
            ("tokenizer", ()),
            ("text_encoder", _TEXT_WEIGHTS),
            ("vae", _VAE_WEIGHTS),
        ):
            _copy(self.path / part, folder / part, weights)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
        config: Any = unet.config
        with torch.device("meta"):
            plain = UNet2DConditionModel.from_config({name: config[name] for name in config if name != "_name_or_path"})
        plain.load_state_dict(state, assign=True)
        plain.save_pretrained(folder / "unet")
        index = {name: value for name, value in self._json("model_index.json").items() if name in _INDEX}
        absent = {name: [None, None] for name in ("safety_checker", "feature_extractor", "image_encoder")}
        document = {**index, **absent, "requires_safety_checker": False}
        (folder / "model_index.json").write_text(json.dumps(document, indent=2) + "\n")

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads((self.path / name).read_text())
        except (OSError, ValueError) as error:
            raise WeightsError(f"{self.path / name} cannot be read: {error}.") from error
        if not isinstance(found, dict):
            raise WeightsError(f"{self.path / name} is no JSON object.")
        return found


def _copy(source: Path, target: Path, weights: Sequence[str]) -> None:
    """Copy the small files of a part, and the first of `weights` that is there, byte for byte."""
    target.mkdir()
    files = [file for file in source.iterdir() if file.suffix in (".json", ".txt") and ".index." not in file.name]
    files += [source / name for name in weights if (source / name).is_file()][:1]
    for file in files:
        shutil.copyfile(file, target / file.name)


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text model, which computes in float32 whatever autocast says.

    Attributes:
        tokenizer, model: of transformers.
        sha256: hash of the model's weights file.
    """

    tokenizer: Any
    model: Any
    sha256: str

    def key(self) -> dict[str, Any]:
        """What embeddings depend on besides their texts."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return {
            "text_encoder_sha256": self.sha256,
            "vocabulary_sha256": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "max_length": int(self.tokenizer.model_max_length),
        }

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], device: torch.device) -> torch.Tensor:
        """Last hidden states float32 [B, L, D], as the pipeline computes them; longer texts are cut off."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        model = self.model.to(device)
        mask = tokens.attention_mask.to(device) if getattr(model.config, "use_attention_mask", False) else None
        with torch.autocast(device.type, enabled=False):
            hidden: torch.Tensor = model(tokens.input_ids.to(device), attention_mask=mask)[0]
        return hidden.float()
