from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from dcprune.backends.ddpm import Ddpm
from dcprune.errors import OptionError
from dcprune.interfaces import Batch, TrainingData
from dcprune.reweighting import class_excess, clipped_excess, update_class_weights
from dcprune.training.config import TrainingConfig
from dcprune.training.draws import Draw, Drawing
from dcprune.training.objectives import TRAJECTORY_POINTS, DroObjective, DroSettings, Objective, WeightedLoss
from dcprune.training.schedule import Phase
from dcprune.training.trainer import Trainer, score

CPU = torch.device("cpu")


def draw_of(labels: list[int], step: int = 0) -> Draw:
    size = len(labels)
    zeros = torch.zeros(size, dtype=torch.long)
    return Draw(
        batch=Batch(torch.zeros(size, 1), torch.tensor(labels), zeros.bool()),
        timesteps=zeros,
        noise=torch.zeros(size, 1),
        rows=torch.arange(size),
        dropout_seeds=zeros.int(),
        inside_seed=step,
    )


def reduced(objective: Objective, losses: torch.Tensor, model: torch.nn.Module, draw: Draw) -> float:
    """The loss of a batch that is one part."""
    objective.begin(draw, [draw], model)
    return float((objective.weights(draw, draw, losses) * losses).sum())


def dro(
    losses: Callable[[torch.nn.Module, Draw], torch.Tensor],
    proportions: list[float],
    *,
    total_steps: int = 10,
    held_out: Callable[[int], Draw] | None = None,
    settings: DroSettings | None = None,
) -> DroObjective:
    return DroObjective(
        torch.nn.Identity(),
        losses,
        np.array(proportions),
        settings or DroSettings(eta=0.5, smoothing=0.01),
        total_steps=total_steps,
        held_out=held_out,
        device=CPU,
    )


def test_class_weights_average_one_over_the_coresets_samples() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(5, 200, p=[0.5, 0.3, 0.1, 0.06, 0.04])
    objective = WeightedLoss(np.array([0.3, 0.7, 1.0, 1.4, 1.6]) * 17, labels, CPU)
    assert objective.class_weights[labels].mean() == pytest.approx(1.0)
    ratio = objective.class_weights / np.array([0.3, 0.7, 1.0, 1.4, 1.6])
    np.testing.assert_allclose(ratio, ratio[0])
    # A pass over the whole coreset in batches has the plain mean as its mean loss when every loss is the same.
    losses = [
        reduced(objective, torch.full((10,), 2.0), torch.nn.Identity(), draw_of(labels[start : start + 10].tolist()))
        for start in range(0, 200, 10)
    ]
    assert np.mean(losses) == pytest.approx(2.0, rel=1e-6)


def test_uniform_weights_are_the_plain_mean() -> None:
    objective = WeightedLoss(np.full(3, 0.2), np.array([0, 0, 1, 2]), CPU)
    losses = torch.tensor([1.0, 2.0, 6.0])
    assert reduced(objective, losses, torch.nn.Identity(), draw_of([0, 1, 2])) == pytest.approx(3.0)


