"""`report`: the HTML page about runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dcprune import __version__, formats
from dcprune.api.provenance import command_line
from dcprune.interfaces import Progress
from dcprune.progress import SILENT
from dcprune.report import page
from dcprune.report.chain import provenance_records
from dcprune.report.collect import Overrides, collect


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
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write one self-contained HTML page about one or several runs.

    Inputs are found through what the artifacts recorded. One that has moved, changed or broken since, or a dataset that
    cannot be opened, is a warning and a note on the page.

    Args:
        runs: run folders; the page is about the first, the others appear beside it.
        output: the page to write.
        coreset: the first run's coreset, in place of the one it recorded.
        class_weights: its class weights, likewise.
        scores: the scores that its coreset was chosen by, likewise.
        embeddings: the embeddings that it was chosen from, likewise.
        data_dir: where datasets lie on this machine.
        title: heading of the page; by default the dataset and what was kept.
        overwrite: whether an existing `output` may be replaced.
        progress: how to report; None is silence.

    Returns:
        `output`.

    Raises:
        DcpruneError: Jinja2 is not installed.
        OptionError: no run was given.
        OutputExists: `output` exists and `overwrite` is false.
        MissingInput, ArtifactError, DatasetMismatch: a run folder, or a file that was named, is not usable.
    """
    progress = progress or SILENT
    page.template()
    formats.check_output(output, overwrite)
    overrides = Overrides(coreset=coreset, class_weights=class_weights, scores=scores, embeddings=embeddings)
    material = collect([Path(run) for run in runs], overrides=overrides, data_dir=data_dir, progress=progress)
    commands = [command_line(record) for record in provenance_records(material)]
    content = page.build(material, title=title, commands=commands, progress=progress)
    formats.atomic_write(output, page.render(content, version=__version__).encode(), overwrite=overwrite)
    return output
