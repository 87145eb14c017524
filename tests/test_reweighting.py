from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dcprune.errors import OptionError
from dcprune.reweighting import (
    caveats,
    class_excess,
    clipped_excess,
    drift,
    importance,
    normalised_entropy,
    stratified_timesteps,
    update_class_weights,
)

Vector = NDArray[np.float64]


def uniform(classes: int) -> Vector:
    return np.full(classes, 1 / classes)


def test_excess_is_clipped_per_sample_before_it_is_averaged() -> None:
    proxy, reference = np.array([1.0, 3.0]), np.array([2.0, 1.0])
    excess = clipped_excess(proxy, reference)
    assert excess.tolist() == [0.0, 2.0]
    # The mean margin is 0.5; clipping after averaging would give that instead of 1.
    assert class_excess(excess, np.array([0, 0]), 1, np.zeros(1)).tolist() == [1.0]


def test_absent_classes_keep_their_excess() -> None:
    previous = np.array([0.5, 0.25, 0.0])
    found = class_excess(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3, previous)
    assert found.tolist() == [2.0, 0.25, 5.0]
    smoothed = class_excess(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 2]), 3, previous, decay=0.5)
    assert smoothed.tolist() == [1.25, 0.25, 2.5]


def test_class_excess_does_not_depend_on_the_order_of_the_batch() -> None:
    rng = np.random.default_rng(0)
    excess, labels, shuffled = rng.exponential(size=64), rng.integers(0, 7, 64), rng.permutation(64)
    once = class_excess(excess, labels, 7, np.zeros(7))
    again = class_excess(excess[shuffled], labels[shuffled], 7, np.zeros(7))
    np.testing.assert_allclose(once, again, rtol=1e-12)
    np.testing.assert_allclose(once, [excess[labels == label].mean() for label in range(7)], rtol=1e-12)


@pytest.mark.parametrize(("eta", "smoothing"), [(1.0, 1e-3), (0.1, 0.0), (5.0, 0.2)])
def test_update_is_doremis_rule(eta: float, smoothing: float) -> None:
    """Algorithm 1 of arXiv 2305.10429, written with plain exponentials."""
    rng = np.random.default_rng(1)
    weights, excess = rng.dirichlet(np.ones(6)), rng.exponential(0.3, 6)
    scaled = [w * math.exp(eta * each) for w, each in zip(weights, excess, strict=True)]
    expected = [(1 - smoothing) * each / sum(scaled) + smoothing / 6 for each in scaled]
    np.testing.assert_allclose(
        update_class_weights(weights, excess, eta=eta, smoothing=smoothing), expected, rtol=1e-12
    )


def test_update_stays_on_the_simplex_when_exponentials_overflow() -> None:
    weights = uniform(4)
    for _ in range(50):
        weights = update_class_weights(weights, np.array([1000.0, 0.0, 0.0, 999.0]), eta=10.0, smoothing=0.0)
    np.testing.assert_allclose(weights, [1.0, 0.0, 0.0, 0.0], atol=1e-12)
    returned = update_class_weights(weights, np.array([0.0, 2000.0, 0.0, 0.0]), eta=10.0, smoothing=0.0)
    assert returned[1] == pytest.approx(1.0)  # a weight of 0 is not a trap


def test_constant_excess_reaches_the_fixed_point_of_entropy_mirror_ascent() -> None:
    eta, smoothing, classes = 1.0, 1e-2, 5
    excess = np.array([1.0, 1.2, 0.9, 1.05, 0.85]) * 1e-4
    weights = uniform(classes)
    for _ in range(3000):
        weights = update_class_weights(weights, excess, eta=eta, smoothing=smoothing)
    np.testing.assert_allclose(update_class_weights(weights, excess, eta=eta, smoothing=smoothing), weights, rtol=1e-10)
    linearised = eta / smoothing * (excess - excess.mean())
    np.testing.assert_allclose(weights * classes - 1, linearised, rtol=0.03, atol=1e-5)


