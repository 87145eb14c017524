"""The training loss of a network that denoises along DDPM's chain."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from dcprune.backends.samplers import PredictionType


class DenoisingLoss:
    """Squared error of what a network predicts from x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) epsilon.

    Ho et al. 2020, arXiv 2006.11239, equation 14; v is that of Salimans and Ho 2022, arXiv 2202.00512.

    Args:
        alphas_cumprod: cumulative signal variances alpha_bar float32 [T].
        prediction_type: what the network predicts.
        snr_gamma: gamma of `min_snr_weights`; None leaves the loss unweighted.
    """

    def __init__(self, alphas_cumprod: torch.Tensor, prediction_type: PredictionType, snr_gamma: float | None) -> None:
        self.alphas_cumprod = alphas_cumprod
        self.prediction_type: PredictionType = prediction_type
        self.snr_gamma = snr_gamma
        self._on_device: dict[torch.device, torch.Tensor] = {}

    def __call__(
        self,
        network: Callable[[torch.Tensor], torch.Tensor],
        x0: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
    ) -> torch.Tensor:
        """Mean over the values of every sample, float32 [B]; nothing is drawn, and nothing waits for the device.

        Args:
            network: x_t [B, C, H, W] -> its prediction float32 [B, C, H, W].
            x0: clean samples float32 [B, C, H, W].
            timesteps: int64 [B] in [0, T).
            noise: epsilon, like `x0`.
        """
        alpha_bar = self._alpha_bar(timesteps)
        signal, amount = (each.sqrt()[:, None, None, None] for each in (alpha_bar, 1 - alpha_bar))
        prediction = network(signal * x0 + amount * noise)
        if self.prediction_type == "epsilon":
            target = noise
        elif self.prediction_type == "sample":
            target = x0
        else:
            target = signal * noise - amount * x0
        loss = F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)
        if self.snr_gamma is None:
            return loss
        return loss * min_snr_weights(alpha_bar, self.snr_gamma, self.prediction_type)

    def _alpha_bar(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Cumulative signal variance [B]; the table is copied to a device once."""
        table = self._on_device.get(timesteps.device)
        if table is None:
            table = self._on_device[timesteps.device] = self.alphas_cumprod.to(timesteps.device)
        return table[timesteps]


def min_snr_weights(alpha_bar: torch.Tensor, gamma: float, prediction_type: PredictionType) -> torch.Tensor:
    """What multiplies the squared error of a prediction (Hang et al. 2023, arXiv 2303.09556, section 3.4).

    min(SNR, gamma) in terms of the sample, / SNR in terms of epsilon, / (SNR + 1) in terms of v.

    Args:
        alpha_bar: cumulative signal variance [B], in (0, 1).
        gamma: the largest weight of the sample.
        prediction_type: what the network predicts.
    """
    snr = alpha_bar / (1 - alpha_bar)
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    return snr.clamp(max=gamma) / (snr + 1 if prediction_type == "v_prediction" else snr)
