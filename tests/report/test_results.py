"""Tables and figures of several runs, given one by one or as a sweep."""

from __future__ import annotations

import json
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dcprune import formats, sources
from dcprune.artifacts import SweepCell, SweepResults
from dcprune.errors import MissingInput, OptionError
from dcprune.progress import SILENT
from dcprune.report.cells import kept_ratio, methods
from dcprune.report.collect import Overrides, RunData, collect
from dcprune.report.compare import trained_on
from dcprune.report.costs import compared_costs
from dcprune.report.figures.sweep import sweep_figures
from dcprune.report.page import MAX_RUNS, shown_runs
from dcprune.report.paper import paper_dataset, paper_speed_ups, paper_values
from dcprune.report.results import ResultTable, results
from tests.report.conftest import make_coreset, make_embeddings, make_run, make_scores, make_weights, provenance, report
from tests.report.test_page import Tree, Warnings

if TYPE_CHECKING:
    from dcprune.artifacts import DatasetIdentity

RATIOS = (0.1, 0.2)
SEEDS = (0, 1, 2)
FULL_STEPS = 2_000


@dataclass(frozen=True)
class Sweep:
    """A folder of runs with `results.json`, and the value that every run was given."""

    folder: Path
    values: dict[str, float]

    def values_of(self, method: str, ratio: float) -> list[float]:
        return [self.values[f"{method}-{ratio}-{seed}"] for seed in SEEDS]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Random choice, moderate, and moderate with class weights, at two ratios and three seeds, and the full data."""
    folder = tmp_path_factory.mktemp("sweep")
    source = sources.open_dataset("fashion-mini")
    dataset, labels = sources.identify(source), np.asarray(source.labels)
    scores = make_scores(
        make_embeddings(source, dataset, folder / "embeddings.safetensors"), folder / "scores.safetensors"
    )
    generator = np.random.default_rng(0)
    values: dict[str, float] = {}
    cells = []
    for method, base in (("random", 20.0), ("moderate", 18.0), ("weighted", 16.0), ("full", 10.0)):
        for ratio in RATIOS if method != "full" else (1.0,):
            coreset, weights = _inputs(folder, method, ratio, scores.scores, labels, dataset)
            for seed in SEEDS:
                name = f"{method}-{ratio}-{seed}"
                values[name] = base - 20 * (ratio if ratio < 1 else 0) + float(generator.normal(0, 0.1))
                run = folder / "runs" / name
                make_run(
                    run,
                    source,
                    dataset,
                    steps=round(FULL_STEPS * ratio),
                    value=values[name],
                    coreset=coreset,
                    weights=weights,
                    seed=seed,
                )
                cells.append(_cell(run, method, ratio, seed))
    formats.write_sweep(
        SweepResults(dataset=dataset, cells=tuple(cells), provenance=provenance("sweep", file="sweep.toml")), folder
    )
    return Sweep(folder, values)


def _inputs(
    folder: Path, method: str, ratio: float, scores: object, labels: object, dataset: DatasetIdentity
) -> tuple[Path | None, Path | None]:
    """The coreset and the class weights of a cell."""
    if method == "full":
        return None, None
    scorer = "random" if method == "random" else "moderate"
    coreset = folder / f"{scorer}-{ratio}.json"
    if not coreset.exists():
        order = np.random.default_rng(1).random(dataset.num_samples) if scorer == "random" else scores
        make_coreset(order, labels, dataset, scorer, folder / "scores.safetensors", coreset, ratio)  # type: ignore[arg-type]
    weights = folder / f"weights-{ratio}.json"
    if method == "weighted":
        make_weights(dataset, coreset, weights)
    return coreset, weights if method == "weighted" else None


def _cell(run: Path, method: str, ratio: float, seed: int) -> SweepCell:
    scorer = {"random": "random", "full": None}.get(method, "moderate")
    return SweepCell(
        encoder="pixels" if scorer == "moderate" else None,
        scorer=scorer,
        ratio=ratio,
        weights=method == "weighted",
        seed=seed,
        run=formats.input_file(run / "run.json"),
        metrics=(formats.input_file(run / "metrics.json"),),
    )


@pytest.fixture(scope="module")
def runs(sweep: Sweep) -> tuple[RunData, ...]:
    return collect([sweep.folder], overrides=Overrides(), data_dir=None, progress=SILENT).runs


def texts(table: ResultTable) -> dict[str, list[str]]:
    return {row.label: [f"{cell.value} ± {cell.spread}" for cell in row.cells] for row in table.rows}


def test_rows_are_methods_and_columns_ratios_with_mean_and_deviation_over_seeds(
    sweep: Sweep, runs: tuple[RunData, ...]
) -> None:
    table = results(runs).tables[0]
    assert table.title == "fd:resnet18"
    assert [ratio.replace("\N{NO-BREAK SPACE}", "") for ratio in table.ratios] == ["10%", "20%", "100%"]
    rows = {row.label: row for row in table.rows}
    assert list(rows) == ["random", "moderate (pixels)", "moderate (pixels) + reweighting", "all data"]
    for label, method in (("random", "random"), ("moderate (pixels) + reweighting", "weighted")):
        for cell, ratio in zip(rows[label].cells, RATIOS, strict=False):
            mine = sweep.values_of(method, ratio)
            assert float(cell.value) == pytest.approx(statistics.fmean(mine), rel=5e-3)
            assert float(cell.spread) == pytest.approx(statistics.stdev(mine), abs=0.005)
            assert cell.runs == 3
            assert cell.best == (method == "weighted")
        assert rows[label].cells[2].value == ""
    assert rows["all data"].cells[2].runs == 3


def test_runs_given_by_hand_make_the_same_table(sweep: Sweep, runs: tuple[RunData, ...]) -> None:
    folders = [sweep.folder / "runs" / name for name in sweep.values]
    by_hand = collect(folders, overrides=Overrides(), data_dir=None, progress=SILENT).runs
    assert texts(results(by_hand).tables[0]) == texts(results(runs).tables[0])


def test_speed_is_that_of_the_training_and_of_everything(runs: tuple[RunData, ...]) -> None:
    alone, everything = results(runs).speed_tables
    assert texts(alone)["moderate (pixels) + reweighting"] == ["10.00 ± 0.00", "5.000 ± 0.000"]
    unit, costs = compared_costs(runs, None)
    assert unit == "images seen"  # nobody counted the operations of the proxies
    weighted = next(run for run in runs if run.name == "pixels-moderate-0.1-weights-seed0")
    assert costs["full-seed0"] / costs[weighted.name] == pytest.approx(2_000 / (200 + 600))
    assert texts(everything)["moderate (pixels) + reweighting"][0] == "2.500 ± 0.000"
    assert "all data" not in texts(alone)


def test_figures_show_every_method_against_ratio_and_cost(runs: tuple[RunData, ...]) -> None:
    found = results(runs)
    figures = sweep_figures(found, runs)
    assert [figure.title for figure in figures] == [
        "fd:resnet18 against the kept share",
        "fd:resnet18 against the cost of training",
        "fd:resnet18 against all costs",
    ]
    for figure in figures:
        assert [words for _, words in figure.keys] == [method.label for method in found.methods]
        assert figure.table is not None
        assert len(figure.table.rows) == 7
    assert ("baseline", "random") in figures[0].keys
    assert 'class="level full"' in figures[0].svg


def test_settings_that_differ_make_rows_of_their_own(runs: tuple[RunData, ...]) -> None:
    def changed(run: RunData, **training: object) -> RunData:
        record = run.record.model_copy(update={"training": {**run.record.training, **training}})
        return replace(run, name=f"{run.name}-changed", record=record)

    random = [run for run in runs if run.name.startswith("random-0.1-")]
    labels = [method.label for method in methods([*random, changed(random[0], batch_size=128)])]
    assert labels == ["random, batch size 64", "random, batch size 128"]
    longer = methods([*random, changed(random[0], epochs=80)])
    assert [(method.label, sum(map(len, method.runs.values()))) for method in longer] == [
        ("random, 40 epochs", 3),
        ("random, 80 epochs", 1),
    ]
    (weighted,) = [run for run in runs if run.name == "pixels-moderate-0.1-weights-seed0"]
    assert weighted.class_weights is not None
    objective = weighted.class_weights.objective.model_copy(update={"eta": 10.0})
    stronger = replace(
        weighted, name="stronger", class_weights=weighted.class_weights.model_copy(update={"objective": objective})
    )
    assert [method.label.partition(", ")[2] for method in methods([weighted, stronger])] == [
        "eta of the class weights 1.0",
        "eta of the class weights 10.0",
    ]
    other_ratio = next(run for run in runs if run.name == "random-0.2-seed0")
    assert len(methods([*random, changed(other_ratio, epochs=80)])) == 1


def test_values_of_another_protocol_are_left_out_and_said(runs: tuple[RunData, ...]) -> None:
    last = runs[-1]
    assert last.metrics is not None
    unlike = last.metrics.metrics[0].model_copy(update={"num_generated": 77})
    odd = replace(last, metrics=last.metrics.model_copy(update={"metrics": (unlike,)}))
    table = results([*runs[:-1], odd]).tables[0]
    assert "1 more were measured under another protocol" in table.note
    assert table.rows[-1].cells[2].runs == 2


def test_one_run_alone_makes_no_table(runs: tuple[RunData, ...]) -> None:
    assert results(runs[:1]).tables == ()


def test_dynamic_pruning_stands_at_the_ratio_of_its_updates(runs: tuple[RunData, ...]) -> None:
    full = runs[-1]
    assert full.cell is not None
    training = {**full.record.training, "dynamic": "infobatch"}
    cell = SweepCell.model_validate({**full.cell.model_dump(), "dynamic": "infobatch", "ratio": 0.2})
    dynamic = replace(full, name="infobatch", cell=cell, record=full.record.model_copy(update={"training": training}))
    rows = {row.label: row for row in results([*runs, dynamic]).tables[0].rows}
    assert [bool(each.value) for each in rows["infobatch + annealing"].cells] == [False, True, False]


def as_cifar10(run: RunData) -> RunData:
    """A run as if it were of CIFAR-10 and its metric were the FID."""
    assert run.metrics is not None
    dataset = run.record.dataset.model_copy(update={"uri": "cifar10", "num_samples": 50_000})
    fid = run.metrics.metrics[0].model_copy(update={"name": "fid"})
    return replace(
        run,
        record=run.record.model_copy(update={"dataset": dataset}),
        metrics=run.metrics.model_copy(update={"metrics": (fid,)}),
        encoder="resnet18" if run.encoder else None,
    )


def test_the_papers_numbers_stand_beside_the_same_method_and_ratio(runs: tuple[RunData, ...]) -> None:
    found = results([as_cifar10(run) for run in runs])
    table = found.tables[0]
    rows = {row.label: row for row in table.rows}
    assert [cell.paper for cell in rows["random"].cells] == ["8.12", "5.64", "4.86", "4.45", ""]
    assert [cell.paper for cell in rows["moderate (resnet18) + reweighting"].cells] == [
        "6.71",
        "4.95",
        "4.44",
        "4.18",
        "",
    ]
    assert rows["all data"].cells[4].paper == "3.66"
    theirs = rows["moderate (resnet18) + reweighting + annealing"]
    assert not theirs.ours
    assert [cell.paper for cell in theirs.cells] == ["4.58", "4.19", "4.12", "3.92", ""]
    assert "gaussian (inceptionv3)" in rows
    assert "2409.19128" in table.note
    assert "seconds" in found.speed_tables[0].note
    assert [cell.paper for cell in found.speed_tables[0].rows[1].cells] == ["8.89", "4.55", "3.09", "2.36"]


def test_the_papers_tables_are_known_by_dataset_and_metric(runs: tuple[RunData, ...]) -> None:
    cifar10 = as_cifar10(runs[0]).record.dataset
    assert paper_dataset(cifar10) == "cifar10"
    assert paper_dataset(cifar10.model_copy(update={"uri": "cifar100", "num_classes": 100})) is None
    assert paper_dataset(cifar10.model_copy(update={"num_samples": 10_000})) is None
    assert paper_values(cifar10, "cmmd") == []
    imagenet = cifar10.model_copy(update={"uri": "hf:org/imagenet-1k", "num_samples": 1_281_167, "num_classes": 1000})
    by_recipe = {(row.recipe.scorer, row.recipe.weights): row.values for row in paper_values(imagenet, "cmmd")}
    assert by_recipe["gaussian", True] == {0.1: 2.22, 0.2: 0.91}
    assert by_recipe[None, False] == {1.0: 0.86}
    assert paper_speed_ups(imagenet) == []
    imagenette = cifar10.model_copy(update={"uri": "imagenette", "num_samples": 9_469})
    assert paper_values(imagenette, "fid")[-1].values == {1.0: 25.91}


def test_the_data_is_the_papers_file() -> None:
    from importlib import resources

    tables = json.loads(resources.files("dcprune.report").joinpath("data/paper_tables.json").read_text())
    assert "2409.19128" in tables["source"]
    assert len(tables) == 6


def test_many_runs_are_shown_in_part_and_tabled_whole(runs: tuple[RunData, ...]) -> None:
    shown = shown_runs(runs)
    assert len(runs) == 21 > MAX_RUNS
    assert [run.name for run in shown] == [
        "pixels-moderate-0.1-weights-seed0",
        "random-0.1-seed0",
        "pixels-moderate-0.1-seed0",
        "full-seed0",
    ]
    assert {kept_ratio(run) for run in shown} == {0.1, 1.0}


def test_the_page_of_a_sweep(sweep: Sweep, tmp_path: Path) -> None:
    html = report([sweep.folder / "results.json"], output=tmp_path / "report.html").read_text()
    tree = Tree(html)
    text = tree.text.replace("\N{NO-BREAK SPACE}", " ")
    assert tree.sections[:4] == ["chain", "results", "choice", "weights"]
    assert "21 runs: 3 methods at 2 ratios. At 10 % the best fd:resnet18 is" in text
    assert "by moderate (pixels) + reweighting, against" in text
    assert "with 3 of the other 20 runs beside it" in text
    commands = html.partition('<pre id="command-lines"')[2].partition("</pre>")[0]
    assert commands.count("\n") == 2
    assert "dcprune sweep --file sweep.toml" in commands
    assert len(html.encode()) < 5_000_000


def test_commands_are_typed_where_the_sweep_was(sweep: Sweep, tmp_path: Path) -> None:
    shutil.copytree(sweep.folder, tmp_path / "runs" / "grid")
    document = json.loads((tmp_path / "runs" / "grid" / "results.json").read_text())
    document["provenance"]["config"]["output"] = "runs/grid"
    (tmp_path / "runs" / "grid" / "results.json").write_text(json.dumps(document))
    html = report([tmp_path / "runs" / "grid"], output=tmp_path / "report.html").read_text()
    assert "dcprune report runs/grid -o report.html" in html


def test_speed_ups_need_no_metrics(sweep: Sweep, tmp_path: Path) -> None:
    shutil.copytree(sweep.folder, tmp_path / "sweep")
    document = json.loads((tmp_path / "sweep" / "results.json").read_text())
    for cell in document["cells"]:
        for each in cell.pop("metrics"):
            (tmp_path / "sweep" / each["path"]).unlink()
        cell["metrics"] = []
    (tmp_path / "sweep" / "results.json").write_text(json.dumps(document))
    tree = Tree(report([tmp_path / "sweep"], output=tmp_path / "report.html").read_text())
    assert "results" in tree.sections
    assert "Speed-up over the full data, training alone" in tree.text
    assert "metrics" not in tree.sections


def test_dynamic_pruning_is_named_and_is_no_full_data(runs: tuple[RunData, ...]) -> None:
    full = runs[-1]
    training = {**full.record.training, "dynamic": "infobatch"}
    dynamic = replace(full, record=full.record.model_copy(update={"training": training}))
    assert (full.is_full, dynamic.is_full) == (True, False)
    assert (trained_on(full), trained_on(dynamic)) == ("all data", "all data, infobatch")


def test_costs_that_are_all_alike_make_no_chart(runs: tuple[RunData, ...]) -> None:
    def costing(run: RunData, flops: int) -> RunData:
        ledger = tuple(each.model_copy(update={"flops": flops}) for each in run.record.ledger)
        return replace(run, record=run.record.model_copy(update={"ledger": ledger}))

    alike = [costing(run, 1000) for run in runs]
    titles = [figure.title for figure in sweep_figures(results(alike), alike)]
    assert "fd:resnet18 against the cost of training" not in titles
    unlike = [costing(run, 1000 * (1 + position)) for position, run in enumerate(runs)]
    assert "fd:resnet18 against the cost of training" in [
        figure.title for figure in sweep_figures(results(unlike), unlike)
    ]


def test_a_cell_without_its_run_is_a_note(sweep: Sweep, tmp_path: Path) -> None:
    document = json.loads((sweep.folder / "results.json").read_text())
    for cell in document["cells"]:
        cell["run"]["path"] = str(sweep.folder / cell["run"]["path"])
        cell["metrics"] = [{**each, "path": str(sweep.folder / each["path"])} for each in cell["metrics"]]
    document["cells"][0]["run"]["path"] = str(tmp_path / "gone" / "run.json")
    (tmp_path / "results.json").write_text(json.dumps(document))
    progress = Warnings()
    report([tmp_path], output=tmp_path / "report.html", progress=progress)
    assert progress.warnings == [f"The run {tmp_path / 'gone'} of the sweep is not there any more."]
    document["cells"] = document["cells"][:1]
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(OptionError, match=r"No run of .*results\.json"):
        report([tmp_path], output=tmp_path / "none.html")
    with pytest.raises(MissingInput):
        report([tmp_path / "absent.json"], output=tmp_path / "none.html")
