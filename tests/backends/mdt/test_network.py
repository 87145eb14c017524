"""The networks: tensor names and sizes as released, the arithmetic against plain loops, what masks may change."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from dcprune.backends.mdt.network import (
    SIZES,
    Kept,
    MaskedTransformer,
    Shape,
    build,
    empty,
    sin_cos_positions,
    unwrapped,
)
from dcprune.errors import OptionError
from tests.backends.mdt.conftest import network_of, shape_of
from tests.backends.mdt.plain_mdt import PlainMdt

# Names, shapes and types of the tensors of the public implementation, github.com/sail-sg/MDT at 7d26c21 and, for the
# first version, at 71a0f94.
RELEASED = json.loads(Path(__file__).with_name("released_layout.json").read_text())


def published(name: str) -> MaskedTransformer:
    version, size, patch = re.fullmatch(r"v(\d) (\w+)/(\d)", name).groups()  # type: ignore[union-attr]
    width, depth, heads = SIZES[size]  # type: ignore[index]
    decode_layer = RELEASED["networks"][name]["decode_layer"]
    with torch.device("meta"):
        return empty(Shape(int(version), width, depth, heads, int(patch), decode_layer, 32, 4, 1000))  # type: ignore[arg-type]


def tensors(network: torch.nn.Module) -> dict[str, tuple[str, str]]:
    return {
        name: ("x".join(map(str, tensor.shape)), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in network.state_dict().items()
    }


@pytest.mark.parametrize("name", RELEASED["networks"])
def test_every_size_has_the_released_tensors(name: str) -> None:
    network, known = published(name), RELEASED["networks"][name]
    lines = sorted(f"{tensor} {shape} {dtype}" for tensor, (shape, dtype) in tensors(network).items())
    assert len(lines) == known["tensors"]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == known["sha256"]
    assert sum(each.numel() for each in network.parameters()) == known["parameters"]
    assert sum(each.numel() for each in network.sideblocks.parameters()) == known["side_block"]


@pytest.mark.parametrize("name", RELEASED["layouts"])
def test_tensors_by_name(name: str) -> None:
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for tensor, described in tensors(published(name)).items():
        found[re.sub(r"blocks\.\d+\.", "blocks.*.", tensor)].append(described)
    listing = {
        pattern: f"{len(each)} x [{each[0][0]}] {each[0][1]}" for pattern, each in found.items() if len(set(each)) == 1
    }
    assert listing == RELEASED["layouts"][name]


def test_the_papers_model_has_the_published_number_of_parameters() -> None:
    network = published("v2 S/2")
    total = sum(each.numel() for each in network.parameters())
    assert f"{total / 1e6:.3f}" == "38.455"
    assert f"{(total - sum(each.numel() for each in network.sideblocks.parameters())) / 1e6:.3f}" == "35.789"


def test_outputs_are_those_of_plain_loops(network: MaskedTransformer) -> None:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(4, 3, 6, 6, generator=generator)
    timesteps, labels = torch.tensor([0, 731, 3, 999]), torch.tensor([3, 4, 0, 4])
    order = torch.rand(2, 9, generator=generator).argsort(1)[:, :7]
    with torch.no_grad():
        both = network(latents, timesteps, labels, order, torch.arange(7) < 5)
        alone = network(latents, timesteps, labels)
    plain = PlainMdt({name: each.double().numpy() for name, each in network.state_dict().items()}, 2, 2, 2)
    for row in range(4):
        inputs = latents[row].double().numpy(), int(timesteps[row]), int(labels[row])
        np.testing.assert_allclose(alone[row], plain(*inputs), atol=2e-5)
        kept = None if row < 2 else order[row - 2, :5].tolist()
        np.testing.assert_allclose(both[row], plain(*inputs, kept), atol=2e-5)


def masked_pass(network: MaskedTransformer, latents: torch.Tensor, order: torch.Tensor, count: int) -> torch.Tensor:
    """The masked half of the outputs, for latents of one timestep and label."""
    twice = torch.cat([latents, latents])
    timesteps, labels = torch.full((len(twice),), 300), torch.full((len(twice),), 1)
    with torch.no_grad():
        output: torch.Tensor = network(twice, timesteps, labels, order, torch.arange(order.shape[1]) < count)
    return output[len(latents) :]


def test_filling_changes_nothing(network: MaskedTransformer) -> None:
    latents = torch.randn(2, 3, 6, 6)
    order = torch.tensor([[2, 4, 8, 0, 1, 3], [5, 0, 7, 8, 6, 1]])
    exact = masked_pass(network, latents, order[:, :4], 4)
    torch.testing.assert_close(masked_pass(network, latents, order, 4), exact)
    torch.testing.assert_close(
        masked_pass(network, latents, order.index_select(1, torch.tensor([3, 0, 2, 1])), 4), exact
    )


def test_keeping_all_tokens_is_the_whole_pass(network: MaskedTransformer) -> None:
    latents = torch.randn(2, 3, 6, 6)
    order = torch.stack([torch.randperm(9), torch.randperm(9)])
    with torch.no_grad():
        whole = network(latents, torch.full((2,), 300), torch.full((2,), 1))
    torch.testing.assert_close(masked_pass(network, latents, order, 9), whole)


def test_the_first_version_does_not_see_what_is_masked() -> None:
    network, latents = network_of(1), torch.randn(1, 3, 6, 6)
    order, changed = torch.tensor([[0, 1, 2, 3, 5, 6]]), latents.clone()
    changed[:, :, 2:4, 2:4] += 5  # token 4
    torch.testing.assert_close(masked_pass(network, changed, order, 6), masked_pass(network, latents, order, 6))
    assert not torch.allclose(
        masked_pass(network_of(2), changed, order, 6), masked_pass(network_of(2), latents, order, 6)
    )


def test_kept_tokens_come_back_to_their_places() -> None:
    tokens = torch.randn(2, 9, 3)
    kept = Kept(torch.tensor([[4, 0, 7, 2], [1, 8, 3, 5]]), torch.tensor([True, True, True, False]))
    back = kept.scatter(kept.gather(tokens), torch.zeros_like(tokens))
    assert kept.masked(9).logical_not().nonzero().tolist() == [[0, 0], [0, 4], [0, 7], [1, 1], [1, 3], [1, 8]]
    assert torch.equal(back, tokens.masked_fill(kept.masked(9)[..., None], 0))


def test_every_parameter_learns_from_one_loss(network: MaskedTransformer) -> None:
    latents = torch.randn(4, 3, 6, 6)
    order = torch.stack([torch.randperm(9), torch.randperm(9)])[:, :6]
    output = network(latents, torch.arange(4), torch.arange(4), order, torch.arange(6) < 5)
    output.square().sum().backward()
    assert all(each.grad is not None and bool(each.grad.any()) for each in network.parameters())


def test_a_network_starts_as_the_published_one_does() -> None:
    network = build(shape_of(hidden_size=64, num_heads=4), seed=3)
    twin = build(shape_of(hidden_size=64, num_heads=4), seed=3)
    assert all(torch.equal(one, other) for one, other in zip(network.parameters(), twin.parameters(), strict=True))
    state = network.state_dict()
    for name, tensor in state.items():
        if "adaLN" in name or "final_layer.linear" in name or (name.endswith("bias") and "table" not in name):
            assert not tensor.any(), name
        elif name.startswith(("t_embedder", "y_embedder", "mask_token")) or name.endswith("bias_table"):
            assert 0.01 < float(tensor.std()) < 0.03, name
        elif name.endswith("weight"):
            fan_in = tensor[0].numel()
            assert float(tensor.std()) == pytest.approx(math.sqrt(2 / (fan_in + len(tensor))), rel=0.1), name
    assert torch.equal(state["pos_embed"], state["decoder_pos_embed"])
    with torch.no_grad():
        assert not network(torch.randn(1, 3, 6, 6), torch.tensor([5]), torch.tensor([0])).any()


def test_positions_are_sines_and_cosines_of_column_and_row() -> None:
    found = sin_cos_positions(8, 3)
    for token in range(9):
        expected: list[float] = []
        for place in (token % 3, token // 3):
            angles = [place / 10_000 ** (number / 2) for number in range(2)]
            expected += [*map(math.sin, angles), *map(math.cos, angles)]
        np.testing.assert_allclose(found[token], expected, atol=1e-6)


def test_one_compiled_graph_serves_all_masks() -> None:
    network, counter = network_of(), CompileCounter()
    compiled: Any = torch.compile(network, backend=counter, fullgraph=True, dynamic=False)
    assert unwrapped(compiled) is network
    latents, places = torch.randn(4, 3, 6, 6), torch.zeros(4, dtype=torch.int64)
    for count in (3, 6, 5):
        order = torch.stack([torch.randperm(9), torch.randperm(9)])[:, :6]
        present = torch.arange(6) < count
        found = compiled(latents, places, places, order, present)
        torch.testing.assert_close(found, network(latents, places, places, order, present))
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"num_heads": 3}, "num_heads=3"),
        ({"hidden_size": 12}, "hidden_size=12"),
        ({"patch_size": 4}, "patch_size=4 does not divide latents of 6x6"),
        ({"decode_layer": 3}, "decode_layer=3 is odd"),
        ({"decode_layer": 4}, r"decode_layer=4 is outside \[1, 4\)"),
    ],
)
def test_shapes_that_do_not_fit(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        shape_of(**settings)


def test_another_module_is_no_network() -> None:
    with pytest.raises(TypeError, match="Linear is no network of the mdt backend"):
        unwrapped(torch.nn.Linear(1, 1))
