"""From a form to words, short or at length."""

from __future__ import annotations

import random

from rislib.data.refmini.forms import PEOPLE, PLACES, Form

SYNONYMS = {"woman": ("woman", "lady"), "man": ("man", "guy"), "kid": ("kid", "child")}
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
