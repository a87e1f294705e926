"""From a picture to a network's square input, and from its answer back to the picture.

The papers disagree about the way. CRIS keeps the aspect ratio and pads (`Letterbox`), LAVT and
MagNet stretch (`Stretch`). Both are affine in each axis, so both have an exact inverse:

    input index = scale * picture index + offset

where an index counts pixels from the middle of the first one, as arrays do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rislib.nouns import Preprocessing


@dataclass(frozen=True)
class Geometry(ABC):
    """Between pictures of `height` x `width` pixels and a network's `size` x `size` input.

    `scale` and `offset`, each (x, y), map pixel indices of the picture to those of the input.
    """

    height: int
    width: int
    size: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.size) < 1:
            raise ValueError(f"sides must be positive: {self.height} x {self.width} to {self.size}")

    @property
    @abstractmethod
    def scale(self) -> tuple[float, float]:
        """Input pixels per picture pixel, along x and y."""

    @property
    @abstractmethod
    def offset(self) -> tuple[float, float]:
        """Where in the input the middle of the picture's first pixel lies, x and y."""

    @abstractmethod
    def image(self, image: Image.Image) -> Image.Image:
        """RGB picture of width x height -> RGB picture of size x size. Raises ValueError at another size."""

    @abstractmethod
    def mask(self, mask: np.ndarray) -> np.ndarray:
        """(height, width) bool -> (size, size) float32 in [0, 1]. Raises ValueError at another size."""

    @abstractmethod
    def inverse(self, probability: np.ndarray) -> np.ndarray:
        """(size, size) -> (height, width), float32. Raises ValueError at another size."""

    @property
    def _is_identity(self) -> bool:
        return self.height == self.width == self.size

    def _check(self, shape: tuple[int, ...], expected: tuple[int, int]) -> None:
        if tuple(shape) != expected:
            raise ValueError(f"expected height x width {expected}, got {tuple(shape)}")


@dataclass(frozen=True)
class Letterbox(Geometry):
    """CRIS's way: one scale for both axes, the picture centred, the rest filled with `colour`.

    The corner points are those of CRIS's `getTransformMat` (github.com/DerrickWang005/CRIS.pytorch,
    utils/dataset.py), sampled as OpenCV's `warpAffine` does: no smoothing before shrinking, a cubic
    kernel with a = -0.75, and pixels beyond the edge have the border's value. The corner (0, 0) is
    taken for the middle of a pixel there, which moves everything by (scale - 1) / 2 of an input pixel.

    Ours: pictures that shrink to half or less are first averaged over blocks of pixels. CRIS never meets
    them (COCO's 640 px become 416), but a photograph at 128 px would fall apart.
    """

    colour: tuple[int, int, int] = (0, 0, 0)

    @property
    def scale(self) -> tuple[float, float]:
        scale = min(self.size / self.height, self.size / self.width)
        return scale, scale

    @property
    def offset(self) -> tuple[float, float]:
        scale, _ = self.scale
        return (self.size - self.width * scale) / 2, (self.size - self.height * scale) / 2

    def image(self, image: Image.Image) -> Image.Image:
        self._check((image.height, image.width), (self.height, self.width))
        if self._is_identity:
            return image
        colour = torch.tensor(self.colour, dtype=torch.float32).view(3, 1, 1)
        # `_forward` fills with 0, so the border's colour is taken for black on the way.
        pixels = self._forward(_planes(image) - colour, "bicubic") + colour  # (3, size, size)
        pixels = pixels.round().clamp(0, 255).to(torch.uint8)
        return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())

    def mask(self, mask: np.ndarray) -> np.ndarray:
        self._check(mask.shape, (self.height, self.width))
        plane = torch.from_numpy(mask.astype(np.float32))[None]  # (1, height, width)
        plane = plane if self._is_identity else self._forward(plane, "bilinear").clamp(0, 1)
        return plane[0].numpy()

    def inverse(self, probability: np.ndarray) -> np.ndarray:
        """(size, size) -> (height, width), float32. The cubic kernel may overshoot [0, 1] a little."""
        self._check(probability.shape, (self.size, self.size))
        plane = torch.from_numpy(probability.astype(np.float32))[None]  # (1, size, size)
        if not self._is_identity:
            plane = _sample(plane, self.scale, self.offset, self.height, self.width, "bicubic")
        return plane[0].numpy()

    def _forward(self, planes: Tensor, mode: str) -> Tensor:
        """planes (C, height, width) -> (C, size, size)."""
        block = max(1, int(1 / self.scale[0]))
        if block > 1:
            planes = F.avg_pool2d(planes, block, ceil_mode=True)  # partial blocks average what they have
        # A block's middle lies (block - 1) / 2 pixels behind its first pixel.
        back_scale = tuple(1 / (scale * block) for scale in self.scale)
        back_offset = tuple(
            (-offset / scale - (block - 1) / 2) / block
            for scale, offset in zip(self.scale, self.offset, strict=True)
        )
        return _sample(planes, back_scale, back_offset, self.size, self.size, mode)


