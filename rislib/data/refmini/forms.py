"""The meaning of an expression.

A `Form` is a small logical form. `resolve(form, scene)` gives the set of objects that it denotes. An
expression is admitted only if that set is its target alone, with room to spare (`is_clear`): so no ambiguous
expression exists, and every expression knows its kind, the part of the form that it turns on (`kind_of`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import pairwise

from rislib.data.refmini.scene import NAMES, Scene, Thing

# Later kinds win: "red car left of the bus" turns on the relation if it needs it.
KINDS = ("category", "colour", "pattern", "size", "clothing", "location", "comparison", "ordinal", "relation")

GROUPS = {"person": NAMES["person"], "kid": ("girl", "boy"), "fruit": NAMES["fruit"]}
PEOPLE = {*GROUPS["person"], "person", "kid"}


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
        and (form.wears is None or form.wears in clothes_of(thing))
        and (form.place is None or PLACES[form.place](thing, slack))
    )


def clothes_of(thing: Thing) -> list[tuple[str, str | None]]:
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
    for part in sorted(parts_of(form), key=lambda part: KINDS.index(_kind_of_part(form, part)), reverse=True):
        shorter = replace(form, **{part: None})
        if resolve(shorter, scene) == {target}:
            form = shorter
    return max((_kind_of_part(form, part) for part in parts_of(form)), key=KINDS.index, default="category")


def _kind_of_part(form: Form, part: str) -> str:
    if part == "pick":
        order, _ = form.pick
        return {"left": "ordinal", "right": "ordinal", "front": "location", "back": "location"}.get(
            order, "comparison"
        )
    return {"wears": "clothing", "place": "location"}.get(part, part)


def parts_of(form: Form) -> list[str]:
    return [f.name for f in fields(form) if f.name != "noun" and getattr(form, f.name) is not None]
