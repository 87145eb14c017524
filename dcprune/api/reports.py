"""`report`: the HTML page about runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcprune import __version__, formats
from dcprune.api.provenance import command_line
from dcprune.interfaces import Progress
from dcprune.progress import SILENT
from dcprune.report.chain import Made, made, within, working_folder
from dcprune.report.collect import Material, Overrides, collect
from dcprune.report.figures.embedding_map import resolved_projection
from dcprune.report.page import build
from dcprune.report.render import render, template

METRICS_FILE = "metrics.json"


def report(
    runs: Sequence[Path],
    *,
    output: Path,
    coreset: Path | None = None,
    class_weights: Path | None = None,
    scores: Path | None = None,
    embeddings: Path | None = None,
    data_dir: Path | None = None,
    title: str | None = None,
    projection: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write one self-contained HTML page about one or several runs.

    Inputs are found through what the artifacts recorded. One that has moved, changed or broken since, or a dataset that
    cannot be opened, is a warning and a note on the page.

    Args:
        runs: run folders and sweeps (folders with a `results.json`, or such files); the page is about the first run,
            the others appear beside it, and all of them in its tables. Of a sweep that is the first cell with class
            weights, else the first that is neither random choice nor the full data.
        output: the page to write.
        coreset: the first run's coreset, in place of the one it recorded.
        class_weights: its class weights, likewise.
        scores: the scores that its coreset was chosen by, likewise.
        embeddings: the embeddings that it was chosen from, likewise.
        data_dir: where datasets lie on this machine.
        title: heading of the page; by default the dataset and what was kept.
        projection: how the map of the embeddings is made: `pca`, `umap`, or `auto` for UMAP where it is installed.
        overwrite: whether an existing `output` may be replaced.
        progress: how to report; None is silence.

    Returns:
        `output`.

    Raises:
        DcpruneError: Jinja2 is not installed.
        OptionError: no run was given, or a projection that is unknown or not installed.
        OutputExists: `output` exists and `overwrite` is false.
        MissingInput, ArtifactError, DatasetMismatch: a run folder, or a file that was named, is not usable.
    """
    progress = progress or SILENT
    template()
    plane = resolved_projection(projection)
    formats.check_output(output, overwrite)
    overrides = Overrides(coreset=coreset, class_weights=class_weights, scores=scores, embeddings=embeddings)
    material = collect([Path(run) for run in runs], overrides=overrides, data_dir=data_dir, progress=progress)
    options = {
        "coreset": coreset,
        "class-weights": class_weights,
        "scores": scores,
        "embeddings": embeddings,
        "title": title,
        "projection": projection if projection != "auto" else None,
    }
    commands = _commands(material, runs, output, options)
    content = build(material, title=title, commands=commands, projection=plane, progress=progress)
    formats.atomic_write(output, render(content, version=__version__).encode(), overwrite=overwrite)
    return output


def _commands(
    material: Material, runs: Sequence[Path], output: Path, options: Mapping[str, Path | str | None]
) -> list[str]:
    """The commands that make everything on a page again and then the page, in the folder where they were first run."""
    folder = working_folder(material)
    again = [_command(each, folder) for each in made(material)]
    words = ["dcprune", "report", *(within(Path(run), folder) for run in runs), "-o", output.name]
    for name, value in options.items():
        if value is not None:
            words += [f"--{name}", within(value, folder) if isinstance(value, Path) else value]
    return [*again, shlex.join(words)]


def _command(each: Made, folder: Path) -> str:
    """The command of one artifact, with the file that it wrote even where that was the default."""
    line = command_line(each.record)
    given = each.record.config.get("output") is not None
    beside_run = each.record.command == "eval" and each.path.name == METRICS_FILE
    if given or beside_run or not each.path.name:
        return line
    return f"{line} --output {shlex.quote(within(each.path, folder))}"
