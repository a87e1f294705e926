"""Captions of whole scenes, true and false: what encoders are pretrained on.

A caption names one or two things with their looks and places; like any caption it does not set them apart.
Its lie is the same caption with one condition changed, so that nothing in the scene meets it: a contrast
that cannot be had by listening to the names alone.
"""

from __future__ import annotations

import random
from dataclasses import replace

from rislib.data.refmini.forms import PEOPLE, PLACES, RELATIONS, SLACK, Form, resolve
from rislib.data.refmini.scene import CLOTH, COLOURS, MODELS, NAMES, Scene
from rislib.data.refmini.speak import landmark, noun_for, with_attribute
from rislib.data.refmini.wording import say

# What can be changed, and how often, relative to the others: more often what towers are slow to see.
LIES = {"noun": 3, "pattern": 3, "wears": 3, "size": 1.5, "colour": 1, "place": 1, "relation": 1}


def describe(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """A true caption of one or two things, and its lie."""
    chosen = rng.sample(range(len(scene.things)), min(len(scene.things), rng.choice((1, 2))))
    forms = [_form(scene, index, rng) for index in chosen]
    lies = list(forms)
    while lies == forms:
        position = rng.randrange(len(forms))
        lies[position] = _lie(forms[position], scene, rng)
    flavour, wording = rng.choice(("refmini", "refminig")), rng.random()
    return _say_all(forms, flavour, wording), _say_all(lies, flavour, wording)


def _say_all(forms: list[Form], flavour: str, wording: float) -> str:
    """The same `wording` finds the same words for what two captions share."""
    return " and ".join(say(form, flavour, random.Random(f"{wording}/{i}")) for i, form in enumerate(forms))


def _form(scene: Scene, index: int, rng: random.Random) -> Form:
    """Something true of a thing."""
    thing = scene.things[index]
    form = Form(noun=noun_for(thing, rng))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        form = with_attribute(form, thing, rng)
    if thing.size != "medium" and rng.random() < 0.4:
        form = replace(form, noun=thing.name, size=thing.size)
    others = [i for i in range(len(scene.things)) if i != index]
    if others and rng.random() < 0.2:
        other = rng.choice(others)
        names = [n for n, holds in RELATIONS.items() if holds(thing, scene.things[other], 0.0)]
        relation = (rng.choice(names), landmark(scene, other, rng)) if names else None
        if relation and resolve(replace(form, relation=relation), scene):
            return replace(form, relation=relation)
    places = [p for p, holds in PLACES.items() if holds(thing, 0.0)]
    return replace(form, place=rng.choice(places)) if places and rng.random() < 0.8 else form


def _lie(form: Form, scene: Scene, rng: random.Random) -> Form:
    """The form with one condition changed, so that it denotes nothing; the form itself if none was found."""
    parts = [part for part in LIES if getattr(form, part) is not None]
    for _ in range(10):
        (part,) = rng.choices(parts, [LIES[part] for part in parts])
        lie = replace(form, **{part: _otherwise(form, part, scene, rng)})
        if lie != form and not any(resolve(lie, scene, slack) for slack in (-SLACK, 0.0, SLACK)):
            return lie
    return form


def _otherwise(form: Form, part: str, scene: Scene, rng: random.Random):
    """Another value for one part of a form; most of the time one that the scene holds elsewhere."""
    if part == "wears":
        garment, look = form.wears
        looks = ("striped", "spotted") if look in ("striped", "spotted") else CLOTH
        return garment, look and rng.choice(looks)
    if part == "relation":
        return rng.choice(tuple(RELATIONS)), form.relation[1]
    if part == "noun":
        everywhere, here = NAMES["person"] if form.noun in PEOPLE else MODELS, [t.name for t in scene.things]
    elif part == "colour":
        everywhere, here = COLOURS, [t.colour for t in scene.things if t.colour]
    else:
        choices = {"pattern": ("striped", "spotted"), "size": ("small", "big"), "place": PLACES}
        everywhere = here = choices[part]
    here = [value for value in here if value != getattr(form, part)]
    return rng.choice(tuple(here if here and rng.random() < 0.7 else everywhere))
