"""Puts the page together: what is shown, in which order, and the template that shows it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dcprune.artifacts import Coreset
from dcprune.errors import DcpruneError
from dcprune.interfaces import DatasetSource, Progress
from dcprune.report import compare, figures
from dcprune.report.axes import number, trimmed
from dcprune.report.chain import Step, chain_steps
from dcprune.report.collect import Material
from dcprune.report.costs import CostRow, SpeedUp, cost_rows, speed_ups, uncounted
from dcprune.report.figures import Figure
from dcprune.report.images import MAX_CLASSES, Picture, SheetRow, class_sheets, sample_picture
from dcprune.report.score_sheets import ScoreRow, score_sheets

if TYPE_CHECKING:
    import jinja2

MAX_SAMPLE_GRIDS = 4

# Shows the copy button, which needs a script; the page is complete without it.
_SCRIPT = """
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    getSelection().selectAllChildren(source);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
}
"""


@dataclass(frozen=True)
class Tile:
    """A number of the first row, with what it is."""

    value: str
    label: str


@dataclass(frozen=True)
class Grid:
    """Generated images of one run."""

    run: str
    trained_on: str
    step: int
    picture: Picture


@dataclass
class Page:
    """Everything the template shows; what is empty does not appear."""

    title: str
    sentences: list[str]
    tiles: list[Tile]
    chain: list[Step]
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
    per_class: list[Figure] = field(default_factory=list)
    costs: list[CostRow] = field(default_factory=list)
    costs_note: str = ""
    speed_ups: list[SpeedUp] = field(default_factory=list)
    commands: Sequence[str] = ()
    notes: list[str] = field(default_factory=list)


def template() -> jinja2.Template:
    """The page's template, with autoescaping on.

    Raises:
        DcpruneError: Jinja2 is not installed.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise DcpruneError('The report page needs Jinja2: pip install "dcprune[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dcprune.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = number
    environment.filters["breakable"] = lambda name: Markup("<wbr>").join(re.split(r"(?<=[./_-])", name))
    environment.filters["count"] = lambda value: f"{value:,}"
    return environment.get_template("report.html.j2")


def render(page: Page, *, version: str) -> str:
    """The page as one HTML document, made by dcprune `version`.

    Its content security policy admits nothing from outside and no script but the one of the copy button.

    Raises:
        DcpruneError: Jinja2 is not installed.
    """
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    return template().render(page=page, script=_SCRIPT, script_hash=digest, version=version)


def build(material: Material, *, title: str | None, commands: Sequence[str], progress: Progress) -> Page:
    """Choose and compute what the page shows."""
    page = Page(
        title=title or default_title(material),
        sentences=[compare.selection_sentence(material), compare.result_sentence(material)],
        tiles=tiles(material),
        chain=chain_steps(material),
        metrics=compare.metric_groups(material.runs),
        per_class=figures.per_class_metrics(material.runs),
        costs=cost_rows(material.runs),
        costs_note=uncounted(material.runs),
        speed_ups=speed_ups(material.runs),
        commands=commands,
        notes=list(material.notes),
    )
    if material.headline.coreset is not None:
        add_choice(page, material, material.headline.coreset, progress)
    add_weights(page, material)
    add_training(page, material, progress)
    return page


def default_title(material: Material) -> str:
    """The dataset's name without the folders before it, and what the headline run was trained on."""
    name = material.dataset.uri.rstrip("/").rpartition("/")[2] or material.dataset.uri
    return f"{name}: {compare.trained_on(material.headline)}"


def tiles(material: Material) -> list[Tile]:
    """The few numbers to remember."""
    run, dataset = material.headline, material.dataset
    found = []
    if not run.is_full:
        kept = run.record.num_trained_samples
        found.append(
            Tile(compare.percent(kept / dataset.num_samples), f"kept: {kept:,} of {dataset.num_samples:,} images")
        )
    found += [
        Tile(number(each.value), f"{each.name} on {each.num_generated:,} images")
        for each in compare.generated_metrics(run)[:2]
    ]
    found += [
        Tile(f"{number(each.updates, 2)}×", f"fewer updates than {each.against}, {each.counted}")
        for each in speed_ups(material.runs)[:1]
        if each.updates is not None and each.updates > 1
    ]
    if run.class_weights is not None:
        values = run.class_weights.weights.values()
        found.append(Tile(f"{min(values):.2f}–{max(values):.2f}", "class weights, lowest and highest"))
    return found


def add_choice(page: Page, material: Material, coreset: Coreset, progress: Progress) -> None:
    """Contact sheets, class counts, score histogram and embedding map of a coreset."""
    if material.source is not None:
        page.sheets, problems = class_sheets(material.source, coreset, progress)
        page.notes += problems
        num_classes = material.dataset.num_classes
        page.sheets_note = f"{MAX_CLASSES} of {num_classes} classes." if num_classes > MAX_CLASSES else ""
        add_score_sheets(page, material, material.source, coreset, progress)
    scores = material.scores
    shown = [
        figures.class_counts(material, coreset),
        figures.score_histogram(scores, coreset, material.scores_recomputed) if scores else None,
        figures.class_histograms(scores, coreset) if scores else None,
        figures.embedding_map(material, coreset),
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
    found = [figures.weight_bars(weights), figures.weight_trajectory(weights)]
    page.weights = [figure for figure in found if figure is not None]
    objective, diagnostics = weights.objective, weights.diagnostics
    page.weight_facts = [
        ("eta", trimmed(objective.eta)),
        ("smoothing", trimmed(objective.smoothing)),
        ("updates of the proxy", f"{objective.steps:,}"),
        ("backend", objective.backend),
        ("excess measured on", "dropped images" if objective.held_out else "the coreset"),
        ("entropy, 1 = uniform", f"{diagnostics.entropy:.4f}"),
        ("losses below the reference's", compare.percent(diagnostics.fraction_clipped)),
    ]
    page.weight_warnings = diagnostics.warnings


def add_training(page: Page, material: Material, progress: Progress) -> None:
    """Loss curves and generated images of all runs."""
    curves = [figures.loss_curves(material.runs), figures.class_loss_curves(material.headline)]
    page.training = [figure for figure in curves if figure is not None]
    for run in [each for each in material.runs if each.samples is not None][:MAX_SAMPLE_GRIDS]:
        if run.samples is None:
            continue
        step = int(run.samples.stem.removeprefix("step-"))
        try:
            picture = sample_picture(run.samples, f"Images that run {run.name} generated after {step:,} updates")
        except OSError as error:
            page.notes.append(f"The samples {run.samples} cannot be read: {error}")
            progress.warn(page.notes[-1])
            continue
        page.grids.append(Grid(run.name, compare.trained_on(run), step, picture))
