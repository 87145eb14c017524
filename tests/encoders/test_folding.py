"""Folding of batch normalisations: the same function, and nothing where a pair is not certain."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dcprune.encoders.folding import fold_batch_norm


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5, generator=generator)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "left"), [("resnet10t", 0), ("mobilenetv3_small_050", 0), ("efficientnet_b0", 0), ("resnetv2_50", 17)]
)
def test_networks_of_timm(name: str, left: int) -> None:
    """Their normalisations carry activations; in `resnetv2_50` some follow an addition and stay."""
    network = randomised(timm.create_model(name, num_classes=0))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(pixels)
    folded = fold_batch_norm(network, network, 64)
    assert len(folded) > 10
    assert norms(network) == left
    with torch.inference_mode():
        torch.testing.assert_close(network(pixels), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


class Pair(nn.Module):
    """A convolution and a normalisation, used as `run` says."""

    def __init__(self, run: Callable[["Pair", torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.run = run

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.run(self, pixels)
        return result


def both_results(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    maps = pair.conv(pixels)
    result: torch.Tensor = maps + pair.norm(maps)
    return result


def written_between(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = pair.norm(torch.relu_(pair.conv(pixels)))
    return result


def convolution_twice(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = pair.norm(pair.conv(pair.conv(pixels)))
    return result


def normalisation_twice(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = pair.norm(pair.norm(pair.conv(pixels)))
    return result


def copied_between(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = pair.norm(pair.conv(pixels) + 1)
    return result


def own_tensors(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = pair.norm(pair.conv(pixels)) * pair.norm.weight.sum()
    return result


def simple(pair: Pair, pixels: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = pair.norm(pair.conv(pixels))
    return result


@pytest.mark.parametrize(
    "run", [both_results, written_between, convolution_twice, normalisation_twice, copied_between, own_tensors]
)
def test_nothing_is_folded_where_it_would_change_the_function(
    run: Callable[[Pair, torch.Tensor], torch.Tensor],
) -> None:
    pair = randomised(Pair(run))
    modules = dict(pair.named_modules())
    assert fold_batch_norm(pair, pair, 8) == []
    assert dict(pair.named_modules()) == modules


def test_a_convolution_that_changes_its_weights_is_left_alone() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            weight = (self.weight - self.weight.mean()) / self.weight.std()
            return torch.nn.functional.conv2d(pixels, weight, self.bias, padding=1)

    standardised, parametrised, plain = (Pair(simple) for _ in range(3))
    standardised.conv = Standardised(3, 3, 3, padding=1)
    weight_norm(parametrised.conv)
    assert fold_batch_norm(randomised(standardised), standardised, 8) == []
    assert fold_batch_norm(randomised(parametrised), parametrised, 8) == []
    assert fold_batch_norm(randomised(plain), plain, 8) == [("conv", "norm")]


def test_a_normalisation_by_the_batch_is_left_alone() -> None:
    pair = Pair(simple)
    pair.norm = nn.BatchNorm2d(3, track_running_stats=False)
    assert fold_batch_norm(pair.eval(), pair, 8) == []
