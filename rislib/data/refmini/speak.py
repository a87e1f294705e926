"""From an object to words and back.

A `Form` is the meaning of an expression. `resolve(form, scene)` gives the set of objects that
it denotes; `speak` proposes forms for an object, keeps one only if it denotes that object alone,
and words it in the manner of one of three benchmarks (`FLAVOURS`). So no ambiguous expression
exists, and every expression knows its kind: the part of the form that it turns on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import pairwise

from rislib.data.refmini.scene import NAMES, Scene, Thing

FLAVOURS = ("refmini", "refmini+", "refminig")
# Later kinds win: "red car left of the bus" turns on the relation if it needs it.
KINDS = ("category", "colour", "pattern", "size", "clothing", "location", "comparison", "ordinal", "relation")

GROUPS = {"person": NAMES["person"], "kid": ("girl", "boy"), "fruit": NAMES["fruit"]}
PEOPLE = {*GROUPS["person"], "person", "kid"}
SYNONYMS = {"woman": ("woman", "lady"), "man": ("man", "guy"), "kid": ("kid", "child")}


@dataclass(frozen=True)
class Form:
    """A conjunction of conditions on one object, and perhaps a choice among those that meet them."""

    noun: str  # a name, or a key of GROUPS
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None
    wears: tuple[str, str | None] | None = None  # garment, and its colour or pattern
    place: str | None = None  # key of PLACES: where in the picture
    relation: tuple[str, Form] | None = None  # key of RELATIONS, landmark
    pick: tuple[str, int] | None = None  # key of PICKS, and which one counted from there


# Each condition has a margin: `slack` > 0 admits more, < 0 less. An expression is clear only if
# it denotes the same object either way.
PLACES = {
    "left": lambda t, s: t.x < 0.36 + s,
    "right": lambda t, s: t.x > 0.64 - s,
    "middle": lambda t, s: abs(t.x - 0.5) < 0.12 + s,
    "top": lambda t, s: t.y < 0.36 + s,
    "bottom": lambda t, s: t.y > 0.68 - s,
    "top left": lambda t, s: t.x < 0.36 + s and t.y < 0.36 + s,
    "top right": lambda t, s: t.x > 0.64 - s and t.y < 0.36 + s,
    "bottom left": lambda t, s: t.x < 0.36 + s and t.y > 0.68 - s,
    "bottom right": lambda t, s: t.x > 0.64 - s and t.y > 0.68 - s,
}
RELATIONS = {
    "left of": lambda t, o, s: t.x < o.x - max(0.08, o.width / 2) + s,
    "right of": lambda t, o, s: t.x > o.x + max(0.08, o.width / 2) - s,
    "above": lambda t, o, s: t.flies and _one_over_the_other(t, o, s),
    "below": lambda t, o, s: o.flies and _one_over_the_other(o, t, s),
    "in front of": lambda t, o, s: _both_stand(t, o) and t.base > o.base + 0.05 - s and _side_gap(t, o) < s,
    "behind": lambda t, o, s: _both_stand(t, o) and t.base < o.base - 0.05 + s and _side_gap(t, o) < s,
    "next to": lambda t, o, s: _side_gap(t, o) < 0.12 + s and abs(t.base - o.base) < 0.16 + s,
}
PICKS = {  # what to sort by, and the gap below which two things count as equal
    "left": (lambda t: t.x, 0.05),
    "right": (lambda t: -t.x, 0.05),
    "front": (lambda t: -t.base, 0.07),
    "back": (lambda t: t.base, 0.07),
    "biggest": (lambda t: -t.scale, 0.15),
    "smallest": (lambda t: t.scale, 0.15),
}
SLACK = 0.035


def _side_gap(a: Thing, b: Thing) -> float:
    """Horizontal distance between two boxes; negative where one stands before the other."""
    return abs(a.x - b.x) - (a.width + b.width) / 2


def _one_over_the_other(upper: Thing, lower: Thing, slack: float) -> bool:
    return upper.base < lower.base - lower.height + 0.06 + slack and _side_gap(upper, lower) < slack


def _both_stand(a: Thing, b: Thing) -> bool:
    return not (a.flies or b.flies)


def resolve(form: Form, scene: Scene, slack: float = 0.0) -> frozenset[int]:
    """Indices of the things that `form` denotes in `scene`.

    A relation needs a landmark that is itself one thing; otherwise the form denotes nothing.
    A pick among things too alike to order denotes all of them.
    """
    found = [i for i, thing in enumerate(scene.things) if _meets(form, thing, slack)]
    if form.relation is not None:
        name, landmark_form = form.relation
        landmark = resolve(landmark_form, scene, slack)
        if len(landmark) != 1:
            return frozenset()
        (other,) = landmark
        holds = RELATIONS[name]
        found = [i for i in found if i != other and holds(scene.things[i], scene.things[other], slack)]
    if form.pick is not None:
        found = _pick(form.pick, found, scene)
    return frozenset(found)


def _meets(form: Form, thing: Thing, slack: float) -> bool:
    return (
        thing.name in GROUPS.get(form.noun, (form.noun,))
        and form.colour in (None, thing.colour)
        and form.pattern in (None, thing.pattern)
        and form.size in (None, thing.size)
        and (form.wears is None or form.wears in _clothes(thing))
        and (form.place is None or PLACES[form.place](thing, slack))
    )


def _clothes(thing: Thing) -> list[tuple[str, str | None]]:
    """Everything that can be said of what a person wears."""
    outfit = thing.outfit
    if outfit is None:
        return []
    legs = "skirt" if outfit.skirt else "trousers"
    clothes = [("shirt", outfit.shirt), (legs, outfit.legs)]
    if outfit.pattern != "plain":
        clothes.append(("shirt", outfit.pattern))
    if outfit.hat is not None:
        clothes += [("hat", outfit.hat), ("hat", None)]
    return clothes


def _pick(pick: tuple[str, int], found: list[int], scene: Scene) -> list[int]:
    order, nth = pick
    key, gap = PICKS[order]
    if len(found) < max(2, nth):
        return []
    values = sorted(key(scene.things[i]) for i in found)
    if any(b - a < gap for a, b in pairwise(values[: nth + 1])):
        return found
    return [i for i in found if key(scene.things[i]) == values[nth - 1]]


def is_clear(form: Form, scene: Scene, target: int) -> bool:
    """Whether `form` denotes `target` and nothing else, with room to spare."""
    return all(resolve(form, scene, slack) == {target} for slack in (0.0, SLACK, -SLACK))


def kind_of(form: Form, scene: Scene, target: int) -> str:
    """The last of `KINDS` that the form cannot do without; "category" if the noun is enough.

    Parts are left out one after the other, the richest first, as long as the rest still denotes the target.
    """
    for part in sorted(_parts(form), key=lambda part: KINDS.index(_kind_of_part(form, part)), reverse=True):
        shorter = replace(form, **{part: None})
        if resolve(shorter, scene) == {target}:
            form = shorter
    return max((_kind_of_part(form, part) for part in _parts(form)), key=KINDS.index, default="category")


def _kind_of_part(form: Form, part: str) -> str:
    if part == "pick":
        order, _ = form.pick
        return {"left": "ordinal", "right": "ordinal", "front": "location", "back": "location"}.get(
            order, "comparison"
        )
    return {"wears": "clothing", "place": "location"}.get(part, part)


def _parts(form: Form) -> list[str]:
    return [f.name for f in fields(form) if f.name != "noun" and getattr(form, f.name) is not None]


# --- proposing forms ---------------------------------------------------------------------------


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
        if any(e.kind == kind for e in expressions.values()) and rng.random() < 0.7:
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
    themes = {
        "refmini": (
            "noun",
            "attribute",
            "attribute",
            "size",
            "place",
            "place",
            "pick",
            "pick",
            "relation",
            "relation",
        ),
        "refmini+": ("noun", "attribute", "attribute", "size", "pick"),
        "refminig": (
            "attribute",
            "size",
            "place",
            "pick",
            "relation",
            "relation",
            "relation",
            "relation",
            "relation",
        ),
    }[flavour]
    for _ in range(tries):
        theme = rng.choice(themes)
        form = Form(noun=_noun(thing, rng))
        richness = 0.75 if flavour == "refminig" else 0.35
        if theme == "attribute" or (theme != "noun" and rng.random() < richness):
            form = _with_attribute(form, thing, rng)
            if flavour == "refminig" and rng.random() < 0.6:
                form = _with_attribute(form, thing, rng)
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
                form = replace(form, relation=(rng.choice(names), _landmark(scene, other, rng)))
        yield form


def _noun(thing: Thing, rng: random.Random) -> str:
    wider = [group for group, names in GROUPS.items() if thing.name in names]
    return rng.choice([thing.name, thing.name, *wider])


def _with_attribute(form: Form, thing: Thing, rng: random.Random) -> Form:
    choices: list[dict] = [{"wears": clothes} for clothes in _clothes(thing)]
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


def _landmark(scene: Scene, index: int, rng: random.Random) -> Form:
    """A short form for the other thing; it may turn out not to be clear, and then the whole is not."""
    thing = scene.things[index]
    form = Form(noun=_noun(thing, rng))
    return form if rng.random() < 0.4 else _with_attribute(form, thing, rng)


def _shorten(form: Form, scene: Scene, target: int, rng: random.Random) -> Form:
    """Drop what is not needed, as people in a hurry do (most of the time)."""
    parts = _parts(form)
    rng.shuffle(parts)
    for part in parts:
        shorter = replace(form, **{part: None})
        if rng.random() < 0.8 and is_clear(shorter, scene, target):
            form = shorter
    return form


# --- wording -----------------------------------------------------------------------------------

PLACE_WORDS = {
    "left": ("on the left", "left", "at left", "to the left"),
    "right": ("on the right", "right", "at right", "to the right"),
    "middle": ("in the middle", "middle", "in the center"),
    "top": ("at the top", "on top", "top"),
    "bottom": ("at the bottom", "bottom"),
}
PICK_WORDS = {
    "front": ("closest {}", "nearest {}", "{} in front"),
    "back": ("farthest {}", "{} in the back", "{} furthest away"),
    "biggest": ("biggest {}", "largest {}"),
    "smallest": ("smallest {}",),
}
NTH = {1: ("first",), 2: ("second", "2nd"), 3: ("third", "3rd")}
SIZE_WORDS = {"small": ("small", "little"), "big": ("big", "large")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "in front of": ("in front of",),
    "behind": ("behind",),
    "next to": ("next to", "beside", "by"),
}


def say(form: Form, flavour: str, rng: random.Random) -> str:
    """Word a form. The wording varies with `rng`, the meaning does not."""
    return _say_at_length(form, rng) if flavour == "refminig" else _say_briefly(form, rng)


def _say_briefly(form: Form, rng: random.Random) -> str:
    phrase = _noun_phrase(form, rng)
    if form.wears is not None:
        phrase += " " + _wearing(form.wears, rng, brief=True)
    if form.pick is not None:
        phrase = _picked(form.pick, phrase, rng)
    if form.place is not None:
        words = rng.choice(_place_words(form.place))
        in_front = words in PLACES and rng.random() < 0.6
        phrase = f"{words} {phrase}" if in_front else f"{phrase} {words}"
    if form.relation is not None:
        name, landmark = form.relation
        article = rng.choice(("the ", "the ", ""))
        phrase += f" {rng.choice(RELATION_WORDS[name])} {article}{_say_briefly(landmark, rng)}"
    return phrase


def _say_at_length(form: Form, rng: random.Random, article: str | None = None) -> str:
    phrase = _noun_phrase(form, rng)
    if form.pick is not None:
        phrase = _picked(form.pick, phrase, rng)
        article = "the"
    article = article or rng.choice(("the", "the", _a(phrase)))
    phrase = f"{article} {phrase}"
    if form.wears is not None:
        phrase += " " + _wearing(form.wears, rng, brief=False)
    linked = rng.choice(("", " that is", " that is" if form.noun in PEOPLE else " which is"))
    if form.wears is not None:
        linked = ""  # in "a boy with a hat that is on the left", it would be the hat
    if form.place is not None:
        words = next(w for w in _place_words(form.place) if " the " in w)
        side = (
            rng.choice(("", " of the picture", " side of the picture"))
            if form.place in ("left", "right")
            else ""
        )
        phrase += f"{linked} {words}{side}"
        linked = ""
    if form.relation is not None:
        name, landmark = form.relation
        phrase += f"{linked} {rng.choice(RELATION_WORDS[name])} {_say_at_length(landmark, rng, 'the')}"
    return phrase


def _noun_phrase(form: Form, rng: random.Random) -> str:
    size = [rng.choice(SIZE_WORDS[form.size])] if form.size else []
    adjectives = [word for word in (form.pattern, form.colour) if word]
    return " ".join([*size, *adjectives, rng.choice(SYNONYMS.get(form.noun, (form.noun,)))])


def _wearing(wears: tuple[str, str | None], rng: random.Random, brief: bool) -> str:
    garment, look = wears
    described = f"{look} {garment}" if look else garment
    article = "" if garment == "trousers" else _a(described) + " "
    if not brief:
        return rng.choice(
            (f"wearing {article}{described}", f"in {article}{described}", f"with {article}{described}")
        )
    return rng.choice((f"in {described}", f"with {described}", f"wearing {article}{described}"))


def _a(phrase: str) -> str:
    return "an" if phrase[0] in "aeiou" else "a"


def _picked(pick: tuple[str, int], phrase: str, rng: random.Random) -> str:
    order, nth = pick
    if order not in ("left", "right"):
        return rng.choice(PICK_WORDS[order]).format(phrase)
    if nth == 1 and rng.random() < 0.7:
        return rng.choice((f"{order}most {phrase}", f"{phrase} furthest {order}"))
    return f"{rng.choice(NTH[nth])} {phrase} from {rng.choice(('the ', ''))}{order}"


def _place_words(place: str) -> tuple[str, ...]:
    if " " not in place:
        return PLACE_WORDS[place]
    return (f"in the {place} corner", f"{place}", f"on the {place}")
