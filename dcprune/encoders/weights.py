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

from dcprune.downloads import checkpoint
from dcprune.errors import WeightsError
from dcprune.interfaces import Download


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


def torchvision_file(weights: object) -> Download:
    """The file of a member of a torchvision weights enum; its name carries the start of its sha256."""
    url = str(weights.url)  # type: ignore[attr-defined]
    return checkpoint(url, sha256=url.rpartition("-")[2].partition(".")[0])
