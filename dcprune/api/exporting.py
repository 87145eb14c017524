"""`export`: a coreset in the forms that other programs read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dcprune import formats
from dcprune.api.matching import coreset_problem, open_inputs
from dcprune.api.provenance import provenance
from dcprune.artifacts import ClassWeights, Coreset, ExportRecord
from dcprune.errors import ArtifactError, DatasetMismatch, OptionError, OutputExists, UnknownName
from dcprune.exporters.folder import LINKS, write_folder
from dcprune.exporters.huggingface import write_huggingface
from dcprune.exporters.indices import write_list, write_numpy
from dcprune.exporters.samples import Samples, check_ids, unlabelled
from dcprune.exporters.table import write_csv
from dcprune.exporters.webdataset import write_webdataset
from dcprune.interfaces import DatasetSource, FilesOnDisk, Progress
from dcprune.progress import SILENT

StrPath = str | os.PathLike[str]

# Every form with the options that it takes.
FORMS: Final[dict[str, tuple[str, ...]]] = {
    "folder": ("link",),
    "list": ("absolute",),
    "numpy": (),
    "hf": (),
    "webdataset": ("shard_size", "class_weights"),
    "csv": ("class_weights", "dropped"),
}
FOLDERS: Final = ("folder", "hf", "webdataset")
LINK_KINDS: Final = ("copy", *LINKS)
SHARD_SIZE: Final = 10_000
_WITHOUT_DATASET: Final = ("numpy", "list")


def export(
    coreset: Coreset | StrPath,
    form: str,
    output: StrPath,
    *,
    dataset: str | Path | DatasetSource | None = None,
    link: str | None = None,
    absolute: bool = False,
    shard_size: int | None = None,
    class_weights: ClassWeights | StrPath | None = None,
    dropped: bool = False,
    data_dir: StrPath | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write a coreset in a form that other programs read.

    The output appears when it is complete. The dataset's own files are only read. `numpy` and `list` need no dataset,
    unless the list is to hold whole paths.

    Args:
        coreset: the artifact, or its path.
        form: a key of `FORMS`: an image folder, a list of ids, the rows as `.npy`, a Hugging Face dataset, WebDataset
            shards, or a CSV table of weights.
        output: the file or folder to write.
        dataset: the coreset's dataset, where the coreset's own word for it is not enough.
        link: for `folder`: one of `LINK_KINDS`, copies by default.
        absolute: for `list`: the paths of the files instead of the ids.
        shard_size: for `webdataset`: samples in a shard, `SHARD_SIZE` by default.
        class_weights: for `csv` and `webdataset`: what the weights of the samples come from, 1 by default. They are
            scaled to a mean of 1 over the kept samples, as in training.
        dropped: for `csv`: also the samples that are not kept, with weight 0.
        data_dir: where datasets lie.
        overwrite: whether an output that exists may be replaced; a folder only if it is an earlier export.
        progress: for long work.

    Returns:
        `output`.

    Raises:
        UnknownName: no such form or kind of link.
        OptionError: an option that the form does not take or that does not fit, or an output in the dataset's folder.
        OutputExists: the output exists, and may not be replaced.
        MissingInput, ArtifactError: a file that is not there or damaged, or ids that leave the dataset's folder.
        DatasetMismatch: an artifact was made from another dataset.
        DatasetError: an image cannot be read.
    """
    options = {
        "link": link,
        "absolute": absolute or None,
        "shard_size": shard_size,
        "class_weights": class_weights,
        "dropped": dropped or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    _check_options(form, given)
    formats.check_output(output, overwrite)
    kept = coreset if isinstance(coreset, Coreset) else formats.read_coreset(coreset)
    check_ids(kept.ids or ())
    weights = (
        class_weights
        if class_weights is None or isinstance(class_weights, ClassWeights)
        else formats.read_class_weights(class_weights)
    )
    samples = None
    if form not in _WITHOUT_DATASET or absolute or dataset is not None:
        samples = open_samples(kept, weights, dataset, data_dir)
        _check_place(Path(output), samples.source)
    write = _writer(form, kept, samples, given, progress or SILENT)
    origin = None if weights is None else weights.origin
    config = {
        "input": kept.origin,
        "to": form,
        "output": str(output),
        "link": link,
        "absolute": absolute,
        "shard_size": shard_size,
        "class_weights": origin,
        "all": dropped,
    }
    record = ExportRecord(
        dataset=kept.dataset,
        form=form,
        num_samples=kept.num_selected,
        provenance=provenance("export", config, seed=0, inputs=[kept.origin, origin]),
    )
    _write(Path(output), record, write, overwrite)
    return Path(output)


def _check_options(form: str, given: Mapping[str, Any]) -> None:
    """Refuse options that a form does not take.

    Raises:
        UnknownName: no such form or kind of link.
        OptionError: an option of another form, or one out of range.
    """
    if form not in FORMS:
        raise UnknownName("form of export", form, FORMS)
    for name in given:
        if name not in FORMS[form]:
            users = " and ".join(f"--to {each}" for each, names in FORMS.items() if name in names)
            flag = "--all" if name == "dropped" else "--" + name.replace("_", "-")
            raise OptionError(f"{flag} goes with {users}, not with --to {form}.")
    if given.get("link", "copy") not in LINK_KINDS:
        raise UnknownName("kind of link", given["link"], LINK_KINDS)
    if given.get("shard_size", 1) < 1:
        raise OptionError(f"--shard-size {given['shard_size']} is below 1.")


def open_samples(
    coreset: Coreset, weights: ClassWeights | None, dataset: str | Path | DatasetSource | None, data_dir: StrPath | None
) -> Samples:
    """The kept samples in the opened dataset, which is the coreset's.

    Raises:
        DatasetMismatch: the dataset, or the class weights, are another's.
        ArtifactError: ids that leave the dataset's folder.
    """
    inputs = open_inputs(dataset, coreset, weights, split=coreset.dataset.split, data_dir=data_dir)
    problem = coreset_problem(coreset, inputs.source)
    if problem:
        raise DatasetMismatch(f"The coreset does not fit {inputs.source.uri!r}: {problem}. Make the coreset again.")
    kept, ids = inputs.kept, inputs.source.ids
    check_ids([] if ids is None else [ids[row] for row in kept])
    return Samples(inputs.source, kept, sample_weights(inputs.weights, inputs.labels[kept]))


def sample_weights(class_weights: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weight of every sample, float64 [n], with mean 1: that of its class, as the loss of `dcprune train` has it.

    Args:
        class_weights: [K], at any scale.
        labels: int64 [n].
    """
    weights = class_weights[labels]
    scaled: NDArray[np.float64] = weights * (len(labels) / weights.sum())
    return scaled


def _writer(
    form: str, coreset: Coreset, samples: Samples | None, given: Mapping[str, Any], progress: Progress
) -> Callable[[Path], None]:
    """What writes this form to a path."""
    if form == "numpy":
        return partial(write_numpy, np.array(coreset.indices, dtype=np.int64))
    if "absolute" in given and samples is not None:
        return partial(write_list, _paths(samples))
    if form == "list" or samples is None:
        return partial(write_list, coreset.ids or [str(index) for index in coreset.indices])
    if form == "csv":
        return partial(write_csv, samples, dropped="dropped" in given)
    if form == "folder":
        return partial(write_folder, samples, progress=progress, link=given.get("link", "copy"))
    if form == "webdataset":
        size = given.get("shard_size", SHARD_SIZE)
        return partial(write_webdataset, samples, progress=progress, shard_size=size)
    described = f"{coreset.dataset.fingerprint} {coreset.indices}"
    return partial(write_huggingface, samples, progress=progress, described=described)


def _paths(samples: Samples) -> list[str]:
    files = unlabelled(samples.source)
    if not isinstance(files, FilesOnDisk):
        raise OptionError(f"The images of {samples.source.uri!r} are not files of their own: leave --absolute out.")
    return [str(files.path(row).absolute()) for row in samples]


def _check_place(output: Path, source: DatasetSource) -> None:
    """Keep an export out of the dataset's folder, and the dataset's files out of what an export replaces.

    Raises:
        OptionError: the output is in the dataset's folder, or holds files of the dataset.
    """
    files = unlabelled(source)
    if not isinstance(files, FilesOnDisk):
        return
    place = output.resolve()
    folder = Path(files.uri).expanduser()
    if folder.is_dir() and folder.resolve() in (place, *place.parents):
        raise OptionError(
            f"The output {str(output)!r} lies in the dataset's folder {str(folder)!r}, which would not be the same "
            "dataset any more. Choose a place outside."
        )
    if not output.exists():
        return
    for row in range(len(source)):
        original = files.path(row).resolve()
        if place in (original, *original.parents):
            raise OptionError(
                f"The output {str(output)!r} holds files of the dataset, such as {str(original)!r}, and is not "
                "replaced. Choose another place."
            )


def _write(output: Path, record: ExportRecord, write: Callable[[Path], None], overwrite: bool) -> None:
    """Write to a temporary place beside `output`, which takes its name at the end.

    Raises:
        OutputExists: something is there that may not be replaced.
    """
    if record.form not in FOLDERS:
        inputs = [Path(each.path).resolve() for each in record.provenance.inputs]
        if output.resolve() in inputs:
            raise OutputExists(f"{output} is what is exported. Choose another --output.")
        with formats.atomic_file(output, overwrite=overwrite) as temporary:
            write(temporary)
        return
    if output.exists() and not (_is_export(output) or (output.is_dir() and not any(output.iterdir()))):
        raise OutputExists(f"{output} is not an earlier export and is not replaced. Choose another --output.")
    with formats.atomic_folder(output, overwrite=overwrite) as folder:
        write(folder)
        formats.write_export(record, folder)


def _is_export(folder: Path) -> bool:
    try:
        return formats.artifact_kind(folder) == "export"
    except ArtifactError:
        return False
