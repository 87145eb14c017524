"""Models of diffusers in folders that `save_pretrained` wrote, on this machine or on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dcprune.downloads import fetch, hub_file
from dcprune.errors import OptionError, WeightsError
from dcprune.interfaces import Download, Progress
from dcprune.weights import reason

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE)
_WEIGHTS_FILES = (WEIGHTS_FILE, "diffusion_pytorch_model.bin")
_REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<subfolder>.+))?")


@dataclass(frozen=True)
class Folder:
    """A folder of diffusers by the name that a user gives it.

    Attributes:
        name: a folder on this machine, or a repository of the hub, `org/name[@revision][/subfolder]`. A folder that is
            called like a repository goes before it.

    Raises:
        OptionError: neither of them.
    """

    name: str

    def __post_init__(self) -> None:
        if self.local is None and _REPOSITORY.fullmatch(self.name) is None:
            raise OptionError(
                f"{self.name!r} is neither a folder nor a repository of the hub: write org/name, org/name/subfolder or "
                "./folder."
            )

    @property
    def local(self) -> Path | None:
        """The folder, where it is one."""
        path = Path(self.name).expanduser()
        return path if path.is_dir() else None

    def downloads(self, files: Sequence[str], cache_dir: Path) -> list[Download]:
        """Files that come from the hub; none for a local folder."""
        found = _REPOSITORY.fullmatch(self.name)
        if self.local is not None or found is None:
            return []
        prefix = f"{found['subfolder']}/" if found["subfolder"] else ""
        return [hub_file(found["repo"], prefix + file, cache_dir, revision=found["revision"] or "") for file in files]

    def fetch(self, files: Sequence[str], cache_dir: Path, progress: Progress) -> Path:
        """The folder on this machine, with `files` in it, downloaded where it comes from the hub.

        Raises:
            WeightsError: a failed download, or files that were put into unlike places by hand.
        """
        if self.local is not None:
            return self.local
        declared = self.downloads(files, cache_dir)
        instead = f"name a folder of this machine in the place of {self.name}"
        paths = [fetch(each, progress, instead=instead) for each in declared]
        # An older repository holds another name in the place of one of these.
        roots = [path.parents[len(Path(file).parts) - 1] for path, file in zip(paths, files, strict=True)]
        if any(root != roots[0] for root in roots):
            raise WeightsError(f"{paths[0]} and the other files of {self.name} belong into one folder: {roots[0]}.")
        return roots[0]


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


def load_model(model_class: Any, folder: Path, *, stored_as: str | None = None) -> tuple[nn.Module, Path]:
    """A model on the CPU, in inference mode, with every tensor of its file; and that file.

    Args:
        model_class: its class in diffusers.
        folder: what `save_pretrained` wrote.
        stored_as: what the folder calls the class; its name by default.

    Raises:
        WeightsError: another class, no weights, or tensors that do not fit.
    """
    try:
        found = json.loads((folder / CONFIG_FILE).read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / CONFIG_FILE} cannot be read: {error}.") from error
    name = stored_as or model_class.__name__
    if found != name:
        raise WeightsError(f"{folder} holds {found or 'something else'}, not {name} of diffusers.")
    files = [folder / name for name in _WEIGHTS_FILES if (folder / name).is_file()]
    if not files:
        others = sorted(each.name for each in folder.glob("*.safetensors"))
        instead = f" It has {', '.join(others[:3])}: save it in one file without a variant," if others else ""
        fix = " `save_pretrained(folder, max_shard_size='100GB')` of diffusers." if others else ""
        raise WeightsError(f"{folder} has no {WEIGHTS_FILE}.{instead}{fix}")
    try:
        model, info = model_class.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    except Exception as error:  # a file may hold anything, and diffusers raises what comes
        raise WeightsError(f"{files[0]} does not load as {name}: {reason(error)}.") from error
    wrong = [f"{name} is missing" for name in info["missing_keys"]]
    wrong += [f"{name} is unknown" for name in info["unexpected_keys"]]
    if wrong:
        raise WeightsError(f"{files[0]} does not fit its {CONFIG_FILE}: {'; '.join(wrong[:3])}.")
    network: nn.Module = model.eval().requires_grad_(False)
    return network, files[0]
