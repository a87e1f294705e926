"""From an object to expressions.

`speak` proposes forms for an object, keeps one only if it denotes that object alone, and words it in the
manner of one of three benchmarks (`FLAVOURS`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rislib.data.refmini.forms import GROUPS, PLACES, RELATIONS, Form, clothes_of, is_clear, kind_of, parts_of
from rislib.data.refmini.scene import Scene, Thing
from rislib.data.refmini.wording import say

FLAVOURS = ("refmini", "refmini+", "refminig")
# What is proposed, how often relative to the others, so that the shares of the kinds come near those of the
# benchmarks that the flavours are named after, as we counted them: RefCOCO says where in every second.
THEMES = {
    "refmini": {"noun": 1.5, "attribute": 2.0, "size": 0.5, "place": 12.0, "pick": 1.8, "relation": 2.0},
    "refmini+": {"noun": 4.0, "attribute": 4.0, "size": 0.5, "pick": 0.7},
    "refminig": {"noun": 1.0, "attribute": 3.0, "size": 0.5, "place": 2.0, "pick": 0.4, "relation": 5.0},
}


@dataclass(frozen=True)
class Expression:
    """A sentence with its meaning."""

    text: str
    kind: str
    form: Form


def speak(
    scene: Scene, target: int, flavour: str, rng: random.Random, sentences: int = 3
) -> list[Expression]:
    """Up to `sentences` different expressions that denote `scene.things[target]` alone.

    `flavour`: "refmini" is short and free, "refmini+" has no word of place, "refminig" has long
    sentences that say more than they need. May be empty: not everything can be told apart.
    """
    expressions: dict[str, Expression] = {}
    for form in _proposals(scene, target, flavour, rng):
        if not is_clear(form, scene, target):
            continue
        if flavour != "refminig":
            form = _shorten(form, scene, target, rng)
        kind = kind_of(form, scene, target)
        if any(e.kind == kind for e in expressions.values()) and rng.random() < 0.35:
            continue
        text = say(form, flavour, rng)
        expressions.setdefault(text, Expression(text, kind, form))
        if len(expressions) == sentences:
            break
    return list(expressions.values())


def _proposals(
    scene: Scene, target: int, flavour: str, rng: random.Random, tries: int = 24
) -> Iterator[Form]:
    """Forms that are true of the target, perhaps of others too, from plain to rich."""
    thing = scene.things[target]
    places = [p for p, holds in PLACES.items() if holds(thing, 0.0)]
    themes, weights = zip(*THEMES[flavour].items(), strict=True)
    for _ in range(tries):
        (theme,) = rng.choices(themes, weights)
        form = Form(noun=noun_for(thing, rng))
        richness = 0.75 if flavour == "refminig" else 0.35
        if theme == "attribute" or (theme != "noun" and rng.random() < richness):
            form = with_attribute(form, thing, rng)
            if flavour == "refminig" and rng.random() < 0.6:
                form = with_attribute(form, thing, rng)
        if theme == "size" and thing.size != "medium":
            form = replace(form, noun=thing.name, size=thing.size)  # a big girl is a small person
        if theme == "place" and places:
            form = replace(form, place=rng.choice(places))
        if theme == "pick":
            form = _with_pick(form, thing, flavour, rng)
        if theme == "relation" and len(scene.things) > 1:
            other = rng.choice([i for i in range(len(scene.things)) if i != target])
            names = [n for n, holds in RELATIONS.items() if holds(thing, scene.things[other], 0.0)]
            if names:
                form = replace(form, relation=(rng.choice(names), landmark(scene, other, rng)))
        yield form


def noun_for(thing: Thing, rng: random.Random) -> str:
    wider = [group for group, names in GROUPS.items() if thing.name in names]
    return rng.choice([thing.name, thing.name, *wider])


def with_attribute(form: Form, thing: Thing, rng: random.Random) -> Form:
    choices: list[dict] = [{"wears": clothes} for clothes in clothes_of(thing)]
    if thing.colour is not None:
        choices += [{"colour": thing.colour}] * 2
    if thing.pattern != "plain":
        choices.append({"pattern": thing.pattern})
    return replace(form, **rng.choice(choices))


def _with_pick(form: Form, thing: Thing, flavour: str, rng: random.Random) -> Form:
    orders = ["biggest", "smallest"]
    if flavour != "refmini+":
        orders += ["left", "right"] if thing.flies else ["left", "right", "front", "back"]
    order = rng.choice(orders)
    nth = rng.choice((1, 2, 2, 3)) if order in ("left", "right") else 1
    if order in ("biggest", "smallest"):
        form = replace(form, noun=thing.name)  # who compares a girl with a man?
    if flavour == "refminig":
        form = replace(form, wears=None)  # "the second girl from the left in red": second of whom?
    return replace(form, pick=(order, nth))


def landmark(scene: Scene, index: int, rng: random.Random) -> Form:
    """A short form for the other thing; it may turn out not to be clear, and then the whole is not."""
    thing = scene.things[index]
    form = Form(noun=noun_for(thing, rng))
    return form if rng.random() < 0.4 else with_attribute(form, thing, rng)


def _shorten(form: Form, scene: Scene, target: int, rng: random.Random) -> Form:
    """Drop what is not needed, as people in a hurry do (most of the time)."""
    parts = parts_of(form)
    rng.shuffle(parts)
    for part in parts:
        shorter = replace(form, **{part: None})
        if rng.random() < 0.8 and is_clear(shorter, scene, target):
            form = shorter
    return form
