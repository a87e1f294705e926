"""Swin (Liu et al., 2021, arXiv 2103.14030), stage by stage, so that a method can do something in between.

The parts are timm's: attention, MLPs, patch merging, pretrained weights. How windows are laid over a map is
written out here, as dense prediction does it: the map is padded to whole windows first, then shifted, and
every second block shifts even where a single window would cover the map. timm shifts before it pads, which
is the same only where nothing needs padding, and a picture of 480 px has maps of 30 and 15 for windows of 12.
"""

from __future__ import annotations

from typing import Literal

import timm
import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders import load_weights, not_loaded, shipped

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's training pictures, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)


class SwinEncoder(nn.Module):
    """One Swin without its final norm and classifier. Maps are (B, h, w, C), and of any size.

        x = swin.embed(image)           # stride 4
        x = swin.stage(0, x)            # the same size
        x = swin.downsample(0, x)       # half the size, twice the channels
        x = swin.stage(1, x)            # and so on, to stage 3 at stride 32

    Args:
        model: timm's network, built with `always_partition=True` and `strict_img_size=False`.

    Attributes:
        widths: channels of each stage.
    """

    def __init__(self, model: SwinTransformer) -> None:
        super().__init__()
        self.patch_embed = model.patch_embed
        self.layers = model.layers  # timm's stages: each but the first begins with its own patch merging
        self.widths = tuple(layer.blocks[0].dim for layer in model.layers)

    def embed(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W), normalised with MEAN and STD -> (B, ceil(H/4), ceil(W/4), widths[0])."""
        patch_h, patch_w = self.patch_embed.patch_size
        h, w = image.shape[2:]
        image = F.pad(image, (0, -w % patch_w, 0, -h % patch_h))
        return self.patch_embed.norm(self.patch_embed.proj(image).permute(0, 2, 3, 1))

    def stage(self, i: int, x: Tensor) -> Tensor:
        """All blocks of stage i: (B, h, w, widths[i]) -> the same shape."""
        blocks = self.layers[i].blocks
        mask = shifted_window_mask(x.shape[1], x.shape[2], blocks[0].window_size[0], x.device)
        for block in blocks:
            x = self.block(block, x, mask)
        return x

    def block(self, block: SwinTransformerBlock, x: Tensor, mask: Tensor) -> Tensor:
        """One block, with the mask of shifted windows: x (B, h, w, C) -> like x."""
        x = x + block.drop_path1(_window_attention(block, block.norm1(x), mask))
        return x + block.drop_path2(block.mlp(block.norm2(x)))

    def downsample(self, i: int, x: Tensor) -> Tensor:
        """Merge 2 x 2 neighbours after stage i: (B, h, w, C) -> (B, ceil(h/2), ceil(w/2), 2C)."""
        return self.layers[i + 1].downsample(x)


def _window_attention(block: SwinTransformerBlock, x: Tensor, mask: Tensor) -> Tensor:
    """The attention of one block, in windows, every second block in shifted ones: (B, h, w, C) -> like x."""
    (b, h, w, c), n, shift = x.shape, block.window_size[0], block.shift_size[0]
    x = F.pad(x, (0, 0, 0, -w % n, 0, -h % n))  # (B, rows*n, columns*n, C)
    rows, columns = x.shape[1] // n, x.shape[2] // n
    if shift:
        x = x.roll((-shift, -shift), dims=(1, 2))
    windows = x.reshape(b, rows, n, columns, n, c).transpose(2, 3).reshape(-1, n * n, c)
    windows = block.attn(windows, mask=mask.to(x.dtype) if shift else None)  # (B*rows*columns, n*n, C)
    x = windows.reshape(b, rows, columns, n, n, c).transpose(2, 3).reshape(b, rows * n, columns * n, c)
    if shift:
        x = x.roll((shift, shift), dims=(1, 2))
    return x[:, :h, :w]


def shifted_window_mask(h: int, w: int, window: int, device: torch.device | None = None) -> Tensor:
    """Which positions of a shifted window may see each other: (windows, window**2, window**2), 0 or -inf.

    Rolling an h x w map (padded to whole windows) by half a window brings its two ends into one window.
    They stay apart: a position sees those that came from its own side. (Published Swins add -100, which in
    float32 gives the same sums. But e^-100 is a denormal number, and these are slow on many CPUs: LAVT took
    twice as long.)
    """

    def side(length: int) -> Tensor:  # 0, but 1 before and 2 after the seam, in the last window
        length += -length % window
        position = torch.arange(length, device=device)
        return (position >= length - window).int() + (position >= length - window // 2)

    down, across = side(h), side(w)
    region = 3 * down[:, None] + across  # (rows*window, columns*window)
    region = region.reshape(len(down) // window, window, -1, window).transpose(1, 2).flatten(2).flatten(0, 1)
    return torch.where(region[:, None] == region[:, :, None], 0.0, -torch.inf)


# --- named sizes ------------------------------------------------------------------------------


def swin_b(pretrained: Literal["imagenet22k"] | bool | None = None, *, drop_path: float = 0.3) -> SwinEncoder:
    """Swin-B with windows of 12, 86.9 M parameters: random, or classification weights (ImageNet-22k, 384 px).

    Args:
        pretrained: "imagenet22k", or True, for timm's weights (downloaded once).
        drop_path: how often the last block is skipped in training; earlier ones less, linearly from 0.

    Raises:
        RuntimeError: the weights cannot be had; says what to do.
    """
    name = "swin_base_patch4_window12_384.ms_in22k"
    options = {"num_classes": 0, "drop_path_rate": drop_path, **_DENSE}
    if not pretrained:
        return SwinEncoder(timm.create_model(name, **options))
    try:
        return SwinEncoder(timm.create_model(name, pretrained=True, **options))
    except Exception as error:  # whatever the hub's client raises, which changed more than once
        raise not_loaded(name, "timm", error) from error


def swin_mini(
    pretrained: bool = False,
    *,
    embed_dim: int = 32,
    depths: tuple[int, ...] = (2, 2, 2, 2),
    heads: tuple[int, ...] = (1, 2, 4, 8),
    window: int = 4,
    patch: int = 4,
    drop_path: float = 0.0,
) -> SwinEncoder:
    """A Swin for pictures of 96 to 128 px, 2.3 M parameters: random, or the shipped weights.

    Maps of 96 px: 24, 12, 6, 3.

    Raises:
        FileNotFoundError: the shipped weights are asked for, but not here; says what to do.
    """
    encoder = SwinEncoder(
        SwinTransformer(
            num_classes=0,
            patch_size=patch,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=heads,
            window_size=window,
            drop_path_rate=drop_path,
            **_DENSE,
        )
    )
    if pretrained:
        load_weights(encoder, shipped("swin"))
    return encoder


_DENSE = {"always_partition": True, "strict_img_size": False}
