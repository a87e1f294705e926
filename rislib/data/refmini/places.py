"""The six places of RefMini: a part that stays, and details that change with every scene.

Muted and light, so that things stand out. Coordinates are those of the picture.
"""

from __future__ import annotations

import random

from rislib.data.refmini.brush import RGB, Brush, mix

# --- places: what stays ---------------------------------------------------------------------


def _gradient(b: Brush, top: float, bottom: float, above: RGB, below: RGB) -> None:
    for i in range(24):
        y = top + (bottom - top) * i / 24
        b.box(0, y, 1, bottom, mix(above, below, i * 100 // 23))


def _speckle(b: Brush, rng: random.Random, top: float, count: int, colours: list[RGB], size: float) -> None:
    """Small flat spots, finer towards the horizon."""
    for _ in range(count):
        depth = rng.random()
        x, y, r = rng.random(), top + (1 - top) * depth, size * (0.4 + 0.6 * depth)
        b.ellipse(x - r, y - r * 0.5, x + r, y + r * 0.5, rng.choice(colours))


def _hill(
    b: Brush, rng: random.Random, left: float, right: float, top: float, foot: float, colour: RGB
) -> None:
    middle = (left + right) / 2 + rng.uniform(-0.08, 0.08)
    b.soft(
        [
            (left, foot),
            (middle - 0.12, top),
            (middle + 0.12, top),
            (right, foot),
            (right, foot + 0.1),
            (left, foot + 0.1),
        ],
        colour,
    )


def _tuft(b: Brush, x: float, y: float, size: float, colour: RGB) -> None:
    b.polygon(
        [(x - size, y - size * 1.1), (x - size * 0.25, y - size * 0.5), (x, y - size * 1.6),
         (x + size * 0.25, y - size * 0.5), (x + size, y - size),
         (x + size * 0.3, y), (x - size * 0.3, y)],
        colour,
    )  # fmt: skip


def _cloud(b: Brush, x: float, y: float, size: float, colour: RGB) -> None:
    b.box(x - size, y - size * 0.22, x + size, y + size * 0.16, colour, size * 0.19)
    b.ellipse(x - size * 0.62, y - size * 0.55, x + size * 0.12, y + size * 0.12, colour)
    b.ellipse(x - size * 0.12, y - size * 0.40, x + size * 0.60, y + size * 0.12, colour)


def _meadow(b: Brush, rng: random.Random) -> None:
    _gradient(b, 0, 0.44, (196, 227, 240), (236, 243, 234))
    _hill(b, rng, -0.5, 0.7, rng.uniform(0.2, 0.28), 0.42, (196, 221, 190))
    _hill(b, rng, 0.25, 1.5, rng.uniform(0.22, 0.3), 0.42, (186, 214, 176))
    _hill(b, rng, -0.3, 1.2, rng.uniform(0.32, 0.36), 0.44, (190, 218, 158))
    _gradient(b, 0.42, 1, (200, 224, 154), (182, 212, 132))
    _speckle(b, rng, 0.43, 90, [(190, 217, 142), (204, 228, 160), (176, 207, 128)], 0.03)
    for y in sorted(rng.uniform(0.45, 0.99) for _ in range(46)):
        _tuft(b, rng.random(), y, 0.008 + 0.014 * y, rng.choice([(158, 194, 108), (166, 202, 116)]))


def _street(b: Brush, rng: random.Random) -> None:
    _gradient(b, 0, 0.45, (206, 226, 238), (240, 238, 228))
    walls = [(232, 208, 192), (214, 222, 230), (234, 224, 198), (208, 224, 214), (226, 208, 214)]
    x = -rng.uniform(0, 0.1)
    while x < 1:
        width, top, wall = rng.uniform(0.16, 0.26), rng.uniform(0.08, 0.2), rng.choice(walls)
        _house(b, x, x + width, top, wall, gabled=rng.random() < 0.5)
        x += width
    b.box(0, 0.45, 1, 0.56, (218, 212, 204))
    for i in range(12):
        b.line([(i / 11 + 0.03, 0.452), (i / 11, 0.555)], 0.004, (202, 196, 188))
    b.box(0, 0.555, 1, 0.575, (190, 186, 182))
    _gradient(b, 0.575, 1, (184, 186, 194), (174, 176, 186))
    _speckle(b, rng, 0.58, 160, [(178, 180, 188), (190, 192, 200), (168, 170, 180)], 0.008)
    shift = rng.uniform(0, 0.25)
    for i in range(-1, 5):
        left = i * 0.25 + shift
        b.polygon(
            [(left, 0.765), (left + 0.13, 0.765), (left + 0.125, 0.79), (left - 0.01, 0.79)], (226, 224, 218)
        )


def _house(b: Brush, left: float, right: float, top: float, wall: RGB, gabled: bool) -> None:
    roof = mix(wall, (150, 110, 110), 40)
    b.box(left, top, right, 0.45, wall)
    if gabled:
        b.polygon(
            [(left - 0.01, top + 0.005), ((left + right) / 2, top - 0.09), (right + 0.01, top + 0.005)], roof
        )
    else:
        b.box(left - 0.005, top - 0.02, right + 0.005, top + 0.008, roof)
    pane, frame = mix(wall, (140, 170, 190), 45), mix(wall, (255, 255, 255), 45)
    columns = 2 if right - left < 0.21 else 3
    for row in range(round((0.40 - top) / 0.105)):
        for column in range(columns):
            x = left + (right - left) * (column + 0.5) / columns
            y = top + 0.03 + row * 0.105
            if y + 0.06 < 0.36 or column != 0:
                b.box(x - 0.025, y, x + 0.025, y + 0.062, frame)
                b.box(x - 0.018, y + 0.008, x + 0.018, y + 0.055, pane)
    x = left + (right - left) * 0.5 / columns
    b.box(x - 0.025, 0.365, x + 0.025, 0.45, roof, 0.008)


def _beach(b: Brush, rng: random.Random) -> None:
    _gradient(b, 0, 0.28, (190, 226, 240), (232, 244, 242))
    _gradient(b, 0.27, 0.47, (126, 190, 208), (168, 218, 220))
    for _ in range(26):
        x, y = rng.random(), rng.uniform(0.285, 0.43)
        w = 0.02 + 0.25 * (y - 0.27)
        b.curve([(x - w, y), (x, y - 0.012), (x + w, y)], 0.005, (196, 230, 232))
    wave = [(i / 10, 0.455 + rng.uniform(-0.012, 0.012)) for i in range(-1, 12)]
    for lift, colour in ((0.0, (238, 248, 246)), (0.018, (222, 205, 170))):
        b.soft(
            [
                (-0.3, 1.3),
                (-0.3, 0.45 + lift),
                *((x, y + lift) for x, y in wave),
                (1.3, 0.45 + lift),
                (1.3, 1.3),
            ],
            colour,
        )
    b.soft(
        [(-0.3, 1.3), (-0.3, 0.5), *((x, y + 0.045) for x, y in wave), (1.3, 0.5), (1.3, 1.3)],
        (240, 224, 188),
    )
    _gradient(b, 0.56, 1, (240, 224, 188), (234, 214, 172))
    _speckle(b, rng, 0.52, 34, [(234, 216, 177), (241, 226, 192)], 0.07)
    _speckle(b, rng, 0.50, 200, [(222, 200, 156), (248, 236, 208), (214, 190, 148)], 0.006)


def _snow(b: Brush, rng: random.Random) -> None:
    _gradient(b, 0, 0.42, (196, 212, 230), (228, 234, 242))
    _hill(b, rng, -0.5, 0.8, rng.uniform(0.18, 0.26), 0.42, (206, 219, 234))
    _hill(b, rng, 0.3, 1.5, rng.uniform(0.2, 0.28), 0.42, (198, 213, 230))
    for _ in range(13):
        _fir(
            b,
            rng.random(),
            0.42,
            rng.uniform(0.10, 0.2),
            rng.choice([(134, 166, 164), (150, 178, 176), (120, 154, 154)]),
        )
    _gradient(b, 0.40, 1, (222, 231, 242), (206, 219, 236))
    _speckle(b, rng, 0.42, 26, [(216, 226, 240), (221, 231, 243), (210, 222, 237)], 0.12)
    _speckle(b, rng, 0.42, 90, [(240, 245, 250), (196, 210, 230)], 0.006)


def _fir(b: Brush, x: float, foot: float, height: float, colour: RGB) -> None:
    for low, top, half in ((0.0, 0.5, 0.30), (0.28, 0.75, 0.24), (0.55, 1.0, 0.17)):
        tip, base, w = (x, foot - top * height), foot - low * height, half * height
        b.polygon([tip, (x + w, base), (x - w, base)], colour)
        b.polygon(
            [
                tip,
                (x + w * 0.4, tip[1] + (base - tip[1]) * 0.4),
                (x - w * 0.4, tip[1] + (base - tip[1]) * 0.4),
            ],
            (228, 236, 242),
        )


def _room(b: Brush, rng: random.Random) -> None:
    wall = rng.choice([(232, 222, 208), (214, 224, 222), (228, 216, 220), (222, 224, 210)])
    b.box(0, 0, 1, 0.5, wall)
    for i in range(10):
        b.box(i / 10 + 0.025, 0, i / 10 + 0.055, 0.5, mix(wall, (255, 255, 255), 28))
    window, picture = rng.choice([(0.22, 0.7), (0.5, 0.16), (0.76, 0.3)])
    _window(b, window, wall)
    _picture(b, picture, rng.choice([(214, 196, 190), (190, 204, 212), (210, 208, 184)]))
    b.box(0, 0.465, 1, 0.5, mix(wall, (255, 255, 255), 60))
    b.box(0, 0.495, 1, 0.503, mix(wall, (110, 80, 60), 35))
    top, row = 0.5, 0
    while top < 1:
        height = 0.055 + 0.02 * row
        b.box(0, top, 1, top + height, (224, 192, 154))
        for _ in range(5):
            x, y, w = rng.random(), top + height * rng.uniform(0.2, 0.8), rng.uniform(0.05, 0.16)
            b.curve([(x - w, y), (x, y - 0.006), (x + w, y + 0.002)], 0.004, (214, 180, 140))
        x = rng.uniform(0, 0.4)
        while x < 1:
            b.box(x, top, x + 0.004, top + height, (198, 162, 122))
            x += rng.uniform(0.3, 0.5)
        b.box(0, top, 1, top + 0.005, (202, 166, 126))
        top, row = top + height, row + 1


def _window(b: Brush, x: float, wall: RGB) -> None:
    frame = mix(wall, (255, 255, 255), 75)
    b.box(x - 0.14, 0.07, x + 0.14, 0.37, frame, 0.01)
    b.box(x - 0.12, 0.09, x + 0.12, 0.35, (198, 224, 234))
    b.ellipse(x - 0.15, 0.27, x + 0.06, 0.46, (190, 214, 176))
    b.box(x - 0.16, 0.35, x + 0.16, 0.47, wall)
    b.box(x - 0.006, 0.09, x + 0.006, 0.35, frame)
    b.box(x - 0.12, 0.205, x + 0.12, 0.217, frame)
    b.box(x - 0.16, 0.355, x + 0.16, 0.38, frame, 0.008)


def _picture(b: Brush, x: float, tint: RGB) -> None:
    b.box(x - 0.07, 0.11, x + 0.07, 0.29, (196, 174, 150))
    b.box(x - 0.058, 0.122, x + 0.058, 0.278, (246, 240, 230))
    b.box(x - 0.04, 0.145, x + 0.04, 0.255, mix(tint, (255, 255, 255), 50))
    b.ellipse(x + 0.0, 0.16, x + 0.03, 0.19, (244, 220, 170))
    b.polygon(
        [(x - 0.04, 0.255), (x - 0.015, 0.195), (x + 0.01, 0.235), (x + 0.022, 0.215), (x + 0.04, 0.255)],
        tint,
    )


def _table(b: Brush, rng: random.Random) -> None:
    wall = rng.choice([(206, 220, 218), (226, 216, 204), (214, 216, 226), (218, 222, 204)])
    _gradient(b, 0, 0.38, wall, mix(wall, (255, 255, 255), 30))
    for row in range(5):
        b.box(0, row * 0.085, 1, row * 0.085 + 0.005, mix(wall, (255, 255, 255), 45))
        for i in range(7):
            x = i / 6 - (row % 2) / 12
            b.box(x, row * 0.085, x + 0.005, row * 0.085 + 0.085, mix(wall, (255, 255, 255), 45))
    b.box(0, 0.375, 1, 0.39, (206, 168, 124))
    _gradient(b, 0.39, 1, (230, 200, 160), (222, 186, 142))
    for i in range(4):
        y = 0.39 + (0.05, 0.17, 0.31, 0.48)[i]
        b.box(0, y, 1, y + 0.005, (204, 166, 122))
    for _ in range(60):
        x, y, w = rng.random(), rng.uniform(0.4, 1.0), rng.uniform(0.06, 0.25)
        b.curve(
            [(x - w, y), (x - w / 3, y - 0.008), (x + w / 3, y + 0.006), (x + w, y)],
            0.004,
            rng.choice([(214, 178, 134), (234, 206, 168)]),
        )
    for _ in range(3):
        x, y = rng.random(), rng.uniform(0.45, 0.95)
        for r, colour in ((0.03, (212, 176, 132)), (0.02, (222, 188, 146)), (0.011, (200, 160, 116))):
            b.ellipse(x - r, y - r * 0.4, x + r, y + r * 0.4, colour)


# --- places: what changes with every scene --------------------------------------------------


def _meadow_details(b: Brush, rng: random.Random) -> None:
    for _ in range(2):
        _cloud(b, rng.random(), rng.uniform(0.06, 0.2), rng.uniform(0.08, 0.14), (248, 251, 250))
    for _ in range(9):
        x, y = rng.random(), rng.uniform(0.46, 0.98)
        r, petal = 0.004 + 0.007 * y, rng.choice([(255, 250, 244), (250, 214, 224), (252, 232, 160)])
        b.box(x - 0.002, y, x + 0.002, y + 2.6 * r, (140, 184, 100))
        b.ellipse(x - r, y - r, x + r, y + r, petal)
        b.ellipse(x - r * 0.4, y - r * 0.4, x + r * 0.4, y + r * 0.4, (240, 190, 100))


def _street_details(b: Brush, rng: random.Random) -> None:
    _cloud(b, rng.random(), rng.uniform(0.03, 0.07), rng.uniform(0.06, 0.10), (250, 250, 248))
    for _ in range(2):
        x = rng.random()
        b.ellipse(x - 0.035, 0.36, x + 0.035, 0.45, (184, 208, 170))
        b.ellipse(x, 0.385, x + 0.06, 0.45, (174, 200, 162))
    for _ in range(6):
        x, y, w = rng.random(), rng.uniform(0.6, 0.98), rng.uniform(0.01, 0.03)
        b.ellipse(x - w, y - w * 0.3, x + w, y + w * 0.3, rng.choice([(166, 168, 178), (186, 188, 196)]))


def _beach_details(b: Brush, rng: random.Random) -> None:
    for _ in range(2):
        _cloud(b, rng.random(), rng.uniform(0.05, 0.16), rng.uniform(0.07, 0.12), (250, 252, 250))
    x = rng.random()
    b.polygon(
        [(x - 0.035, 0.283), (x + 0.035, 0.283), (x + 0.024, 0.298), (x - 0.024, 0.298)], (190, 160, 140)
    )
    b.polygon([(x, 0.215), (x + 0.03, 0.276), (x, 0.276)], (250, 248, 240))
    for _ in range(7):
        x, y = rng.random(), rng.uniform(0.55, 0.98)
        r = 0.004 + 0.006 * y
        b.ellipse(
            x - r,
            y - r * 0.7,
            x + r,
            y + r * 0.7,
            rng.choice([(248, 232, 216), (226, 196, 176), (206, 184, 150)]),
        )


def _snow_details(b: Brush, rng: random.Random) -> None:
    _fir(b, rng.random(), 0.44, rng.uniform(0.2, 0.27), (122, 156, 152))
    for _ in range(26):
        x, y, r = rng.random(), rng.random(), rng.uniform(0.003, 0.007)
        b.ellipse(x - r, y - r, x + r, y + r, (246, 249, 252))


def _room_details(b: Brush, rng: random.Random) -> None:
    rug = rng.choice([(206, 196, 206), (196, 208, 202), (216, 198, 184), (196, 204, 216)])
    x, y, w = rng.uniform(0.3, 0.7), rng.uniform(0.7, 0.85), rng.uniform(0.24, 0.36)
    for r, colour in (
        (1.0, mix(rug, (255, 255, 255), 35)),
        (0.9, rug),
        (0.62, mix(rug, (255, 255, 255), 25)),
        (0.55, rug),
    ):
        b.ellipse(x - w * r, y - w * 0.3 * r, x + w * r, y + w * 0.3 * r, colour)


def _table_details(b: Brush, rng: random.Random) -> None:
    for _ in range(8):
        x, y, r = rng.random(), rng.uniform(0.42, 0.98), rng.uniform(0.003, 0.006)
        b.ellipse(x - r, y - r * 0.6, x + r, y + r * 0.6, (208, 168, 122))
    mat = rng.choice([(232, 218, 200), (208, 218, 214), (226, 206, 198), (206, 212, 224)])
    x, y, w = rng.uniform(0.25, 0.75), rng.uniform(0.58, 0.8), rng.uniform(0.2, 0.28)
    for r, percent in ((1.0, 12), (0.95, 0), (0.8, 8), (0.77, 0), (0.5, 8), (0.47, 0)):
        b.ellipse(x - w * r, y - w * 0.38 * r, x + w * r, y + w * 0.38 * r, mix(mat, (120, 90, 80), percent))


PLACES = {
    "meadow": _meadow,
    "street": _street,
    "beach": _beach,
    "snow": _snow,
    "room": _room,
    "table": _table,
}
DETAILS = {
    "meadow": _meadow_details,
    "street": _street_details,
    "beach": _beach_details,
    "snow": _snow_details,
    "room": _room_details,
    "table": _table_details,
}
