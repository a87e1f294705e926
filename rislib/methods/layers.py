"""The few parts that more than one paper uses, or any paper could."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def conv_block(in_width: int, out_width: int, kernel: int) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU; the map keeps its size."""
    return nn.Sequential(
        nn.Conv2d(in_width, out_width, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_width),
        nn.ReLU(inplace=True),
    )


def upsample() -> nn.Upsample:
    """Twice the height and width, bilinear, pixels seen as areas."""
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)


def mask_head(in_width: int, widths: Sequence[int], kernel: int, *, upsample_first: bool) -> nn.Sequential:
    """(B, in_width, h, w) -> logits (B, 1, s*h, s*w), with s = 2 for each of `widths`.

    Args:
        widths: channels of the blocks 3x3, each of which goes with a doubling of the map.
        kernel: size of the last convolution.
        upsample_first: each block comes after its doubling, not before.
    """
    layers = []
    for before, after in pairwise((in_width, *widths)):
        block, doubling = conv_block(before, after, 3), upsample()
        layers += (doubling, block) if upsample_first else (block, doubling)
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, kernel, padding=kernel // 2))


def coordinate_maps(x: Tensor) -> Tensor:
    """Where each pixel of x (B, C, h, w) lies: (B, 2, h, w), first x then y, from -1 to 1 (CoordConv)."""
    batch, _, h, w = x.shape
    across = torch.linspace(-1, 1, w, device=x.device, dtype=x.dtype).expand(batch, 1, h, w)
    down = torch.linspace(-1, 1, h, device=x.device, dtype=x.dtype)[:, None].expand(batch, 1, h, w)
    return torch.cat([across, down], dim=1)


