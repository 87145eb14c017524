"""Models of diffusers in folders that `save_pretrained` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from dcprune.encoders.weights import reason
from dcprune.errors import WeightsError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
_WEIGHTS_FILES = (WEIGHTS_FILE, "diffusion_pytorch_model.bin")


def model_folder(path: Path, names: tuple[str, ...], what: str) -> Path:
    """`path`, or the first of its sub-folders `names`, that holds a model.

    Raises:
        WeightsError: none does, or `path` is no folder.
    """
    for folder in (path, *(path / name for name in names)):
        if (folder / CONFIG_FILE).is_file():
            return folder
    problem = "has no config.json" if path.is_dir() else "is not a folder" if path.exists() else "does not exist"
    raise WeightsError(f"{str(path)!r} {problem}: {what} is needed.")


def load_model(model_class: Any, folder: Path) -> tuple[nn.Module, Path]:
    """A model on the CPU, in inference mode, with every tensor of its file; and that file.

    Args:
        model_class: its class in diffusers.
        folder: what `save_pretrained` wrote.

    Raises:
        WeightsError: another class, no weights, or tensors that do not fit.
    """
    try:
        found = json.loads((folder / CONFIG_FILE).read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} cannot be read: {error}.") from error
    if found != model_class.__name__:
        raise WeightsError(f"{folder} holds {found or 'something else'}, not {model_class.__name__} of diffusers.")
    files = [folder / name for name in _WEIGHTS_FILES if (folder / name).is_file()]
    if not files:
        raise WeightsError(f"{folder} has no {WEIGHTS_FILE}.")
    try:
        model, info = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # a file may hold anything, and diffusers raises what comes
        raise WeightsError(f"{files[0]} does not load as {model_class.__name__}: {reason(error)}.") from error
    wrong = [f"{name} is missing" for name in info["missing_keys"]]
    wrong += [f"{name} is unknown" for name in info["unexpected_keys"]]
    if wrong:
        raise WeightsError(f"{files[0]} does not fit its {CONFIG_FILE}: {'; '.join(wrong[:3])}.")
    network: nn.Module = model.eval().requires_grad_(False)
    return network, files[0]