def test_two_class_game_has_its_closed_form_saddle_point() -> None:
    """l1 = (x - 1)^2 and l2 = 2 (x + 1)^2 are equal at x = (1 - sqrt 2) / (1 + sqrt 2), where w1 / w2 = sqrt 2."""
    x, weights, mean = 1.0, uniform(2), uniform(2)
    for step in range(1, 20_001):
        excess = clipped_excess(np.array([(x - 1) ** 2, 2 * (x + 1) ** 2]), np.zeros(2))
        weights = update_class_weights(weights, excess, eta=0.01, smoothing=0.0)
        mean += (weights - mean) / (step + 1)
        x -= 0.02 * (weights[0] * 2 * (x - 1) + weights[1] * 4 * (x + 1))
    root = math.sqrt(2)
    assert x == pytest.approx((1 - root) / (1 + root), abs=1e-3)
    np.testing.assert_allclose(mean, [root / (1 + root), 1 / (1 + root)], atol=5e-3)


def test_a_class_reached_by_both_models_alike_loses_weight() -> None:
    updated = update_class_weights(uniform(3), np.array([0.0, 0.1, 0.2]), eta=1.0, smoothing=1e-3)
    assert updated[0] < updated[1] < updated[2]
    np.testing.assert_allclose(update_class_weights(uniform(3), np.full(3, 0.7), eta=1.0, smoothing=1e-3), uniform(3))


def test_importance_turns_the_coresets_proportions_into_the_weights() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights, proportions = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    sample = importance(weights, proportions, labels)
    shares = [sample[labels == label].sum() / sample.sum() for label in range(3)]
    np.testing.assert_allclose(shares, weights, rtol=1e-12)
    class_losses = np.array([1.0, 2.0, 4.0])
    assert (sample * class_losses[labels]).sum() / sample.sum() == pytest.approx(float(weights @ class_losses))


def test_torch_gives_what_numpy_gives() -> None:
    rng = np.random.default_rng(2)
    proxy, reference, labels = rng.exponential(size=32), rng.exponential(size=32), rng.integers(0, 5, 32)
    excess = class_excess(clipped_excess(proxy, reference), labels, 5, np.zeros(5))
    weights = update_class_weights(uniform(5), excess, eta=2.0, smoothing=0.01)
    tensors = [torch.from_numpy(each) for each in (proxy, reference, labels)]
    zeros = torch.zeros(5, dtype=torch.float64)
    torch_excess = class_excess(clipped_excess(tensors[0], tensors[1]), tensors[2], 5, zeros)
    torch_weights = update_class_weights(torch.full_like(zeros, 0.2), torch_excess, eta=2.0, smoothing=0.01)
    assert isinstance(torch_weights, torch.Tensor)
    np.testing.assert_allclose(torch_excess.numpy(), excess, rtol=1e-12)
    np.testing.assert_allclose(torch_weights.numpy(), weights, rtol=1e-12)


@pytest.mark.parametrize("num_train_timesteps", [7, 1000, 1_000_000])
def test_stratified_timesteps_are_evenly_apart_in_every_class(num_train_timesteps: int) -> None:
    rng = np.random.default_rng(4)
    labels = rng.choice(5, 97, p=[0.5, 0.3, 0.1, 0.1, 0.0])
    found = stratified_timesteps(labels, 5, 0.731, num_train_timesteps)
    assert found.dtype == labels.dtype
    assert 0 <= found.min() <= found.max() < num_train_timesteps
    for label in range(4):
        ordered = np.sort(found[labels == label])
        gaps = np.diff([*ordered, ordered[0] + num_train_timesteps])
        assert abs(gaps - num_train_timesteps / len(ordered)).max() <= 1


def test_stratified_timesteps_of_balanced_classes_are_evenly_apart_over_the_batch() -> None:
    labels = np.random.default_rng(5).permutation(np.repeat(np.arange(4), 8))
    ordered = np.sort(stratified_timesteps(labels, 4, 0.123, 32_000))
    assert abs(np.diff(ordered) - 1000).max() <= 1


def test_each_stratified_timestep_is_uniform_over_the_offsets() -> None:
    """The sample with any label and any rank meets every timestep equally often."""
    labels = np.array([2, 0, 2, 1, 2, 0])
    found = np.stack([stratified_timesteps(labels, 3, (step + 0.5) / 1200, 12) for step in range(1200)])
    for column in found.T:
        np.testing.assert_allclose(np.bincount(column, minlength=12), 100, atol=1)


