"""`embed`: from a dataset to embeddings."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.provenance import provenance
from dcprune.artifacts import Classes, DatasetIdentity, Embeddings, EncoderInfo, Rows, SkippedSample, StageCost
from dcprune.clustering import kmeans
from dcprune.devices import DTYPES, cache_dir, dtype_name, resolve_device, resolve_dtype
from dcprune.embedding import CompileMode, Encoded, Loader, OnError, Pipeline, default_workers, load_encoder, loader
from dcprune.errors import DcpruneError, OptionError, UnknownName
from dcprune.formats import PartialEmbeddings
from dcprune.interfaces import DatasetSource, EncoderChoice, EncoderContext, Progress
from dcprune.processes import ALONE, Processes, processes
from dcprune.progress import SILENT
from dcprune.sources import identify, open_dataset, sample_id

DecodeMode = Literal["scaled", "full", "gpu"]
StrPath = str | Path

# Rows of a part: a few seconds to a few minutes of work, which is what a kill costs.
PART_ROWS = 4096


@dataclass(frozen=True)
class EmbedOptions:
    """The options of `embed` that decide what the embeddings are; `embed` documents them."""

    weights: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    split: str = "train"
    columns: Mapping[str, str] | None = None
    on_error: OnError = "fail"
    data_dir: StrPath | None = None
    device: str = "auto"
    dtype: str = "auto"
    store: str = "fp32"
    decode: DecodeMode = "scaled"
    compile: CompileMode = "auto"
    seed: int = 0
    batch_size: int = 256
    num_workers: int | None = None

    def __post_init__(self) -> None:
        choices = (
            ("store", self.store, DTYPES),
            ("on_error", self.on_error, get_args(OnError)),
            ("decode", self.decode, get_args(DecodeMode)),
            ("compile", self.compile, get_args(CompileMode)),
        )
        for option, value, known in choices:
            if value not in known:
                raise UnknownName(f"value of {option}:", value, known)


@dataclass(frozen=True)
class Embedding:
    """What `embed` is about to do, with the encoder loaded and every option resolved.

    Attributes:
        source, identity: the dataset.
        pipeline: the encoder, ready to run.
        loader: how the images are read.
        info: what the encoder says about itself.
        options: as they were asked for.
        config: every resolved option, for the provenance.
    """

    source: DatasetSource
    identity: DatasetIdentity
    pipeline: Pipeline
    loader: Loader
    info: EncoderInfo
    options: EmbedOptions
    config: Mapping[str, Any]

    @property
    def dtype(self) -> str:
        """Of what is stored: `float32`, `float16` or `bfloat16`."""
        return str(DTYPES[self.options.store]).removeprefix("torch.")

    @property
    def part_rows(self) -> int:
        """Rows of a part: whole batches, so that the batches do not depend on who embeds which part."""
        return self.pipeline.batch_size * -(-PART_ROWS // self.pipeline.batch_size)

    def plan(self) -> dict[str, Any]:
        """Everything that the bytes of the embeddings depend on."""
        left_out = ("on_error", "pseudo_classes")
        return {
            "format": "dcprune.embeddings-plan/1",
            "fingerprint": self.identity.fingerprint,
            "encoder": self.info.model_dump(mode="json"),
            "torch": torch.__version__,
            "device": self.pipeline.device.type,
            **{name: value for name, value in self.config.items() if name not in left_out},
        }


def embed(
    dataset: StrPath | DatasetSource,
    encoder: str = "resnet18",
    *,
    output: StrPath | None = None,
    weights: str | None = None,
    settings: Mapping[str, Any] | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    pseudo_classes: int | None = None,
    on_error: OnError = "fail",
    data_dir: StrPath | None = None,
    device: str = "auto",
    dtype: str = "auto",
    store: str = "fp32",
    decode: DecodeMode = "scaled",
    compile: CompileMode = "auto",  # noqa: A002 - the word that torch uses
    seed: int = 0,
    batch_size: int = 256,
    num_workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Embeddings:
    """Embed every image of a dataset.

    With an `output`, rows are written in parts as they are ready, so that a run that was killed goes on with `resume`,
    to the same bytes; memory does not grow with the dataset. Under `torchrun` or `accelerate launch` the processes
    share the parts, and the result is the same.

    Args:
        dataset: a registered name, `name:location`, an image folder, a manifest, or an open dataset.
        encoder: a registered encoder.
        output: the file to write, a folder of shards beyond 100,000 samples; None keeps the embeddings in memory.
        weights: what the encoder loads: a path, a name that it knows, or None for its default.
        settings: its settings; strings are converted.
        split: which split of the dataset to open.
        columns: names of the dataset's columns, by `image`, `label` and `caption`.
        pseudo_classes: replace the classes by this many k-means clusters of the embeddings, written beside `output` as
            `*.classes.safetensors`; the embeddings then belong to the dataset `pseudo:FILE`.
        on_error: `fail` at the first image that cannot be read, or `skip` and list it in the artifact.
        data_dir: where datasets lie.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto`, `fp32`, `bf16` or `fp16`, of the arithmetic.
        store: `fp32`, `bf16` or `fp16`, of what is stored.
        decode: `scaled` may decode JPEG files of at least four times the size that the encoder needs at a half, a
            quarter or an eighth of their size; `full` never does; `gpu` decodes JPEG files by nvJPEG, whose pixels
            may differ by a few levels.
        compile: `auto` compiles the encoder on a GPU when the run is long enough to earn it back, `on` always, `off`
            never.
        seed: seed of a surrogate's training and of k-means.
        batch_size: images per forward pass.
        num_workers: threads that decode; by default as many as there are cores.
        resume: go on with what an interrupted run has left at `output`.
        overwrite: replace `output`.
        progress: for long work.

    Raises:
        UnknownName: no such dataset, encoder or setting.
        MissingInput: the dataset's folder is not there.
        DatasetError: an image cannot be read.
        OptionError: an option's value does not fit, or contradicts the run that should be resumed.
        OutputExists: the output is there, finished or not.
        WeightsError: no weights, or weights that do not fit.
    """
    progress = progress or SILENT
    if pseudo_classes is not None and (output is None or pseudo_classes < 2):
        raise OptionError("Pseudo-classes are at least 2, and need an output that they can be written beside.")
    if output is not None:
        formats.check_partial(output, resume=resume, overwrite=overwrite)
        formats.check_output(output, overwrite or resume)
    group = processes()
    options = EmbedOptions(
        weights=weights,
        settings=settings or {},
        split=split,
        columns=columns,
        on_error=on_error,
        data_dir=data_dir,
        device=device,
        dtype=dtype,
        store=store,
        decode=decode,
        compile=compile,
        seed=seed,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    job = prepare(dataset, encoder, options, pseudo_classes=pseudo_classes, progress=progress, group=group)
    if output is None:
        return _in_memory(job, group, progress)
    output = Path(output)
    if resume and output.exists() and not formats.partial_path(output).exists():
        return _finished(output, job, progress)
    if group.is_main and not resume:
        formats.remove(formats.partial_path(output))
    group.barrier()
    partial, cost = _embedded(job, formats.partial_path(output), group, progress)
    if group.is_main:
        _write(job, partial, cost, output, pseudo_classes, overwrite or resume, progress)
        formats.remove(partial.folder)
    group.barrier()
    return formats.read_embeddings(output)


def prepare(
    dataset: StrPath | DatasetSource,
    encoder: str,
    options: EmbedOptions,
    *,
    pseudo_classes: int | None = None,
    progress: Progress,
    group: Processes = ALONE,
    may_train: bool = True,
) -> Embedding:
    """Open the dataset, load the encoder and resolve every option.

    Args:
        dataset: as for `embed`, like the errors.
        encoder: a registered encoder.
        options: as they were asked for.
        pseudo_classes: for the provenance.
        progress: for long work.
        group: the processes; the first one trains or downloads, the others find the result in the cache.
        may_train: whether a surrogate that is not there may be trained.
    """
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    source = opened(dataset, options)
    identity = identify(source)
    context = EncoderContext(
        source, identity.fingerprint, device, dtype, options.seed, cache_dir(), progress, may_train=may_train
    )
    choice = EncoderChoice(encoder, options.settings, options.weights)
    network, info = group.main_first(lambda: load_encoder(choice, context))
    workers = default_workers() if options.num_workers is None else options.num_workers
    pipeline = Pipeline(network, device, dtype, min(options.batch_size, len(source)), workers)
    shorter_side = network.shorter_side if options.decode == "scaled" else None
    images = loader(source, device, shorter_side=shorter_side, on_gpu=options.decode == "gpu")
    pipeline.compile(options.compile, images, np.arange(len(source), dtype=np.int64), progress)
    config = {
        "dataset": source.uri,
        "encoder": encoder,
        "weights": options.weights,
        "set": info.settings,
        "split": source.split,
        "pseudo_classes": pseudo_classes,
        "on_error": options.on_error,
        "dtype": dtype_name(dtype),
        "store": options.store,
        "decode": options.decode,
        "compile": "on" if pipeline.compiled else "off",
        "seed": options.seed,
        "batch_size": options.batch_size,
    }
    return Embedding(source, identity, pipeline, images, info, options, config)


def opened(dataset: StrPath | DatasetSource, options: EmbedOptions, *, download: bool = True) -> DatasetSource:
    """The dataset, unless it is open already."""
    if not isinstance(dataset, str | Path):
        return dataset
    return open_dataset(
        dataset, split=options.split, data_dir=options.data_dir, columns=options.columns, download=download
    )


def _embedded(
    job: Embedding, folder: Path, group: Processes, progress: Progress
) -> tuple[PartialEmbeddings, StageCost]:
    """Every part of the dataset embedded, by all processes together, and what that cost.

    The time of parts that were there already is taken to be that of the others.
    """
    partial = group.main_first(lambda: PartialEmbeddings.create(folder, job.plan(), len(job.source), job.part_rows))
    todo = partial.unfinished()
    group.barrier()  # everybody has seen which parts are there before anybody writes one
    done = len(partial.parts) - len(todo)
    if done and group.is_main:
        progress.note(f"{done} of {len(partial.parts)} parts are there already.")
    mine = todo[group.rank :: group.count]
    started = time.perf_counter()
    with progress.task(f"embed {job.source.uri}", sum(part.stop - part.start for part in mine), "images") as task:
        for part in mine:
            vectors, indices, skipped = [], [], []
            rows = np.arange(part.start, part.stop, dtype=np.int64)
            with closing(job.pipeline.run(job.loader, rows, on_error=job.options.on_error)) as batches:
                for encoded in batches:
                    if len(encoded.vectors):
                        vectors.append(_stored(encoded, job))
                    indices.append(encoded.indices)
                    skipped += [_skipped(job.source, index, error) for index, error in encoded.failures]
                    task.advance(len(encoded.indices) + len(encoded.failures))
            matrix = np.concatenate(vectors) if vectors else np.empty((0, job.info.dim), Rows.STORAGE[job.dtype])
            partial.write(part, matrix, job.dtype, np.concatenate(indices), skipped)
    group.barrier()
    elapsed = time.perf_counter() - started
    fresh = sum(part.stop - part.start for part in todo)
    return partial, StageCost(
        stage="embed",
        images_seen=len(job.source),
        updates=0,
        flops=job.pipeline.flops(job.loader, np.arange(len(job.source), dtype=np.int64)),
        device_seconds=round(elapsed * group.count * len(job.source) / fresh, 3) if fresh else None,
    )


def _stored(encoded: Encoded, job: Embedding) -> NDArray[Any]:
    """Vectors in the storage of `job.dtype`.

    Raises:
        DcpruneError: a value is not finite, in the arithmetic or in the storage.
    """
    vectors = torch.from_numpy(encoded.vectors)
    stored = vectors.to(DTYPES[job.options.store])
    bad = ~stored.isfinite().all(dim=1)
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        largest = float(vectors[row].abs().max())
        fix = (
            "Use --store fp32." if np.isfinite(largest) else "Use --dtype fp32, and look at the weights and the image."
        )
        raise DcpruneError(
            f"The embedding of sample {sample_id(job.source, int(encoded.indices[row]))} is not finite in "
            f"{job.options.store} (largest value {largest:.4g}). {fix}"
        )
    array: NDArray[Any] = (stored.view(torch.uint16) if job.dtype == "bfloat16" else stored).numpy()
    return array


def _skipped(source: DatasetSource, index: int, error: DcpruneError) -> SkippedSample:
    return SkippedSample(index=index, id=sample_id(source, index), reason=str(error))


def _assembled(
    job: Embedding, rows: Rows, indices: NDArray[np.int64], skipped: tuple[SkippedSample, ...], cost: StageCost
) -> Embeddings:
    source = job.source
    ids = source.ids
    return Embeddings(
        embeddings=rows,
        labels=None if source.labels is None else source.labels[indices],
        indices=indices,
        ids=None if ids is None else tuple(ids[row] for row in indices.tolist()),
        encoder=job.info,
        dataset=job.identity,
        skipped=skipped,
        provenance=provenance(
            "embed",
            job.config,
            seed=job.options.seed,
            inputs=[_weights_file(job.options.weights)],
            device=job.pipeline.device,
            dtype=job.pipeline.dtype,
        ),
        costs=(*getattr(job.pipeline.encoder, "costs", ()), cost),
    )


def _in_memory(job: Embedding, group: Processes, progress: Progress) -> Embeddings:
    with tempfile.TemporaryDirectory() as folder:
        shared = Path(group.gather(folder)[0])
        partial, cost = _embedded(job, shared / "partial", group, progress)
        rows, indices, skipped = partial.collect()
        everything = Rows([np.concatenate([np.array(part) for part in rows.parts])], rows.dtype)
        group.barrier()
    _tell_skipped(skipped, progress)
    return _assembled(job, everything, indices, skipped, cost)


def _write(
    job: Embedding,
    partial: PartialEmbeddings,
    cost: StageCost,
    output: Path,
    pseudo_classes: int | None,
    overwrite: bool,
    progress: Progress,
) -> None:
    """The finished parts as an artifact."""
    rows, indices, skipped = partial.collect()
    _tell_skipped(skipped, progress)
    embeddings = _assembled(job, rows, indices, skipped, cost)
    if pseudo_classes is not None:
        embeddings = _with_pseudo_classes(embeddings, output, pseudo_classes, job, overwrite, progress)
    formats.write_embeddings(embeddings, output, overwrite=overwrite)


def classes_path(output: Path) -> Path:
    """Where the pseudo-classes of the embeddings at `output` lie."""
    return output.with_name(f"{output.name.removesuffix('.safetensors')}.classes.safetensors")


def _with_pseudo_classes(
    embeddings: Embeddings, output: Path, count: int, job: Embedding, overwrite: bool, progress: Progress
) -> Embeddings:
    """Write k-means clusters of the embeddings beside `output`, and put them in place of the classes.

    Raises:
        OptionError: more clusters than distinct embeddings.
        OutputExists: the file of classes is there and `overwrite` is false.
    """
    found = kmeans(
        embeddings.embeddings,
        count,
        generator=np.random.default_rng(job.options.seed),
        device=job.pipeline.device,
        progress=progress,
    )
    if len(found.centroids) < count:
        raise OptionError(
            f"--pseudo-classes {count} is more than the {len(found.centroids)} distinct embeddings of this dataset."
        )
    labels = np.zeros(len(job.source), dtype=np.int64)
    labels[embeddings.indices] = found.labels
    width = len(str(count - 1))
    path = classes_path(output)
    classes = Classes(
        labels=labels,
        centroids=found.centroids,
        class_names=tuple(f"cluster-{number:0{width}d}" for number in range(count)),
        encoder=job.info,
        seed=job.options.seed,
        inertia=found.inertia,
        dataset=job.identity,
        provenance=embeddings.provenance,
    )
    formats.write_classes(classes, path, overwrite=overwrite)
    progress.note(f"Wrote the pseudo-classes to {path}; from now on the dataset is pseudo:{path}.")
    source = open_dataset(f"pseudo:{path}", split=job.source.split, data_dir=job.options.data_dir)
    return replace(embeddings, labels=found.labels, dataset=identify(source))


def _tell_skipped(skipped: tuple[SkippedSample, ...], progress: Progress) -> None:
    if skipped:
        progress.warn(
            f"{len(skipped)} samples could not be read and were skipped; the first is {skipped[0].id!r}: "
            f"{skipped[0].reason} The artifact lists them all."
        )


def _finished(output: Path, job: Embedding, progress: Progress) -> Embeddings:
    """What `--resume` finds when the run had come to its end.

    Raises:
        OptionError: it was another run.
    """
    found = formats.read_embeddings(output)
    now = {"dataset": job.identity.fingerprint, "encoder": job.info, "store": job.dtype}
    then = {"dataset": found.dataset.fingerprint, "encoder": found.encoder, "store": found.embeddings.dtype}
    if found.provenance.config.get("pseudo_classes") is not None:
        now["dataset"] = then["dataset"]
    if now != then:
        raise OptionError(f"{output} is finished, and was made with other options. Pass --overwrite to replace it.")
    progress.note(f"{output} is finished already.")
    return found


def _weights_file(weights: str | None) -> str | None:
    """`weights` when they are a file, for the provenance."""
    path = Path(weights).expanduser() if weights is not None else None
    return str(path) if path is not None and path.is_file() else None
