"""Chooses and computes what the page shows, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dcprune.artifacts import Coreset
from dcprune.errors import DcpruneError
from dcprune.interfaces import DatasetSource, Progress
from dcprune.report import compare
from dcprune.report.chain import Step, chain_steps
from dcprune.report.charts.axes import number, trimmed
from dcprune.report.collect import Material, RunData
from dcprune.report.costs import CostRow, SpeedUp, cost_rows, speed_ups, uncounted
from dcprune.report.figures.choice import class_counts, class_histograms, score_histogram
from dcprune.report.figures.embedding_map import Projection, embedding_map
from dcprune.report.figures.figure import Figure
from dcprune.report.figures.losses import class_loss_curves, loss_curves
from dcprune.report.figures.metrics import per_class_metrics, size_curves
from dcprune.report.figures.sweep import sweep_figures
from dcprune.report.figures.weights import weight_bars, weight_trajectory
from dcprune.report.images import MAX_CLASSES, Picture, SheetRow, class_sheets, sample_picture
from dcprune.report.memorisation import Memorisation, NearestTraining
from dcprune.report.results import Results, ResultTable, result_sentence, result_title, results
from dcprune.report.score_sheets import ScoreRow, score_sheets
from dcprune.report.words import percent

MAX_RUNS = 8  # that curves, values and costs are shown of
MAX_SAMPLE_GRIDS = 4


@dataclass(frozen=True)
class Tile:
    """A number of the first row, with what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Grid:
    """Generated images of one run, and the training images that some of them are nearest to."""

    run: str
    trained_on: str
    step: int
    picture: Picture
    nearest: Memorisation | None


@dataclass
class Page:
    """Everything the template shows; what is empty does not appear."""

    title: str
    sentences: list[str]
    tiles: list[Tile]
    chain: list[Step]
    results: tuple[ResultTable, ...] = ()
    result_speeds: tuple[ResultTable, ...] = ()
    result_figures: list[Figure] = field(default_factory=list)
    selection_note: str = ""
    sheets: list[SheetRow] = field(default_factory=list)
    sheets_note: str = ""
    score_sheets: list[ScoreRow] = field(default_factory=list)
    score_sheets_note: str = ""
    choice: list[Figure] = field(default_factory=list)
    weights: list[Figure] = field(default_factory=list)
    weight_facts: list[tuple[str, str]] = field(default_factory=list)
    weight_warnings: tuple[str, ...] = ()
    training: list[Figure] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    metrics: list[compare.MetricGroup] = field(default_factory=list)
    metrics_note: str = ""
    metric_figures: list[Figure] = field(default_factory=list)
    costs: list[CostRow] = field(default_factory=list)
    costs_note: str = ""
    speed_ups: list[SpeedUp] = field(default_factory=list)
    commands: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


def build(
    material: Material, *, title: str | None, commands: Sequence[str], projection: Projection, progress: Progress
) -> Page:
    """Choose and compute what the page shows."""
    found = results(material.runs)
    runs = shown_runs(material.runs)
    page = Page(
        title=title or default_title(material, found),
        sentences=_sentences(material, found, runs),
        tiles=tiles(material, runs),
        chain=chain_steps(material),
        results=found.tables,
        result_speeds=found.speed_tables,
        result_figures=sweep_figures(found, material.runs),
        selection_note=_shown_note(runs, material.runs),
        metrics=compare.metric_groups(runs),
        metrics_note=compare.interval_note(runs),
        metric_figures=[*size_curves(runs), *per_class_metrics(runs)],
        costs=cost_rows(runs),
        costs_note=uncounted(runs),
        speed_ups=speed_ups(runs),
        commands=commands,
        notes=list(material.notes),
    )
    if material.headline.coreset is not None:
        add_choice(page, material, material.headline.coreset, projection, progress)
    add_weights(page, material)
    add_training(page, material, runs, progress)
    return page


def shown_runs(runs: Sequence[RunData]) -> list[RunData]:
    """The runs that curves, values and costs are shown of: all, or of too many those nearest to the headline.

    Those are runs of its own ratio and seed, runs on the full data, and then the others in their order.
    """
    if len(runs) <= MAX_RUNS:
        return list(runs)
    first = runs[0].record

    def distance(run: RunData) -> int:
        same_size = run.record.num_trained_samples == first.num_trained_samples
        same_seed = run.record.provenance.seed == first.provenance.seed
        return 0 if run is runs[0] else 1 if same_size and same_seed else 2 if run.is_full and same_seed else 3

    chosen = sorted(range(len(runs)), key=lambda position: (distance(runs[position]), position))[:MAX_RUNS]
    near = [position for position in chosen if distance(runs[position]) < 3] or chosen
    return [runs[position] for position in near]


def _shown_note(shown: Sequence[RunData], runs: Sequence[RunData]) -> str:
    if len(shown) == len(runs):
        return ""
    return f"What follows is about {runs[0].name}, with {len(shown) - 1} of the other {len(runs) - 1} runs beside it."


def _sentences(material: Material, found: Results, runs: Sequence[RunData]) -> list[str]:
    """What a sweep found, where the page is about one; then what the headline run is, and what it reached."""
    opening = [result_sentence(found, material.runs)] if material.sweeps and found.methods else []
    return [*opening, compare.selection_sentence(material), compare.result_sentence(material, runs)]


