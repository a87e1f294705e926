"""Mask2Former's head (Cheng et al., CVPR 2022, arXiv 2112.01527) with a single query, as MagNet uses it.

Four maps go in, one mask comes out, and the nine guesses that led to it:

    X = C[GN(Conv(Y_i))]  for i = 4 ... 1                       all pixels of all maps in one row
    X = LN(X + Deformable(X + P, X));  X = LN(X + FFN(X))       n times (pixel decoder)
    E = Conv(X at stride 4)                                     a vector per pixel
    M = E . MLP(LN(q))                                          the query's mask, at once and after each layer
    q = LN(q + CrossAttention(q, X_l where M > 0))              l = 4, 3, 2, 4, ... (transformer decoder)
    q = LN(q + SelfAttention(q));  q = LN(q + FFN(q))

Deformable attention (Zhu et al., ICLR 2021, arXiv 2010.04159, equation 3) reads a few points of each map
instead of all pixels. The query says where, and how much each counts:

    Deformable(q, X) = Linear(C_heads[sum over maps l, points k of a_lk V_l(p + d_lk)]),   V = Linear(X)

with softmax weights a = Linear(q), offsets d = Linear(q) in pixels, bilinear reading, and zeros outside.

Other than in Mask2Former, the finest map takes part in the deformable attention, and there is no feature
pyramid behind it. transformers' implementation has that pyramid and three maps built in, hence this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Prediction:
    """What the head says."""

    masks: tuple[Tensor, ...]  # logits (B, 1, h, w) at the finest map's size, one per guess, the last counts
    classes: Tensor  # (B, 1, 2) of the last guess: with one query they decide nothing
    pixels: Tensor  # E, (B, width, h, w)


class Mask2Former(nn.Module):
    """The head: maps -> Prediction.

    Args:
        widths: channels of the maps, finest first.
        width: channels of everything inside, a multiple of 32.
        heads: of each attention.
        points: that a head reads per map.
        encoder_layers, encoder_ffn: of the pixel decoder.
        decoder_layers, decoder_ffn: of the transformer decoder. 0 layers leave the first guess.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        width: int = 256,
        heads: int = 8,
        points: int = 4,
        encoder_layers: int = 4,
        encoder_ffn: int = 1024,
        decoder_layers: int = 9,
        decoder_ffn: int = 2048,
    ) -> None:
        super().__init__()
        self.pixel_decoder = PixelDecoder(widths, width, heads, points, encoder_layers, encoder_ffn)
        self.query = nn.Parameter(torch.randn(1, width))
        self.position = nn.Parameter(torch.randn(1, width))
        self.levels = nn.Parameter(torch.randn(3, width))
        self.layers = nn.ModuleList(QueryLayer(width, heads, decoder_ffn) for _ in range(decoder_layers))
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 2)
        self.mask = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )

    def forward(self, maps: Sequence[Tensor]) -> Prediction:
        """maps (B, h / 2^i, w / 2^i, widths[i]) -> Prediction at (h, w)."""
        coarse, pixels = self.pixel_decoder(maps)
        keys, values = [], []
        for x, level in zip(coarse, self.levels, strict=True):
            value = x.flatten(1, 2) + level  # (B, h*w, width)
            values.append(value)
            keys.append(value + sine_positions(*x.shape[1:], device=x.device))
        query = self.query.expand(len(pixels), -1, -1)  # (B, 1, width)
        masks = [self.guess(query, pixels)]
        for i, layer in enumerate(self.layers):
            level = i % 3
            blocked = background(masks[-1], coarse[level].shape[1:3])
            query = layer(query, self.position, keys[level], values[level], blocked)
            masks.append(self.guess(query, pixels))
        return Prediction(tuple(masks), self.classify(self.norm(query)), pixels)

    def guess(self, query: Tensor, pixels: Tensor) -> Tensor:
        """query (B, 1, width), pixels (B, width, h, w) -> logits (B, 1, h, w)."""
        return torch.einsum("bqc,bchw->bqhw", self.mask(self.norm(query)), pixels)


