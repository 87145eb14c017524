"""Which cells and stages a sweep file stands for, and what their keys depend on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dcprune.artifacts import DatasetIdentity
from dcprune.cli.config import options_by_command
from dcprune.errors import InputError, OptionError, UnknownName
from dcprune.sources import identify, open_dataset
from dcprune.sweep.cache import Cache
from dcprune.sweep.plan import Cell, Planner, check_options, read_declaration, stages_of, updates
from dcprune.training.config import TrainingConfig
from dcprune.training.schedule import phase_steps
from tests.sweep.conftest import SWEEP, Write


@pytest.fixture(scope="module")
def identity() -> DatasetIdentity:
    return identify(open_dataset("fashion-mini"))


def planned(path: Path, identity: DatasetIdentity, **options: Any) -> list[Cell]:
    only = options.pop("only", ())
    return Planner(read_declaration([path], **options), identity).cells(only)


def keys(cells: list[Cell]) -> dict[str, str]:
    return {f"{stage.command} {stage.name}": stage.key for stage in stages_of(cells)}


def test_stages_are_shared_and_come_after_what_they_need(write: Write, identity: DatasetIdentity) -> None:
    cells = planned(write(), identity)
    assert [cell.name for cell in cells] == [
        "full-seed0",
        "random-0.1-seed0",
        "pixels-moderate-0.1-weights-seed0",
        "pixels-moderate-0.1-weights-anneal-seed0",
    ]
    stages = stages_of(cells)
    # the annealed run and the other have one coreset and one set of weights, and the reference is the full-data cell
    assert Counter(stage.command for stage in stages) == {"embed": 2, "select": 2, "reweight": 1, "train": 4, "eval": 4}
    assert cells[2].train.inputs["class_weights"].inputs["reference"].key == cells[0].train.key
    seen: set[str] = set()
    for stage in stages:
        assert {source.key for source in stage.inputs.values()} <= seen
        seen.add(stage.key)


def test_one_embedding_serves_all_scorers_ratios_and_seeds(write: Write, identity: DatasetIdentity) -> None:
    text = SWEEP.replace('scorer = "moderate"', 'scorer = ["moderate", "gaussian"]\nratio = [0.1, 0.2]')
    cells = planned(write(text), identity, seeds=[0, 1, 2])
    stages = stages_of(cells)
    assert len(cells) == 3 * (1 + 1 + 2 * 2 * 2)
    assert [stage.name for stage in stages if stage.command == "embed"] == ["labels", "pixels"]
    references = {stage.inputs["reference"].key for stage in stages if stage.command == "reweight"}
    assert len(references) == 1


def test_a_cell_is_the_same_whichever_seeds_are_asked_for(write: Write, identity: DatasetIdentity) -> None:
    path = write()
    together = {cell.name: cell.last.key for cell in planned(path, identity, seeds=[0, 1])}
    alone = {cell.name: cell.last.key for cell in planned(path, identity, seeds=[1])}
    assert alone.items() <= together.items()
    assert any("weights" in name for name in alone)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("checkpoint_every = 2", "checkpoint_every = 3", {}),
        ("num_samples", "seed = 3\nnum_samples", {"eval"}),
        ("num_samples", 'split = "test"\nnum_samples', {"eval"}),
        ("image_size = 4", "image_size = 5", {"embed", "select", "reweight", "train", "eval"}),
        ("[reweight]\nsteps = 2", "[reweight]\nsteps = 3", {"reweight", "train", "eval"}),
    ],
)
def test_a_key_follows_what_decides_the_result(
    write: Write, identity: DatasetIdentity, old: str, new: str, changed: set[str]
) -> None:
    before, after = keys(planned(write(), identity)), keys(planned(write(SWEEP.replace(old, new, 1)), identity))
    assert before.keys() == after.keys()
    assert {name.split()[0] for name in before if before[name] != after[name]} == set(changed)


def test_a_key_follows_the_bytes_of_files_and_the_dataset(
    write: Write, identity: DatasetIdentity, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"one")
    path = write(SWEEP.replace("[encoders.pixels]", f'[encoders.pixels]\nweights = "{weights}"'))
    before = planned(path, identity)[2].train.key
    weights.write_bytes(b"two")
    assert planned(path, identity)[2].train.key != before
    other = identity.model_copy(update={"fingerprint": "0" * 64})
    assert all(keys(planned(path, other))[name] != key for name, key in keys(planned(path, identity)).items())


def test_runs_of_the_sweep_stand_for_weights_and_settings(write: Write, identity: DatasetIdentity) -> None:
    text = SWEEP + (
        '\n[[grid]]\nencoder = "ddae"\nscorer = "difficulty"\nparams = {run = "run:reference"}\n'
        '[encoders.ddae]\nweights = "run:base"\n[runs.base]\nunconditional = true\nepochs = 1\n'
    )
    cell = planned(write(text), identity)[-1]
    select = cell.train.inputs["coreset"]
    base = select.inputs["source"].inputs["weights"]
    assert (base.options["unconditional"], base.options["epochs"], base.options["steps"]) == (True, 1, None)
    assert select.inputs["set.run"].key == planned(write(text), identity)[0].train.key


def test_infobatch_is_one_run_for_all_ratios_where_updates_are_given(write: Write, identity: DatasetIdentity) -> None:
    cells = planned(write(SWEEP + '\n[[grid]]\ndynamic = "infobatch"\nratio = [0.1, 0.2]\n'), identity)
    first, second = (cell for cell in cells if cell.dynamic)
    assert (first.name, second.name) == ("infobatch-0.1-seed0", "infobatch-0.2-seed0")
    assert first.train.slug == second.train.slug
    assert first.train.options["steps"] == 4


def test_infobatch_gets_the_updates_of_an_annealed_coreset(write: Write, identity: DatasetIdentity) -> None:
    text = SWEEP.replace("steps = 4", "epochs = 8") + '\n[[grid]]\ndynamic = "infobatch"\nratio = 0.2\n'
    (cell,) = planned(write(text), identity, only=["infobatch*"])
    config = TrainingConfig.resolve({}, {"epochs": 8, "batch_size": 8, "anneal": 0.875})
    assert cell.train.options["steps"] == sum(phase_steps(config, 800, 4000))
    assert (cell.scorer, cell.ratio, cell.train.options["epochs"]) == (None, 0.2, None)


@pytest.mark.parametrize("anneal", [None, 0.5, 0.875])
@pytest.mark.parametrize("length", [{"epochs": 3.0}, {"steps": 7}])
def test_updates_are_counted_as_the_training_counts_them(
    length: dict[str, Any], anneal: float | None, identity: DatasetIdentity
) -> None:
    from dcprune.plugins import registry

    preset = registry().get("backend", "ddpm")[0].load_presets()["tiny"]
    config = TrainingConfig.resolve(preset.training, {**length, "anneal": anneal})
    assert updates(length, preset, 4000, 0.3, anneal) == phase_steps(config, 1200, 4000)


def test_the_file_of_options_is_what_config_reads(write: Write, identity: DatasetIdentity, tmp_path: Path) -> None:
    from dcprune.cli.options import file_options

    known = {name: [each.key for each in found] for name, found in options_by_command().items()}
    cache = Cache(tmp_path / "cache")
    for stage in stages_of(planned(write(), identity)):
        command, _, path = cache.arguments(stage, {"device": "cpu", "data_dir": "data"})
        read = file_options(Path(path), command, known[command], known)
        for name in set(stage.options) - {name for name, value in stage.options.items() if value is None}:
            assert read[name] == stage.options[name]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('dataset = "fashion-mini"', "", "names its dataset"),
        ("[[grid]]", "[[gird]]", "'gird'.*Did you mean 'grid'"),
        ("ratios = [0.1]", "ratios = [0]", "Ratios"),
        ("ratios = [0.1]", "", "no ratio"),
        ('scorer = "random"', 'scoer = "random"', "'scoer'"),
        ('encoder = "pixels"\n', "", "needs an encoder"),
        ('scorer = "moderate"\n', "", "has no scorer"),
        ('preset = "tiny"', 'preset = "tiney"', "Did you mean 'tiny'"),
        ("batch_size = 8", "bach_size = 8", "'bach_size'.*Did you mean 'batch_size'"),
        ("batch_size = 8", 'output = "x"', "gives by itself"),
        ("batch_size = 8", 'split = "test"', "gives by itself"),
        ("batch_size = 8", "batch_size 8", "cannot be read as TOML"),
    ],
)
def test_what_does_not_fit_is_named(write: Write, identity: DatasetIdentity, old: str, new: str, says: str) -> None:
    path = write(SWEEP.replace(old, new))
    known = {name: [each.key for each in found] for name, found in options_by_command().items()}

    def plan() -> list[Cell]:
        check_options(read_declaration([path]), known)
        return planned(path, identity)

    with pytest.raises(InputError, match=says):
        plan()


def test_a_pattern_that_fits_nothing_and_a_run_that_is_not_declared(write: Write, identity: DatasetIdentity) -> None:
    with pytest.raises(OptionError, match="full-seed0"):
        planned(write(), identity, only=["nothing*"])
    with pytest.raises(UnknownName, match="Known: reference"):
        planned(write(SWEEP.replace("[encoders.pixels]", '[encoders.pixels]\nweights = "run:other"')), identity)


def test_an_encoder_may_be_called_as_one_likes(write: Write, identity: DatasetIdentity) -> None:
    text = SWEEP.replace("[encoders.pixels]", '[encoders.small-pixels]\nencoder = "pixels"')
    cell = planned(write(text.replace('encoder = "pixels"\nscorer', 'encoder = "small-pixels"\nscorer')), identity)[2]
    embed = cell.train.inputs["coreset"].inputs["source"]
    assert (cell.encoder, embed.options["encoder"], embed.options["set"]) == (
        "small-pixels",
        "pixels",
        {"image_size": 4},
    )


def test_further_files_go_before(write: Write, identity: DatasetIdentity) -> None:
    more = write(
        "ratios = [0.5]\n[train]\nsteps = 1\ncheckpoint_every = 'null'\n[train.set]\nlog_every = 2\n", "more.toml"
    )
    found = read_declaration([write(), more])
    assert (found.ratios, found.options["train"]["steps"], found.options["train"]["batch_size"]) == ((0.5,), 1, 8)
    assert "checkpoint_every" not in found.options["train"]
    assert found.options["train"]["set"]["block_out_channels"] == [8]
