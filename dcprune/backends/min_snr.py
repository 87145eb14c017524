"""Min-SNR loss weights."""

from __future__ import annotations

import torch

from dcprune.backends.samplers import PredictionType


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