def test_class_means_over_stratified_timesteps_hardly_vary() -> None:
    """A loss that falls with the timestep, as diffusion losses do, and knows no class: lambda should see none."""
    rng = np.random.default_rng(6)

    def spread(timesteps: list[NDArray[np.int64]], labels: list[NDArray[np.int64]]) -> float:
        lambdas = [
            class_excess(np.exp(-each / 200), of, 10, np.zeros(10)) for each, of in zip(timesteps, labels, strict=True)
        ]
        return float(np.std(lambdas))

    labels = [rng.permutation(np.repeat(np.arange(10), 13)) for _ in range(20)]
    stratified = [stratified_timesteps(each, 10, rng.random(), 1000) for each in labels]
    independent = [rng.integers(0, 1000, len(each)) for each in labels]
    assert spread(stratified, labels) < spread(independent, labels) / 2


def test_stratified_timesteps_in_torch_are_those_in_numpy() -> None:
    labels = np.random.default_rng(7).integers(0, 6, 50)
    offset = torch.tensor(0.4375, dtype=torch.float64)
    found = stratified_timesteps(torch.from_numpy(labels), 6, offset, 1000)
    assert found.dtype == torch.int64
    np.testing.assert_allclose(found.numpy(), stratified_timesteps(labels, 6, 0.4375, 1000), atol=1)
    assert stratified_timesteps(torch.zeros(8, dtype=torch.int64), 1, 0.0, 1000).tolist() == list(range(0, 1000, 125))


@pytest.mark.parametrize(
    "settings",
    [{"eta": 0.0}, {"eta": -1.0}, {"eta": math.nan}, {"eta": math.inf}, {"smoothing": -0.1}, {"smoothing": 1.0}],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=next(iter(settings))):
        update_class_weights(uniform(2), np.zeros(2), **{"eta": 1.0, "smoothing": 0.1, **settings})


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(OptionError, match=r"\(3,\)"):
        update_class_weights(uniform(3), np.zeros(2), eta=1.0, smoothing=0.1)


def test_entropy_is_normalised() -> None:
    assert normalised_entropy(uniform(7)) == pytest.approx(1.0)
    assert normalised_entropy(np.array([1.0, 0.0, 0.0])) == 0.0
    assert normalised_entropy(np.array([1.0])) == 1.0
    assert normalised_entropy(np.array([0.5, 0.5, 0.0, 0.0])) == pytest.approx(0.5)


def test_caveats_name_what_is_wrong() -> None:
    assert caveats(uniform(10), 0.5) == ()
    one_hot = np.array([0.6, 0.1, 0.1, 0.1, 0.1])
    assert "60%" in caveats(one_hot, 0.5)[0]
    assert caveats(np.array([0.9, 0.1]), 0.5) == ()  # with two classes that is no alarm
    assert "97.0%" in caveats(uniform(10), 0.97)[0]


def test_drift_is_what_moves_between_the_halves() -> None:
    settled = [(step, (0.4, 0.6)) for step in range(11)]
    assert drift(settled) == pytest.approx(0)
    jump = [(step, (1.0, 0.0) if step <= 5 else (0.25, 0.75)) for step in range(11)]
    assert drift(jump) == pytest.approx(0.75)
    thinned = [jump[index] for index in (0, 4, 8, 10)]
    assert drift(thinned) == pytest.approx(0.75)
    assert drift([]) == drift([(0, (0.5, 0.5))]) == 0


def test_a_proxy_that_ends_while_its_weights_move_is_named() -> None:
    """The weight of a class that is learned fast rises, then falls: a long proxy sees it settle, a short one not."""

    def trajectory(steps: int) -> list[tuple[int, tuple[float, ...]]]:
        weights, found = uniform(3), [(0, tuple(uniform(3)))]
        for step in range(1, steps + 1):
            excess = np.array([math.exp(-step / 20), 0.01, 0.03])
            weights = update_class_weights(weights, excess, eta=0.3, smoothing=0.02)
            found.append((step, tuple(weights)))
        return found

    short, long = trajectory(120), trajectory(2000)
    assert "moving" in caveats(np.mean([w for _, w in short], axis=0), 0.1, short)[0]
    assert "120 updates" in caveats(np.mean([w for _, w in short], axis=0), 0.1, short)[0]
    assert caveats(np.mean([w for _, w in long], axis=0), 0.1, long) == ()
