"""`doctor` and `prefetch`: what this machine has, and what it would fetch."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import torch
from packaging.requirements import Requirement

from dcprune import __version__
from dcprune.api.recipes import resolve_recipe
from dcprune.devices import available_cores, cache_dir, device_name, dtype_name, resolve_device, resolve_dtype
from dcprune.downloads import address, fetch, locate
from dcprune.errors import DatasetError, InputError, OptionError, PluginError, WeightsError
from dcprune.interfaces import DatasetRequest, Download, EncoderChoice, FetchesFiles, FetchesWeights, Progress
from dcprune.plugins import BUILTIN_PACKAGE, Item, registry
from dcprune.progress import SILENT
from dcprune.sources import default_data_dir, open_dataset

LOW_SPACE: Final = 5_000_000_000
_OPTIONAL = ("datasets", "timm", "open-clip-torch", "jinja2", "peft", "transformers", "webdataset")


# --- files that are fetched -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FileStatus:
    """A file that an item fetches.

    Attributes:
        kind, item: whose it is, such as `encoder` and `resnet18`.
        weights: the variant of the item that needs it; empty for its default.
        url: where it comes from, as a browser opens it.
        target: where it belongs, and where one that was fetched by hand is found.
        sha256: whole or a prefix; empty where none is published.
        num_bytes: its size; None where that is not known.
        found: where it lies on this machine; None when it is not there.
        error: why it could not be fetched; empty otherwise.
    """

    kind: str
    item: str
    weights: str
    url: str
    target: str
    sha256: str
    num_bytes: int | None
    found: str | None
    error: str = ""


@dataclass(frozen=True)
class Need:
    """What one item fetches.

    Attributes:
        kind, item, weights: see `FileStatus`.
        downloads: its files.
        note: what else there is to say, such as why it has none.
    """

    kind: str
    item: str
    weights: str = ""
    downloads: tuple[Download, ...] = ()
    note: str = ""


def _place(download: Download) -> Path | None:
    """Where the file is, also when it has been unpacked to a folder."""
    return locate(download) or (download.path if download.path.exists() else None)


def _status(need: Need, download: Download, error: str = "") -> FileStatus:
    found = _place(download)
    size = download.num_bytes
    if size is None and found is not None and found.is_file():
        size = found.stat().st_size
    return FileStatus(
        kind=need.kind,
        item=need.item,
        weights=need.weights,
        url=address(download),
        target=str(download.path),
        sha256=download.sha256,
        num_bytes=size,
        found=None if found is None else str(found),
        error=error,
    )


def encoder_need(choice: EncoderChoice, kind: str = "encoder", item: str | None = None) -> Need:
    """What an encoder fetches with these settings and weights.

    Raises:
        UnknownName, OptionError, PluginError: the encoder cannot be constructed.
    """
    encoder = registry().create("encoder", choice.name, choice.settings, weights=choice.weights)
    files = tuple(encoder.downloads(cache_dir()))
    names = tuple(getattr(encoder, "weight_names", ()))
    note = ""
    if not files:
        also = f"; --weights {' or '.join(names)} does" if names and choice.weights is None else ""
        note = f"fetches nothing{also}"
    return Need(kind, item or choice.name, choice.weights or "", files, note)


def metric_need(name: str, settings: Mapping[str, Any], weights: str | None) -> Need:
    """What a metric fetches: the weights of its encoder.

    Raises:
        UnknownName, OptionError, PluginError: the metric or its encoder cannot be constructed.
    """
    fixed = {} if weights is None else {"weights": weights}
    metric = registry().create("metric", name, settings, **fixed)
    return encoder_need(metric.encoder, "metric", name)


def backend_need(name: str, preset: str, settings: Mapping[str, Any]) -> Need:
    """What a backend fetches with the model of one of its presets.

    Raises:
        UnknownName, OptionError, PluginError: the backend cannot be constructed.
    """
    backend = resolve_recipe(name, preset, settings, {}).backend
    files = tuple(backend.downloads(cache_dir())) if isinstance(backend, FetchesWeights) else ()
    return Need("backend", name, downloads=files, note="" if files else "fetches nothing")


def dataset_need(name: str, *, split: str, data_dir: Path) -> Need:
    """What a dataset fetches.

    Raises:
        UnknownName, OptionError, PluginError: there is no such dataset, or it does not load.
    """
    item, location = registry().get("dataset", name)
    source: object = item.load()
    if not isinstance(source, FetchesFiles):
        return Need("dataset", name, note="has no list of files; opening it fetches what it needs")
    return Need(
        "dataset", name, downloads=tuple(source.downloads(DatasetRequest(item.name, location, split, data_dir)))
    )


# --- prefetch ---------------------------------------------------------------------------------------------------------


def prefetch(
    *,
    encoders: Sequence[str] = (),
    datasets: Sequence[str] = (),
    metrics: Sequence[str] = (),
    backends: Sequence[str] = (),
    preset: str = "paper",
    weights: Mapping[str, str] | None = None,
    settings: Mapping[str, Any] | None = None,
    split: str = "train",
    data_dir: str | Path | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> list[FileStatus]:
    """Fetch everything that some items need, so that they work without a network afterwards.

    A file that cannot be fetched does not stop the others. A dataset is opened at the end, which unpacks and checks it;
    one whose own library fetches it is fetched so.

    Args:
        encoders: registered encoders.
        datasets: what `embed` takes as a dataset.
        metrics: registered metrics.
        backends: registered backends.
        preset: of the backends.
        weights: names of weights by encoder or metric, such as `{"resnet18": "imagenet"}`.
        settings: of the encoder, metric or backend, when there is just one.
        split: of the datasets.
        data_dir: where datasets lie.
        dry_run: only say what would be fetched.
        progress: for long work.

    Returns:
        All files; those that could not be had carry an `error`, and so does a dataset that could not be opened.

    Raises:
        UnknownName, OptionError, PluginError: an item that does not exist or cannot be constructed.
    """
    progress = progress or SILENT
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    needs = [
        *_needs(encoders, metrics, backends, preset, weights or {}, settings or {}),
        *(dataset_need(name, split=split, data_dir=folder) for name in datasets),
    ]
    if not needs:
        raise OptionError("Say what to fetch: --encoder, --dataset, --metric or --backend.")
    for need in needs:
        if need.note:
            progress.note(f"{need.kind} {need.item}: {need.note}.")
    found = []
    for need in needs:
        files = [_fetched(need, download, dry_run, progress) for download in need.downloads]
        if need.kind == "dataset" and not dry_run and not any(each.error for each in files):
            files += _opened(need, split, folder)
        found += files
    return found


def _opened(need: Need, split: str, data_dir: Path) -> list[FileStatus]:
    """Open a dataset, which unpacks it; nothing, or why that failed."""
    try:
        open_dataset(need.item, split=split, data_dir=data_dir)
    except InputError as error:
        return [FileStatus(need.kind, need.item, "", "", str(data_dir), "", None, None, str(error))]
    return []


def _needs(
    encoders: Sequence[str],
    metrics: Sequence[str],
    backends: Sequence[str],
    preset: str,
    weights: Mapping[str, str],
    settings: Mapping[str, Any],
) -> list[Need]:
    networks = [*encoders, *metrics]
    if settings and len(networks) + len(backends) != 1:
        raise OptionError("--set goes with exactly one --encoder, --metric or --backend.")
    unused = sorted(set(weights) - set(networks))
    if unused:
        raise OptionError(f"--weights names {', '.join(unused)}, which is not among what is to be fetched.")
    return [
        *(encoder_need(EncoderChoice(name, settings, weights.get(name))) for name in encoders),
        *(metric_need(name, settings, weights.get(name)) for name in metrics),
        *(backend_need(name, preset, settings) for name in backends),
    ]


def _fetched(need: Need, download: Download, dry_run: bool, progress: Progress) -> FileStatus:
    if dry_run or _place(download) is not None:
        return _status(need, download)
    try:
        fetch(download, progress, error=DatasetError if need.kind == "dataset" else WeightsError)
    except InputError as error:
        return _status(need, download, str(error))
    return _status(need, download)


# --- doctor -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Something that computes.

    Attributes:
        name: what `--device` takes.
        model: what it is.
        memory_bytes: None where that is not known.
        dtypes: precisions that it is fast in.
        auto_dtype: what `--dtype auto` takes.
    """

    name: str
    model: str
    memory_bytes: int | None
    dtypes: tuple[str, ...]
    auto_dtype: str


