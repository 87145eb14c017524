"""The masked diffusion transformers of Gao et al. (arXiv 2303.14389), with the tensor names of the released ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import nn

from dcprune.errors import OptionError

Size = Literal["S", "B", "L", "XL"]
Version = Literal[1, 2]

# Hidden size, depth and number of heads.
SIZES: Final[Mapping[Size, tuple[int, int, int]]] = {
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "XL": (1152, 28, 16),
}

_FREQUENCIES = 256
_MLP_RATIO = 4
_LONGEST_PERIOD = 10_000

# A BEiT table has three more rows, for pairs with a class token; released checkpoints hold them unused.
_CLASS_TOKEN_ROWS = 3


@dataclass(frozen=True)
class Shape:
    """The shape of a network.

    Attributes:
        version: 2 has long skip connections in its encoder and from the input to every decoder block, 1 has none.
        hidden_size: width D of the tokens.
        depth: number of blocks, the side block not counted.
        num_heads: of every attention.
        patch_size: side of the square of latents that is a token.
        decode_layer: how many of the blocks are the decoder's.
        input_size: side of the latents.
        in_channels: channels C of the latents.
        num_classes: K; the class table has one more row, the null condition.

    Raises:
        OptionError: numbers that do not fit together.
    """

    version: Version
    hidden_size: int
    depth: int
    num_heads: int
    patch_size: int
    decode_layer: int
    input_size: int
    in_channels: int
    num_classes: int

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size < 4 or self.hidden_size % (4 * self.num_heads):
            raise OptionError(
                f"hidden_size={self.hidden_size} is not a positive multiple of 4 times num_heads={self.num_heads}."
            )
        if self.patch_size < 1 or self.input_size < 1 or self.input_size % self.patch_size:
            raise OptionError(
                f"patch_size={self.patch_size} does not divide latents of {self.input_size}x{self.input_size}."
            )
        check_depth(self.version, self.depth, self.decode_layer)

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.input_size // self.patch_size

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.grid**2


def check_depth(version: Version, depth: int, decode_layer: int) -> None:
    """Raise OptionError when so many blocks cannot be divided into an encoder and a decoder."""
    if not 1 <= decode_layer < depth:
        raise OptionError(f"decode_layer={decode_layer} is outside [1, {depth}), as depth={depth}.")
    if version == 2 and (depth - decode_layer) % 2:
        raise OptionError(
            f"depth={depth} minus decode_layer={decode_layer} is odd: half of MDTv2's encoder blocks mirror the others."
        )


@dataclass(frozen=True)
class VaeReference:
    """The autoencoder whose latents a network was trained on.

    Attributes:
        name: see `dcprune.autoencoder.load_autoencoder`.
        sha256: hash of its weights.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Kept:
    """The tokens that a masked pass sees, in arrays whose shapes do not depend on how many they are.

    Attributes:
        order: int64 [B, M], distinct numbers of tokens.
        present: bool [M]; a sample's tokens are those of `order` where this is True, the others are filling.
    """

    order: torch.Tensor
    present: torch.Tensor

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, L, D] -> [B, M, D]."""
        return tokens.gather(1, self._index(tokens))

    def scatter(self, tokens: torch.Tensor, elsewhere: torch.Tensor) -> torch.Tensor:
        """The inverse of `gather`, [B, M, D] -> [B, L, D] like `elsewhere`, which stays where nothing was kept."""
        present = self.present[:, None]
        tokens = torch.where(present, tokens, self.gather(elsewhere)).to(elsewhere.dtype)
        return elsewhere.scatter(1, self._index(tokens), tokens)

    def masked(self, num_tokens: int) -> torch.Tensor:
        """Which tokens were not kept, bool [B, L]."""
        nothing = self.order.new_ones((len(self.order), num_tokens), dtype=torch.bool)
        return nothing.scatter(1, self.order, ~self.present.expand_as(self.order))

    def _index(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.order[:, :, None].expand(-1, -1, tokens.shape[-1])


class RelativePositionBias(nn.Module):
    """A learned number for every head and offset between two tokens of a square grid.

    Args:
        grid: tokens along a side.
        num_heads: heads.
    """

    def __init__(self, grid: int, num_heads: int) -> None:
        super().__init__()
        offsets = (2 * grid - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.empty(offsets + _CLASS_TOKEN_ROWS, num_heads))
        self.relative_position_index: torch.Tensor
        self.register_buffer("relative_position_index", _relative_positions(grid))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, kept: Kept | None) -> torch.Tensor:
        """What is added to the logits of queries and keys: [1, heads, L, L], or [B, heads, M, M] for kept tokens."""
        bias = F.embedding(self.relative_position_index, self.relative_position_bias_table).permute(2, 0, 1)
        if kept is None:
            return bias[None]
        return _pairs(bias, kept.order).masked_fill(~kept.present, -math.inf)


def _relative_positions(grid: int) -> torch.Tensor:
    """Row of the table for every query and key: int64 [L, L]."""
    place = torch.arange(grid**2)
    row, column = place // grid, place % grid
    down = row[:, None] - row[None, :] + grid - 1
    right = column[:, None] - column[None, :] + grid - 1
    return down * (2 * grid - 1) + right


def _pairs(bias: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """The entries of [heads, L, L] for all pairs of the tokens `order` [B, M] of a sample: [B, heads, M, M].

    One flat index, because selecting along one dimension is many times faster than indexing along two, both ways.
    """
    batch, count = order.shape
    pairs = order[:, :, None] * bias.shape[-1] + order[:, None, :]
    return bias.flatten(1).index_select(1, pairs.flatten()).view(len(bias), batch, count, count).transpose(0, 1)


class Attention(nn.Module):
    """Self-attention with a relative position bias."""

    def __init__(self, hidden_size: int, num_heads: int, grid: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.proj = nn.Linear(hidden_size, hidden_size)
        self.rel_pos_bias = RelativePositionBias(grid, num_heads)

    def forward(self, tokens: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        """[B, N, D] -> [B, N, D], where N = L or, for kept tokens, M."""
        batch, count, width = tokens.shape
        qkv: torch.Tensor = self.qkv(tokens)
        heads = qkv.view(batch, count, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        bias = self.rel_pos_bias(kept).to(query.dtype)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: torch.Tensor = self.proj(attended.transpose(1, 2).reshape(batch, count, width))
        return projected


class Mlp(nn.Module):
    """Two layers with a tanh-approximated GELU between them."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, _MLP_RATIO * hidden_size)
        self.fc2 = nn.Linear(_MLP_RATIO * hidden_size, hidden_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))
        return mixed


