"""Finds the files that items declare as a `Download`, or fetches them: from an address, or from the Hugging Face hub.

`HF_HUB_OFFLINE` forbids every download, not only those from the hub; `TORCH_HOME`, `HF_HOME` and `HF_HUB_CACHE` move
the caches of the libraries that own the files.
"""

from __future__ import annotations

import hashlib
import http.client
import inspect
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcprune.errors import InputError, WeightsError
from dcprune.interfaces import Download, Progress, Task

# What a repository of the hub may hold instead, when it is older than safetensors.
_OLDER_NAMES = {
    "model.safetensors": "pytorch_model.bin",
    "open_clip_model.safetensors": "open_clip_pytorch_model.bin",
    "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.bin",
}
_HUB_URL = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30


def hub_file(repo: str, file: str, cache_dir: Path, *, revision: str = "") -> Download:
    """A file of a Hugging Face repository `org/name`; one that was fetched by hand belongs under `cache_dir`/hub."""
    at = f"@{revision}" if revision else ""
    return Download(f"hf://{repo}{at}/{file}", cache_dir / "hub" / f"{repo.replace('/', '--')}{at}" / file)


def checkpoint(url: str, sha256: str = "") -> Download:
    """A file that belongs into the checkpoints folder of torch hub."""
    return Download(url, _checkpoints() / url.rpartition("/")[2], sha256)


def address(download: Download) -> str:
    """The https address that a browser fetches the file from."""
    if not download.url.startswith("hf://"):
        return download.url
    repo, revision, file = _hub_parts(download.url)
    return f"https://huggingface.co/{repo}/resolve/{revision or 'main'}/{file}"


def locate(download: Download) -> Path | None:
    """Where the file lies on this machine: at its path, or in the cache of torch hub or of Hugging Face."""
    for candidate in _names(download):
        if candidate.path.is_file():
            return candidate.path
        cached = _in_hub_cache(candidate) if candidate.url.startswith("hf://") else _in_torch_hub(candidate)
        if cached is not None:
            return cached
    return None


def missing(downloads: Sequence[Download]) -> list[str]:
    """What is not on this machine yet, as `address -> path`."""
    return [f"{address(each)} -> {each.path}" for each in downloads if locate(each) is None]


def fetch(
    download: Download,
    progress: Progress,
    *,
    error: type[InputError] = WeightsError,
    instead: str = "give your own with --weights PATH",
) -> Path:
    """The file on this machine, downloaded first when it is not there yet.

    What comes from an address is written beside its place, checked against its sha256 and renamed; what comes from the
    hub is left in the Hugging Face cache. A file that is there already is taken as it is.

    Args:
        download: what to get.
        progress: counts megabytes.
        error: class of the error.
        instead: what a user can do instead of fetching weights by hand, for the message.

    Raises:
        InputError: of class `error`: offline, unreachable, or with another hash than it should have; the message says
            what to fetch by hand and where to put it.
    """
    found = locate(download)
    if found is not None:
        return found
    hash_note = f" (sha256 {download.sha256})" if download.sha256 else ""
    advice = f"Fetch {address(download)} elsewhere{hash_note} and put it at {download.path}" + (
        f", or {instead}." if issubclass(error, WeightsError) else "."
    )
    name = download.path.name
    if _offline():
        raise error(f"{name} is not on this machine and HF_HUB_OFFLINE is set. {advice}")
    progress.note(f"Downloading {address(download)}")
    try:
        return (_from_hub if download.url.startswith("hf://") else _from_address)(download, progress)
    except (OSError, http.client.HTTPException, ValueError) as problem:
        reason = " ".join(str(problem).split())[:300] or type(problem).__name__
        raise error(f"{name} cannot be downloaded: {reason.rstrip('.')}. {advice}") from problem


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off")