def sine_positions(length: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Sinusoidal positions 0, 1, ... (Vaswani et al., 2017, section 3.5) -> (length, width).

    Even channels are sines, odd channels cosines; wavelengths grow from 2 pi to 10000 * 2 pi.

    Raises:
        ValueError: `width` is odd.
    """
    if width % 2:
        raise ValueError(f"sines and cosines come in pairs, but the width is {width}")
    frequency = 10000 ** -(torch.arange(0, width, 2, device=device) / width)  # (width/2,)
    angle = torch.arange(length, device=device)[:, None] * frequency  # (length, width/2)
    return torch.stack([angle.sin(), angle.cos()], dim=2).flatten(1)


def sine_positions_2d(h: int, w: int, width: int, *, device: torch.device | None = None) -> Tensor:
    """Positions of an h x w map, row by row -> (h*w, width): the first half of the channels from x.

    Raises:
        ValueError: `width` is no multiple of 4.
    """
    if width % 4:
        raise ValueError(f"x and y need an even number of channels each, but the width is {width}")
    across = sine_positions(w, width // 2, device=device).expand(h, w, -1)
    down = sine_positions(h, width // 2, device=device)[:, None].expand(h, w, -1)
    return torch.cat([across, down], dim=2).flatten(0, 1)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - 2 |P ∩ T| / (|P| + |T|), mean over samples (Milletari et al., 2016, arXiv 1606.04797).

    logits and target (B, 1, h, w), target in [0, 1] -> scalar in [0, 1]. Numerator and denominator
    each get 1 added, so that an empty prediction of an empty target costs nothing.
    """
    probability = logits.sigmoid()
    overlap = (probability * target).sum(dim=(1, 2, 3))  # (B,)
    total = (probability + target).sum(dim=(1, 2, 3))  # (B,)
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


def instance_norm(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each channel of x (B, N, C) to mean 0 and variance 1 over those of N where mask (B, N, 1) is 1.

    Without a mask, over all of them.
    """
    if mask is None:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5)
    count = mask.sum(dim=1, keepdim=True)
    x = x - (x * mask).sum(dim=1, keepdim=True) / count
    variance = (x.square() * mask).sum(dim=1, keepdim=True) / count
    return x * torch.rsqrt(variance + 1e-5)


@contextmanager
def no_running_statistics(part: nn.Module) -> Iterator[None]:
    """Batch norms within `part` normalise what they see as ever, but do not remember it."""
    norms = [m for m in part.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm))]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def language_gate(
    width: int, activation: type[nn.Module] = nn.ReLU, *, closed: bool = False
) -> nn.Sequential:
    """How much of what was read goes on (LAVT, MagNet): (..., width) -> (..., width) in [-1, 1].

    It begins nearly shut, its weights as small as Swin's at initialisation; exactly 0 if `closed`.
    """
    first, second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
    nn.init.trunc_normal_(first.weight, std=0.02)
    nn.init.trunc_normal_(second.weight, std=0.02)
    if closed:
        nn.init.zeros_(second.weight)  # it alone: were both zero, neither would have a gradient
    return nn.Sequential(first, activation(), second, nn.Tanh())


class Pointwise(nn.Linear):
    """A convolution 1x1 whose channels come last: a linear layer, its weight in the published shape.

    Args:
        dims: 1 or 2, of the convolution.
    """

    def __init__(self, in_width: int, out_width: int, *, dims: int = 1, bias: bool = True) -> None:
        super().__init__(in_width, out_width, bias=bias)
        self.weight = nn.Parameter(self.weight.detach()[(..., *[None] * dims)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_width) -> (..., out_width)"""
        return F.linear(x, self.weight.flatten(1), self.bias)


class Places(nn.Linear):
    """Tells every pixel where it lies: adds a linear function of its coordinates (see `coordinate_maps`)."""

    def __init__(self, width: int) -> None:
        super().__init__(2, width)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, h, w, width) -> the same."""
        places = coordinate_maps(x[:1].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (1, h, w, 2)
        return x + super().forward(places)


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention in `heads` parts: query (B, N, C), key and value (B, M, C) -> (B, N, C).

    mask, True where to look, fits (B, heads, N, M).
    """
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class PixelWordAttention(nn.Module):
    """Pixels read words: LAVT's PWAM with layer norms for its instance norms.

    With several heads, scores are divided by the root of a head's width, there of all channels'.
    """

    def __init__(self, width: int, text_width: int, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.visual = nn.Sequential(Pointwise(width, width), nn.GELU())
        self.query = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.key = Pointwise(text_width, width)
        self.value = Pointwise(text_width, width)
        self.read = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.fuse = nn.Sequential(Pointwise(width, width), nn.GELU())

    def forward(self, x: Tensor, words: Tensor, token_mask: Tensor) -> Tensor:
        """x (B, h, w, width), words (B, L, text_width), token_mask (B, L), True where to look -> F like x."""
        q, k, v = self.query(x).flatten(1, 2), self.key(words), self.value(words)
        summary = attend(q, k, v, self.heads, token_mask.bool()[:, None, None])  # (B, h*w, width)
        return self.fuse(self.visual(x) * self.read(summary).unflatten(1, x.shape[1:3]))


class WordPixelAttention(nn.Module):
    """Words read pixels.

    Args:
        released_mask: with the released code's error in the mask.
    """

    def __init__(self, width: int, image_width: int, heads: int = 1, *, released_mask: bool = False) -> None:
        super().__init__()
        self.heads, self.released_mask = heads, released_mask
        self.visual = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.query = Pointwise(width, width)
        self.key = Pointwise(image_width, width)
        self.value = Pointwise(image_width, width)
        self.read = Pointwise(width, width)
        self.fuse = nn.Sequential(Pointwise(width, width), nn.GELU())

    def forward(self, words: Tensor, x: Tensor, token_mask: Tensor) -> Tensor:
        """words (B, L, width), x (B, h, w, image_width), token_mask (B, L), True at words -> T like words."""
        mask, x = token_mask[:, :, None].to(words.dtype), x.flatten(1, 2)  # (B, L, 1), (B, h*w, image_width)
        query = self.query(words)  # (B, L, width)
        if self.released_mask:
            query, mask = query * (mask - 1) * 10000, torch.ones_like(mask)
        key, value = instance_norm(self.key(x)), instance_norm(self.value(x))  # over all pixels
        summary = attend(query, key, value, self.heads)  # (B, L, width)
        return self.fuse(self.visual(words) * instance_norm(self.read(summary), mask))


class Decoder(nn.Module):
    """The vision-language decoder: every pixel attends to every pixel, then to the words."""

    def __init__(
        self, width: int, text_width: int, layers: int, heads: int, ffn: int, dropout: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DecoderLayer(width, text_width, heads, ffn, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        """x (B, width, h, w), words (B, L, text_width), word_mask (B, L), True where to look -> like x."""
        h, w = x.shape[2:]
        pixel_positions = sine_positions_2d(h, w, x.shape[1], device=x.device)  # (h*w, width)
        word_positions = sine_positions(*words.shape[1:], device=x.device)  # (L, text_width)
        x = x.flatten(2).transpose(1, 2)  # (B, h*w, width)
        for layer in self.layers:
            x = layer(x, words, word_mask, pixel_positions, word_positions)
        return self.norm(x).transpose(1, 2).unflatten(2, (h, w))


class DecoderLayer(nn.Module):
    """Norm, attention, norm again, residual: positions go to queries and keys, never to values."""

    def __init__(self, width: int, text_width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        attention = {"dropout": dropout, "batch_first": True}
        self.norm1 = nn.LayerNorm(width)
        self.self_attention = nn.MultiheadAttention(width, heads, **attention)
        self.self_attention_norm = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attention = nn.MultiheadAttention(
            width, heads, kdim=text_width, vdim=text_width, **attention
        )
        self.cross_attention_norm = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn), nn.ReLU(), nn.Dropout(dropout), nn.LayerNorm(ffn), nn.Linear(ffn, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, words: Tensor, word_mask: Tensor, pixel_positions: Tensor, word_positions: Tensor
    ) -> Tensor:
        """x (B, N, width), words (B, L, text_width) -> (B, N, width)."""
        normed = self.norm1(x)
        query = normed + pixel_positions
        seen, _ = self.self_attention(query, query, normed, need_weights=False)
        x = x + self.dropout(self.self_attention_norm(seen))

        read, _ = self.cross_attention(
            self.norm2(x) + pixel_positions,
            words + word_positions,
            words,
            key_padding_mask=~word_mask,
            need_weights=False,
        )
        x = x + self.dropout(self.cross_attention_norm(read))
        return x + self.dropout(self.ffn(self.norm3(x)))


def expect_one_of(argument: str, value: str | None, *choices: str | None) -> None:
    """Raises ValueError, with the choices that `argument` has, for any other value."""
    if value not in choices:
        raise ValueError(f"{argument} is one of {', '.join(map(str, choices))}, not {value!r}")
