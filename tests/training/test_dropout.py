from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from dcprune.training.dropout import SampleDropout, SampleSeeds, keep_dropping, per_sample_dropout


def dropout(p: float, seeds: torch.Tensor, layer: int = 0) -> SampleDropout:
    holder = SampleSeeds()
    holder.values = seeds.int()
    return SampleDropout(p, layer, holder)


def kept(p: float, seeds: torch.Tensor, shape: tuple[int, ...], layer: int = 0) -> torch.Tensor:
    """0 and 1, float64 [B, n]."""
    out: torch.Tensor = dropout(p, seeds, layer)(torch.ones(len(seeds), *shape))
    return (out > 0).double().flatten(1)


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_the_share_that_stays_is_binomial_in_samples_and_in_places(p: float) -> None:
    mask = kept(p, torch.arange(400), (8, 10, 10))
    deviation = math.sqrt(p * (1 - p))
    assert abs(float(mask.mean()) - (1 - p)) < 4 * deviation / math.sqrt(mask.numel())
    for dim in (0, 1):
        standardised = (mask.mean(dim) - (1 - p)) / deviation * math.sqrt(mask.shape[dim])
        assert float(standardised.abs().max()) < 5
        assert float(standardised.std()) == pytest.approx(1, abs=0.15)


def test_masks_of_samples_layers_and_steps_are_unrelated() -> None:
    places = (64, 64)
    masks = [kept(0.5, torch.tensor([seed]), places, layer) for seed in (0, 1, -1, 2**31 - 1) for layer in (0, 1, 2)]
    table = torch.cat(masks)
    correlation = torch.corrcoef(table)
    off = correlation[~torch.eye(len(table), dtype=torch.bool)]
    assert float(off.abs().max()) < 5 / math.sqrt(table.shape[1])
    # Nor is a mask a shifted copy of another one.
    for shift in (1, 2, 64, 65):
        shifted = torch.stack([table[0].roll(shift), table[0], table[3]])
        assert float(torch.corrcoef(shifted)[0, 1:].abs().max()) < 5 / math.sqrt(table.shape[1])


@pytest.mark.parametrize("shape", [(6, 5, 4), (7,), (9, 3)])
def test_a_mask_does_not_depend_on_how_the_batch_is_divided_or_laid_out(shape: tuple[int, ...]) -> None:
    seeds = torch.randint(-(2**31), 2**31, (7,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(7, *shape, generator=torch.Generator().manual_seed(1))
    whole = dropout(0.3, seeds)(x)
    parts = torch.cat([dropout(0.3, seeds[part])(x[part]) for part in (slice(0, 3), slice(3, 4), slice(4, 7))])
    assert torch.equal(whole, parts)
    if x.ndim == 4:
        laid_out = dropout(0.3, seeds)(x.contiguous(memory_format=torch.channels_last))
        assert laid_out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(laid_out, whole)


def test_values_gradients_and_evaluation_are_those_of_dropout() -> None:
    x = torch.randn(4, 50, requires_grad=True)
    layer = dropout(0.25, torch.arange(4))
    out = layer(x)
    stays = out != 0
    torch.testing.assert_close(out[stays], x[stays] / 0.75)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, stays / 0.75)
    assert layer.eval()(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.train()(x.bfloat16()).dtype == torch.bfloat16


def test_only_what_drops_is_replaced_and_weights_keep_their_names() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.2), nn.Sequential(nn.Dropout(0.0), nn.Dropout(0.5)))
    names = list(model.state_dict())
    model.eval()
    seeds = per_sample_dropout(model)
    assert list(model.state_dict()) == names
    assert [type(each) for each in model.modules()].count(SampleDropout) == 2
    assert not model.get_submodule("1").training
    seeds.values = torch.tensor([3], dtype=torch.int32)
    model.train()
    x = torch.ones(1, 1000)
    first, second = model.get_submodule("1"), model.get_submodule("2.1")
    assert 700 < int((first(x) > 0).sum()) < 900
    assert 400 < int((second(x) > 0).sum()) < 600


def test_what_drops_nothing_is_taken_out_and_the_rest_keeps_its_numbers() -> None:
    def network(p: float) -> nn.Module:
        return nn.Sequential(nn.Dropout(p), nn.Linear(3, 3), nn.Dropout(0.5)).train()

    with_nothing, without = network(0.0), nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
    for each in (with_nothing, without):
        per_sample_dropout(each)
    assert isinstance(with_nothing[0], nn.Identity)  # type: ignore[index]
    assert with_nothing[2].layer == without[1].layer == 0  # type: ignore[index]
    assert list(with_nothing.state_dict()) == list(network(0.0).state_dict())
    with_nothing.eval()
    keep_dropping(with_nothing)
    assert [module.training for module in with_nothing.children()] == [False, False, True]
