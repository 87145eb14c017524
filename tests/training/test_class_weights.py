"""`dcprune.api.reweight`, on real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention
from numpy.typing import NDArray
from typer.testing import CliRunner

from dcprune import formats
from dcprune.api.class_weights import finished_weights
from dcprune.api.proxy import ReweightingRequest, open_game
from dcprune.api.runs import open_run, reweight, train
from dcprune.artifacts import Coreset, StageCost
from dcprune.cli.app import app
from dcprune.errors import DatasetMismatch, MissingInput, OptionError, OutOfTime, OutputExists, UnknownName
from dcprune.interfaces import DatasetSource
from dcprune.sources import open_dataset
from dcprune.training.trainer import score

pytestmark = pytest.mark.usefixtures("small_grids")

Options = dict[str, Any]


def test_class_weights_are_complete_and_repeatable(files: Path, reference: Path, tmp_path: Path) -> None:
    once, again = (reweight(files / "coreset.json", reference, steps=4) for _ in range(2))
    assert once == again
    assert np.mean(list(once.weights.values())) == pytest.approx(1.0)
    assert once.objective.reference_sha256 == formats.read_run(reference).model_sha256
    assert (once.objective.steps, once.objective.held_out) == (4, False)
    assert [step for step, _ in once.diagnostics.trajectory] == [0, 1, 2, 3, 4]
    mean = np.mean([weights for _, weights in once.diagnostics.trajectory], axis=0) * 10
    np.testing.assert_allclose(list(once.weights.values()), mean, rtol=1e-6)
    assert {each.path for each in once.provenance.inputs} == {
        str(files / "coreset.json"),
        str(reference / "model"),
    }
    formats.write_class_weights(once, tmp_path / "weights.json")
    assert formats.read_class_weights(tmp_path / "weights.json").model_dump() == once.model_dump()
    other = reweight(files / "coreset.json", reference, steps=4, seed=1, held_out=True, eta=0.5)
    assert other.weights != once.weights
    assert other.objective.held_out
    assert reweight(files / "coreset.json", reference, steps=1, shared_dropout=True).objective.shared_dropout


def test_held_out_losses_come_from_pruned_samples_only(
    files: Path, reference: Path, rows: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dcprune.training import draws

    drawn: dict[draws.Purpose, set[int]] = {}
    original = draws.Drawing.__call__

    def call(self: draws.Drawing, data: Any, chosen: torch.Tensor, *arguments: Any) -> draws.Draw:
        drawn.setdefault(self.purpose, set()).update(chosen.tolist())
        return original(self, data, chosen, *arguments)

    monkeypatch.setattr(draws.Drawing, "__call__", call)
    reweight(files / "coreset.json", reference, steps=5, held_out=True)
    kept = set(rows.tolist())
    assert drawn[draws.Purpose.DRAW] <= kept
    assert len(drawn[draws.Purpose.HELD_OUT_DRAW]) == 50
    assert drawn[draws.Purpose.HELD_OUT_DRAW].isdisjoint(kept)


def test_the_proxy_is_a_tenth_as_long_as_the_reference(
    files: Path, reference: Path, options: Options, tmp_path: Path
) -> None:
    assert reweight(files / "coreset.json", reference).objective.steps == 1  # a tenth of 6, rounded up
    in_epochs = {**options, "steps": None, "epochs": 5}
    train(output=tmp_path / "run", **in_epochs)
    assert reweight(files / "coreset.json", tmp_path / "run").objective.steps == round(0.5 * 40 / 10)
    proxy_epochs = open_run(reference).backend.presets["tiny"].proxy_epochs
    whole = reweight(files / "coreset.json", reference, preset="tiny", batch_size=20).objective.steps
    assert whole == round(proxy_epochs * 40 / 20)


def test_a_short_proxy_warms_up_in_proportion(
    files: Path, reference: Path, options: Options, scripted: Any, tmp_path: Path
) -> None:
    longer = {**options, "steps": 20, "settings": {**options["settings"], "lr_warmup_steps": 10}}
    train(output=tmp_path / "run", **longer)
    default = open_game(ReweightingRequest(files / "coreset.json", tmp_path / "run"))
    assert (default.config.steps, default.config.lr_warmup_steps) == (2, 1)
    asked = ReweightingRequest(files / "coreset.json", tmp_path / "run", steps=4)
    assert open_game(asked).config.lr_warmup_steps == 10
    progress = scripted()
    reweight(files / "coreset.json", tmp_path / "run", steps=4, progress=progress)
    assert any("warms up for 10 updates, and the training has 4" in warning for warning in progress.warnings)


def test_finished_weights_are_those_of_the_same_options(files: Path, reference: Path, tmp_path: Path) -> None:
    output = tmp_path / "weights.json"
    weights = reweight(files / "coreset.json", reference, steps=2)
    formats.write_class_weights(weights, output)
    asked = ReweightingRequest(files / "coreset.json", reference, steps=2)
    assert finished_weights(asked, output).weights == weights.weights
    for changes, named in (
        ({"eta": 7.0}, "eta=1.0, and now it is 7.0"),
        ({"steps": 3}, "steps=2"),
        ({"seed": 1}, "seed=0"),
        ({"batch_size": 5}, "batch_size=10"),
    ):
        with pytest.raises(OptionError, match=named):
            finished_weights(replace(asked, **changes), output)
    with pytest.raises(MissingInput):
        finished_weights(replace(asked, reference=tmp_path / "none"), output)


def test_what_cannot_be_reweighted_is_refused(
    files: Path,
    reference: Path,
    coreset: Coreset,
    fashion: DatasetSource,
    make_coreset: Callable[..., Coreset],
    tmp_path: Path,
) -> None:
    path = files / "coreset.json"
    with pytest.raises(OptionError, match="eta"):
        reweight(path, reference, eta=-1)
    with pytest.raises(OptionError, match=r"shared_dropout .* held_out rules out"):
        reweight(path, reference, steps=2, shared_dropout=True, held_out=True, state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    with pytest.raises(OptionError, match="backend 'ddpm'"):
        reweight(path, reference, backend="mdt")
    with pytest.raises(UnknownName, match="preset"):
        reweight(path, reference, preset="papre")
    everything = make_coreset(fashion, np.arange(len(fashion)))
    with pytest.raises(OptionError, match="keeps every sample"):
        reweight(everything, reference, held_out=True)
    test_split = open_dataset("fashion-mini", split="test")
    with pytest.raises(DatasetMismatch, match="The reference was made from"):
        reweight(make_coreset(test_split, np.arange(20)), reference)


def test_weights_of_another_coreset_are_used_with_a_warning(
    files: Path,
    reference: Path,
    options: Options,
    fashion: DatasetSource,
    rows: NDArray[np.int64],
    make_coreset: Callable[..., Coreset],
    scripted: Any,
    tmp_path: Path,
) -> None:
    weights = reweight(files / "coreset.json", reference, steps=1)
    same, other = scripted(), scripted()
    train(output=tmp_path / "same", class_weights=weights, **{**options, "steps": 1}, progress=same)
    assert not any("coreset" in warning for warning in same.warnings)
    formats.write_coreset(make_coreset(fashion, rows + 1), tmp_path / "other.json")
    changed = {**options, "steps": 1, "coreset": tmp_path / "other.json"}
    train(output=tmp_path / "other", class_weights=weights, **changed, progress=other)
    assert any("another coreset" in warning for warning in other.warnings)


def test_an_interrupted_reweighting_goes_on_to_the_same_weights(
    files: Path, reference: Path, scripted: Any, tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    path, state = files / "coreset.json", tmp_path / "weights.json.partial"
    whole = reweight(path, reference, steps=5, held_out=True)
    with pytest.raises(KeyboardInterrupt):
        reweight(path, reference, steps=5, held_out=True, state=state, progress=scripted(3, interrupt))
    with pytest.raises(OutputExists, match="--resume"):
        reweight(path, reference, steps=5, held_out=True, state=state)
    with pytest.raises(OptionError, match=r"eta=1\.0, and now it is 0\.5"):
        reweight(path, reference, steps=5, held_out=True, eta=0.5, state=state, resume=True)
    with pytest.raises(OutOfTime, match="step 4 of 5"):
        reweight(path, reference, steps=5, held_out=True, state=state, resume=True, max_time=1e-9)
    progress = scripted()
    resumed = reweight(path, reference, steps=5, held_out=True, state=state, resume=True, progress=progress)
    assert progress.notes == ["Resuming at step 4 of 5."]
    assert resumed == whole
    afresh = reweight(path, reference, steps=2, state=state, overwrite=True)
    assert afresh.objective.steps == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputExists, match="Move it away"):
        reweight(path, reference, steps=2, state=tmp_path / "mine", overwrite=True)


def test_the_command_line_keeps_the_state_until_the_weights_are_there(
    files: Path, reference: Path, tmp_path: Path
) -> None:
    output = tmp_path / "weights.json"
    words = ["reweight", str(files / "coreset.json"), "--reference", str(reference), "--steps", "3", "-o", str(output)]
    words += ["--device", "cpu", "--dtype", "fp32"]
    runner = CliRunner()
    done = runner.invoke(app, [*words, "--max-time", "0.001"])
    assert done.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["weights.json.partial"]
    done = runner.invoke(app, words)
    assert done.exit_code == 2
    assert "--resume" in done.stderr
    done = runner.invoke(app, [*words, "--resume"])
    assert done.exit_code == 0, done.stderr
    whole = reweight(files / "coreset.json", reference, steps=3, device="cpu", dtype="fp32")
    assert formats.read_class_weights(output).weights == whole.weights
    assert sorted(path.name for path in tmp_path.iterdir()) == ["weights.json", "weights.json.cost"]
    assert "nothing to resume" in runner.invoke(app, [*words, "--resume"]).stderr


def test_a_run_knows_what_the_whole_chain_cost(
    files: Path, reference: Path, options: Options, coreset: Coreset, tmp_path: Path
) -> None:
    chosen = StageCost(stage="score", images_seen=0, updates=0, flops=0, device_seconds=0.25)
    formats.write_coreset(coreset.with_costs((chosen,)), tmp_path / "coreset.json")
    weights = reweight(tmp_path / "coreset.json", reference, steps=3, batch_size=8)
    formats.write_class_weights(weights, tmp_path / "weights.json")
    changed = {**options, "coreset": tmp_path / "coreset.json", "steps": 2}
    run = train(output=tmp_path / "run", class_weights=tmp_path / "weights.json", **changed)
    by_stage = {cost.stage: cost for cost in run.ledger}
    assert list(by_stage) == ["score", "reference", "proxy", "train"]
    assert by_stage["score"] == chosen
    (trained,) = formats.read_run(reference).ledger
    assert by_stage["reference"] == trained.model_copy(update={"stage": "reference"})
    assert (by_stage["proxy"].updates, by_stage["proxy"].images_seen) == (3, 24)
    assert (by_stage["train"].updates, by_stage["train"].images_seen) == (2, 20)
    # Dropout makes the proxy score itself once more, so a step has two forward passes besides training's three.
    each = (by_stage["train"].flops or 0) / 20
    assert (by_stage["proxy"].flops or 0) / 24 == pytest.approx(5 / 3 * each, rel=0.05)
    assert all((cost.device_seconds or 0) > 0 for cost in run.ledger)


def test_flops_are_those_of_the_layers(make_trainer: Callable[..., Any]) -> None:
    """A multiplication and an addition for every weight and place, and twice that for the gradients."""
    trainer = make_trainer()
    sizes: list[int] = []

    def count(layer: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        places = output[0, 0].numel() if isinstance(layer, torch.nn.Conv2d) else output[0].numel() // len(weight)
        sizes.append(2 * weight.numel() * places)

    layers = [each for each in trainer.model.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)]
    hooks = [each.register_forward_hook(count) for each in layers]
    draw = trainer._probe(1)
    trainer.model.eval()
    score(trainer.backend, torch.float32, trainer.model, draw)
    for hook in hooks:
        hook.remove()
    flops = trainer.flops_per_sample
    attentions = sum(isinstance(each, Attention) for each in trainer.model.modules())
    tokens, channels = 4 * 4, 16
    assert flops.forward == sum(sizes) + attentions * 2 * (2 * tokens * tokens * channels)
    assert 2.8 < flops.training / flops.forward < 3