class Block(nn.Module):
    """A transformer block whose normalisations and gates are set by the condition (adaLN-zero, arXiv 2212.09748).

    Args:
        shape: of the network.
        skip: whether it takes tokens from an earlier place besides its input.
    """

    def __init__(self, shape: Shape, *, skip: bool = False) -> None:
        super().__init__()
        width = shape.hidden_size
        self.attn = Attention(width, shape.num_heads, shape.grid)
        self.mlp = Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(
        self,
        tokens: torch.Tensor,
        condition: torch.Tensor,
        *,
        skip: torch.Tensor | None = None,
        kept: Kept | None = None,
    ) -> torch.Tensor:
        """Tokens [B, N, D] under a condition [B, D], beside `skip` [B, N, D] -> [B, N, D]."""
        if self.skip_linear is not None and skip is not None:
            tokens = self.skip_linear(torch.cat([tokens, skip], dim=-1))
        settings = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = settings
        tokens = tokens + gate_attention * self.attn(_modulated(tokens, shift_attention, scale_attention), kept)
        mixed: torch.Tensor = tokens + gate_mlp * self.mlp(_modulated(tokens, shift_mlp, scale_mlp))
        return mixed


class FinalLayer(nn.Module):
    """From tokens to the patches of the output."""

    def __init__(self, hidden_size: int, patch_values: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, tokens: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        patches: torch.Tensor = self.linear(_modulated(tokens, shift, scale))
        return patches


class PatchEmbedding(nn.Module):
    """Latents [B, C, H, W] -> tokens [B, L, D], row by row."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        patch = shape.patch_size
        self.proj = nn.Conv2d(shape.in_channels, shape.hidden_size, kernel_size=patch, stride=patch)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        patches: torch.Tensor = self.proj(latents)
        return patches.flatten(2).transpose(1, 2)


class TimestepEmbedding(nn.Module):
    """Timesteps [B] -> [B, D], through sinusoids whose periods grow geometrically up to 10,000."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: torch.Tensor) -> torch.Tensor:
        half = _FREQUENCIES // 2
        exponents = torch.arange(half, dtype=torch.float32, device=timesteps.device) / half
        angles = timesteps.float()[:, None] * torch.exp(-math.log(_LONGEST_PERIOD) * exponents)
        embedded: torch.Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))
        return embedded