@dataclass(frozen=True)
class Stretch(Geometry):
    """LAVT's and MagNet's way: both axes to `size`, whatever the aspect ratio.

    Pictures bilinear (smoothed when they shrink, as Pillow does), masks nearest. Neither paper goes
    back to the original size; the bilinear way back is ours.
    """

    @property
    def scale(self) -> tuple[float, float]:
        return self.size / self.width, self.size / self.height

    @property
    def offset(self) -> tuple[float, float]:
        scale_x, scale_y = self.scale
        return (scale_x - 1) / 2, (scale_y - 1) / 2  # the outer edges of the first pixels coincide

    def image(self, image: Image.Image) -> Image.Image:
        self._check((image.height, image.width), (self.height, self.width))
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        self._check(mask.shape, (self.height, self.width))
        square = Image.fromarray(mask.astype(np.uint8))
        square = square.resize((self.size, self.size), Image.Resampling.NEAREST)
        return np.asarray(square, dtype=np.float32)

    def inverse(self, probability: np.ndarray) -> np.ndarray:
        self._check(probability.shape, (self.size, self.size))
        plane = torch.from_numpy(probability.astype(np.float32))[None, None]  # (1, 1, size, size)
        plane = F.interpolate(plane, (self.height, self.width), mode="bilinear", align_corners=False)
        return plane[0, 0].numpy()


def geometry_for(preprocessing: Preprocessing, height: int, width: int) -> Geometry:
    """The geometry that a network wants for pictures of height x width.

    A letterbox is filled with the network's mean colour. Raises ValueError at an unknown `resize`.
    """
    if preprocessing.resize == "letterbox":
        red, green, blue = (round(255 * value) for value in preprocessing.mean)
        return Letterbox(height, width, preprocessing.size, colour=(red, green, blue))
    if preprocessing.resize == "stretch":
        return Stretch(height, width, preprocessing.size)
    raise ValueError(f"resize must be 'letterbox' or 'stretch', not {preprocessing.resize!r}")


def to_tensor(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """RGB picture of any size -> (3, size, size) float32, resized and normalised as the network wants."""
    square = geometry_for(preprocessing, image.height, image.width).image(image)
    mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(preprocessing.std).view(3, 1, 1)
    return _planes(square).div_(255).sub_(mean).div_(std)


def _planes(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [0, 255]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))  # (H, W, 3), uint8
    return pixels.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)


def _sample(
    planes: Tensor,
    scale: tuple[float, float],
    offset: tuple[float, float],
    height: int,
    width: int,
    mode: str,
) -> Tensor:
    """planes (C, h, w) read at `scale * index + offset`, 0 beyond the edge -> (C, height, width)."""
    grid = _grid(scale, offset, height, width, *planes.shape[-2:])
    return F.grid_sample(planes[None], grid[None].to(planes), mode=mode, align_corners=False)[0]


@lru_cache(maxsize=16)  # the pictures of a training mostly have few sizes
def _grid(
    scale: tuple[float, float],
    offset: tuple[float, float],
    height: int,
    width: int,
    source_height: int,
    source_width: int,
) -> Tensor:
    """Where to read, in `grid_sample`'s coordinates: (height, width, 2), float64."""
    columns = torch.arange(width, dtype=torch.float64) * scale[0] + offset[0]
    rows = torch.arange(height, dtype=torch.float64) * scale[1] + offset[1]
    # grid_sample counts in half sides: -1 and 1 are the outer edges of the first and last pixel.
    x = (2 * columns + 1) / source_width - 1
    y = (2 * rows + 1) / source_height - 1
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
