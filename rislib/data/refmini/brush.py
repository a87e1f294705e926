"""Paint and brush: the colours of RefMini, and how a shape gets onto the canvas.

A `Brush` draws in the unit square of a box: x runs from a thing's back to its front, y downwards,
(0, 0) and (1, 1) are corners. It writes the thing's number next to each colour, into the canvas's
fourth band, so a picture and its masks come from the same strokes and cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw

RGB = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, RGB] = {
    "red": (217, 48, 52),
    "orange": (247, 136, 36),
    "yellow": (250, 208, 58),
    "green": (52, 158, 84),
    "blue": (42, 112, 206),
    "purple": (132, 72, 184),
    "pink": (244, 142, 186),
    "brown": (138, 88, 52),
    "white": (252, 250, 245),
    "black": (42, 42, 52),
    "gray": (138, 144, 155),
}


class Tones(NamedTuple):
    """A colour as it is used on one thing."""

    main: RGB
    dark: RGB  # in the shade
    light: RGB  # in the light
    mark: RGB  # stripes and spots on it


def mix(a: RGB, b: RGB, percent: int) -> RGB:
    """`percent` of `b` in `a`, in whole numbers."""
    r, g, blue = ((x * (100 - percent) + y * percent) // 100 for x, y in zip(a, b, strict=True))
    return (r, g, blue)


def tones(colour: RGB, mark: RGB = (255, 252, 246)) -> Tones:
    """The colour itself, and what shade and light make of it."""
    return Tones(colour, mix(colour, (40, 24, 60), 16), mix(colour, (255, 250, 235), 20), mark)


TONES = {name: tones(rgb) for name, rgb in PALETTE.items()} | {
    "white": Tones(PALETTE["white"], (222, 220, 224), (255, 255, 255), (84, 84, 98)),
    "yellow": tones(PALETTE["yellow"], mark=(142, 84, 30)),
    "black": Tones(PALETTE["black"], (26, 26, 34), (70, 70, 84), (244, 240, 232)),
}


class Print(NamedTuple):
    """What is printed on a shape."""

    pattern: str  # one of scene.PATTERNS
    mark: RGB
    slant: int = 0  # how much stripes rise, in percent


PLAIN = Print("plain", PALETTE["black"])


class Brush:
    """Draws in unit coordinates of a box of the canvas, mirrored where the thing faces left.

    Args:
        canvas: an RGBX picture; the fourth band holds the numbers of things.
        box: left, top, right, bottom in pixels, right and bottom excluded.
        number: of the thing, 0 for the background.
        faces: 1, or -1 to mirror.
    """

    def __init__(
        self, canvas: Image.Image, box: tuple[int, int, int, int], number: int = 0, faces: int = 1
    ) -> None:
        left, top, right, bottom = box
        self.canvas, self.number = canvas, number
        self.pen = ImageDraw.Draw(canvas)
        # Pillow's shapes include their last pixel: 1.0 is the last one inside.
        self.width, self.height = max(right - left, 2) - 1, max(bottom - top, 2) - 1
        self.left, self.top = left, top
        self.x0, self.dx = (left, self.width) if faces == 1 else (left + self.width, -self.width)

    def polygon(self, points: Sequence[Point], colour: RGB, printed: Print = PLAIN) -> None:
        self._fill("polygon", self._pixels(points), colour, printed)

    def soft(self, points: Sequence[Point], colour: RGB, printed: Print = PLAIN) -> None:
        """A closed smooth curve inside the polygon of `points`; a point named twice pulls it closer."""
        self.polygon(_round_off(tuple(points), self._rounds()), colour, printed)

    def ellipse(
        self, left: float, top: float, right: float, bottom: float, colour: RGB, printed: Print = PLAIN
    ) -> None:
        self._fill("ellipse", self._corners(left, top, right, bottom), colour, printed)

    def circle(self, x: float, y: float, radius: float, colour: RGB) -> None:
        """A true circle; `radius` in heights of the box."""
        (px, py), r = self._pixels([(x, y)]), self._length(radius)
        self._fill("ellipse", [px - r, py - r, px + r, py + r], colour)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        colour: RGB,
        corner: float = 0.0,
        printed: Print = PLAIN,
    ) -> None:
        """An upright rectangle; `corner` is the radius of its corners in heights of the box."""
        pixels, radius = self._corners(left, top, right, bottom), self._length(corner)
        if radius < 2:
            self._fill("rectangle", pixels, colour, printed)
        else:
            self._fill("rounded_rectangle", pixels, colour, printed, radius=radius)

    def line(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        """A line with round ends and joints; `width` in heights of the box."""
        pixels, fill = self._pixels(points), (*colour, self.number)
        thick = max(1, round(width * self.height))
        self.pen.line(pixels, fill=fill, width=thick)
        if thick > 3:
            r = (thick - 1) // 2
            for x, y in zip(pixels[::2], pixels[1::2], strict=True):
                self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)

    def curve(self, points: Sequence[Point], width: float, colour: RGB) -> None:
        """A smooth line from the first to the last of `points`."""
        self.line(_bend(tuple(points), self._rounds()), width, colour)

    def around(self, x: float, y: float, radius: float) -> Brush:
        """A brush with its origin at (x, y), whose unit is `radius` heights of this one's box both ways."""
        other = copy(self)
        (other.x0, other.top), other.height = self._pixels([(x, y)]), max(1, self._length(radius))
        other.dx = other.height if self.dx > 0 else -other.height
        return other

    def _length(self, heights: float) -> int:
        return round(heights * self.height)

    def _pixels(self, points: Sequence[Point]) -> list[int]:
        x0, dx, y0, dy = self.x0, self.dx, self.top, self.height
        return [v for x, y in points for v in (x0 + round(x * dx), y0 + round(y * dy))]

    def _corners(self, left: float, top: float, right: float, bottom: float) -> list[int]:
        x0, y0, x1, y1 = self._pixels([(left, top), (right, bottom)])
        return [min(x0, x1), y0, max(x0, x1), y1]

    def _rounds(self) -> int:
        """How often corners are cut until a curve looks smooth."""
        return 2 if self.height < 260 else 4

    def _fill(self, shape: str, pixels: list[int], colour: RGB, printed: Print = PLAIN, **how: int) -> None:
        getattr(self.pen, shape)(pixels, fill=(*colour, self.number), **how)
        if printed.pattern == "plain":
            return
        origin, size = (self.left, self.top), (self.width + 1, self.height + 1)
        stencil = Image.new("L", size)
        inside = [v - origin[i % 2] for i, v in enumerate(pixels)]
        getattr(ImageDraw.Draw(stencil), shape)(inside, fill=255, **how)
        # No finer than what a picture of 128 pixels can show.
        period = max(round(self.canvas.width * 0.04), self._length(0.1))
        sheet = _sheet(printed.pattern, *size, period, printed.slant)
        self.canvas.paste((*printed.mark, self.number), origin, ImageChops.darker(stencil, sheet))