def _names(download: Download) -> Iterator[Download]:
    """The download, and what an older repository holds in its place."""
    yield download
    older = _OLDER_NAMES.get(download.path.name)
    if older and download.url.startswith("hf://"):
        url = f"{download.url.rpartition('/')[0]}/{older}"
        yield replace(download, url=url, path=download.path.with_name(older))


# --- an address -------------------------------------------------------------------------------------------------------


def _checkpoints() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _in_torch_hub(download: Download) -> Path | None:
    path = _checkpoints() / download.url.rpartition("/")[2]
    return path if path.is_file() else None


def _from_address(download: Download, progress: Progress) -> Path:
    """Download to a name of its own beside `download.path`, check, rename.

    Raises:
        OSError: unreachable, cut off, or nowhere to write.
        ValueError: another hash.
    """
    path = download.path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    request = urllib.request.Request(download.url, headers={"User-Agent": "dcprune"})  # noqa: S310 - a declared address
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response, partial.open("wb") as file:  # noqa: S310
            size = int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
            digest = hashlib.sha256()
            with _megabytes(progress, path.name, size) as count:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    count.add(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if size is not None and count.bytes != size:
            raise OSError(f"the connection broke after {count.bytes:,} of {size:,} bytes")
        if not digest.hexdigest().startswith(download.sha256):
            raise ValueError(f"what arrived has sha256 {digest.hexdigest()}, not {download.sha256}")
        partial.replace(path)
    except urllib.error.HTTPError as error:
        error.close()  # the refusal holds a connection
        raise
    finally:
        partial.unlink(missing_ok=True)
    return path


# --- the Hugging Face hub ---------------------------------------------------------------------------------------------


def _hub_parts(url: str) -> tuple[str, str | None, str]:
    """Repository, revision and file of an `hf://` address."""
    match = _HUB_URL.fullmatch(url)
    if match is None:
        raise ValueError(f"{url!r} is not of the form hf://org/name@revision/file")
    return match["repo"], match["revision"], match["file"]


def _in_hub_cache(download: Download) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    repo, revision, file = _hub_parts(download.url)
    cached = try_to_load_from_cache(repo, file, revision=revision)
    return Path(cached) if isinstance(cached, str) else None


def _from_hub(download: Download, progress: Progress) -> Path:
    """Download into the Hugging Face cache.

    Raises:
        OSError: whatever went wrong.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    counted = "tqdm_class" in inspect.signature(hf_hub_download).parameters  # since huggingface_hub 1.1
    missing: Exception | None = None
    for candidate in _names(download):
        repo, revision, file = _hub_parts(candidate.url)
        try:
            with _megabytes(progress, file, None) as count:
                bar: dict[str, Any] = {"tqdm_class": _bar_class(count)} if counted else {}
                return Path(hf_hub_download(repo, file, revision=revision, **bar))
        except Exception as error:  # the client raises errors of its own, and of its HTTP library
            if not isinstance(error, EntryNotFoundError) or isinstance(error, LocalEntryNotFoundError):
                raise OSError(str(error)) from error
            missing = missing or error
    raise OSError(str(missing)) from missing


def _bar_class(count: _Megabytes) -> type[Any]:
    """A bar for the hub's downloads that draws nothing and counts into a task."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            count.add(int(n or 0))

    return Bar


# --- progress ---------------------------------------------------------------------------------------------------------


class _Megabytes:
    """Bytes, shown as whole megabytes."""

    def __init__(self, task: Task) -> None:
        self.bytes = 0
        self._task = task

    def add(self, count: int) -> None:
        before = self.bytes // 1_000_000
        self.bytes += count
        if self.bytes // 1_000_000 > before:
            self._task.advance(self.bytes // 1_000_000 - before)


@contextmanager
def _megabytes(progress: Progress, name: str, size: int | None) -> Iterator[_Megabytes]:
    with progress.task(f"download {name}", None if size is None else size // 1_000_000, "MB") as task:
        yield _Megabytes(task)
