"""A RefMini scene becomes pixels: a picture, and for each thing the mask of what is visible of it.

Everything is drawn at three times the size and then reduced. Coordinates are rounded to whole
pixels before anything is drawn, and shadows blend in whole numbers, so the same scene gives
the same pixels everywhere. `places` draws what is behind, `sprites` the things.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from rislib.data.refmini.brush import RGB, Brush
from rislib.data.refmini.places import DETAILS, PLACES
from rislib.data.refmini.scene import CASTS, Scene, Thing
from rislib.data.refmini.sprites import SPRITES

FINE = 3  # canvas pixels per pixel; odd, so that every pixel has a centre
VARIANTS = 6  # drawings of each place that are kept
SHADOW: RGB = (52, 44, 74)


@dataclass(frozen=True)
class Painting:
    """A picture of a scene."""

    image: Image.Image  # RGB, size x size
    masks: np.ndarray  # (N, size, size) bool: the visible pixels of each of scene.things


def paint(scene: Scene, size: int = 128) -> Painting:
    """Paint a scene on `size` x `size` pixels.

    The masks never overlap: what a thing covers is not visible. Shadows belong to no mask.

    Raises:
        ValueError: if `size` is not within 32 and 1024.
    """
    if not 32 <= size <= 1024:
        raise ValueError(f"size must be between 32 and 1024, got {size}")
    rng = random.Random(f"paint/{scene.seed}")
    variant = rng.randrange(VARIANTS)
    # Large canvases weigh tens of megabytes: those are drawn anew.
    backdrop = _backdrop if size <= 256 else _backdrop.__wrapped__
    canvas = backdrop(scene.place, size, variant).copy()
    DETAILS[scene.place](Brush(canvas, (0, 0, *canvas.size)), rng)
    for thing in scene.things:
        if not thing.flies or scene.place == "room":
            _shadow(canvas, thing)
    for number, thing in enumerate(scene.things, start=1):
        left, top, right, bottom = (round(v * canvas.width) for v in thing.box)
        SPRITES[thing.name](Brush(canvas, (left, top, right, bottom), number, thing.faces), thing)
    numbers = np.asarray(canvas.getchannel("X"))[FINE // 2 :: FINE, FINE // 2 :: FINE]  # (size, size)
    masks = numbers == np.arange(1, len(scene.things) + 1)[:, None, None]  # (N, size, size)
    return Painting(canvas.reduce(FINE).convert("RGB"), masks)


@lru_cache(maxsize=2 * len(CASTS) * VARIANTS)  # two sizes
def _backdrop(place: str, size: int, variant: int) -> Image.Image:
    """What does not change between scenes of one place, in one of its variants."""
    canvas = Image.new("RGBX", (size * FINE, size * FINE))
    PLACES[place](Brush(canvas, (0, 0, *canvas.size)), random.Random(f"place/{place}/{variant}"))
    return canvas


def _shadow(canvas: Image.Image, thing: Thing) -> None:
    width = thing.width * 1.06
    height = max(0.022, min(0.055, width * 0.22))
    left, top = thing.x - width * 0.5 + thing.height * 0.03, thing.base - height * 0.62
    box = [round(v * canvas.width) for v in (left, top, left + width, top + height)]
    softness = _blob().resize((max(1, box[2] - box[0]), max(1, box[3] - box[1])), Image.Resampling.NEAREST)
    canvas.paste((*SHADOW, 0), (box[0], box[1]), softness)


@lru_cache(maxsize=1)
def _blob() -> Image.Image:
    """A round spot, dark in its middle and fading to its rim, in whole numbers."""
    steps = np.arange(-63, 64, 2) ** 2
    near = np.maximum(0, 4096 - steps[:, None] - steps[None, :])  # (64, 64), 0 at the rim
    return Image.fromarray((near * near * 120 // 4096**2).astype(np.uint8))
