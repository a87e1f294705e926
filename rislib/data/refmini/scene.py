"""A RefMini scene is data: which things stand where, in which colours and clothes.

Nothing here knows about pixels (`paint`) or words (`speak`). Lengths are fractions of the
picture's side, x grows to the right and y downwards, so a scene can be painted at any size.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Literal

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black", "gray")
PATTERNS = ("plain", "striped", "spotted")

BRIGHT = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
VEHICLE = ("red", "orange", "yellow", "green", "blue", "white", "black", "gray")
FUR = ("brown", "black", "white", "gray", "orange")
CLOTH = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")


@dataclass(frozen=True)
class Model:
    """What all things of one name share."""

    category: str  # RefCOCO's word for it: several names may share one
    height: float  # at medium size
    aspect: float  # width / height
    colours: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ("plain",)
    flies: bool = False


MODELS = {
    "woman": Model("person", 0.64, 0.42),
    "man": Model("person", 0.66, 0.44),
    "girl": Model("person", 0.52, 0.46),
    "boy": Model("person", 0.52, 0.46),
    "dog": Model("dog", 0.37, 1.25, FUR, ("plain", "spotted")),
    "cat": Model("cat", 0.38, 0.85, FUR, ("plain", "striped")),
    "bird": Model("bird", 0.29, 1.2, (*BRIGHT, "white", "black")),
    "car": Model("car", 0.30, 1.9, VEHICLE, ("plain", "striped")),
    "bus": Model("bus", 0.38, 1.7, VEHICLE),
    "ball": Model("ball", 0.28, 1.0, BRIGHT, PATTERNS),
    "kite": Model("kite", 0.41, 0.75, BRIGHT, PATTERNS, flies=True),
    "balloon": Model("balloon", 0.41, 0.62, BRIGHT, PATTERNS, flies=True),
    "umbrella": Model("umbrella", 0.50, 0.95, BRIGHT, PATTERNS),
    "chair": Model("chair", 0.45, 0.68, ("red", "yellow", "green", "blue", "brown", "white")),
    "pot": Model("pot", 0.45, 0.72, ("red", "blue", "white", "brown", "yellow"), ("plain", "striped")),
    "cup": Model("cup", 0.34, 1.15, (*BRIGHT, "white", "black"), PATTERNS),
    "bottle": Model("bottle", 0.58, 0.36, ("red", "green", "blue", "brown", "white")),
    "apple": Model("fruit", 0.31, 0.95, ("red", "green", "yellow")),
    "pear": Model("fruit", 0.39, 0.72, ("green", "yellow", "brown")),
    "banana": Model("fruit", 0.30, 1.45, ("yellow", "green")),
}
CATEGORIES = tuple(dict.fromkeys(model.category for model in MODELS.values()))

NAMES = {category: tuple(n for n, m in MODELS.items() if m.category == category) for category in CATEGORIES}

# Who may appear where, and the height at which the ground begins.
CASTS = {
    "meadow": (0.42, ("person", "dog", "cat", "bird", "ball", "kite", "balloon", "car", "umbrella")),
    "street": (0.45, ("person", "car", "bus", "dog", "cat", "balloon", "bird", "umbrella")),
    "beach": (0.46, ("person", "dog", "bird", "ball", "umbrella", "kite", "chair")),
    "snow": (0.40, ("person", "dog", "bird", "car", "kite", "cat", "ball")),
    "room": (0.50, ("person", "dog", "cat", "chair", "pot", "ball", "balloon")),
    "table": (0.38, ("fruit", "cup", "pot", "bottle", "ball")),
}

# Bands with gaps between them: nobody has to guess whether a dog is small.
SIZES = {"small": (0.66, 0.74), "medium": (0.94, 1.06), "big": (1.26, 1.34)}


@dataclass(frozen=True)
class Outfit:
    """What a person wears: colours, and the pattern of the shirt."""

    shirt: str
    pattern: str
    legs: str  # colour of trousers or skirt
    skirt: bool
    hat: str | None  # colour, or bare-headed


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    name: str  # a key of MODELS
    x: float  # centre
    base: float  # where it touches the ground (or its lowest point, in the air)
    scale: float  # height relative to its kind's usual height; see SIZES
    colour: str | None  # None for people
    pattern: str
    outfit: Outfit | None  # None for all others
    faces: Literal[-1, 1]  # left or right
    look: float  # in [0, 1): whatever else varies (skin, hair) but is never spoken of

    @property
    def category(self) -> str:
        return MODELS[self.name].category

    @property
    def flies(self) -> bool:
        return MODELS[self.name].flies

    @property
    def size(self) -> str:
        return min(SIZES, key=lambda size: abs(self.scale - sum(SIZES[size]) / 2))

    @property
    def height(self) -> float:
        return MODELS[self.name].height * self.scale

    @property
    def width(self) -> float:
        return self.height * MODELS[self.name].aspect

    @property
    def y(self) -> float:
        """Centre."""
        return self.base - self.height / 2

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of everything that is painted of it."""
        return (
            self.x - self.width / 2,
            self.base - self.height,
            self.x + self.width / 2,
            self.base,
        )