def default_title(material: Material, found: Results) -> str:
    """The dataset's name without folders before it, and what a sweep compares or the headline run was trained on."""
    name = material.dataset.uri.rstrip("/").rpartition("/")[2] or material.dataset.uri
    swept = material.sweeps and found.methods
    return f"{name}: {result_title(found) if swept else compare.trained_on(material.headline)}"


def tiles(material: Material, runs: Sequence[RunData]) -> list[Tile]:
    """The few numbers to remember."""
    run, dataset = material.headline, material.dataset
    found = []
    if run.has_coreset:
        kept = run.record.num_trained_samples
        found.append(Tile(percent(kept / dataset.num_samples), f"kept: {kept:,} of {dataset.num_samples:,} images"))
    found += [
        Tile(number(each.value), f"{each.name} on {each.num_generated:,} images")
        for each in compare.generated_metrics(run)[:2]
    ]
    found += [
        Tile(f"{number(each.updates, 2)}×", f"fewer updates than {each.against}, {each.counted}")
        for each in speed_ups(runs)[:1]
        if each.updates is not None and each.updates > 1
    ]
    if run.class_weights is not None and run.class_weights.weights:
        values = run.class_weights.weights.values()
        found.append(Tile(f"{min(values):.2f}–{max(values):.2f}", "class weights, lowest and highest"))
    return found


def add_choice(page: Page, material: Material, coreset: Coreset, projection: Projection, progress: Progress) -> None:
    """Contact sheets, class counts, score histogram and embedding map of a coreset."""
    if material.source is not None:
        page.sheets, problems = class_sheets(material.source, coreset, progress)
        page.notes += problems
        num_classes = material.dataset.num_classes
        page.sheets_note = f"{MAX_CLASSES} of {num_classes} classes." if num_classes > MAX_CLASSES else ""
        add_score_sheets(page, material, material.source, coreset, progress)
    scores, embeddings = material.scores, material.embeddings
    shown = [
        class_counts(material, coreset),
        score_histogram(scores, coreset, material.scores_recomputed) if scores else None,
        class_histograms(scores, coreset) if scores else None,
        embedding_map(embeddings, coreset, projection) if embeddings else None,
    ]
    page.choice = [figure for figure in shown if figure is not None]


def add_score_sheets(
    page: Page, material: Material, source: DatasetSource, coreset: Coreset, progress: Progress
) -> None:
    """Contact sheets of the highest, middle and lowest scores."""
    if material.scores is None:
        return
    page.score_sheets, problems = score_sheets(source, material.scores, coreset, progress)
    page.notes += [problem for problem in problems if problem not in page.notes]
    within = " within each class" if material.dataset.num_classes > 1 else ""
    page.score_sheets_note = (
        f"By the {material.scores.scorer.name} score{within}, the highest first. {page.sheets_note}"
    )


def add_weights(page: Page, material: Material) -> None:
    """The class weights and how they came about."""
    weights = material.headline.class_weights
    if weights is None or not weights.weights:
        return
    found = [weight_bars(weights), weight_trajectory(weights)]
    page.weights = [figure for figure in found if figure is not None]
    objective, diagnostics = weights.objective, weights.diagnostics
    page.weight_facts = [
        ("eta", trimmed(objective.eta)),
        ("smoothing", trimmed(objective.smoothing)),
        ("updates of the proxy", f"{objective.steps:,}"),
        ("backend", objective.backend),
        ("excess measured on", "dropped images" if objective.held_out else "the coreset"),
        ("entropy, 1 = uniform", f"{diagnostics.entropy:.4f}"),
        ("losses below the reference's", percent(diagnostics.fraction_clipped)),
    ]
    page.weight_warnings = diagnostics.warnings


def add_training(page: Page, material: Material, runs: Sequence[RunData], progress: Progress) -> None:
    """Loss curves and generated images of some runs."""
    curves = [loss_curves(runs), class_loss_curves(material.headline)]
    page.training = [figure for figure in curves if figure is not None]
    search = _search(page, material, progress)
    sampled = [(run, run.samples) for run in runs if run.samples is not None]
    for run, samples in sampled[:MAX_SAMPLE_GRIDS]:
        try:
            page.grids.append(_grid(run, samples, search))
        except (OSError, DcpruneError) as error:
            page.notes.append(f"The samples {samples} cannot be read: {error}")
            progress.warn(page.notes[-1])


def _search(page: Page, material: Material, progress: Progress) -> NearestTraining | None:
    """What finds the nearest training images, where the embeddings, their encoder and the images are at hand."""
    sampled = any(run.samples is not None for run in material.runs)
    if material.embeddings is None or material.source is None or not sampled:
        return None
    try:
        return NearestTraining(material.embeddings, material.source, progress)
    except DcpruneError as error:
        page.notes.append(f"The page cannot look for training images that samples are copies of: {error}")
        progress.warn(page.notes[-1])
        return None


def _grid(run: RunData, samples: Path, search: NearestTraining | None) -> Grid:
    """The samples of a run.

    Raises:
        OSError: they are not an image.
        DcpruneError: the training images cannot be read or encoded.
    """
    step = int(samples.stem.removeprefix("step-"))
    picture = sample_picture(samples, f"Images that run {run.name} generated after {step:,} updates")
    nearest = None if search is None else search.check(run, samples)
    return Grid(run.name, compare.trained_on(run), step, picture, nearest)
