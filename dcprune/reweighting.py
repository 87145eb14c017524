"""Class weights by distributionally robust optimisation: the pure functions of each step.

The game is min over theta, max over w in the simplex, of sum_c w_c * lambda_c, where lambda_c is the mean over class c
of max(proxy loss - reference loss, 0): Group DRO (Sagawa et al. 2020, arXiv 1911.08731) with the excess loss and the
smoothed, averaged weights of DoReMi (Xie et al. 2023, arXiv 2305.10429, algorithm 1), as "Pruning then Reweighting"
(arXiv 2409.19128) uses it for classes.

Every function takes numpy arrays and returns numpy arrays, or takes torch tensors and returns torch tensors on the same
device without waiting for it. B is the batch, K the number of classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dcprune.errors import OptionError

Array = TypeVar("Array", NDArray[Any], torch.Tensor)

NEAR_ONE_HOT = 0.5
MOSTLY_CLIPPED = 0.95
STILL_MOVING = 0.2

Trajectory = Sequence[tuple[int, Sequence[float]]]


def stratified_timesteps(labels: Array, num_classes: int, offset: Array | float, num_train_timesteps: int) -> Array:
    """Timesteps that cover [0, T) evenly within every class, and, as far as the class sizes allow, over the batch.

    The loss of a diffusion model is mostly a function of the timestep, so class means over independent timesteps differ
    by luck. Here the n samples of a class lie T / n apart (class by class the low-discrepancy sampler of Kingma et al.
    2021, arXiv 2107.00630, appendix I.1), and class c starts c / K of such a distance later. With `offset` uniform in
    [0, 1) every single timestep is uniform over [0, T), so no expectation changes.

    Args:
        labels: integers [B] in [0, K), of the whole batch over all processes; zeros for class-less data.
        num_classes: K.
        offset: one number in [0, 1) for the step.
        num_train_timesteps: T.

    Returns:
        Integers [B] in [0, T), of the dtype of `labels`.
    """
    member = labels[:, None] == _like(labels, range(num_classes), labels)
    rank = ((member.cumsum(0) - 1) * member).sum(1)
    size = member.sum(0)[labels]
    position = ((rank + labels / num_classes) / size + offset) % 1 * num_train_timesteps
    whole = position.astype(labels.dtype) if isinstance(position, np.ndarray) else position.to(labels.dtype)
    return whole.clip(0, num_train_timesteps - 1)


def clipped_excess(proxy_loss: Array, reference_loss: Array) -> Array:
    """How much worse the proxy does than the reference, sample by sample, and never less than 0.

    Clipping comes before any averaging: a sample that the proxy has learned better than the reference must not make up
    for one that it has not learned.

    Args:
        proxy_loss: [B], of the model in training, dropout off.
        reference_loss: [B], of the frozen reference on the same draws.

    Returns:
        [B], non-negative.
    """
    return (proxy_loss - reference_loss).clip(0)  # type: ignore[no-any-return]


def class_excess(excess: Array, labels: Array, num_classes: int, previous: Array, *, decay: float = 0.0) -> Array:
    """Mean excess lambda of every class [K]; a class that is absent from the batch keeps its previous value.

    Args:
        excess: [B], from `clipped_excess`.
        labels: integers [B] in [0, K).
        num_classes: K.
        previous: [K], the last step's result; zeros at the start.
        decay: share of the previous value in the new one of the classes that are present; 0 takes the batch as it is.

    Raises:
        OptionError: `decay` is outside [0, 1).
    """
    check_decay(decay)
    member = labels[:, None] == _like(previous, range(num_classes), labels)
    counts = member.sum(0)
    means = (excess[:, None] * member).sum(0) / counts.clip(1)
    updated = decay * previous + (1 - decay) * means
    keep = counts == 0
    return _namespace(previous).where(keep, previous, updated)  # type: ignore[no-any-return]


def update_class_weights(weights: Array, excess: Array, *, eta: float, smoothing: float) -> Array:
    """One step of exponentiated gradient ascent on the simplex, then smoothing towards uniform.

    w <- softmax(log w + eta * lambda);  w <- (1 - smoothing) * w + smoothing / K

    Near the uniform weights the steady state is w_c * K - 1 = (eta / smoothing) * (lambda_c - mean lambda) to first
    order, so the ratio of the two settings decides how far the weights spread.

    Args:
        weights: [K], on the simplex.
        excess: lambda [K].
        eta: step size, above 0.
        smoothing: share of the uniform weights, in [0, 1).

    Returns:
        [K], on the simplex.

    Raises:
        OptionError: a setting is out of range, or the two arrays differ in shape.
    """
    check_ascent(eta, smoothing)
    if weights.shape != excess.shape or weights.ndim != 1:
        raise OptionError(f"weights {tuple(weights.shape)} and excess {tuple(excess.shape)} are not both [K].")
    names = _namespace(weights)
    # A weight that underflowed to 0 without smoothing must be able to come back.
    logits = names.log(weights.clip(float(names.finfo(weights.dtype).tiny))) + eta * excess
    ascended = names.exp(logits - logits.max())
    return (1 - smoothing) * (ascended / ascended.sum()) + smoothing / len(weights)  # type: ignore[no-any-return]


def check_ascent(eta: float, smoothing: float) -> None:
    """Raise OptionError for settings that `update_class_weights` refuses."""
    if not (math.isfinite(eta) and eta > 0):
        raise OptionError(f"eta={eta} is not a finite number above 0.")
    if not 0 <= smoothing < 1:
        raise OptionError(f"smoothing={smoothing} is outside [0, 1).")


def check_decay(decay: float) -> None:
    """Raise OptionError for a decay that `class_excess` refuses."""
    if not 0 <= decay < 1:
        raise OptionError(f"excess_decay={decay} is outside [0, 1).")


def importance(weights: Array, proportions: Array, labels: Array) -> Array:
    """Weight a_j = w_y / p_y of every sample [B], which turns a batch drawn with proportions p into one drawn with w.

    Args:
        weights: [K], on the simplex.
        proportions: [K], share of every class in the coreset; it may be 0 only for classes that no label names.
        labels: integers [B].
    """
    return weights[labels] / proportions[labels]  # type: ignore[no-any-return]


def normalised_entropy(weights: NDArray[np.float64]) -> float:
    """Entropy of weights [K] divided by ln K: 1 for uniform weights (and for K = 1), 0 for one-hot weights."""
    if len(weights) < 2:
        return 1.0
    share = weights[weights > 0] / weights.sum()
    return min(1.0, max(0.0, float(-(share * np.log(share)).sum() / math.log(len(weights)))))


def drift(trajectory: Trajectory) -> float:
    """Share of the weight that lies on other classes in the second half of the steps than in the first, in [0, 1].

    That is the total variation distance of the two halves' mean weights. A short proxy shows what is learned first and
    not what stays behind, and this is how it shows (`examples/reweight/proxy-length.sh`).

    Args:
        trajectory: `(step, weights [K] on the simplex)`, in order, with a step of 0 for the start.
    """
    middle = trajectory[-1][0] / 2 if trajectory else 0
    halves = [np.array([w for step, w in trajectory if (step > middle) == late]) for late in (False, True)]
    if not all(len(half) for half in halves):
        return 0.0
    return float(abs(halves[0].mean(0) - halves[1].mean(0)).sum() / 2)


def caveats(weights: NDArray[np.float64], fraction_clipped: float, trajectory: Trajectory = ()) -> tuple[str, ...]:
    """What a user should know before relying on mean weights [K] of the simplex; see `drift` for `trajectory`."""
    found = []
    if len(weights) > 4 and weights.max() > NEAR_ONE_HOT:
        found.append(
            f"One class of {len(weights)} holds {weights.max():.0%} of the weight. Lower eta or raise smoothing: their "
            "ratio sets the spread."
        )
    if fraction_clipped > MOSTLY_CLIPPED:
        found.append(
            f"{fraction_clipped:.1%} of the proxy's losses were below the reference's, so the weights say little. Use "
            "a better reference, a shorter proxy, or measure on pruned samples (held_out)."
        )
    moved = drift(trajectory)
    if moved > STILL_MOVING:
        found.append(
            f"The class weights were still moving: {moved:.0%} of the weight lay on other classes in the second half "
            f"of the {trajectory[-1][0]} updates than in the first. Train the proxy longer."
        )
    return tuple(found)


def _namespace(array: Array) -> ModuleType:
    return torch if isinstance(array, torch.Tensor) else np


def _like(array: Array, values: range, integers: Array) -> Array:
    """`values` as integers beside `array`: same library, same device, dtype of `integers`."""
    if isinstance(array, torch.Tensor):
        return torch.arange(values.start, values.stop, device=array.device, dtype=integers.dtype)
    return np.arange(values.start, values.stop, dtype=integers.dtype)