@dataclass(frozen=True)
class Scene:
    """A picture before it is painted. Later things cover earlier ones."""

    place: str  # a key of CASTS
    things: tuple[Thing, ...]
    seed: str  # of everything that is only texture

    @property
    def horizon(self) -> float:
        return CASTS[self.place][0]


def sample_scene(seed: str, cast: Literal["any", "people", "things"] = "any") -> Scene:
    """Draw a scene. The same `seed` gives the same scene on every machine.

    `cast` = "people" has two people or more (testA), "things" has no person at all (testB).
    """
    rng = random.Random(f"scene/{seed}")
    while True:
        scene = _try_scene(rng, seed, cast)
        # Two categories come twice or more: knowing what can be referred to says little about what is.
        counts = Counter(thing.category for thing in scene.things)
        if sum(n > 1 for n in counts.values()) >= 2:
            return scene


def _try_scene(rng: random.Random, seed: str, cast: str) -> Scene:
    """A scene as it comes: what finds no room is left out."""
    places = [p for p in CASTS if cast != "people" or "person" in CASTS[p][1]]
    place = rng.choice(places)
    categories = [c for c in CASTS[place][1] if cast != "things" or c != "person"]
    rng.shuffle(categories)
    if cast == "people" or (cast == "any" and "person" in categories and rng.random() < 0.5):
        categories.remove("person")
        categories.insert(0, "person")

    wanted = [categories[0]] * rng.choice((2, 3)) + [categories[1]] * rng.choice((2, 2, 3))
    wanted += categories[2 : 2 + rng.choice((0, 0, 1))]
    things: list[Thing] = []
    for category in wanted:
        fellows = [thing for thing in things if thing.category == category]
        for _ in range(60):
            thing = _sample_thing(rng, category, place, fellows)
            if _fits(thing, things):
                things.append(thing)
                break
    things.sort(key=lambda thing: (not thing.flies, thing.base))
    return Scene(place=place, things=tuple(things), seed=seed)


def _sample_thing(rng: random.Random, category: str, place: str, fellows: list[Thing]) -> Thing:
    name = rng.choice(NAMES[category])
    # Look-alikes make colour alone insufficient now and then.
    twin = rng.choice(fellows) if fellows and rng.random() < 0.35 else None
    if twin is not None and rng.random() < 0.6:
        name = twin.name
    model = MODELS[name]
    scale = rng.uniform(*SIZES[rng.choice(("small", "medium", "medium", "big"))])
    height, width = model.height * scale, model.height * scale * model.aspect
    margin = 0.015
    horizon = CASTS[place][0]
    if model.flies and place != "room":
        base = rng.uniform(height + margin, max(height + margin, horizon + 0.12))
    else:
        base = rng.uniform(max(horizon + 0.10, height + margin), 0.98)
    x = rng.uniform(width / 2 + margin, 1 - width / 2 - margin)

    outfit = _sample_outfit(rng, name) if category == "person" else None
    colour = rng.choice(model.colours) if model.colours else None
    pattern = rng.choice(model.patterns) if rng.random() < 0.6 else "plain"
    if twin is not None:
        outfit = _alike(rng, outfit, twin.outfit) if outfit else None
        colour = twin.colour if twin.colour in model.colours else colour
        pattern = twin.pattern if rng.random() < 0.5 and twin.pattern in model.patterns else pattern
    faces = 1 if rng.random() < 0.5 else -1
    return Thing(name, x, base, scale, colour, pattern, outfit, faces, rng.random())


def _sample_outfit(rng: random.Random, name: str) -> Outfit:
    shirt = rng.choice(CLOTH)
    legs = rng.choice([c for c in ("blue", "black", "brown", "gray", "white", "red", "green") if c != shirt])
    skirt = name in ("woman", "girl") and rng.random() < 0.5
    pattern = rng.choice(("plain", "plain", "striped", "spotted"))
    hat = rng.choice(CLOTH) if rng.random() < 0.45 else None
    return Outfit(shirt, pattern, legs, skirt, hat)


def _alike(rng: random.Random, outfit: Outfit, twin: Outfit) -> Outfit:
    """An outfit that shares its shirt or its hat with a twin's."""
    if rng.random() < 0.6:
        return Outfit(twin.shirt, twin.pattern, outfit.legs, outfit.skirt, outfit.hat)
    return Outfit(outfit.shirt, outfit.pattern, outfit.legs, outfit.skirt, twin.hat)


def _fits(new: Thing, others: list[Thing]) -> bool:
    """Overlaps are welcome, hiding is not: no box may cover more than a quarter of another."""
    for other in others:
        left, top = max(new.box[0], other.box[0]), max(new.box[1], other.box[1])
        right, bottom = min(new.box[2], other.box[2]), min(new.box[3], other.box[3])
        overlap = max(0.0, right - left) * max(0.0, bottom - top)
        if overlap > 0.25 * min(new.width * new.height, other.width * other.height):
            return False
    return True
