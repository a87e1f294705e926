"""The twenty things of RefMini, as drawing instructions.

Every thing is one small function that draws in the unit square of the thing's box and fills it:
x runs from its back to its front, y downwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from rislib.data.refmini.brush import RGB, TONES, Brush, Point, Print, Tones, between, mix
from rislib.data.refmini.scene import Thing

INK: RGB = (44, 38, 48)
CREAM: RGB = (255, 246, 226)
GLASS: RGB = (200, 226, 238)
GLASS_LIGHT: RGB = (228, 242, 248)
STEEL: RGB = (196, 202, 210)
LEAF: RGB = (84, 150, 92)
LEAF_DARK: RGB = (58, 122, 78)
LEAF_LIGHT: RGB = (126, 182, 110)
WOOD: RGB = (150, 104, 66)
BLUSH: RGB = (240, 150, 130)

SKINS: tuple[RGB, ...] = ((255, 220, 190), (244, 196, 158), (222, 166, 122), (176, 118, 80), (128, 82, 58))
HAIRS: tuple[RGB, ...] = ((46, 36, 38), (86, 54, 40), (130, 80, 46), (176, 92, 48), (226, 178, 92))
SHOES: tuple[RGB, ...] = ((70, 62, 74), (112, 72, 52), (236, 230, 222))


def _choose(look: float, salt: int, options: Sequence):
    """Whatever of a thing is never spoken of varies with its look, each part in its own way."""
    return options[int(look * salt) % len(options)]


# --- people ---------------------------------------------------------------------------------


class Build(NamedTuple):
    """Where a body has what. Heights run down from the top of the box, widths are halves."""

    head: float  # radius, in heights of the box
    chin: float
    hip: float
    knee: float  # where a skirt ends
    shoulder: float
    waist: float
    limb: float  # how thick, in heights of the box


BUILDS = {
    "woman": Build(head=0.118, chin=0.265, hip=0.57, knee=0.78, shoulder=0.25, waist=0.19, limb=0.062),
    "man": Build(head=0.112, chin=0.250, hip=0.59, knee=0.80, shoulder=0.33, waist=0.26, limb=0.070),
    "girl": Build(head=0.155, chin=0.345, hip=0.62, knee=0.79, shoulder=0.23, waist=0.21, limb=0.066),
    "boy": Build(head=0.155, chin=0.345, hip=0.65, knee=0.80, shoulder=0.26, waist=0.24, limb=0.072),
}


def person(b: Brush, thing: Thing) -> None:
    build, look, outfit = BUILDS[thing.name], thing.look, thing.outfit
    if outfit.hat:  # which needs room
        build = build._replace(head=build.head * 0.91)
    skin = _choose(look, 1009, SKINS)
    hair = _choose(look, 2003, HAIRS if skin[0] > 200 else HAIRS[:2])
    style = int(look * 4001) % 3
    shirt, legs = TONES[outfit.shirt], TONES[outfit.legs]
    head = b.around(0.5, build.chin - build.head, build.head)

    if thing.name == "woman":
        _long_hair(head, hair, length=(2.5, 1.8, 1.3)[style])
    if thing.name == "girl":
        _pigtails(head, hair, length=(1.5, 1.8, 2.1)[style])
    _legs(b, build, outfit.skirt, legs, skin, _choose(look, 3001, SHOES))
    _arms(b, build, int(look * 5003) % 3, shirt, skin)
    _shirt(b, build, outfit.pattern, shirt, skin)
    if outfit.skirt:
        _skirt(b, build, legs)
    _face(head, skin)
    if thing.name == "man" and style == 1:
        _beard(head, hair)
    _fringe(head, hair, low={"woman": 1.0, "man": 0.0, "girl": 0.35, "boy": 0.05}[thing.name])
    if thing.name == "girl":
        _bobbles(head)
    if thing.name == "boy":
        _tufts(head, hair)
    if outfit.hat:
        hat = {"woman": _sun_hat, "man": _trilby, "girl": _bobble_hat, "boy": _cap}[thing.name]
        hat(head, TONES[outfit.hat])


def _wide(b: Brush, heights: float) -> float:
    """A length in heights of the box, in widths of it."""
    return heights * b.height / b.width


def _legs(b: Brush, build: Build, bare: bool, cloth: Tones, skin: RGB, shoe: RGB) -> None:
    colour, width = (skin, build.limb * 0.8) if bare else (cloth.main, build.limb * 1.25)
    far = mix(skin, (90, 50, 60), 10) if bare else cloth.dark
    gap = build.waist * 0.58
    for side, tone in ((-1, far), (1, colour)):
        x = 0.5 + side * gap
        b.line([(x, build.hip), (x + side * 0.02, 0.945)], width, tone)
        b.ellipse(x - 0.09 + 0.02 * side, 0.935, x + 0.15 + 0.02 * side, 1.0, shoe)
    if not bare:
        b.box(0.5 - build.waist, build.hip - 0.04, 0.5 + build.waist, build.hip + 0.06, cloth.main, 0.03)


def _skirt(b: Brush, build: Build, cloth: Tones) -> None:
    top, w = build.hip - 0.06, build.waist
    b.polygon(
        [(0.5 - w, top), (0.5 + w, top), (0.86, build.knee), (0.5, build.knee + 0.018), (0.14, build.knee)],
        cloth.main,
    )
    b.polygon(
        [(0.5 - w, top), (0.5 - w * 0.4, top), (0.34, build.knee + 0.009), (0.14, build.knee)], cloth.dark
    )
    b.box(0.5 - w, top, 0.5 + w, top + 0.02, cloth.dark)


def _arms(b: Brush, build: Build, pose: int, shirt: Tones, skin: RGB) -> None:
    """Pose 0 has both arms down, 1 waves, 2 has a hand on the hip."""
    top, edge = build.chin + 0.055, _wide(b, build.limb / 2)
    reach = build.hip - top
    down = [(0.5 - build.shoulder + 0.03, top), (edge + 0.08, top + 0.5 * reach), (edge, top + 0.98 * reach)]
    front = {
        0: [(1 - x, y) for x, y in down],
        1: [
            (0.5 + build.shoulder - 0.03, top),
            (1 - edge - 0.04, top + 0.22 * reach),
            (1 - edge, top - 0.55 * reach),
        ],
        2: [
            (0.5 + build.shoulder - 0.03, top),
            (1 - edge, top + 0.42 * reach),
            (0.5 + build.waist, top + 0.9 * reach),
        ],
    }[pose]
    for joints, sleeve in ((down, shirt.dark), (front, shirt.main)):
        b.line(joints[1:], build.limb * 0.74, skin)
        b.circle(*joints[2], build.limb * 0.48, skin)
        b.line(joints[:2], build.limb, sleeve)


def _shirt(b: Brush, build: Build, pattern: str, shirt: Tones, skin: RGB) -> None:
    top, hip, s, w = build.chin + 0.012, build.hip, build.shoulder, build.waist
    b.box(0.5 - 0.09, build.chin - 0.03, 0.5 + 0.09, top + 0.04, mix(skin, (120, 50, 50), 18))
    b.polygon(
        [
            (0.5 - 0.12, top), (0.5 + 0.12, top), (0.5 + s - 0.03, top + 0.018), (0.5 + s, top + 0.045),
            (0.5 + w, hip - 0.06), (0.5 + w + 0.01, hip), (0.5 - w - 0.01, hip), (0.5 - w, hip - 0.06),
            (0.5 - s, top + 0.045), (0.5 - s + 0.03, top + 0.018),
        ],
        shirt.main, Print(pattern, shirt.mark),
    )  # fmt: skip
    b.polygon([(0.5 - 0.11, top), (0.5 + 0.11, top), (0.5, top + 0.035)], mix(skin, (120, 50, 50), 12))


# Heads are drawn in radii of the head, from its middle; a hat's top is at HAT_TOP.
HAT_TOP = -1.45


def _face(head: Brush, skin: RGB) -> None:
    head.circle(-1, 0.15, 0.24, skin)
    head.circle(1, 0.15, 0.24, skin)
    head.circle(0, 0, 1, skin)
    for x in (-0.24, 0.52):  # looking a little to the front
        head.circle(x, 0.12, 0.12, INK)
    for x in (-0.42, 0.70):
        head.circle(x, 0.45, 0.17, mix(skin, BLUSH, 55))
    head.curve([(-0.14, 0.5), (0.14, 0.78), (0.42, 0.5)], 0.12, mix(skin, (140, 30, 40), 70))


def _fringe(head: Brush, hair: RGB, low: float) -> None:
    """Hair over the head that ends at `low` on both sides."""
    head.soft(
        [
            (-1.12, low), (-1.25, -0.8), (-0.6, -1.22), (0.6, -1.22), (1.25, -0.8), (1.12, low),
            (0.9, -0.35), (0.5, -0.62), (-0.5, -0.3), (-0.95, -0.2),
        ],
        hair,
    )  # fmt: skip


def _long_hair(head: Brush, hair: RGB, length: float) -> None:
    head.soft(
        [
            (-1.3, length), (-1.45, -0.6), (-0.7, -1.22), (0.7, -1.22), (1.45, -0.6), (1.3, length),
            (1.1, length + 0.25), (-1.1, length + 0.25),
        ],
        mix(hair, (20, 10, 30), 18),
    )  # fmt: skip


def _pigtails(head: Brush, hair: RGB, length: float) -> None:
    for side in (-1, 1):
        x = 1.05 * side
        head.soft(
            [(x, -0.35), (1.39 * side, -0.6), (1.48 * side, 0.5), (1.35 * side, length), (x, 0.7)],
            hair,
        )


def _bobbles(head: Brush) -> None:
    for x in (-1.08, 1.08):
        head.circle(x, -0.25, 0.2, (236, 96, 120))


def _tufts(head: Brush, hair: RGB) -> None:
    head.polygon([(0.2, -0.6), (0.5, -0.2), (0.8, -0.7)], hair)
    head.polygon([(-0.3, -0.6), (-0.1, -0.3), (0.2, -0.7)], hair)


def _beard(head: Brush, hair: RGB) -> None:
    head.soft(
        [
            (-1.1, 0.0), (-0.95, 0.5), (-0.3, 0.3), (0.3, 0.3), (0.95, 0.5), (1.1, 0.0),
            (1.05, 1.0), (0.4, 1.35), (-0.4, 1.35), (-1.05, 1.0),
        ],
        hair,
    )  # fmt: skip
    head.box(-0.15, 0.58, 0.35, 0.74, (214, 110, 104), 0.08)


def _sun_hat(head: Brush, cloth: Tones) -> None:
    head.ellipse(-1.75, -0.95, 1.75, -0.1, cloth.dark)
    head.ellipse(-1.75, -1.0, 1.75, -0.25, cloth.main)
    head.box(-1.08, HAT_TOP, 1.08, -0.55, cloth.main, 0.55)
    head.box(-1.08, -0.8, 1.08, -0.58, cloth.dark)


def _trilby(head: Brush, cloth: Tones) -> None:
    head.soft(
        [
            (-1.3, -0.3), (-1.3, -0.8), (-0.9, HAT_TOP - 0.05), (-0.1, HAT_TOP + 0.12), (0.8, HAT_TOP - 0.12),
            (1.3, -0.8), (1.3, -0.3),
        ],
        cloth.main,
    )  # fmt: skip
    head.box(-1.14, -0.74, 1.14, -0.45, cloth.dark)
    head.ellipse(-1.62, -0.62, 1.62, -0.2, cloth.main)


def _bobble_hat(head: Brush, cloth: Tones) -> None:
    head.soft(
        [(-1.2, -0.2), (-1.3, -0.9), (-0.8, -1.18), (0.8, -1.18), (1.3, -0.9), (1.2, -0.2)],
        cloth.main,
    )
    head.circle(0, HAT_TOP + 0.31, 0.31, cloth.light)
    head.box(-1.16, -0.58, 1.16, -0.2, cloth.dark, 0.14)


def _cap(head: Brush, cloth: Tones) -> None:
    head.soft(
        [(-1.2, -0.15), (-1.3, -0.8), (-0.8, HAT_TOP), (0.8, HAT_TOP), (1.3, -0.8), (1.2, -0.15)],
        cloth.main,
    )
    head.soft([(0.0, -0.62), (1.0, -0.7), (1.66, -0.35), (1.62, -0.15), (-0.2, -0.22)], cloth.dark)


# --- animals --------------------------------------------------------------------------------


def dog(b: Brush, thing: Thing) -> None:
    fur = TONES[thing.colour]
    b.curve([(0.16, 0.52), (0.02, 0.46), (0.04, 0.24)], 0.075, fur.dark)
    for x in (0.29, 0.59):
        b.box(x, 0.58, x + 0.1, 0.985, fur.dark, 0.05)
    b.soft(
        [(0.08, 0.40), (0.2, 0.39), (0.45, 0.43), (0.62, 0.30), (0.78, 0.40), (0.74, 0.72), (0.64, 0.80),
         (0.42, 0.70), (0.20, 0.78), (0.07, 0.70)],
        fur.main, Print(thing.pattern, fur.mark),
    )  # fmt: skip
    for x in (0.14, 0.63):
        b.box(x, 0.58, x + 0.115, 1.0, fur.main, 0.055)
        b.box(x, 0.92, x + 0.14, 1.0, fur.light, 0.04)
    b.line([(0.60, 0.42), (0.75, 0.48)], 0.06, (70, 150, 160))
    b.ellipse(0.58, 0.0, 0.91, 0.46, fur.main)
    b.box(0.74, 0.20, 1.0, 0.42, fur.light, 0.10)
    b.circle(0.955, 0.245, 0.05, INK)
    b.line([(0.84, 0.345), (0.95, 0.345)], 0.02, mix(INK, fur.light, 25))
    b.circle(0.785, 0.155, 0.052, mix(fur.light, CREAM, 55))
    b.circle(0.79, 0.155, 0.034, INK)
    b.soft([(0.64, 0.0), (0.72, 0.10), (0.70, 0.42), (0.60, 0.50), (0.52, 0.38), (0.55, 0.10)], fur.dark)


def cat(b: Brush, thing: Thing) -> None:
    fur = TONES[thing.colour]
    dark = fur.dark if thing.colour != "black" else fur.light
    b.curve([(0.70, 0.92), (0.96, 0.965), (0.935, 0.74), (0.935, 0.56)], 0.085, fur.dark)
    b.soft(
        [(0.30, 0.34), (0.62, 0.34), (0.80, 0.66), (0.90, 0.90), (0.86, 1.01), (0.5, 1.0),
         (0.08, 1.01), (0.10, 0.85), (0.16, 0.60)],
        fur.main, Print(thing.pattern, fur.mark),
    )  # fmt: skip
    b.box(0.25, 0.62, 0.63, 1.0, fur.main, 0.12)
    for x in (0.24, 0.46):
        b.ellipse(x - 0.02, 0.92, x + 0.20, 1.0, fur.light)
    b.line([(0.44, 0.70), (0.44, 0.93)], 0.018, dark)
    for tip, inner in ((0.07, 0.30), (0.81, 0.58)):
        b.polygon([(tip, 0.0), (inner, 0.13), (tip + (0.02 if tip < 0.5 else -0.02), 0.28)], fur.main)
        b.polygon(
            [
                (tip + (inner - tip) * 0.2, 0.06),
                (tip + (inner - tip) * 0.7, 0.14),
                (tip + (inner - tip) * 0.25, 0.22),
            ],
            (240, 160, 160),
        )
    b.ellipse(0.0, 0.08, 0.88, 0.52, fur.main)
    if thing.pattern == "striped":
        for x in (0.34, 0.44, 0.54):
            b.line([(x, 0.10), (x, 0.18)], 0.03, fur.mark)
    b.ellipse(0.24, 0.32, 0.64, 0.50, fur.light)
    for x in (0.21, 0.67):
        b.ellipse(x - 0.085, 0.21, x + 0.085, 0.35, (170, 205, 90))
        b.ellipse(x - 0.035, 0.22, x + 0.045, 0.345, INK)
    b.polygon([(0.38, 0.345), (0.50, 0.345), (0.44, 0.395)], (226, 110, 120))
    b.curve([(0.34, 0.42), (0.39, 0.46), (0.44, 0.40), (0.49, 0.46), (0.54, 0.42)], 0.014, INK)


def bird(b: Brush, thing: Thing) -> None:
    plume = TONES[thing.colour]
    horn = (84, 74, 78) if thing.colour in ("orange", "yellow") else (240, 150, 44)
    b.line([(0.43, 0.78), (0.45, 0.975), (0.54, 0.975)], 0.035, horn)
    b.line([(0.57, 0.78), (0.59, 0.975), (0.68, 0.975)], 0.035, horn)
    b.polygon([(0.0, 0.36), (0.0, 0.52), (0.30, 0.72), (0.36, 0.50)], plume.dark)
    b.polygon([(0.86, 0.17), (1.0, 0.29), (0.84, 0.36)], horn)
    b.soft(
        [(0.12, 0.50), (0.36, 0.42), (0.48, 0.10), (0.60, 0.0), (0.84, 0.0), (0.95, 0.18), (0.88, 0.42),
         (0.86, 0.74), (0.64, 0.90), (0.34, 0.86)],
        plume.main,
    )  # fmt: skip
    b.soft([(0.84, 0.38), (0.84, 0.72), (0.62, 0.86), (0.46, 0.82), (0.66, 0.66)], plume.light)
    b.soft(
        [(0.20, 0.46), (0.44, 0.36), (0.64, 0.44), (0.62, 0.64), (0.42, 0.74), (0.16, 0.62), (0.06, 0.56)],
        plume.dark,
    )
    b.circle(0.74, 0.20, 0.085, (255, 255, 255))
    b.circle(0.755, 0.20, 0.05, INK)


# --- vehicles -------------------------------------------------------------------------------


def _wheel(b: Brush, x: float, radius: float) -> None:
    y = 1.0 - radius
    b.circle(x, y, radius, (52, 50, 60))
    b.circle(x, y, radius * 0.56, STEEL)
    b.circle(x, y, radius * 0.22, (120, 122, 132))


def car(b: Brush, thing: Thing) -> None:
    paint = TONES[thing.colour]
    b.polygon(
        [(0.10, 0.46), (0.20, 0.09), (0.25, 0.01), (0.29, 0.0), (0.61, 0.0), (0.66, 0.03), (0.83, 0.46)],
        paint.main,
    )
    b.polygon([(0.18, 0.42), (0.255, 0.10), (0.44, 0.10), (0.44, 0.42)], GLASS)
    b.polygon([(0.48, 0.42), (0.48, 0.10), (0.615, 0.10), (0.74, 0.42)], GLASS)
    b.polygon([(0.27, 0.42), (0.34, 0.10), (0.40, 0.10), (0.33, 0.42)], GLASS_LIGHT)
    b.polygon([(0.53, 0.42), (0.56, 0.10), (0.60, 0.10), (0.60, 0.42)], GLASS_LIGHT)
    b.box(0.0, 0.40, 1.0, 0.86, paint.main, 0.15, Print(thing.pattern, paint.mark, 60))
    b.box(0.0, 0.74, 1.0, 0.86, paint.dark, 0.05)
    b.line([(0.46, 0.44), (0.46, 0.72)], 0.02, paint.dark)
    b.box(0.38, 0.50, 0.44, 0.54, paint.dark, 0.01)
    b.ellipse(0.93, 0.48, 1.0, 0.64, (255, 238, 170))
    b.box(0.0, 0.50, 0.035, 0.62, (200, 60, 60) if thing.colour != "red" else (255, 190, 120), 0.02)
    for x in (0.215, 0.775):
        b.circle(x, 0.785, 0.215, paint.dark)
        _wheel(b, x, 0.195)


def bus(b: Brush, thing: Thing) -> None:
    paint = TONES[thing.colour]
    b.box(0.0, 0.0, 1.0, 0.90, paint.main, 0.11)
    b.box(0.06, 0.0, 0.94, 0.045, paint.light, 0.02)
    b.box(0.0, 0.78, 1.0, 0.90, paint.dark, 0.05)
    b.box(0.0, 0.55, 1.0, 0.62, paint.mark)
    for x in (0.05, 0.225, 0.40, 0.575):
        b.box(x, 0.15, x + 0.145, 0.44, GLASS, 0.03)
        b.polygon([(x + 0.04, 0.43), (x + 0.085, 0.16), (x + 0.12, 0.16), (x + 0.075, 0.43)], GLASS_LIGHT)
    b.box(0.75, 0.15, 0.87, 0.84, mix(GLASS, (90, 110, 130), 25), 0.03)
    b.line([(0.81, 0.17), (0.81, 0.82)], 0.014, paint.dark)
    b.polygon([(0.90, 0.15), (1.0, 0.15), (1.0, 0.48), (0.90, 0.48)], GLASS)
    b.ellipse(0.945, 0.64, 1.0, 0.74, (255, 238, 170))
    for x in (0.20, 0.64):
        b.circle(x, 0.84, 0.16, paint.dark)
        _wheel(b, x, 0.14)


# --- toys -----------------------------------------------------------------------------------


def ball(b: Brush, thing: Thing) -> None:
    rubber = TONES[thing.colour]
    b.ellipse(0.0, 0.0, 1.0, 1.0, rubber.dark)
    b.ellipse(0.0, 0.0, 0.95, 0.93, rubber.main, Print(thing.pattern, rubber.mark, 40))
    b.ellipse(0.19, 0.13, 0.38, 0.28, rubber.light)
    if thing.pattern == "plain":
        b.curve([(0.30, 0.93), (0.62, 0.66), (0.94, 0.62)], 0.035, rubber.dark)


def kite(b: Brush, thing: Thing) -> None:
    cloth = TONES[thing.colour]
    b.curve([(0.5, 0.66), (0.72, 0.76), (0.26, 0.84), (0.55, 0.99)], 0.024, (120, 106, 110))
    for x, y in ((0.56, 0.755), (0.42, 0.87)):
        b.polygon([(x - 0.10, y - 0.04), (x, y), (x - 0.10, y + 0.04)], cloth.main)
        b.polygon([(x + 0.10, y - 0.04), (x, y), (x + 0.10, y + 0.04)], cloth.dark)
    b.polygon(
        [(0.5, 0.0), (1.0, 0.27), (0.5, 0.70), (0.0, 0.27)], cloth.main, Print(thing.pattern, cloth.mark)
    )
    if thing.pattern == "plain":
        b.polygon([(0.5, 0.0), (1.0, 0.27), (0.5, 0.27)], cloth.light)
        b.polygon([(0.0, 0.27), (0.5, 0.27), (0.5, 0.70)], cloth.dark)
    b.line([(0.5, 0.01), (0.5, 0.69)], 0.018, cloth.dark)
    b.line([(0.02, 0.27), (0.98, 0.27)], 0.018, cloth.dark)


def balloon(b: Brush, thing: Thing) -> None:
    rubber = TONES[thing.colour]
    b.curve([(0.5, 0.70), (0.62, 0.80), (0.38, 0.88), (0.52, 0.99)], 0.02, (120, 106, 110))
    b.polygon([(0.5, 0.64), (0.60, 0.735), (0.40, 0.735)], rubber.dark)
    b.soft(
        [(0.28, 0.0), (0.72, 0.0), (1.0, 0.12), (1.0, 0.42), (0.72, 0.66),
         (0.5, 0.72), (0.28, 0.66), (0.0, 0.42), (0.0, 0.12)],
        rubber.main, Print(thing.pattern, rubber.mark),
    )  # fmt: skip
    b.soft([(0.94, 0.16), (1.0, 0.40), (0.70, 0.62), (0.48, 0.69), (0.74, 0.52), (0.90, 0.36)], rubber.dark)
    b.ellipse(0.17, 0.11, 0.34, 0.25, rubber.light)


_ARC = tuple((round(math.cos(math.pi * i / 16), 3), round(math.sin(math.pi * i / 16), 3)) for i in range(17))


def umbrella(b: Brush, thing: Thing) -> None:
    cloth = TONES[thing.colour]
    b.line([(0.5, 0.30), (0.5, 0.90)], 0.032, (150, 112, 84))
    b.curve([(0.5, 0.88), (0.5, 0.975), (0.64, 0.995), (0.66, 0.90)], 0.042, (110, 74, 54))
    b.line([(0.5, 0.012), (0.5, 0.08)], 0.026, (110, 74, 54))
    striped = thing.pattern == "striped"
    canopy = ((0.5, cloth.main), (0.3, cloth.mark if striped else cloth.light), (0.1, cloth.main))
    if not striped:
        canopy = ((0.5, cloth.dark), (0.3, cloth.main), (0.1, cloth.light))
    for half, colour in canopy:
        top = [(0.5 + half * x, 0.46 - 0.42 * y) for x, y in _ARC]
        scallops = [
            (0.5 - half + 0.05 * i, 0.46 if i % 4 == 0 else 0.425) for i in range(1, round(half * 40))
        ]
        pattern = thing.pattern if thing.pattern == "spotted" else "plain"
        b.polygon(top + scallops, colour, Print(pattern, cloth.mark))


# --- furniture and table ware ---------------------------------------------------------------


def chair(b: Brush, thing: Thing) -> None:
    wood = TONES[thing.colour]
    for x in (0.10, 0.76):
        b.line([(x, 0.55), (x - 0.03, 0.90)], 0.06, wood.dark)
        b.line([(x - 0.04, 0.05), (x, 0.58)], 0.065, wood.dark)
    b.box(0.0, 0.0, 0.80, 0.15, wood.main, 0.05)
    b.box(0.04, 0.24, 0.78, 0.34, wood.main, 0.03)
    b.polygon([(0.08, 0.53), (0.80, 0.53), (0.99, 0.655), (0.18, 0.655)], wood.light)
    for x in (0.24, 0.94):
        b.line([(x, 0.68), (x, 0.972)], 0.075, wood.main)
    b.box(0.17, 0.645, 1.0, 0.735, wood.main, 0.03)
    b.line([(0.22, 0.735), (0.95, 0.735)], 0.014, wood.dark)


def _leaf(b: Brush, foot: Point, tip: Point, width: float, colour: RGB) -> None:
    middle, across = between(foot, tip, 0.55), (-(tip[1] - foot[1]), tip[0] - foot[0])
    bulge = [(middle[0] + s * width * across[0], middle[1] + s * width * across[1]) for s in (1, -1)]
    b.soft([foot, bulge[0], tip, tip, tip, bulge[1]], colour)


def pot(b: Brush, thing: Thing) -> None:
    clay = TONES[thing.colour]
    leaves = (
        ((0.0, 0.32), LEAF_DARK), ((1.0, 0.34), LEAF_DARK), ((0.06, 0.08), LEAF), ((0.94, 0.07), LEAF),
        ((0.30, 0.02), LEAF_LIGHT), ((0.72, 0.03), LEAF_DARK), ((0.5, 0.0), LEAF),
    )  # fmt: skip
    for tip, colour in leaves:
        _leaf(b, (0.5, 0.62), tip, 0.28, colour)
    for tip in ((0.06, 0.08), (0.94, 0.07), (0.5, -0.02)):
        b.line([(0.5, 0.58), between((0.5, 0.62), tip, 0.86)], 0.012, LEAF_LIGHT)
    b.polygon(
        [(0.13, 0.60), (0.87, 0.60), (0.76, 1.0), (0.24, 1.0)], clay.main, Print(thing.pattern, clay.mark)
    )
    b.polygon([(0.73, 0.62), (0.865, 0.62), (0.76, 1.0), (0.65, 1.0)], clay.dark)
    b.box(0.06, 0.51, 0.94, 0.64, clay.main, 0.03)
    b.box(0.13, 0.625, 0.87, 0.652, clay.dark)


def cup(b: Brush, thing: Thing) -> None:
    glaze = TONES[thing.colour]
    b.curve([(0.72, 0.32), (0.96, 0.22), (0.96, 0.74), (0.66, 0.80)], 0.10, glaze.dark)
    b.soft(
        [(0.0, 0.10), (0.0, 0.10), (0.80, 0.10), (0.80, 0.10), (0.79, 0.75),
         (0.66, 1.0), (0.60, 1.005), (0.20, 1.005), (0.14, 1.0), (0.01, 0.75)],
        glaze.main, Print(thing.pattern, glaze.mark),
    )  # fmt: skip
    b.polygon(
        [(0.68, 0.14), (0.79, 0.12), (0.78, 0.62), (0.66, 0.92), (0.58, 0.98), (0.66, 0.62)], glaze.dark
    )
    b.ellipse(0.0, 0.0, 0.80, 0.22, glaze.light)
    b.ellipse(0.05, 0.03, 0.75, 0.19, (104, 66, 46))
    b.ellipse(0.14, 0.045, 0.52, 0.12, (140, 94, 66))


def bottle(b: Brush, thing: Thing) -> None:
    glass = TONES[thing.colour]
    b.soft(
        [(0.32, 0.04), (0.32, 0.04), (0.68, 0.04), (0.68, 0.04), (0.66, 0.26), (0.86, 0.34), (1.0, 0.40),
         (1.0, 0.48), (1.0, 1.0), (0.99, 1.005), (0.9, 1.005), (0.1, 1.005),
         (0.01, 1.005), (0.0, 1.0), (0.0, 0.48), (0.0, 0.40), (0.14, 0.34), (0.34, 0.26)],
        glass.main,
    )  # fmt: skip
    b.box(0.82, 0.48, 0.96, 0.96, glass.dark, 0.02)
    b.box(0.30, 0.0, 0.70, 0.085, (214, 178, 110) if thing.colour != "brown" else CREAM, 0.02)
    b.box(0.0, 0.56, 1.0, 0.82, CREAM)
    b.box(0.0, 0.56, 1.0, 0.585, glass.dark)
    b.box(0.0, 0.795, 1.0, 0.82, glass.dark)
    b.circle(0.5, 0.69, 0.062, glass.main if thing.colour != "white" else glass.mark)
    b.line([(0.17, 0.42), (0.17, 0.52)], 0.026, glass.light)
    b.line([(0.43, 0.13), (0.43, 0.25)], 0.02, glass.light)


# --- fruit ----------------------------------------------------------------------------------


def apple(b: Brush, thing: Thing) -> None:
    skin = TONES[thing.colour]
    b.curve([(0.5, 0.32), (0.48, 0.16), (0.57, 0.02)], 0.05, WOOD)
    for inset, colour in ((0.0, skin.dark), (0.06, skin.main)):
        right, low = 1.0 - inset, 1.0 - inset * 0.7
        b.soft(
            [(0.5, 0.30), (0.32, 0.17), (0.06, 0.17), (0.0, 0.40), (0.0, 0.74), (0.18, low),
             (0.36, low), (0.5, low - 0.035), (0.64 - inset / 2, low), (right - 0.22, low),
             (right, 0.74), (right, 0.40), (right - 0.10, 0.17), (0.68, 0.17)],
            colour,
        )  # fmt: skip
    b.soft([(0.34, 0.24), (0.66, 0.24), (0.56, 0.34), (0.44, 0.34)], skin.dark)
    b.line([(0.5, 0.29), (0.495, 0.2)], 0.05, WOOD)
    _leaf(b, (0.53, 0.17), (0.92, 0.05), 0.30, LEAF)
    b.ellipse(0.13, 0.30, 0.29, 0.50, skin.light)


def pear(b: Brush, thing: Thing) -> None:
    skin = TONES[thing.colour]
    b.curve([(0.5, 0.18), (0.48, 0.07), (0.57, 0.015)], 0.036, WOOD)
    for inset, colour in ((0.0, skin.dark), (0.08, skin.main)):
        right, low = 1.0 - inset, 1.0 - inset * 0.5
        b.soft(
            [(0.5, 0.105), (0.31, 0.11), (0.27, 0.30), (0.20, 0.44), (0.0, 0.58), (0.0, 0.90),
             (0.16, low), (0.34, low), (0.5, low - 0.03), (right - 0.36, low), (right - 0.18, low),
             (right, 0.90), (right, 0.58), (0.80 - inset, 0.44), (0.73 - inset, 0.30), (0.69 - inset, 0.11)],
            colour,
        )  # fmt: skip
    _leaf(b, (0.53, 0.11), (0.97, 0.06), 0.24, LEAF)
    b.ellipse(0.15, 0.56, 0.31, 0.76, skin.light)


def banana(b: Brush, thing: Thing) -> None:
    skin = TONES[thing.colour]
    outer = [(0.0, 0.30), (0.04, 0.70), (0.25, 1.0), (0.60, 1.0), (0.90, 0.72), (0.98, 0.30), (1.0, 0.04)]
    inner = [(0.92, 0.04), (0.84, 0.34), (0.64, 0.56), (0.36, 0.56), (0.12, 0.40), (0.05, 0.20)]
    b.soft(outer + inner, skin.dark)
    ridge = [(0.05, 0.55), (0.25, 0.83), (0.58, 0.86), (0.84, 0.62), (0.95, 0.28), (0.97, 0.06)]
    b.soft([(0.01, 0.32), *ridge, *inner], skin.main)
    b.curve([(0.14, 0.48), (0.36, 0.66), (0.62, 0.66), (0.78, 0.48)], 0.04, skin.light)
    b.line([(0.967, 0.045), (0.96, 0.14)], 0.09, WOOD)
    b.circle(0.045, 0.30, 0.05, WOOD)


SPRITES = {
    "woman": person,
    "man": person,
    "girl": person,
    "boy": person,
    "dog": dog,
    "cat": cat,
    "bird": bird,
    "car": car,
    "bus": bus,
    "ball": ball,
    "kite": kite,
    "balloon": balloon,
    "umbrella": umbrella,
    "chair": chair,
    "pot": pot,
    "cup": cup,
    "bottle": bottle,
    "apple": apple,
    "pear": pear,
    "banana": banana,
}