def test_each_call_is_one_step_of_the_published_rule() -> None:
    rng = np.random.default_rng(3)
    proxy, reference = torch.nn.Identity(), torch.nn.Identity()
    tables = {True: rng.exponential(size=(4, 8)), False: rng.exponential(size=(4, 8))}
    labels = rng.integers(0, 3, (4, 8))

    def losses(model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        return torch.from_numpy(tables[model is proxy][draw.inside_seed])

    objective = dro(losses, [0.5, 0.25, 0.25], settings=DroSettings(eta=0.5, smoothing=0.01))
    objective.reference = reference
    weights, excess, mean = np.full(3, 1 / 3), np.zeros(3), [np.full(3, 1 / 3)]
    for step in range(4):
        training = torch.from_numpy(rng.exponential(size=8))
        found = reduced(objective, training, proxy, draw_of(labels[step].tolist(), step))
        excess = class_excess(clipped_excess(tables[True][step], tables[False][step]), labels[step], 3, excess)
        weights = update_class_weights(weights, excess, eta=0.5, smoothing=0.01)
        mean.append(weights)
        sample = weights[labels[step]] / np.array([0.5, 0.25, 0.25])[labels[step]]
        assert found == pytest.approx(float((sample * training.numpy()).sum() / sample.sum()))
    result = objective.result()
    np.testing.assert_allclose(result.weights, np.mean(mean, axis=0), rtol=1e-9)
    np.testing.assert_allclose(result.final_excess, excess, rtol=1e-9)
    assert [step for step, _ in result.trajectory] == [0, 1, 2, 3, 4]
    assert result.fraction_clipped == pytest.approx(float((tables[True] < tables[False]).mean()))


def test_trajectories_are_thinned_and_keep_both_ends() -> None:
    def losses(model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        return torch.ones(2)

    objective = dro(losses, [0.5, 0.5], total_steps=1003)
    for _ in range(1003):
        reduced(objective, torch.ones(2), torch.nn.Identity(), draw_of([0, 1]))
    steps = [step for step, _ in objective.result().trajectory]
    assert steps[0] == 0
    assert steps[-1] == 1003
    assert TRAJECTORY_POINTS // 2 < len(steps) <= TRAJECTORY_POINTS
    assert all(sum(weights) == pytest.approx(1.0) for _, weights in objective.result().trajectory)


def test_held_out_draws_are_scored_instead_of_the_batch() -> None:
    scored: list[Draw] = []

    def losses(model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        scored.append(draw)
        return torch.ones(len(draw.batch.labels))

    pruned = draw_of([1, 1, 1], step=99)
    objective = dro(losses, [0.5, 0.5], held_out=lambda _: pruned)
    reduced(objective, torch.ones(2), torch.nn.Identity(), draw_of([0, 1]))
    assert all(draw is pruned for draw in scored)
    assert len(scored) == 2


def test_both_models_are_scored_on_one_draw_without_dropout(
    make_trainer: Callable[..., Trainer], data: TrainingData
) -> None:
    """A proxy scored against a copy of itself has no excess at all, although its training pass has dropout."""
    trainer = make_trainer()
    seen: list[tuple[bool, torch.Tensor]] = []

    def losses(model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        found = score(trainer.backend, torch.float32, model, draw)
        seen.append((model.training, found))
        return found

    objective = dro(losses, [0.1] * 10)
    objective.reference = copy.deepcopy(trainer.model).eval()
    draw = Drawing(0, 1000, 0.5, horizontal_flip=True)(data, torch.arange(16), 0)
    reduced(objective, torch.ones(16), trainer.model, draw)
    (proxy_training, proxy_loss), (reference_training, reference_loss) = seen
    assert not proxy_training
    assert not reference_training
    assert torch.equal(proxy_loss, reference_loss)
    assert objective.result().fraction_clipped == 0
    assert objective.result().final_excess == (0.0,) * 10
    assert trainer.model.training
    trainer._dropout.values = draw.dropout_seeds
    assert not torch.equal(score(trainer.backend, torch.float32, trainer.model, draw), proxy_loss)


def test_a_class_that_the_reference_knows_better_gains_weight(
    make_trainer: Callable[..., Trainer], data: TrainingData
) -> None:
    """The reference is made better on class 7 only, by giving the proxy a handicap there."""
    trainer = make_trainer(steps=6)

    def losses(model: torch.nn.Module, draw: Draw) -> torch.Tensor:
        handicap = (draw.batch.labels == 7) if model is trainer.model else torch.zeros(1)
        return score(trainer.backend, torch.float32, trainer.ema.model, draw) + 0.3 * handicap

    objective = dro(losses, [0.1] * 10, total_steps=6, settings=DroSettings(eta=1.0, smoothing=1e-3))
    trainer = make_trainer(steps=6, phases=[Phase(torch.arange(len(data)), 6, objective)])
    trainer.run()
    result = objective.result()
    assert result.weights.argmax() == 7
    assert result.weights[7] > 0.15
    others = np.delete(result.weights, 7)
    np.testing.assert_allclose(others, others[0])


@pytest.mark.parametrize("settings", [{"eta": 0.0}, {"smoothing": 1.0}, {"excess_decay": 1.0}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=next(iter(settings))):
        DroSettings(**settings)


def robust_trainer(
    data: TrainingData,
    network: dict[str, object],
    *,
    dropout: float,
    one_pass: bool = True,
    shared: bool = False,
    reference_seed: int = 3,
    compiling: str = "off",
) -> Trainer:
    backend = Ddpm(**{**network, "dropout": dropout})  # type: ignore[arg-type]
    reference = backend.build(num_classes=10, sample_shape=data.sample_shape, seed=reference_seed).eval()
    objective = DroObjective(
        reference,
        partial(score, backend, torch.float32),
        np.full(10, 0.1),
        DroSettings(eta=5.0, smoothing=0.01, shared_dropout=shared),
        total_steps=3,
        held_out=None,
        device=CPU,
    )
    trainer = Trainer(
        backend,
        data,
        TrainingConfig(steps=3, batch_size=12, learning_rate=1e-3, compile=compiling),
        [Phase(torch.arange(len(data)), 3, objective)],
        num_classes=10,
        device=CPU,
        dtype=torch.float32,
        strata=10,
    )
    if not one_pass:
        trainer.same_in_training = lambda *, dropout=False: False  # type: ignore[method-assign]
    trainer.run()
    assert objective.one_pass == (one_pass and (shared or not dropout))
    return trainer


def test_without_dropout_the_training_pass_scores_the_proxy(data: TrainingData, network: dict[str, object]) -> None:
    one, two = (robust_trainer(data, network, dropout=0.0, one_pass=one_pass) for one_pass in (True, False))
    for name, value in one.phases[0].objective.state().items():
        torch.testing.assert_close(value, two.phases[0].objective.state()[name], rtol=1e-6, atol=1e-9)
    for mine, other in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert one._flops_of_a_sample() == two._flops_of_a_sample() - one.flops_per_sample.forward
    trainer = robust_trainer(data, network, dropout=0.3)
    assert not trainer.same_in_training()
    assert trainer.same_in_training(dropout=True)


def test_dropout_is_found_behind_a_layer_that_begins_as_zeros(
    data: TrainingData, network: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    build = Ddpm.build

    def silent(*args: Any, **options: Any) -> torch.nn.Module:
        model = build(*args, **options)
        torch.nn.init.zeros_(model.conv_out.weight)  # type: ignore[arg-type, union-attr]
        return model

    monkeypatch.setattr(Ddpm, "build", silent)
    trainer = robust_trainer(data, network, dropout=0.3)  # which asserts that the proxy was scored by itself
    before = [each.clone() for each in trainer.model.parameters()]
    torch.nn.init.zeros_(trainer.model.conv_out.weight)  # type: ignore[arg-type, union-attr]
    assert not trainer.same_in_training()
    assert not trainer.model.conv_out.weight.any()  # type: ignore[operator, union-attr]
    changed = [not torch.equal(mine, other) for mine, other in zip(trainer.model.parameters(), before, strict=True)]
    assert sum(changed) == 1


def test_shared_dropout_drops_the_same_in_both_models(data: TrainingData, network: dict[str, object]) -> None:
    # A reference that is the proxy's twin lags nowhere in the first update, whatever is dropped: all is clipped.
    twin = robust_trainer(data, network, dropout=0.3, shared=True, reference_seed=0)
    assert not twin.phases[0].objective.reference.training  # type: ignore[attr-defined]
    (_, start), (_, first), *_ = twin.phases[0].objective.result().trajectory  # type: ignore[attr-defined]
    assert first == pytest.approx(start, abs=1e-9)
    apart, shared = (robust_trainer(data, network, dropout=0.3, shared=shared) for shared in (False, True))
    assert shared._flops_of_a_sample() == apart._flops_of_a_sample() - apart.flops_per_sample.forward
    weights = [each.phases[0].objective.result().weights for each in (apart, shared)]  # type: ignore[attr-defined]
    assert not np.allclose(*weights)
    # Without dropout there is nothing to share.
    plain, same = (robust_trainer(data, network, dropout=0.0, shared=shared) for shared in (False, True))
    for name, value in plain.phases[0].objective.state().items():
        assert torch.equal(value, same.phases[0].objective.state()[name])


def test_shared_dropout_is_refused_where_more_than_dropout_differs() -> None:
    shared = DroSettings(shared_dropout=True)
    objective = dro(lambda model, draw: torch.ones(2), [0.5, 0.5], settings=shared)
    with pytest.raises(OptionError, match="by more than dropout"):
        objective.prepare(lambda *, dropout: False)


def test_the_reference_is_compiled_with_the_proxy(
    data: TrainingData, network: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the compiler's front half alone; the other half takes minutes."""
    plain = robust_trainer(data, network, dropout=0.3, shared=True)
    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **settings: original(model, backend="eager", **settings))
    compiled = robust_trainer(data, network, dropout=0.3, shared=True, compiling="on")
    assert hasattr(compiled.phases[0].objective.reference, "_orig_mod")  # type: ignore[attr-defined]
    for name, value in plain.phases[0].objective.state().items():
        torch.testing.assert_close(compiled.phases[0].objective.state()[name], value, rtol=1e-4, atol=1e-6)


def test_timesteps_are_spread_within_every_class_of_a_batch(data: TrainingData) -> None:
    drawing = Drawing(0, 1000, 0.1, horizontal_flip=False, strata=10)
    plain = Drawing(0, 1000, 0.1, horizontal_flip=False)
    draw, other = drawing(data, torch.arange(40), 5), plain(data, torch.arange(40), 5)
    for label in range(10):
        own = draw.timesteps[draw.batch.labels == label].sort().values
        assert own.diff().tolist() == pytest.approx([250] * 3, abs=1)
    assert torch.equal(draw.noise, other.noise)
    assert torch.equal(draw.batch.x0, other.batch.x0)
    assert not torch.equal(draw.timesteps, other.timesteps)
