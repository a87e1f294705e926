"""The painter of RefMini: same scene, same pixels; and masks that mean what they say."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from functools import lru_cache

import numpy as np
import pytest

from rislib.data.refmini.brush import PALETTE, TONES
from rislib.data.refmini.paint import Painting, paint
from rislib.data.refmini.places import PLACES
from rislib.data.refmini.scene import CASTS, COLOURS, MODELS, Outfit, Scene, Thing, sample_scene
from rislib.data.refmini.sprites import SPRITES

GOLDEN = "c686bacd7ea85de6713d8a3d88a86769b7c13a520abe1526bbb39a6c491da914"


@lru_cache(maxsize=64)
def painted(seed: int) -> tuple[Scene, Painting]:
    scene = sample_scene(f"test/{seed}")
    return scene, paint(scene)


def alone(name: str, colour: str | None, pattern: str = "plain", faces: int = 1, look: float = 0.3) -> Scene:
    """One thing in the middle of a meadow, 60 % of the picture in its longer side."""
    model = MODELS[name]
    scale = 0.6 / max(model.height, model.height * model.aspect)
    outfit = None if model.colours else Outfit("red", pattern, "blue", name == "girl", "yellow")
    thing = Thing(name, 0.5, 0.8, scale, colour, pattern, outfit, faces, look)
    return Scene("meadow", (thing,), "alone")


def fingerprint() -> str:
    """SHA-256 of pixels and masks of 24 scenes, some of them people, some of them things."""
    digest = hashlib.sha256()
    for seed in range(24):
        painting = paint(sample_scene(f"golden/{seed}", ("any", "people", "things")[seed % 3]))
        digest.update(painting.image.tobytes())
        digest.update(np.packbits(painting.masks).tobytes())
    return digest.hexdigest()


def labels(pixels: np.ndarray) -> np.ndarray:
    """The nearest colour of the palette for each of (n, 3) pixels."""
    palette = np.array([PALETTE[colour] for colour in COLOURS], dtype=float)
    return ((pixels[:, None].astype(float) - palette) ** 2).sum(-1).argmin(1)


def test_everything_in_the_contract_can_be_painted():
    assert set(SPRITES) == set(MODELS)
    assert set(PLACES) == set(CASTS)
    assert set(TONES) == set(PALETTE) == set(COLOURS)


def test_a_painting_has_the_promised_shapes():
    scene, painting = painted(0)
    assert painting.image.size == (128, 128)
    assert painting.image.mode == "RGB"
    assert painting.masks.shape == (len(scene.things), 128, 128)
    assert painting.masks.dtype == bool


def test_the_same_scene_is_painted_the_same_twice():
    scene, first = painted(1)
    second = paint(scene)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.masks == second.masks).all()


def test_pixels_are_those_on_record():
    """Encoders were pretrained on these pixels: whoever changes them must know it."""
    assert fingerprint() == GOLDEN


def test_another_process_paints_the_same():
    """With other hashes of strings, and with other scenes painted before."""
    code = (
        "import test_paint as t\n"
        "t.paint(t.sample_scene('something else'))\n"
        "t.paint(t.sample_scene('something else'), 64)\n"
        "print(t.fingerprint())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.path.dirname(__file__)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == fingerprint()


def test_texture_depends_on_the_seed_of_the_scene():
    _, painting = painted(2)
    scene = sample_scene("test/2")
    other = paint(Scene(scene.place, scene.things, "another seed"))
    assert painting.image.tobytes() != other.image.tobytes()
    assert (painting.masks == other.masks).all()


def test_masks_are_disjoint():
    for seed in range(40):
        _, painting = painted(seed)
        assert painting.masks.sum(0).max() <= 1


def test_masks_are_inside_their_boxes():
    """One pixel of slack, for rounding."""
    for seed in range(40):
        scene, painting = painted(seed)
        for thing, mask in zip(scene.things, painting.masks, strict=True):
            left, top, right, bottom = (value * 128 for value in thing.box)
            rows, columns = np.nonzero(mask)
            assert columns.min() >= left - 1 and columns.max() + 1 <= right + 1, thing
            assert rows.min() >= top - 1 and rows.max() + 1 <= bottom + 1, thing


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("faces", [-1, 1])
def test_a_thing_fills_its_box(name, faces):
    """It touches all four sides to within three hundredths of its longer side."""
    model = MODELS[name]
    for look in (0.05, 0.3, 0.55, 0.8):
        scene = alone(name, model.colours[0] if model.colours else None, faces=faces, look=look)
        rows, columns = np.nonzero(paint(scene, 256).masks[0])
        found = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 256
        assert found == pytest.approx(scene.things[0].box, abs=0.018)


def test_facing_the_other_way_mirrors_the_mask():
    right, left = (paint(alone("car", "red", faces=faces), 256).masks[0] for faces in (1, -1))
    mirrored = right[:, ::-1]
    assert (mirrored & left).sum() / (mirrored | left).sum() > 0.97
    assert (right & left).sum() / (right | left).sum() < 0.97


def test_most_of_each_thing_is_visible():
    """What a scene hides of a thing is little against its silhouette alone."""
    shares = []
    for seed in range(12):
        scene, painting = painted(seed)
        for thing, mask in zip(scene.things, painting.masks, strict=True):
            silhouette = paint(Scene(scene.place, (thing,), scene.seed)).masks[0]
            assert not (mask & ~silhouette).any()
            shares.append(mask.sum() / silhouette.sum())
    assert np.mean(shares) > 0.55
    assert min(shares) > 0.3


def test_a_later_thing_covers_an_earlier_one():
    low, high = alone("bus", "red").things[0], alone("ball", "blue").things[0]
    painting = paint(Scene("meadow", (low, high), "cover"))
    ball = paint(Scene("meadow", (high,), "cover")).masks[0]
    assert (painting.masks[1] == ball).all()
    assert not (painting.masks[0] & ball).any()


def test_masks_are_where_the_picture_changed():
    """Without its shadow, a thing changes the picture within its mask, and at its soft edge only."""
    for name, colour in (("kite", "red"), ("balloon", "purple")):
        scene = alone(name, colour)
        painting = paint(scene, 256)
        empty = paint(Scene(scene.place, (), scene.seed), 256)
        changed = np.abs(np.asarray(painting.image, int) - np.asarray(empty.image, int)).sum(2) > 12
        mask = painting.masks[0]
        assert (changed & mask).sum() / mask.sum() > 0.99
        assert (changed & ~mask).sum() / mask.sum() < 0.1


def test_masks_of_two_sizes_agree():
    scores = []
    for seed in range(12):
        scene, _ = painted(seed)
        small = paint(scene, 64).masks.repeat(4, axis=1).repeat(4, axis=2)  # (N, 256, 256)
        large = paint(scene, 256).masks
        union, common = (small | large).sum((1, 2)), (small & large).sum((1, 2))
        scores += list(common / union)
    assert np.mean(scores) > 0.8


@pytest.mark.parametrize("size", [32, 97, 1024])
def test_any_size(size):
    scene, _ = painted(3)
    painting = paint(scene, size)
    assert painting.image.size == (size, size)
    assert painting.masks.any((1, 2)).all()


@pytest.mark.parametrize("size", [0, 31, 1025])
def test_sizes_out_of_range_are_refused(size):
    with pytest.raises(ValueError, match="size"):
        paint(painted(0)[0], size)


def test_shades_stay_with_their_colour():
    """No shade of orange may look like another colour than orange."""
    for number, colour in enumerate(COLOURS):
        tones = TONES[colour]
        assert labels(np.array([tones.main, tones.dark, tones.light])).tolist() == [number] * 3, colour


def test_colours_are_far_apart():
    values = np.array(list(PALETTE.values()), dtype=float)
    distance = np.linalg.norm(values[:, None] - values[None], axis=-1) + 1000 * np.eye(len(values))
    assert distance.min() > 60


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.colours])
def test_things_have_the_colour_that_is_said_of_them(name):
    """Among all colours that the thing comes in, most of its pixels are nearest to its own."""
    model = MODELS[name]
    choices = [COLOURS.index(colour) for colour in model.colours]
    for colour in model.colours:
        for pattern in model.patterns:
            painting = paint(alone(name, colour, pattern))
            pixels = np.asarray(painting.image)[painting.masks[0]]
            counts = np.bincount(labels(pixels), minlength=len(COLOURS))
            assert max(choices, key=lambda c: counts[c]) == COLOURS.index(colour), (colour, pattern, counts)
            assert counts[COLOURS.index(colour)] > 0.3 * len(pixels), (colour, pattern, counts)


def test_clothes_have_the_colours_of_the_outfit():
    for name in ("woman", "man", "girl", "boy"):
        painting = paint(alone(name, None), 256)
        counts = np.bincount(labels(np.asarray(painting.image)[painting.masks[0]]), minlength=len(COLOURS))
        for colour in ("red", "blue", "yellow"):
            assert counts[COLOURS.index(colour)] > 0.05 * painting.masks.sum(), (name, colour)


@pytest.mark.parametrize("pattern", ["striped", "spotted"])
def test_patterns_show(pattern):
    plain, printed = (paint(alone("ball", "blue", p)) for p in ("plain", pattern))
    assert (plain.masks == printed.masks).all()
    difference = np.abs(np.asarray(plain.image, int) - np.asarray(printed.image, int)).sum(2)[plain.masks[0]]
    assert 0.15 < (difference > 150).mean() < 0.5


@pytest.mark.parametrize("place", CASTS)
def test_things_stand_out_from_their_place(place):
    """Backgrounds keep away from the palette, so that no coloured thing drowns in them."""
    pixels = np.asarray(paint(Scene(place, (), "empty")).image).reshape(-1, 3).astype(float)
    colourful = [np.array(rgb) for name, rgb in PALETTE.items() if name not in ("white", "gray")]
    distance = min(np.percentile(np.linalg.norm(pixels - rgb, axis=1), 2) for rgb in colourful)
    assert distance > 45


def test_painting_is_fast():
    """A loose bound, for slow machines: pretraining paints as it goes."""
    for seed in range(40):
        paint(sample_scene(f"speed/{seed}"))
    start = time.process_time()
    for seed in range(40, 160):
        paint(sample_scene(f"speed/{seed}"))
    assert 120 / (time.process_time() - start) > 100