class ClassEmbedding(nn.Module):
    """Labels int64 [B] in [0, K] -> [B, D]; K is the null condition."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        embedded: torch.Tensor = self.embedding_table(labels)
        return embedded


class MaskedTransformer(nn.Module):
    """What both versions share: embeddings, side block, final layer, and how a masked pass goes.

    An encoder sees all tokens or those that are kept. Then every token gets the decoder's position embedding; where
    tokens were left out, a mask token takes their place and the side block fills it in from the others. A decoder sees
    all tokens again. The output has 2 C channels: the noise, and where in its range the log variance lies.

    Args:
        shape: of the network.

    Attributes:
        shape: the same.
        vae: the autoencoder of its latents; None for a network that comes from no model folder.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.vae: VaeReference | None = None
        width, patch = shape.hidden_size, shape.patch_size
        self.x_embedder = PatchEmbedding(shape)
        self.t_embedder = TimestepEmbedding(width)
        self.y_embedder = ClassEmbedding(shape.num_classes, width)
        self.pos_embed = nn.Parameter(torch.empty(1, shape.num_tokens, width))
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, shape.num_tokens, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.sideblocks = nn.ModuleList([Block(shape)])
        self.final_layer = FinalLayer(width, patch * patch * 2 * shape.in_channels)

    def encode(self, tokens: torch.Tensor, condition: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        """Tokens [B, N, D] -> [B, N, D], where N = L or, for kept tokens, M."""
        raise NotImplementedError

    def decode(self, tokens: torch.Tensor, condition: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Tokens [B, L, D] -> [B, L, D]; `embedded` [B, L, D] are the tokens before the encoder."""
        raise NotImplementedError

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        labels: torch.Tensor,
        order: torch.Tensor | None = None,
        present: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Output [B, 2 C, H, W] for latents [B, C, H, W], timesteps [B] and labels int64 [B].

        With `order` and `present` (see `Kept`) there are 2 B latents, timesteps and labels, and 2 B outputs: the first
        half is a full pass, the second a masked one. Both are one call because one is what `torch.compile` and
        `DistributedDataParallel` handle best, and because the decoder sees all tokens of both.
        """
        condition = self.t_embedder(timesteps) + self.y_embedder(labels)
        embedded = self.x_embedder(latents) + self.pos_embed
        if order is None or present is None:
            tokens = self.encode(embedded, condition, None) + self.decoder_pos_embed
        else:
            (full, masked), (own, other) = embedded.chunk(2), condition.chunk(2)
            full = self.encode(full, own, None) + self.decoder_pos_embed
            kept = Kept(order, present)
            masked = self._fill_in(self.encode(kept.gather(masked), other, kept), other, kept)
            tokens = torch.cat([full, masked])
        return self._unpatchify(self.final_layer(self.decode(tokens, condition, embedded), condition))

    def _fill_in(self, tokens: torch.Tensor, condition: torch.Tensor, kept: Kept) -> torch.Tensor:
        """All tokens [B, L, D] from the kept ones [B, M, D]; only the masked ones come from the side block."""
        count = self.shape.num_tokens
        blank = self.mask_token.to(tokens.dtype).expand(len(tokens), count, -1)
        before = kept.scatter(tokens, blank) + self.decoder_pos_embed
        after = before
        for block in self.sideblocks:
            after = block(after, condition)
        return torch.where(kept.masked(count)[..., None], after, before)

    def _unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        grid, patch, channels = self.shape.grid, self.shape.patch_size, 2 * self.shape.in_channels
        tiles = patches.view(-1, grid, grid, patch, patch, channels).permute(0, 5, 1, 3, 2, 4)
        return tiles.reshape(-1, channels, grid * patch, grid * patch)

    def initialise(self) -> None:
        """Draw all weights from torch's global generator, as the paper's own networks start.

        Blocks start as the identity, and the output as zero.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        positions = sin_cos_positions(self.shape.hidden_size, self.shape.grid)
        with torch.no_grad():
            self.pos_embed.copy_(positions)
            self.decoder_pos_embed.copy_(positions)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.normal_(self.y_embedder.embedding_table.weight, std=0.02)
        for layer in self.t_embedder.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Block | FinalLayer):
                _zero(module.adaLN_modulation[-1])
        _zero(self.final_layer.linear)


class MDTv1(MaskedTransformer):
    """MDT as first published: one sequence of blocks, of which the last are the decoder."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))

    def encode(self, tokens: torch.Tensor, condition: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        for block in self.blocks[: -self.shape.decode_layer]:
            tokens = block(tokens, condition, kept=kept)
        return tokens

    def decode(self, tokens: torch.Tensor, condition: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        for block in self.blocks[-self.shape.decode_layer :]:
            tokens = block(tokens, condition)
        return tokens


class MDTv2(MaskedTransformer):
    """MDTv2: the encoder's second half mirrors its first, and every decoder block sees the embedded input again."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        half = (shape.depth - shape.decode_layer) // 2
        self.en_inblocks = nn.ModuleList(Block(shape) for _ in range(half))
        self.en_outblocks = nn.ModuleList(Block(shape, skip=True) for _ in range(half))
        self.de_blocks = nn.ModuleList(Block(shape, skip=True) for _ in range(shape.decode_layer))

    def encode(self, tokens: torch.Tensor, condition: torch.Tensor, kept: Kept | None) -> torch.Tensor:
        on_the_way = []
        for block in self.en_inblocks:
            tokens = block(tokens, condition, kept=kept)
            on_the_way.append(tokens)
        for block in self.en_outblocks:
            tokens = block(tokens, condition, skip=on_the_way.pop(), kept=kept)
        return tokens

    def decode(self, tokens: torch.Tensor, condition: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        for block in self.de_blocks:
            tokens = block(tokens, condition, skip=embedded)
        return tokens


def build(shape: Shape, seed: int) -> MaskedTransformer:
    """A network with random weights on the CPU; the same seed gives the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = empty(shape)
        network.initialise()
    return network


def empty(shape: Shape) -> MaskedTransformer:
    """A network of the version that `shape` asks for, before its weights are drawn or read."""
    return (MDTv1 if shape.version == 1 else MDTv2)(shape)


def sin_cos_positions(hidden_size: int, grid: int) -> torch.Tensor:
    """Fixed position embeddings [L, D]: the first half of the channels knows the column, the second the row."""
    quarter = hidden_size // 4
    frequencies = _LONGEST_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    place = torch.arange(grid**2)
    parts = []
    for coordinate in (place % grid, place // grid):
        angles = coordinate.double()[:, None] * frequencies
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, dim=1).float()


def _modulated(tokens: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    normal = F.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
    return normal * (1 + scale) + shift


def _zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def unwrapped(model: nn.Module) -> MaskedTransformer:
    """The network inside the wrappers of `torch.compile` and `DistributedDataParallel`."""
    while not isinstance(model, MaskedTransformer):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            raise TypeError(f"{type(model).__name__} is no network of the mdt backend.")
        model = inner
    return model