@dataclass(frozen=True)
class Cache:
    """A folder that grows; `variable` moves it, and `num_bytes` and `num_files` are 0 where it is not there yet."""

    name: str
    path: str
    variable: str
    num_bytes: int
    num_files: int
    free_bytes: int
    writable: bool


@dataclass(frozen=True)
class Machine:
    """What `doctor` finds.

    Attributes:
        versions: of Python, dcprune and what it stands on; None for an optional library that is not installed.
        environment: variables that dcprune and its libraries heed, those that are set.
        plugins: third-party packages that registered something, with their versions.
        files: everything that encoders and datasets fetch.
        problems: what has to be put right.
        warnings: what one should know.
    """

    versions: Mapping[str, str | None]
    environment: Mapping[str, str]
    devices: tuple[Device, ...]
    caches: tuple[Cache, ...]
    plugins: tuple[tuple[str, str], ...]
    files: tuple[FileStatus, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


_VARIABLES = (
    "DCPRUNE_CACHE_DIR",
    "DCPRUNE_DATA_DIR",
    "DCPRUNE_LOAD_PLUGINS",
    "DCPRUNE_STRICT_PLUGINS",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "TORCH_HOME",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
)


def doctor(*, data_dir: str | Path | None = None, progress: Progress | None = None) -> Machine:
    """Look at this machine: versions, devices, caches, plugins, and files that are there or would be fetched.

    Nothing is downloaded.

    Args:
        data_dir: where datasets lie.
        progress: for long work.
    """
    progress = progress or SILENT
    folder = default_data_dir() if data_dir is None else Path(data_dir).expanduser()
    devices = _devices()
    caches = _caches(folder, progress)
    files, unusable = _files(folder, progress)
    versions = _versions()
    problems = [*_unmet(), *(str(failure) for failure in registry().failures)]
    problems += [
        f"{each.name}: {each.path} cannot be written to. {each.variable} moves it."
        for each in caches
        if not each.writable
    ]
    warnings = [*unusable, *_space_warnings(caches)]
    if len(devices) == 1:
        warnings.append(_no_accelerator())
    return Machine(
        versions=versions,
        environment={name: os.environ[name] for name in _VARIABLES if name in os.environ},
        devices=devices,
        caches=caches,
        plugins=tuple(registry().versions()),
        files=files,
        problems=tuple(problems),
        warnings=tuple(warnings),
    )


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version(), "dcprune": __version__}
    required = [Requirement(each) for each in metadata.requires(BUILTIN_PACKAGE) or ()]
    for name in [each.name for each in required if each.marker is None] + list(_OPTIONAL):
        found[name] = _installed(name)
    found["cuda"] = torch.version.cuda
    return found


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unmet() -> list[str]:
    """Requirements of dcprune that the installed packages do not meet."""
    found = []
    for requirement in map(Requirement, metadata.requires(BUILTIN_PACKAGE) or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _installed(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            there = "is not installed" if version is None else f"{version} is installed"
            found.append(f"dcprune needs {requirement}, but {requirement.name} {there}: pip install '{requirement}'.")
    return found


def _devices() -> tuple[Device, ...]:
    """The CPU first, then every accelerator."""
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return tuple(_device(name) for name in names)


def _device(name: str) -> Device:
    device = resolve_device(name)
    auto = dtype_name(resolve_dtype("auto", device))
    model = device_name(device)
    memory: int | None = None
    dtypes = ["fp32", *(["bf16"] if auto == "bf16" else [])]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = int(properties.total_memory)
        model = f"{properties.name}, compute capability {properties.major}.{properties.minor}"
    elif device.type == "cpu":
        model = f"{_processor()}, {available_cores()} cores, {torch.get_num_threads()} threads"
        memory = _memory()
    if device.type != "cpu":
        dtypes.append("fp16")
    return Device(name, model, memory, tuple(dtypes), auto)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def _no_accelerator() -> str:
    if shutil.which("nvidia-smi"):
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        return (
            f"nvidia-smi is here, but torch {torch.__version__} (built {built}) sees no GPU: see the driver's version."
        )
    return "No GPU: use the presets called tiny; those called paper take weeks on a CPU."


def _caches(data_dir: Path, progress: Progress) -> tuple[Cache, ...]:
    from huggingface_hub.constants import HF_HUB_CACHE

    places = (
        ("weights and surrogates", cache_dir(), "DCPRUNE_CACHE_DIR"),
        ("datasets", data_dir, "DCPRUNE_DATA_DIR"),
        ("torch hub", Path(torch.hub.get_dir()), "TORCH_HOME"),
        ("Hugging Face hub", Path(HF_HUB_CACHE), "HF_HOME"),
    )
    with progress.task("caches", len(places), "folders") as task:
        found = []
        for name, path, variable in places:
            found.append(_cache(name, path, variable))
            task.advance()
    return tuple(found)


def _cache(name: str, path: Path, variable: str) -> Cache:
    there = path.expanduser().absolute()
    parent = next(each for each in (there, *there.parents) if each.exists())
    sizes = list(_sizes(there))
    return Cache(
        name=name,
        path=str(there),
        variable=variable,
        num_bytes=sum(sizes),
        num_files=len(sizes),
        free_bytes=shutil.disk_usage(parent).free,
        writable=os.access(parent, os.W_OK | os.X_OK),
    )


def _sizes(folder: Path) -> Iterator[int]:
    """Sizes of all files below a folder; links are not followed, what cannot be read is left out."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            yield entry.stat(follow_symlinks=False).st_size


def _space_warnings(caches: Sequence[Cache]) -> list[str]:
    return [
        f"{each.name}: {each.free_bytes / 1e9:.1f} GB are free at {each.path}. {each.variable} moves it."
        for each in caches
        if each.free_bytes < LOW_SPACE
    ]


def _files(data_dir: Path, progress: Progress) -> tuple[tuple[FileStatus, ...], list[str]]:
    """Files of every encoder and dataset that needs no argument, and what does not load."""
    items = [item for (kind, _), item in sorted(registry().items.items()) if kind in ("dataset", "encoder")]
    found: list[FileStatus] = []
    unusable: list[str] = []
    with progress.task("plugins", len(items), "items") as task:
        for item in items:
            try:
                needs = [] if item.argument else _variants(item, data_dir)
                found += [_status(need, download) for need in needs for download in need.downloads]
            except PluginError as error:
                unusable.append(str(error))
            task.advance()
    return tuple(found), unusable


def _variants(item: Item, data_dir: Path) -> list[Need]:
    """What an item fetches by default, and with every name of weights that it has.

    Raises:
        PluginError: it does not load.
    """
    if item.kind == "dataset":
        return [dataset_need(item.name, split="train", data_dir=data_dir)]
    needs = []
    for weights in (None, *getattr(item.load(), "weight_names", ())):
        try:
            needs.append(encoder_need(EncoderChoice(item.name, weights=weights)))
        except (OptionError, WeightsError):
            continue  # it cannot be had without settings or a file, so it fetches nothing
    return needs