@lru_cache(maxsize=1024)
def _sheet(pattern: str, width: int, height: int, period: int, slant: int) -> Image.Image:
    """White stripes or spots on black; stripes rise by `slant` percent."""
    sheet = Image.new("L", (width, height))
    pen = ImageDraw.Draw(sheet)
    if pattern == "striped":
        rise, band = width * slant // 100, max(1, period * 2 // 5)
        for y in range(period // 3, height + rise, period):
            pen.polygon((0, y, width, y - rise, width, y - rise + band - 1, 0, y + band - 1), fill=255)
    else:
        step, r = period * 11 // 10, max(1, period * 33 // 100)
        for row, y in enumerate(range(step // 3, height + r, step)):
            for x in range(width // 2 % step - step + row % 2 * (step // 2), width + r, step):
                pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return sheet


@lru_cache(maxsize=4096)
def _round_off(points: tuple[Point, ...], rounds: int) -> tuple[Point, ...]:
    """Cut the corners of a closed polygon, again and again (Chaikin 1974): a quadratic B-spline."""
    for _ in range(rounds):
        pairs = zip(points, points[1:] + points[:1], strict=True)
        points = tuple(p for a, b in pairs for p in (between(a, b, 0.25), between(a, b, 0.75)))
    return points


@lru_cache(maxsize=1024)
def _bend(points: tuple[Point, ...], rounds: int) -> tuple[Point, ...]:
    """The same for an open line, which keeps its ends."""
    for _ in range(rounds):
        inner = tuple(p for a, b in pairwise(points) for p in (between(a, b, 0.25), between(a, b, 0.75)))
        points = (points[0], *inner[1:-1], points[-1])
    return points


def between(a: Point, b: Point, t: float) -> Point:
    """`a` at t = 0, `b` at t = 1."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)
