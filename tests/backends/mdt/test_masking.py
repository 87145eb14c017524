"""Which tokens are masked: how many, which ones, and for whom."""

from __future__ import annotations

import pytest
import torch

from dcprune.backends.mdt.masking import draw_kept, most_kept, padded
from dcprune.interfaces import Batch


def batch_of(size: int, start: int = 0, total: int | None = None) -> Batch:
    zeros = torch.zeros(size, dtype=torch.int64)
    return Batch(torch.zeros(size, 1), zeros, zeros.bool(), start, total)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("num_tokens", [16, 64, 256])
def test_one_ratio_a_batch_spread_over_its_range(num_tokens: int) -> None:
    counts = []
    for seed in range(400):
        kept = draw_kept(batch_of(3), generator(seed), num_tokens, (0.3, 0.5))
        assert kept.order.shape == (3, padded(int(0.7 * num_tokens), num_tokens))
        assert all(len(set(row)) == len(row) for row in kept.order.tolist())
        counts.append(int(kept.present.sum()))
        assert int(kept.present.nonzero().max()) == counts[-1] - 1
    assert num_tokens // 2 <= min(counts) <= 0.51 * num_tokens
    assert 0.69 * num_tokens - 1 <= max(counts) <= 0.7 * num_tokens
    # floor(L (1 - U)) has the mean of L (1 - U), 0.6 L, less about half a token.
    assert sum(counts) / 400 == pytest.approx(0.6 * num_tokens - 0.5, abs=0.015 * num_tokens)


def test_the_rule_of_the_first_version_keeps_one_number() -> None:
    counts = {int(draw_kept(batch_of(2), generator(seed), 256, (0.3, 0.3)).present.sum()) for seed in range(20)}
    assert counts == {179}


def test_all_tokens_are_masked_alike() -> None:
    kept = draw_kept(batch_of(4000), generator(0), 16, (0.3, 0.3))
    seen = torch.bincount(kept.order[:, kept.present].flatten(), minlength=16) / 4000
    torch.testing.assert_close(seen, torch.full((16,), 11 / 16), atol=0.03, rtol=0)


def test_masks_do_not_depend_on_how_a_batch_is_divided() -> None:
    whole = draw_kept(batch_of(7), generator(3), 64, (0.3, 0.5))
    parts = [draw_kept(batch_of(size, start, 7), generator(3), 64, (0.3, 0.5)) for size, start in ((3, 0), (4, 3))]
    assert torch.equal(torch.cat([part.order for part in parts]), whole.order)
    assert all(torch.equal(part.present, whole.present) for part in parts)


def test_sizes() -> None:
    assert [most_kept(256, 0.3), most_kept(100, 0.71), most_kept(4, 0.9), most_kept(16, 0.0)] == [179, 29, 1, 16]
    assert [padded(179, 256), padded(11, 16), padded(44, 64), padded(8, 9), padded(16, 16)] == [184, 11, 48, 8, 16]
