from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dcprune import formats
from dcprune.progress import SILENT
from tests.report.conftest import report

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from dcprune.interfaces import Task
    from tests.report.conftest import Chain

VOID = {"meta", "link", "img", "br", "hr", "wbr", "input"}


class Warnings:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def task(self, description: str, total: int | None, unit: str = "it") -> AbstractContextManager[Task]:
        return SILENT.task(description, total, unit)

    def note(self, message: str) -> None:
        self.warnings.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Tree(HTMLParser):
    """Checks that elements nest, and gathers attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> list[str]:
        return [str(attributes.get("id", "notes")) for tag, attributes in self.elements if tag == "section"]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.elements if found == tag]


def make(runs: Sequence[Path], output: Path, **options: Any) -> tuple[Tree, str]:
    html = report(runs, output=output, **options).read_text()
    return Tree(html), html


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def page(shared_chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, str]:
    """The page of the whole chain."""
    return make(shared_chain.runs, tmp_path_factory.mktemp("page") / "report.html")


def test_whole_chain_has_every_section(page: tuple[Tree, str]) -> None:
    tree, _ = page
    assert tree.sections == ["chain", "results", "choice", "weights", "training", "metrics", "cost", "commands"]
    assert [each["href"] for each in tree.all("a")][1:] == [f"#{section}" for section in tree.sections]


def test_summary_says_what_was_done_in_numbers(page: tuple[Tree, str]) -> None:
    text = page[0].text.replace("\N{NO-BREAK SPACE}", " ")
    assert (
        "800 of the 4,000 images of fashion-mini (train) were kept (20 %), chosen by moderate within each class" in text
    )
    assert (
        "Its fd:resnet18 is 14.8 on 1,000 generated images, against 16.1 for random (random 20 %) and 11.4 for full"
        in text
    )
    assert "5.0×" in text


def test_chain_names_files_and_hashes(page: tuple[Tree, str], shared_chain: Chain) -> None:
    tree, _ = page
    for name in ("embeddings.safetensors", "scores.safetensors", "coreset.json", "weights.json"):
        assert name in tree.text.replace(". ", ".")
        assert formats.sha256(shared_chain.folder / name)[:10] in tree.text


def test_commands_come_in_an_order_that_works(page: tuple[Tree, str]) -> None:
    html = page[1]
    block = re.search(r'<pre id="command-lines"[^>]*>(.*?)</pre>', html, re.DOTALL)
    assert block is not None
    lines = block.group(1).split("\n")[:-1]
    assert [line.split()[1] for line in lines] == [
        "embed", "score", "select", "select", "train", "reweight", "train", "train", "eval", "eval", "eval", "report"
    ]  # fmt: skip
    assert lines[4].endswith("--output runs/full")
    assert lines[5] == "dcprune reweight --reference runs/full --epochs 60 --batch-size 64 --output weights.json"


def test_the_loss_of_every_class_is_drawn(page: tuple[Tree, str], shared_chain: Chain) -> None:
    (chart,) = [each for each in page[0].all("svg") if "Training loss of each class (core)" in str(each["aria-label"])]
    assert chart is not None
    assert "what the model loses on the images of a class" in page[0].text


def test_cost_is_compared_both_ways(page: tuple[Tree, str]) -> None:
    text = page[0].text
    assert "full training alone 5.00× 5.00× 5.00× 5.00×" in text
    assert "full proxy and train 2.27× 2.27× – –" in text
    assert "Not counted: embedding, scoring and the full-data reference" in text


def test_real_images_stand_last_and_are_compared_with_nothing(page: tuple[Tree, str]) -> None:
    text = page[0].text
    assert "full generated, trained on all data 11.40 1,000 4,000 core real: coreset images 1.647 800 4,000" in text
    assert "not comparable" not in text
    assert "what a copy of the training set would reach" in text
    named = [str(each["aria-label"]) for each in page[0].all("svg")]
    assert not [name for name in named if "coreset images" in name]


def test_page_loads_nothing(page: tuple[Tree, str]) -> None:
    tree, html = page
    assert not re.search(r"https?:", html)
    sources = [attributes[name] for _, attributes in tree.elements for name in ("src", "href") if name in attributes]
    assert sources
    assert all(source and source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in html
    assert "@import" not in html
    policy = next(each["content"] for each in tree.all("meta") if "http-equiv" in each)
    assert policy is not None
    assert "default-src 'none'" in policy


def test_page_is_small(page: tuple[Tree, str]) -> None:
    assert 100_000 < len(page[1].encode()) < 1_000_000


def test_page_is_accessible(page: tuple[Tree, str]) -> None:
    tree, html = page
    assert html.startswith("<!doctype html>")
    assert tree.all("html")[0]["lang"] == "en"
    assert len(tree.all("h1")) == len(tree.all("main")) == 1
    assert all(each.get("alt") for each in tree.all("img"))
    assert all(each.get("aria-label") and each.get("role") == "img" for each in tree.all("svg"))
    assert all(each.get("scope") for each in tree.all("th"))
    ids = [attributes["id"] for _, attributes in tree.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    named_by = [attributes["aria-labelledby"] for _, attributes in tree.elements if "aria-labelledby" in attributes]
    assert set(named_by) <= set(ids)
    levels = [int(tag[1]) for tag, _ in tree.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    landmarks = [
        attributes.get("aria-label") or attributes.get("aria-labelledby")
        for tag, attributes in tree.elements
        if tag in ("section", "nav") or attributes.get("role") == "region"
    ]
    assert None not in landmarks
    assert len(landmarks) == len(set(landmarks))
    scrolled = [each for _, each in tree.elements if "scroll" in (each.get("class") or "").split()]
    assert all(each.get("tabindex") == "0" for each in scrolled)


def test_every_chart_has_words_and_a_table(page: tuple[Tree, str]) -> None:
    tree, html = page
    charts = [str(each["aria-label"]) for each in tree.all("svg")]
    assert len(charts) == 12
    assert all(len(name) > len(title) + 10 for name, title in ((each, each.partition(". ")[0]) for each in charts))
    figures = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert all('<details class="data">' in each for each in figures if "<svg" in each)
    windows = next(each for each in figures if "Scores within each class" in each)
    assert windows.count('class="edge"') == 20
    assert windows.count('class="window"') == 10


def test_motion_is_reduced_for_who_asks(page: tuple[Tree, str]) -> None:
    assert "@media (prefers-reduced-motion: reduce)" in page[1]


def test_values_come_with_their_intervals_and_limits(chain: Chain, tmp_path: Path) -> None:
    metrics = json.loads((chain.core / "metrics.json").read_text())["metrics"]

    def interval(low: float, high: float) -> dict[str, Any]:
        return {"low": low, "high": high, "level": 0.95, "method": "bootstrap", "num_resamples": 200, "seeds": []}

    sweep = [
        {"num_generated": count, "value": 14 + 820 / count, "interval": interval(13.5 + 820 / count, 15 + 820 / count)}
        for count in (250, 500, 1000)
    ]
    extended = {
        **metrics[0],
        "interval": interval(14.32, 15.82),
        "sweep": sweep,
        "extrapolated": {"value": 14.0, "slope": 820.0, "interval": interval(13.4, 14.9)},
    }
    other = {**metrics[0], "name": "isc", "value": 3.2, "std": 0.12, "per_class": None}
    edit(chain.core / "metrics.json", metrics=[extended, other, metrics[1]])
    tree, _ = make([chain.core], tmp_path / "report.html")
    text = tree.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "14.82 14.32 to 15.82 1,000 4,000" in text
    assert "14.00 13.40 to 14.90 ∞ 4,000" in text
    assert "3.200 standard deviation 0.120" in text
    assert "Intervals: 95 % by bootstrap of the generated images (200 resamples)." in text
    (chart,) = [each for each in tree.all("svg") if "against the number of images" in str(each["aria-label"])]
    assert "core limit 14.0" in str(chart["aria-label"])


def test_commands_name_files_that_the_record_does_not(chain: Chain, tmp_path: Path) -> None:
    """Two choices that wrote to different files would overwrite each other if they were run again without a name."""
    for name in ("coreset.json", "random.json"):
        record = json.loads((chain.folder / name).read_text())["provenance"]
        del record["config"]["output"]
        edit(chain.folder / name, provenance=record)
    _, html = make(chain.runs, tmp_path / "report.html")
    block = html.partition('<pre id="command-lines"')[2].partition(">")[2].partition("</pre>")[0]
    chosen = [line for line in block.splitlines() if line.startswith("dcprune select")]
    assert [line.rpartition(" --output ")[2] for line in chosen] == ["coreset.json", "random.json"]
    assert block.splitlines()[-1] == ("dcprune report runs/core runs/random runs/full -o report.html --projection pca")


def test_the_reference_of_class_weights_is_trained_first(chain: Chain, tmp_path: Path) -> None:
    (chain.full / "model").mkdir()
    (chain.full / "model" / "weights").write_bytes(b"0")
    record = json.loads((chain.folder / "weights.json").read_text())["provenance"]
    record["inputs"].append(formats.input_file(chain.full / "model").model_dump())
    edit(chain.folder / "weights.json", provenance=record)
    _, html = make([chain.core], tmp_path / "report.html")
    block = html.partition('<pre id="command-lines"')[2].partition("</pre>")[0]
    assert [line.split()[1] for line in block.splitlines() if line.startswith("dcprune ")] == [
        "score", "select", "train", "reweight", "train", "eval", "report"
    ]  # fmt: skip


def test_colours_are_defined_and_readable_in_both_modes(page: tuple[Tree, str]) -> None:
    css = page[1].partition("<style>")[2].partition("</style>")[0]
    before, _, after = css.partition("@media (prefers-color-scheme: dark)")
    light, dark = (
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", part)) for part in (before, after.split("\n}")[0])
    )
    assert light.keys() == dark.keys() >= set(re.findall(r"var\(--([a-z0-9-]+)\)", css))
    for colours in (light, dark):
        for name in ("ink", "muted", "accent", "caution", *(f"s{number}" for number in range(1, 11))):
            assert contrast(colours[name], colours["ground"]) >= 4.5, name
        assert contrast(colours["caution"], colours["caution-ground"]) >= 4.5
        assert min(contrast(colours[name], colours["ground"]) for name in ("kept", "dropped")) >= 3


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio of two colours `#rrggbb`."""
    lights = []
    for colour in (first, second):
        channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_same_inputs_give_the_same_bytes(page: tuple[Tree, str], shared_chain: Chain, tmp_path: Path) -> None:
    assert make(shared_chain.runs, tmp_path / "again" / "report.html")[1] == page[1]


