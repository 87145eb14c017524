"""Weight files: safetensors, and state dicts that torch reads without running code."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from dcprune.downloads import checkpoint, fetch
from dcprune.errors import WeightsError
from dcprune.interfaces import Download, Progress


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors on the CPU, and the metadata of a safetensors file (empty for others).

    A training checkpoint that holds the tensors under `state_dict` or `model` is taken for those.

    Raises:
        WeightsError: missing, damaged, or something else than a dict of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as stored:
                return {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata() or {}  # noqa: SIM118
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"Cannot read the weights {str(path)!r}: {reason(error)}. A .safetensors file or a state dict of tensors "
            "(.pt, .pth) is needed; anything that would run code is refused."
        ) from error
    if isinstance(state, Mapping):
        nested = [state[name] for name in ("state_dict", "model") if isinstance(state.get(name), Mapping)]
        state = nested[0] if nested else state
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(each, torch.Tensor) for each in state.values())
    ):
        raise WeightsError(f"The weights {str(path)!r} are not a state dict: save `model.state_dict()` instead.")
    return dict(state), {}


def reason(error: Exception) -> str:
    """What a library said, on one line and not too long."""
    said = textwrap.shorten(str(error), 300, placeholder=" ...").rstrip(".") if str(error).strip() else ""
    return said or type(error).__name__


def weights_path(weights: str | None, default: Sequence[Download], progress: Progress) -> Path:
    """The file that a user gave, or else the one that `downloads` declared, fetched.

    Raises:
        WeightsError: no such file, or a failed download.
    """
    if weights is None:
        (path,) = (fetch(file, progress) for file in default)
        return path
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(f"The weights file {weights!r} does not exist.")
    return path


def fit_weights(network: nn.Module, state: Mapping[str, torch.Tensor], origin: str, what: str) -> None:
    """Give a network, which may be on the meta device, the tensors of a state dict. Counters of batches may be missing.

    Args:
        network: changed in place.
        state: exactly its tensors.
        origin: where they come from, for the message.
        what: the network in words, for the message.

    Raises:
        WeightsError: tensors that are missing, unknown or of another shape.
    """
    expected = network.state_dict()
    wrong = [
        f"{name} is missing" for name in expected.keys() - state.keys() if not name.endswith("num_batches_tracked")
    ]
    wrong += [f"{name} is unknown" for name in state.keys() - expected.keys()]
    wrong += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"The weights {origin!r} do not fit {what}: {'; '.join(sorted(wrong)[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}."
        )
    fitted = {name: state.get(name, torch.tensor(0)).to(tensor.dtype) for name, tensor in expected.items()}
    network.load_state_dict(fitted, assign=True)


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
