"""Weight files: safetensors, and state dicts that torch reads without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from dcprune.errors import WeightsError


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors on the CPU, and the metadata of a safetensors file (empty for others).

    Raises:
        WeightsError: missing, damaged, or something else than a dict of tensors.
    """
    if not path.is_file():
        raise WeightsError(f"The weights file {str(path)!r} does not exist.")
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        reason = str(error).split("\n", 1)[0][:200] or type(error).__name__
        raise WeightsError(
            f"Cannot read the weights {str(path)!r}: {reason}. A .safetensors file or a state dict of tensors "
            "(.pt, .pth) is needed; anything that would run code is refused."
        ) from error
    if not isinstance(state, Mapping) or not all(isinstance(each, torch.Tensor) for each in state.values()):
        raise WeightsError(f"The weights {str(path)!r} are not a state dict: save `model.state_dict()` instead.")
    return dict(state), {}


def write_weights(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, all or nothing; the same tensors and metadata give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = safetensors.torch.save({name: each.contiguous() for name, each in state.items()}, dict(metadata))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as temporary:
        try:
            temporary.write(data)
            temporary.flush()
            os.fsync(temporary.fileno())
            Path(temporary.name).replace(path)
        except BaseException:
            Path(temporary.name).unlink(missing_ok=True)
            raise


def sha256(path: Path) -> str:
    """Hash of a file, as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def torchvision_weights(weights: object) -> tuple[dict[str, torch.Tensor], Path]:
    """State dict of a member of a torchvision weights enum, and the file it lies in; `TORCH_HOME` is honoured.

    Raises:
        WeightsError: it is not there and cannot be downloaded, or is damaged.
    """
    url = str(weights.url)  # type: ignore[attr-defined]
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    try:
        state: dict[str, torch.Tensor] = weights.get_state_dict(  # type: ignore[attr-defined]
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"The weights {file.name} cannot be had: {reason}. Fetch {url} and put it into {str(file.parent)!r} "
            "(TORCH_HOME moves that folder), or give a file with --weights PATH."
        ) from error
    return state, file
