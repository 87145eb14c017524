"""MDT once more, in numpy and loops over samples, heads, queries and keys, from a state dict alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class PlainMdt:
    """One sample at a time.

    Args:
        state: tensors by the names of the released checkpoints.
        num_heads: heads of every attention.
        patch_size: side of a patch.
        decode_layer: decoder blocks of the first version.
    """

    def __init__(self, state: Mapping[str, Array], num_heads: int, patch_size: int, decode_layer: int) -> None:
        self.state = state
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.decode_layer = decode_layer

    def __call__(self, latents: Array, timestep: int, label: int, kept: Sequence[int] | None = None) -> Array:
        """Output [2 C, H, W]; with `kept`, tokens that a masked pass sees."""
        condition = self.timestep(timestep) + self.state["y_embedder.embedding_table.weight"][label]
        embedded = self.patches(latents) + self.state["pos_embed"][0]
        everything = list(range(len(embedded)))
        seen = everything if kept is None else list(kept)
        tokens = self.encoder(embedded[seen], condition, seen)
        if kept is not None:
            filled = np.repeat(self.state["mask_token"][0], len(embedded), axis=0)
            filled[seen] = tokens
            tokens = filled
        tokens = tokens + self.state["decoder_pos_embed"][0]
        if kept is not None:
            guessed = self.block("sideblocks.0", tokens, condition, everything)
            tokens = np.stack([tokens[i] if i in seen else guessed[i] for i in everything])
        tokens = self.decoder(tokens, condition, embedded, everything)
        shift, scale = np.split(self.linear("final_layer.adaLN_modulation.1", silu(condition)), 2)
        return self.unpatch(self.linear("final_layer.linear", normalised(tokens) * (1 + scale) + shift), latents.shape)

    def encoder(self, tokens: Array, condition: Array, seen: Sequence[int]) -> Array:
        for number in range(self.count("blocks") - self.decode_layer):
            tokens = self.block(f"blocks.{number}", tokens, condition, seen)
        memory = []
        for number in range(self.count("en_inblocks")):
            tokens = self.block(f"en_inblocks.{number}", tokens, condition, seen)
            memory.append(tokens)
        for number in range(self.count("en_outblocks")):
            tokens = self.block(f"en_outblocks.{number}", tokens, condition, seen, memory[-1 - number])
        return tokens

    def decoder(self, tokens: Array, condition: Array, embedded: Array, seen: Sequence[int]) -> Array:
        total = self.count("blocks")
        for number in range(total)[total - self.decode_layer :] if total else ():
            tokens = self.block(f"blocks.{number}", tokens, condition, seen)
        for number in range(self.count("de_blocks")):
            tokens = self.block(f"de_blocks.{number}", tokens, condition, seen, embedded)
        return tokens

    def block(
        self, name: str, tokens: Array, condition: Array, seen: Sequence[int], skip: Array | None = None
    ) -> Array:
        if skip is not None:
            tokens = self.linear(f"{name}.skip_linear", np.concatenate([tokens, skip], axis=1))
        parts = np.split(self.linear(f"{name}.adaLN_modulation.1", silu(condition)), 6)
        attended = self.attention(f"{name}.attn", normalised(tokens) * (1 + parts[1]) + parts[0], seen)
        tokens = tokens + parts[2] * attended
        hidden = gelu(self.linear(f"{name}.mlp.fc1", normalised(tokens) * (1 + parts[4]) + parts[3]))
        return tokens + parts[5] * self.linear(f"{name}.mlp.fc2", hidden)

    def attention(self, name: str, tokens: Array, seen: Sequence[int]) -> Array:
        """Every query looks at every key; the bias is that of the offset between their places on the grid."""
        grid = round(math.sqrt(self.state["pos_embed"].shape[1]))
        table = self.state[f"{name}.rel_pos_bias.relative_position_bias_table"]
        width = tokens.shape[1]
        size = width // self.num_heads
        query, key, value = np.split(self.linear(f"{name}.qkv", tokens), 3, axis=1)
        result = np.zeros_like(tokens)
        for head in range(self.num_heads):
            own = slice(head * size, (head + 1) * size)
            for i, place in enumerate(seen):
                logits = []
                for j, other in enumerate(seen):
                    down, right = place // grid - other // grid, place % grid - other % grid
                    row = (down + grid - 1) * (2 * grid - 1) + right + grid - 1
                    logits.append(query[i, own] @ key[j, own] / math.sqrt(size) + table[row, head])
                shares = np.exp(np.array(logits) - max(logits))
                result[i, own] = (shares / shares.sum()) @ value[:, own]
        return self.linear(f"{name}.proj", result)

    def timestep(self, timestep: int) -> Array:
        angles = [timestep * 10_000 ** (-number / 128) for number in range(128)]
        waves = np.array([*map(math.cos, angles), *map(math.sin, angles)])
        return self.linear("t_embedder.mlp.2", silu(self.linear("t_embedder.mlp.0", waves)))

    def patches(self, latents: Array) -> Array:
        patch, kernel = self.patch_size, self.state["x_embedder.proj.weight"]
        rows = [
            np.einsum("cij,dcij->d", latents[:, top : top + patch, left : left + patch], kernel)
            for top in range(0, latents.shape[1], patch)
            for left in range(0, latents.shape[2], patch)
        ]
        return np.stack(rows) + self.state["x_embedder.proj.bias"]

    def unpatch(self, patches: Array, shape: Sequence[int]) -> Array:
        channels, patch = 2 * shape[0], self.patch_size
        output = np.zeros((channels, shape[1], shape[2]))
        across = shape[2] // patch
        for number, values in enumerate(patches):
            top, left = number // across * patch, number % across * patch
            output[:, top : top + patch, left : left + patch] = values.reshape(patch, patch, channels).transpose(
                2, 0, 1
            )
        return output

    def linear(self, name: str, x: Array) -> Array:
        result: Array = x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]
        return result

    def count(self, blocks: str) -> int:
        return len({name.split(".")[1] for name in self.state if name.startswith(f"{blocks}.")})


def silu(x: Array) -> Array:
    result: Array = x / (1 + np.exp(-x))
    return result


def gelu(x: Array) -> Array:
    result: Array = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return result


def normalised(tokens: Array) -> Array:
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    result: Array = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-6)
    return result