def test_full_run_has_no_choice_and_no_weights(shared_chain: Chain, tmp_path: Path) -> None:
    tree, _ = make([shared_chain.full], tmp_path / "report.html")
    assert tree.sections == ["chain", "training", "metrics", "cost", "commands"]
    assert "trained on all 4,000 images" in tree.text


def test_run_without_results_still_makes_a_page(chain: Chain, tmp_path: Path) -> None:
    for name in ("metrics.json", "metrics.jsonl", "samples/step-00000500.png"):
        (chain.core / name).unlink()
    tree, _ = make([chain.core], tmp_path / "report.html")
    assert tree.sections == ["chain", "choice", "weights", "cost", "commands"]
    assert "not been evaluated yet" in tree.text


def test_no_speed_up_is_announced_where_there_is_none(chain: Chain, tmp_path: Path) -> None:
    ledger = json.loads((chain.core / "run.json").read_text())["ledger"]
    edit(chain.full / "run.json", ledger=ledger)
    tree, _ = make(chain.runs, tmp_path / "report.html")
    assert "fewer updates than" not in tree.text
    assert "full training alone 1.00×" in tree.text


def test_title_and_names_are_escaped(chain: Chain, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>&\""
    folder = chain.folder / "runs" / "<img src=x onerror=alert(1)>"
    chain.core.rename(folder)
    record = json.loads((folder / "run.json").read_text())
    names = [evil, *record["dataset"]["class_names"][1:]]
    dataset = {**record["dataset"], "class_names": names, "uri": evil}
    edit(folder / "run.json", dataset=dataset)
    for path in (chain.folder / "coreset.json", chain.folder / "weights.json", folder / "metrics.json"):
        document = json.loads(path.read_text())
        for key in ("class_counts", "weights"):
            if key in document:
                document[key] = dict(zip(names, document[key].values(), strict=True))
        for metric in document.get("metrics", ()):
            metric["name"] = metric["name"].replace("fd:resnet18", evil)
            metric["protocol"] = {evil: evil}
            metric["per_class"] = dict.fromkeys(names, 1.0) if metric["per_class"] else None
        document["provenance"]["config"] = {"output": evil}
        edit(path, **{**document, "dataset": dataset})
    tree, html = make([folder], tmp_path / "report.html", title=evil)
    assert html.count("<script") == 1
    assert not [attributes for _, attributes in tree.elements if any(name.startswith("on") for name in attributes)]
    assert all((each["src"] or "").startswith("data:") for each in tree.all("img"))
    assert tree.text.count("<script>alert(") > 5


def test_moved_and_changed_files_are_notes(chain: Chain, tmp_path: Path) -> None:
    (chain.folder / "weights.json").unlink()
    counted = (chain.folder / "coreset.json").read_text()
    (chain.folder / "coreset.json").write_text(counted + "\n")
    progress = Warnings()
    tree, _ = make(chain.runs, tmp_path / "report.html", progress=progress)
    assert tree.sections[0] == "notes"
    assert "weights" not in tree.sections
    assert len(progress.warnings) == 2
    assert any("weights.json is not there any more" in warning for warning in progress.warnings)
    assert any("coreset.json has changed" in warning for warning in progress.warnings)
    assert all(" ".join(warning.split()) in tree.text for warning in progress.warnings)


def test_broken_artifact_is_a_note(chain: Chain, tmp_path: Path) -> None:
    (chain.folder / "coreset.json").write_text("{")
    tree, _ = make([chain.core], tmp_path / "report.html")
    assert "truncated or corrupt" in tree.text
    assert "choice" not in tree.sections


def test_page_without_the_dataset_has_no_images(chain: Chain, tmp_path: Path) -> None:
    missing = {**json.loads((chain.core / "run.json").read_text())["dataset"], "uri": "no-such-dataset"}
    edit(chain.core / "run.json", dataset=missing)
    tree, _ = make([chain.core], tmp_path / "report.html")
    assert "The page has no images" in tree.text
    assert not [each for each in tree.all("table") if each.get("class") == "sheets"]
    assert "80 of 400" in tree.text


def test_damaged_lines_and_samples_are_notes(chain: Chain, tmp_path: Path) -> None:
    with (chain.core / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 505, "lo')
    (chain.core / "samples" / "step-00000500.png").write_bytes(b"not a picture")
    tree, _ = make([chain.core], tmp_path / "report.html")
    assert "a line that is not a training record" in tree.text
    assert "cannot be read" in tree.text


def test_scores_are_computed_again_when_selection_stored_none(chain: Chain, tmp_path: Path) -> None:
    coreset = json.loads((chain.folder / "coreset.json").read_text())
    scores = formats.read_scores(chain.folder / "scores.safetensors")
    inputs = [each.model_dump() for each in scores.provenance.inputs]
    settings = {**coreset["selection"], "params": {}}
    edit(chain.folder / "coreset.json", selection=settings, provenance={**coreset["provenance"], "inputs": inputs})
    (chain.folder / "scores.safetensors").unlink()
    stored = make([chain.core], tmp_path / "a.html", scores=None)[0]
    assert "Computed again from the embeddings" in stored.text
    assert "Scores within each class" in stored.text


def test_unlike_protocols_are_not_compared(chain: Chain, tmp_path: Path) -> None:
    metrics = json.loads((chain.random / "metrics.json").read_text())["metrics"]
    edit(chain.random / "metrics.json", metrics=[{**metrics[0], "num_generated": 500}])
    tree, _ = make(chain.runs, tmp_path / "report.html")
    text = tree.text.replace("\N{NO-BREAK SPACE}", " ")
    assert "against 11.4 for full (all data)." in text
    assert "16.07 not comparable" in text
    (figure,) = [each for each in tree.all("svg") if "fd:resnet18 within each class" in str(each["aria-label"])]
    assert "random" not in str(figure["aria-label"])
    assert text.count("not comparable") == 1


def test_named_files_replace_the_recorded_ones(shared_chain: Chain, tmp_path: Path) -> None:
    tree, _ = make([shared_chain.core], tmp_path / "report.html", coreset=shared_chain.folder / "random.json")
    assert "chosen by random" in tree.text
    assert "has changed since it was used" in tree.text
