"""Folds batch normalisations into the convolutions before them: the same function in fewer passes over memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

_TOLERANCE = 1e-4


@dataclass(frozen=True)
class _Call:
    """What a convolution received and returned; `version` counts what was written into the result since."""

    name: str
    received: torch.Tensor
    returned: torch.Tensor
    version: int


@torch.inference_mode(False)  # which keeps no versions
@torch.no_grad()
def fold_batch_norm(
    network: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], image_size: int
) -> list[tuple[str, str]]:
    """Fold every normalisation of a network in inference mode, on the CPU, into its convolution where that is certain.

    It is, when during a forward pass the normalisation received the very tensor that the convolution returned, each of
    the two ran once, and the folded convolution gives the same values. When the whole network gives others in the end
    (because something else used the convolution's result too), it is left as it was.

    Args:
        network: changed in place.
        forward: pixels [1, 3, S, S] -> embeddings, through `network`.
        image_size: S.

    Returns:
        Names of the convolutions and normalisations that are one now.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return []
    pixels = torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    pairs, expected = _pairs(network, forward, pixels)
    undo: list[tuple[str, nn.Module]] = []
    folded: list[tuple[str, str]] = []
    for call, norm_name in pairs:
        convolution, norm = network.get_submodule(call.name), network.get_submodule(norm_name)
        fused = fuse_conv_bn_eval(convolution, norm)  # type: ignore[arg-type, type-var]
        rest = _without_normalisation(norm)
        if _same(rest(fused(call.received)), norm(convolution(call.received))):
            undo += [(call.name, convolution), (norm_name, norm)]
            folded.append((call.name, norm_name))
            network.set_submodule(call.name, fused)
            network.set_submodule(norm_name, rest)
    if not folded or _gives(forward, pixels, expected):
        return folded
    for name, module in undo:
        network.set_submodule(name, module)
    return []


def _pairs(
    network: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor
) -> tuple[list[tuple[_Call, str]], torch.Tensor]:
    """Convolutions with the normalisation that got their result, and what the network made of `pixels`."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in network.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    calls: dict[int, _Call] = {}  # of convolutions, by the identity of their result, which they keep alive
    found: list[tuple[_Call, str]] = []
    ran: Counter[str] = Counter()

    def after_convolution(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        (name,) = names[module]
        ran[name] += 1
        calls[id(output)] = _Call(name, inputs[0].clone(), output, output._version)

    def before_norm(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (name,) = names[module]
        ran[name] += 1
        call = calls.get(id(inputs[0]))
        if call is not None and call.version == inputs[0]._version:
            found.append((call, name))

    handles = []
    for module in names:
        if len(names[module]) > 1 or is_parametrized(module):
            continue
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_convolution))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm))
    try:
        expected = forward(pixels)
    finally:
        for handle in handles:
            handle.remove()
    return [(call, name) for call, name in found if ran[call.name] == ran[name] == 1], expected


def _without_normalisation(norm: nn.Module) -> nn.Module:
    """What else a normalisation does: timm's have a dropout and an activation."""
    rest = [module for module in norm.children() if not isinstance(module, nn.Identity)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _gives(forward: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, expected: torch.Tensor) -> bool:
    try:
        return _same(forward(pixels), expected)
    except AttributeError:  # the network uses the normalisation's own tensors
        return False


def _same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    scale = float(expected.abs().max())
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=0, atol=_TOLERANCE * scale)
