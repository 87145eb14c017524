"""MDT networks in folders, and in the checkpoint files of their authors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from pydantic import TypeAdapter, ValidationError

from dcprune.backends.mdt.network import MaskedTransformer, Shape, VaeReference, Version, empty
from dcprune.downloads import fetch, hub_file
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import Download, Progress
from dcprune.weights import fit_weights, read_weights, write_weights

CONFIG_FILE: Final = "config.json"
WEIGHTS_FILE: Final = "model.safetensors"
RELEASED: Final = "released"

_REPOSITORY = "shgao/MDT-XL2"
_RELEASED_FILES: Final[dict[Version, str]] = {1: "mdt_xl2_v1_ckpt.pt", 2: "mdt_xl2_v2_ckpt.pt"}
_CLASS_TABLE = "y_embedder.embedding_table.weight"


@dataclass(frozen=True)
class Config:
    """What `config.json` holds."""

    shape: Shape
    vae: VaeReference


def save(network: MaskedTransformer, folder: Path, vae: VaeReference) -> None:
    """Write `model.safetensors`, with the tensor names of the released checkpoints, and `config.json`.

    Given a network of the authors' own code and the same shape, its tensors are

        network.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    """
    write_weights(folder / WEIGHTS_FILE, {name: each.cpu() for name, each in network.state_dict().items()}, {})
    config = {"_class_name": type(network).__name__, **asdict(Config(network.shape, vae))}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> MaskedTransformer:
    """The network of a folder that `save` wrote, on the CPU, in inference mode.

    Raises:
        WeightsError: the folder does not hold one.
    """
    try:
        stored = json.loads((folder / CONFIG_FILE).read_bytes())
        config = TypeAdapter(Config).validate_python(stored)
    except (OSError, ValueError, OptionError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise WeightsError(f"{folder} does not hold a model of the mdt backend: {reason}.") from error
    path = folder / WEIGHTS_FILE
    network = _with_weights(config.shape, read_weights(path)[0], path, f"the network of {folder / CONFIG_FILE}")
    network.vae = config.vae
    return network.eval()


def _with_weights(shape: Shape, state: Mapping[str, torch.Tensor], path: Path, what: str) -> MaskedTransformer:
    """A network on the CPU with the tensors of `state`, which come from `path`.

    Raises:
        WeightsError: tensors that do not fit `what`.
    """
    with torch.device("meta"):
        network = empty(shape)
    fit_weights(network, state, str(path), what)
    return network


def from_checkpoint(shape: Shape, path: Path, classes: torch.Tensor | None) -> MaskedTransformer:
    """A network that starts from a checkpoint: a `.safetensors` file, or a state dict as MDT's authors release them.

    Args:
        shape: of the network.
        path: the checkpoint.
        classes: float32 [K + 1, D], new class embeddings, of which the last, the null condition, stays the
            checkpoint's; None keeps all of the checkpoint's.

    Raises:
        WeightsError: a file that cannot be read, or whose tensors do not fit.
    """
    state, _ = read_weights(path)
    known = state.get(_CLASS_TABLE)
    if known is not None and known.ndim == 2 and known.shape[1] == shape.hidden_size:
        if classes is not None:
            state[_CLASS_TABLE] = torch.cat([classes[:-1], known[-1:].float()])
        elif len(known) != shape.num_classes + 1:
            raise WeightsError(
                f"The weights {str(path)!r} know {len(known) - 1} classes, the data has {shape.num_classes}. "
                "--set new_classes=true learns the classes anew and keeps everything else."
            )
    return _with_weights(shape, state, path, f"MDTv{shape.version} of this shape")


def checkpoint_downloads(weights: str, version: Version, cache_dir: Path) -> list[Download]:
    """What a `weights` setting fetches: the authors' checkpoint of MDT-XL/2, a file of the hub or of an address."""
    if weights == RELEASED:
        return [hub_file(_REPOSITORY, _RELEASED_FILES[version], cache_dir)]
    if "://" in weights:
        return [Download(weights, cache_dir / "checkpoints" / weights.rpartition("/")[2])]
    return []


def checkpoint_path(weights: str, version: Version, cache_dir: Path, progress: Progress) -> Path:
    """The file of a `weights` setting on this machine, fetched where it has to be.

    Raises:
        WeightsError: no such file, or a failed download.
    """
    for download in checkpoint_downloads(weights, version, cache_dir):
        return fetch(download, progress)
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"The weights {weights!r} are not a file: give a path, an address (https:// or hf://org/name/file), or "
            f"{RELEASED!r} for the authors' MDT-XL/2."
        )
    return path
