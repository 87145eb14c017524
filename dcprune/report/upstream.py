"""What a coreset was made from: scores and embeddings, found through what it recorded or computed again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dcprune import formats, sources
from dcprune.artifacts import Coreset, DatasetIdentity, Embeddings, InputFile, ScorerInfo, Scores
from dcprune.devices import resolve_device
from dcprune.errors import DcpruneError, OptionError
from dcprune.interfaces import ScoringContext, TrainedRun
from dcprune.lineage import traced
from dcprune.plugins import registry
from dcprune.progress import SILENT
from dcprune.report.entries import RANDOM
from dcprune.report.reader import Reader


def encoder_name(reader: Reader, coreset: Coreset | None) -> str | None:
    """The encoder whose embeddings a coreset was chosen from."""
    if coreset is None or coreset.selection.scorer == RANDOM:
        return None
    _, embeddings = upstream(reader, coreset, None, None)
    return None if embeddings is None else embeddings.encoder.name


def upstream(
    reader: Reader, coreset: Coreset | None, scores: Scores | None, embeddings: Embeddings | None
) -> tuple[Scores | None, Embeddings | None]:
    """Scores and embeddings that a coreset was made from, where they are not known yet."""
    if coreset is None:
        return scores, embeddings
    dataset = coreset.dataset
    return traced(
        coreset.provenance.inputs, scores, embeddings, lambda recorded: _scores_or_embeddings(reader, recorded, dataset)
    )


def _scores_or_embeddings(reader: Reader, recorded: InputFile, dataset: DatasetIdentity) -> Scores | Embeddings | None:
    """An input of `select`, of which only the file itself says what it is."""
    path = reader.locate("scores or embeddings", recorded)
    if path is None:
        return None
    try:
        kind = formats.artifact_kind(path)
    except DcpruneError as error:
        reader.note(f"The scores or embeddings file cannot be read: {error}")
        return None
    if kind == "scores":
        return reader.read(kind, path, formats.read_scores, dataset)
    return reader.read("embeddings", path, formats.read_embeddings, dataset)


def recomputed_scores(reader: Reader, embeddings: Embeddings, coreset: Coreset, data_dir: Path | None) -> Scores | None:
    """The scores of a coreset that was selected without a scores file."""
    selection = coreset.selection
    context = ScoringContext(
        seed=selection.seed,
        device=resolve_device("cpu"),
        ratio=selection.ratio or selection.budget / len(embeddings.embeddings),
        progress=SILENT,
        open_dataset=partial(sources.open_for, embeddings.dataset, data_dir=data_dir, download=False),
        open_run=_no_run,
    )
    try:
        scorer = registry().create("scorer", selection.scorer, selection.params)
        values = scorer.score(embeddings, context)
    except DcpruneError as error:
        reader.note(f"The scores cannot be computed again: {error}")
        return None
    return Scores(
        scores=values,
        labels=embeddings.labels,
        indices=embeddings.indices,
        ids=embeddings.ids,
        scorer=ScorerInfo(name=selection.scorer, params=selection.params),
        keep=selection.keep,
        dataset=embeddings.dataset,
        provenance=coreset.provenance,
    )


def _no_run(folder: Path) -> TrainedRun:
    raise OptionError(f"They come from the run {folder}, which a page does not run again. Pass its scores file.")
