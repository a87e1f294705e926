"""Captions and their lies."""

from __future__ import annotations

import random

import pytest

from rislib.data.refmini import Form, resolve, sample_scene
from rislib.data.refmini import caption as captions
from rislib.data.refmini.caption import describe


def _forms(monkeypatch, scenes: int) -> list:
    """(scene, forms of the caption, forms of its lie) of many captions."""
    said = []
    monkeypatch.setattr(captions, "_say_all", lambda forms, flavour, wording: said.append(list(forms)) or "")
    found = []
    for i in range(scenes):
        scene = sample_scene(f"captions/{i}")
        describe(scene, random.Random(i))
        found.append((scene, said[-2], said[-1]))
    return found


def test_captions_are_true_and_lies_are_not(monkeypatch):
    """Every part of a caption denotes something; a lie changes one condition and is not."""
    for scene, true, lie in _forms(monkeypatch, 300):
        assert all(resolve(form, scene) for form in true)
        changed = [(a, b) for a, b in zip(true, lie, strict=True) if a != b]
        assert len(changed) == 1
        before, after = changed[0]
        assert not resolve(after, scene)
        parts = [name for name in Form.__dataclass_fields__ if getattr(before, name) != getattr(after, name)]
        assert len(parts) == 1


def test_every_condition_is_lied_about(monkeypatch):
    seen = set()
    for _, true, lie in _forms(monkeypatch, 400):
        for a, b in zip(true, lie, strict=True):
            seen |= {name for name in Form.__dataclass_fields__ if getattr(a, name) != getattr(b, name)}
    assert seen == {"noun", "colour", "pattern", "size", "wears", "place", "relation"}


@pytest.mark.parametrize("seed", range(20))
def test_a_lie_words_what_it_shares_alike(seed: int):
    """What differs between the two sentences lies between a common beginning and a common end."""
    caption, lie = (s.split() for s in describe(sample_scene(f"words/{seed}"), random.Random(seed)))
    same_start = next((i for i, (a, b) in enumerate(zip(caption, lie, strict=False)) if a != b), 0)
    same_end = next((i for i, (a, b) in enumerate(zip(caption[::-1], lie[::-1], strict=False)) if a != b), 0)
    assert caption != lie
    assert len(caption) - same_start - same_end <= 6


def test_captions_are_seeded():
    scene = sample_scene("seeded")
    assert describe(scene, random.Random(1)) == describe(scene, random.Random(1))
    assert len({describe(scene, random.Random(i)) for i in range(20)}) > 10