@torch.no_grad()
def background(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """logits (B, 1, H, W) -> (B, 1, h*w), True where no object is seen; nowhere, if that were everywhere."""
    blocked = F.interpolate(mask, size, mode="bilinear", align_corners=False).flatten(2) < 0
    return blocked & ~blocked.all(dim=2, keepdim=True)


class QueryLayer(nn.Module):
    """Masked attention to pixels, attention among queries, FFN; each with residual, then norm."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_norm = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.self_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.ReLU(), nn.Linear(ffn, width))
        self.ffn_norm = nn.LayerNorm(width)
        _xavier(self)

    def forward(self, q: Tensor, position: Tensor, key: Tensor, value: Tensor, blocked: Tensor) -> Tensor:
        """q (B, Q, width), position (Q, width), key and value (B, N, width), blocked (B, Q, N) -> like q."""
        mask = blocked.repeat_interleave(self.heads, dim=0)  # (B*heads, Q, N)
        seen, _ = self.cross_attention(q + position, key, value, attn_mask=mask, need_weights=False)
        q = self.cross_norm(q + seen)
        heard, _ = self.self_attention(q + position, q + position, q, need_weights=False)
        q = self.self_norm(q + heard)
        return self.ffn_norm(q + self.ffn(q))


class PixelDecoder(nn.Module):
    """Lets all pixels of all maps read from each other."""

    def __init__(
        self, widths: Sequence[int], width: int, heads: int, points: int, layers: int, ffn: int
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Sequential(nn.Conv2d(in_width, width, 1), nn.GroupNorm(32, width))
            for in_width in reversed(widths)
        )
        self.levels = nn.Parameter(torch.randn(len(widths), width))
        self.layers = nn.ModuleList(
            DeformableLayer(width, len(widths), heads, points, ffn) for _ in range(layers)
        )
        self.embed = nn.Conv2d(width, width, 1)
        _xavier(self.project)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """maps (B, h / 2^i, w / 2^i, widths[i]), finest first.

        Returns the other maps, coarsest first (B, h / 2^i, w / 2^i, width), and pixels E (B, width, h, w).
        """
        maps = [project(x.permute(0, 3, 1, 2)) for project, x in zip(self.project, maps[::-1], strict=True)]
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        x = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)  # (B, N, width)
        positions = torch.cat(
            [
                sine_positions(*size, x.shape[2], device=x.device) + level
                for size, level in zip(sizes, self.levels, strict=True)
            ]
        )  # (N, width)
        places = torch.cat([pixel_centres(*size, device=x.device) for size in sizes])  # (N, 2)
        for layer in self.layers:
            x = layer(x, positions, places, sizes)
        maps = split_maps(x, sizes)
        return maps[:-1], self.embed(maps[-1].permute(0, 3, 1, 2))


class DeformableLayer(nn.Module):
    """Deformable self-attention and FFN, each with residual, then norm."""

    def __init__(self, width: int, levels: int, heads: int, points: int, ffn: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(width, levels, heads, points)
        self.attention_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn), nn.ReLU(), nn.Linear(ffn, width))
        self.ffn_norm = nn.LayerNorm(width)
        _xavier(self.ffn)

    def forward(
        self, x: Tensor, positions: Tensor, places: Tensor, sizes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """x (B, N, width), positions (N, width), places (N, 2) in [0, 1] -> like x."""
        x = self.attention_norm(x + self.attention(x + positions, x, places, sizes))
        return self.ffn_norm(x + self.ffn(x))


class DeformableAttention(nn.Module):
    """Each query reads `points` places of each map, near its own."""

    def __init__(self, width: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        self.shape = (heads, levels, points)
        self.offsets = nn.Linear(width, heads * levels * points * 2)
        self.weights = nn.Linear(width, heads * levels * points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        _xavier(self)
        nn.init.zeros_(self.weights.weight)
        # At first, each head looks into a direction of its own, and its k-th point k + 1 pixels far
        nn.init.zeros_(self.offsets.weight)
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack([angle.cos(), angle.sin()], dim=1)  # (heads, 2)
        direction = direction / direction.abs().amax(dim=1, keepdim=True)
        start = direction[:, None, None] * torch.arange(1, points + 1)[:, None]  # (heads, 1, points, 2)
        self.offsets.bias.data.copy_(start.expand(*self.shape, 2).flatten())

    def forward(self, query: Tensor, x: Tensor, places: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """query (B, Q, width) at places (Q, 2) in [0, 1]; x (B, N, width), maps of `sizes` -> like query."""
        offsets = self.offsets(query).unflatten(2, (*self.shape, 2))  # (B, Q, heads, levels, points, 2)
        weights = self.weights(query).unflatten(2, (self.shape[0], -1)).softmax(dim=3)
        weights = weights.unflatten(3, self.shape[1:])  # (B, Q, heads, levels, points)
        extent = places.new_tensor([(w, h) for h, w in sizes])  # (levels, 2)
        middle = places[:, None] * extent - 0.5  # (Q, levels, 2), in pixels of each map
        maps = split_maps(self.value(x).unflatten(2, (self.shape[0], -1)), sizes)  # (B, h, w, heads, C)
        return self.out(read_points(maps, middle[:, None, :, None] + offsets, weights))


def read_points(maps: Sequence[Tensor], points: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values between the pixels of several maps, bilinear, with zeros outside.

    A point is a weighted sum of four pixels, hence an answer one of 4 * levels * points pixels: that is what
    embedding_bag computes, at once and without storing any point's value. On CPUs that is several times
    faster than grid_sample.

    Args:
        maps: per level (B, h, w, heads, C).
        points: (B, Q, heads, levels, points, 2), x and y in pixels; 0, 0 is the middle of the first pixel.
        weights: (B, Q, heads, levels, points).

    Returns:
        (B, Q, heads * C)
    """
    padded = [F.pad(x, (0, 0, 0, 0, 1, 1, 1, 1)) for x in maps]  # with a frame of zeros, for points outside
    table = torch.cat([x.flatten(1, 2) for x in padded], dim=1)  # (B, T, heads, C)
    batch, length, heads, width = table.shape

    extent = points.new_tensor([(x.shape[2], x.shape[1]) for x in maps])[:, None]  # (levels, 1, 2)
    points = points.clamp(min=-1).minimum(extent)
    with torch.no_grad():
        corner = points.floor().minimum(extent - 1)  # the upper left one of four
        left, top = (corner.int() + 1).unbind(-1)  # (B, Q, heads, levels, points), in the padded map
        rows = torch.tensor([x.shape[1] * x.shape[2] for x in padded], dtype=torch.int32)
        first = (rows.cumsum(0, dtype=torch.int32) - rows).to(left.device)[:, None]  # (levels, 1)
        stride = (extent[..., 0] + 2).int()  # (levels, 1)
        sample = torch.arange(batch, dtype=torch.int32, device=left.device).view(-1, 1, 1, 1, 1)
        head = torch.arange(heads, dtype=torch.int32, device=left.device).view(-1, 1, 1)
        row = (sample * length + first + top * stride + left) * heads + head
        below = row + stride * heads
        rows = torch.stack([row, row + heads, below, below + heads], dim=-1)  # of the table, per corner

    x, y = (points - corner).unbind(-1)  # in [0, 1]
    lower, right = y * weights, x * weights
    both = x * lower
    shares = torch.stack([weights - lower - right + both, right - both, lower - both, both], dim=-1)
    answer = F.embedding_bag(
        rows.flatten(0, 2).flatten(1),  # (B*Q*heads, levels*points*4)
        table.flatten(0, 2),  # (B*T*heads, C)
        per_sample_weights=shares.flatten(0, 2).flatten(1).to(table.dtype),
        mode="sum",
    )
    return answer.view(batch, -1, heads * width)


def split_maps(x: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """All pixels in one row (B, N, ...) -> maps (B, h, w, ...) of the given sizes."""
    parts = x.split([h * w for h, w in sizes], dim=1)
    return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


def pixel_centres(h: int, w: int, *, device: torch.device | None = None) -> Tensor:
    """The middle of each pixel of an h x w map, row by row: (h*w, 2), x and y in [0, 1]."""
    y, x = torch.meshgrid(
        (torch.arange(h, device=device) + 0.5) / h, (torch.arange(w, device=device) + 0.5) / w, indexing="ij"
    )
    return torch.stack([x, y], dim=2).flatten(0, 1)


def sine_positions(h: int, w: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """DETR's positions of an h x w map, row by row -> (h*w, width), the first half of the channels from y.

    Other than in `layers.sine_positions_2d`, they are relative: whatever the size, they end at 2 pi.
    """
    frequency = 10000 ** -(torch.arange(0, width // 2, 2, device=device) / (width // 2))  # (width/4,)

    def waves(length: int) -> Tensor:  # (length, width/2)
        position = torch.arange(1, length + 1, device=device) / length * (2 * math.pi)
        angle = position[:, None] * frequency
        return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)

    down, across = waves(h)[:, None].expand(h, w, -1), waves(w).expand(h, w, -1)
    return torch.cat([down, across], dim=2).flatten(0, 1)


def _xavier(module: nn.Module) -> None:
    """Xavier-uniform matrices, and zero biases next to them, as DETR and its descendants begin."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
