"""What MDT minimises: the noise's error, and the variational bound as a function of the learned variance."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

NUM_TRAIN_TIMESTEPS: Final = 1000

_BETA_START, _BETA_END = 1e-4, 0.02
_BIN_HALF_WIDTH = 1 / 255
_OUTERMOST = 0.999
_LEAST_PROBABILITY = 1e-12


def alphas_cumprod() -> NDArray[np.float64]:
    """Cumulative signal variance of linear betas from 1e-4 to 0.02, float64 [T]."""
    return np.cumprod(1 - np.linspace(_BETA_START, _BETA_END, NUM_TRAIN_TIMESTEPS, dtype=np.float64), dtype=np.float64)


class LearnedVarianceLoss:
    """The loss of a network that predicts the noise and, within its range, the variance.

    With x_t = signal x0 + noise epsilon, a predicted noise e and a predicted fraction v (both per element), the loss of
    a sample is the mean over its elements of

        weight(t) (e - epsilon)^2 + L_t(v) / ln 2

    where weight = min(SNR, gamma) / SNR (Hang et al. 2023, arXiv 2303.09556) and L_t is the term of timestep t of the
    variational bound in nats (Nichol and Dhariwal 2021, arXiv 2102.09672): for t > 0 the divergence
    KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), for t = 0 the negative log probability that p gives to the bin of
    width 2 / 255 around x0. p is normal with ln variance = f ln beta + (1 - f) ln(posterior variance), where
    f = (v + 1) / 2, and its mean takes e as it is, without a gradient: the bound teaches the variance alone.

    The means of q and p differ by c (e - epsilon) with a constant c(t), so that the bound needs neither x0 nor x_t
    beyond t = 0. The posterior's variance is 0 at t = 0, where that of t = 1 stands in.

    Args:
        snr_gamma: gamma; None weighs every timestep alike, as MDT did before its second version.
    """

    def __init__(self, snr_gamma: float | None) -> None:
        self.snr_gamma = snr_gamma
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def noised(self, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """x_t, like `x0` [B, ...], at `timesteps` int64 [B]."""
        signal, amount, *_ = self._at(timesteps, x0.ndim)
        return signal * x0 + amount * noise

    def __call__(
        self, output: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Loss of every sample, float32 [B].

        Args:
            output: of the network, float32 [B, 2 C, H, W].
            x0: clean latents [B, C, H, W].
            noise: like `x0`.
            timesteps: int64 [B].
        """
        predicted, fraction = output.chunk(2, dim=1)
        signal, amount, weight, log_range, log_least, mean_gap = self._at(timesteps, x0.ndim)
        error = predicted - noise
        frozen = error.detach()
        widening = (fraction + 1) / 2 * log_range
        # KL between normals whose log variances differ by `widening`; `mean_gap` is in units of the narrower one.
        divergence = 0.5 * (widening - 1 + torch.exp(-widening) * (1 + (mean_gap * frozen) ** 2))
        surprise = _surprise(x0, amount / signal * frozen, 0.5 * (log_least + widening))
        bound = torch.where((timesteps == 0)[:, None, None, None], surprise, divergence) / math.log(2)
        return (weight * error**2 + bound).flatten(1).mean(1)

    def _at(self, timesteps: torch.Tensor, ndim: int) -> tuple[torch.Tensor, ...]:
        """The constants of `timesteps`, each [B, 1, ...]; the table is copied to a device once."""
        table = self._on_device.get(timesteps.device)
        if table is None:
            table = self._on_device[timesteps.device] = self._table.to(timesteps.device)
        return table[:, timesteps].view(len(table), -1, *[1] * (ndim - 1)).unbind()

    @cached_property
    def _table(self) -> torch.Tensor:
        """Signal, noise, weight of the error, range and least of the log variance, gap of the means: float32 [6, T]."""
        kept = alphas_cumprod()
        before = np.append(1.0, kept[:-1])
        betas = 1 - kept / before
        variance = betas * (1 - before) / (1 - kept)
        variance[0] = variance[1]
        signal, amount = np.sqrt(kept), np.sqrt(1 - kept)
        snr = kept / (1 - kept)
        weight = np.ones_like(snr) if self.snr_gamma is None else np.minimum(snr, self.snr_gamma) / snr
        # d mean / d x0 times d x0 / d noise, over the standard deviation.
        gap = np.sqrt(before) * betas / (1 - kept) * amount / signal / np.sqrt(variance)
        rows = [signal, amount, weight, np.log(betas / variance), np.log(variance), gap]
        return torch.from_numpy(np.stack(rows)).float()


def _surprise(x0: torch.Tensor, offset: torch.Tensor, log_std: torch.Tensor) -> torch.Tensor:
    """Negative log probability of the bins around `x0`, in nats, under normals whose means are `x0 - offset`.

    The bins at -1 and 1 have no outer end. The distribution function is the tanh approximation that the family of
    guided-diffusion trains with (Page 1977; off by 2e-4 at most).
    """
    precision = torch.exp(-log_std)
    upper = _normal_cdf(precision * (offset + _BIN_HALF_WIDTH))
    lower = _normal_cdf(precision * (offset - _BIN_HALF_WIDTH))
    probability = torch.where(x0 < -_OUTERMOST, upper, torch.where(x0 > _OUTERMOST, 1 - lower, upper - lower))
    return -probability.clamp(min=_LEAST_PROBABILITY).log()


def _normal_cdf(z: torch.Tensor) -> torch.Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
