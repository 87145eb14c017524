"""Which tokens a masked pass of MDT does not see."""

from __future__ import annotations

import torch

from dcprune.backends.mdt.network import Kept
from dcprune.interfaces import Batch

# Attention kernels want rows of biases that are aligned.
_ALIGNMENT = 8


def draw_kept(batch: Batch, generator: torch.Generator, num_tokens: int, mask_ratio: tuple[float, float]) -> Kept:
    """A mask for every sample, with one number of kept tokens for all of them.

    One ratio is drawn for the whole batch, uniformly in `mask_ratio`, and floor(L (1 - ratio)) tokens of every sample
    are kept, any set of that size alike. Ratio and count stay on the device, which nothing waits for. The arrays are as
    long as the lowest ratio needs, so that all batches have one shape: one compiled network, one CUDA graph. What the
    attention does not count is at most a quarter of the masked pass's encoder and about 3 % of a training step of
    MDTv2-S/2.

    Args:
        batch: B samples; they get the same masks however the batch is divided.
        generator: of the loss.
        num_tokens: L.
        mask_ratio: lowest and highest ratio.
    """
    lowest, highest = mask_ratio
    ranks = batch.drawn(torch.rand, generator, num_tokens)
    ratio = lowest + (highest - lowest) * torch.rand((), generator=generator, device=ranks.device)
    size = most_kept(num_tokens, lowest)
    count = (num_tokens * (1 - ratio)).long().clamp(1, size)
    order = ranks.argsort(dim=1)[:, : padded(size, num_tokens)]
    return Kept(order, torch.arange(order.shape[1], device=ranks.device) < count)


def most_kept(num_tokens: int, lowest_ratio: float) -> int:
    """The largest number of tokens that is kept, at least 1."""
    # 100 * (1 - 0.71) is a little less than 29.
    return max(1, int(num_tokens * (1 - lowest_ratio) + 1e-6))


def padded(size: int, num_tokens: int) -> int:
    """`size` rounded up to a multiple of 8 where that is still less than all tokens."""
    rounded = -(-size // _ALIGNMENT) * _ALIGNMENT
    return rounded if rounded < num_tokens else size
