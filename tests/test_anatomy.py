"""Errors by hand-made masks, edits by a hand-made scene, and all of it by methods whose answers are known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import nn
from typer.testing import CliRunner

from rislib.cli import app
from rislib.data import DataError, RefDataset, build_refmini, open_split, with_instances
from rislib.data.refmini import Scene, Thing, paint, resolve
from rislib.evaluation import (
    CRIS_2022,
    ERRORS,
    LAVT_2022,
    answers,
    at,
    bought,
    confusions,
    count_errors,
    dissect,
    evaluate,
    find_errors,
    gallery,
    name_error,
    reactions,
    remembered,
    sweep,
)
from rislib.evaluation.anatomy import Finding, _rim
from rislib.evaluation.edits import Edit, _form, edits_of, swap
from rislib.nouns import Method, Preprocessing

SIDE = 60


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


TRUTH, OTHER, THIRD = box(5, 10, 25, 40), box(35, 10, 55, 40), box(5, 45, 15, 55)


# Names


@pytest.mark.parametrize(
    ("prediction", "name"),
    [
        (box(0, 0, 0, 0), "nothing"),
        (TRUTH, "right"),
        (box(5, 10, 25, 31), "right"),  # IoU is exactly 0.7
        (box(5, 10, 25, 30), "part of it"),  # two thirds
        (box(5, 10, 12, 40), "part of it"),
        (
            box(5, 10, 25, 32) | box(25, 10, 28, 30),
            "part of it",
        ),  # recall 0.73, more missed than added
        (TRUTH | OTHER, "too much, objects"),
        (TRUTH | THIRD | box(26, 10, 34, 40), "too much, ground"),
        (TRUTH | box(25, 10, 29, 40) | OTHER, "too much, objects"),
        (OTHER, "wrong object"),
        (THIRD, "wrong object"),
        (OTHER | box(5, 10, 12, 40), "wrong object"),
        (box(5, 10, 17, 40) | box(35, 10, 45, 40), "scattered"),
        (box(30, 50, 50, 60), "scattered"),  # ground alone
    ],
)
def test_each_rule(prediction, name):
    assert name_error(prediction, TRUTH, np.stack([OTHER, THIRD])) == name


def test_boundary_only():
    """The rim of a picture of 128 px reaches 2 px to both sides; as much in one block is no boundary."""
    truth = np.zeros((128, 128), dtype=bool)
    truth[40:60, 40:60] = True
    grown = np.zeros_like(truth)
    grown[38:62, 38:62] = True  # IoU 400 / 576
    assert name_error(grown, truth, truth[:0]) == "boundary only"
    block = truth.copy()
    block[60:69, 40:60] = True  # IoU 400 / 580
    assert name_error(block, truth, truth[:0]) == "too much, ground"
    shrunk = np.zeros_like(truth)
    shrunk[42:58, 42:58] = True  # 256 / 400
    assert name_error(shrunk, truth, truth[:0]) == "boundary only"
    assert name_error(shrunk, truth, truth[:0], close=0.65) == "part of it"
    assert name_error(shrunk, truth, truth[:0], right=0.6) == "right"


masks = arrays(bool, (9, 7))


@settings(max_examples=300)
@given(masks, masks, arrays(bool, st.tuples(st.integers(0, 3), st.just(9), st.just(7))))
def test_every_answer_has_one_name_whatever_the_order_and_the_side(prediction, truth, others):
    name = name_error(prediction, truth, others)
    assert name in ERRORS
    assert name_error(prediction, truth, others[::-1]) == name
    assert name_error(prediction[:, ::-1], truth[:, ::-1], others[:, :, ::-1]) == name
    assert (name == "nothing") == (not prediction.any())
    iou = (prediction & truth).sum() / max((prediction | truth).sum(), 1)
    assert (name == "right") == (iou >= 0.7)
    if name == "wrong object":
        assert max((prediction & o).sum() / (prediction | o).sum() for o in others) > iou


@given(arrays(bool, (11, 8)), st.sampled_from([0.1, 0.2, 0.4]))
def test_rim_agrees_with_a_loop(mask, rim):
    reach = max(1, round(rim * 11))
    for y in range(11):
        for x in range(8):
            near = mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
            assert _rim(mask, rim)[y, x] == (near.any() and not near.all())


# A method of known answers


class Answers(Method):
    """Answers as it is told to: `answer(pixels (H, W, 3) uint8, sentence) -> logits (h, w)`."""

    preprocessing = Preprocessing(128, "stretch", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self, answer: Callable[[np.ndarray, str], np.ndarray]) -> None:
        super().__init__()
        self.answer, self.sentences = answer, []
        self.weight = nn.Parameter(torch.zeros(1))

    def tokenize(self, expressions):
        first = len(self.sentences)
        self.sentences += expressions
        tokens = torch.arange(first, len(self.sentences))[:, None]
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def encode_image(self, image):
        assert not self.training
        return image

    def segment(self, features, tokens, token_mask):
        pixels = (features * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        words = [self.sentences[token] for token in tokens[:, 0]]
        logits = [self.answer(picture, said) for picture, said in zip(pixels, words, strict=True)]
        return torch.from_numpy(np.stack(logits)).float()[:, None]

    def losses(self, batch):
        raise NotImplementedError

    def encoder_parameters(self):
        return []


def sure(mask: np.ndarray) -> np.ndarray:
    return np.where(mask, 8.0, -8.0)


def place_of_target(samples: RefDataset, i: int) -> tuple[np.ndarray, int]:
    """The masks of sample i's picture, and which of them is meant."""
    record, objects = samples.records[i], with_instances(samples, "oracle").source
    return objects.masks(record.image_id), objects.of_picture[record.image_id].index(record.ann_id)


@pytest.fixture(scope="module")
def samples(world: Path) -> RefDataset:
    return open_split(world, "val")


def numbered(samples: RefDataset) -> RefDataset:
    return samples.with_expressions([str(i) for i in range(len(samples))])


def test_who_knows_the_truth_is_right(samples: RefDataset):
    method = Answers(lambda _, said: sure(samples[int(said)].mask)).train()
    findings = find_errors(method, numbered(samples), LAVT_2022, progress=False)
    assert method.training
    assert [f.kind for f in findings] == [record.kind for record in samples.records]
    assert all(f.error == "right" and f.iou == 1 and f.other is None for f in findings)


def test_who_answers_another_object_is_wrong_about_the_object(samples: RefDataset):
    pairs = [place_of_target(samples, i) for i in range(len(samples))]
    others = [(target + 1) % len(objects) for objects, target in pairs]
    method = Answers(lambda _, said: sure(pairs[int(said)][0][others[int(said)]]))
    findings = find_errors(method, numbered(samples), CRIS_2022, progress=False)
    assert [(f.error, f.other) for f in findings] == [("wrong object", other) for other in others]
    assert [f.target for f in findings] == [target for _, target in pairs]
    assert {f.other_iou for f in findings} == {1.0} and {f.iou for f in findings} == {0.0}
    never = find_errors(method, numbered(samples), CRIS_2022, progress=False, right=0.0)
    assert {f.error for f in never} == {"right"}


def finding(error: str, kind: str | None = None, **facts) -> Finding:
    return Finding(error, kind, **({"target": 0, "iou": 0.0, "other": None, "other_iou": 0.0} | facts))


def test_errors_are_counted_by_kind():
    found = count_errors([finding("right", "size"), finding("nothing", "colour"), finding("right")])
    assert list(found) == ["all", "colour", "size"]
    assert found["all"] == dict.fromkeys(ERRORS, 0) | {"right": 2, "nothing": 1}
    assert found["colour"]["nothing"] == 1 and sum(found["colour"].values()) == 1


def test_gallery():
    pairs = [(0.9, 0.0), (0.0, 0.1), (0.4, 0.5), (0.0, 0.9), (0.45, 0.3)]
    findings = [finding("right", iou=iou, other_iou=other) for iou, other in pairs]
    assert gallery(findings, 3) == {"worst": [3, 1, 2], "closest_calls": [2, 4, 0]}


# A scene: a red ball left, a dog in the middle, a blue ball right


def thing(name: str, x: float, colour: str, **facts) -> Thing:
    usual = {"base": 0.8, "scale": 1.0, "pattern": "plain", "outfit": None, "faces": 1, "look": 0.5}
    return Thing(name, x, colour=colour, **(usual | facts))


SCENE = Scene(
    "meadow", (thing("ball", 0.2, "red"), thing("dog", 0.5, "brown"), thing("ball", 0.8, "blue")), "x"
)


def edited(expression: str, form: dict, target: int, scene: Scene = SCENE, seed: int = 0) -> dict[str, Edit]:
    found = list(edits_of(expression, form, scene, target, random.Random(seed)))
    assert len({edit.name for edit in found}) == len(found)
    return {edit.name: edit for edit in found}


def test_edits_of_a_place():
    found = edited("ball on the left", {"noun": "ball", "place": "left"}, 0)
    assert found["unedited"] == Edit("unedited", "ball on the left", 0)
    assert found["left_right"] == Edit("left_right", "ball on the right", 2)
    assert found["mirrored_kept"] == Edit("mirrored_kept", "ball on the left", 2, mirrored=True)
    assert found["mirrored_both"] == Edit("mirrored_both", "ball on the right", 0, mirrored=True)
    assert sorted(found["shuffled"].expression.split()) == ["ball", "left", "on", "the"]
    assert found["shuffled"].expression != "ball on the left"
    assert found["other_name"].meant is None  # nothing else stands left
    assert set(found) == {
        *("unedited", "left_right", "mirrored_kept", "mirrored_both", "shuffled", "other_name")
    }


@pytest.mark.parametrize("seed", range(5))
def test_what_can_be_true_of_another_thing_goes_first(seed):
    red = edited("red ball", {"noun": "ball", "colour": "red"}, 0, seed=seed)
    assert red["other_colour"] == Edit("other_colour", "blue ball", 2)
    assert red["mirrored"] == Edit("mirrored", "red ball", 0, mirrored=True)
    brown = edited("brown dog", {"noun": "dog", "colour": "brown"}, 1, seed=seed)
    assert brown["other_colour"].meant is None and brown["other_colour"].expression != "brown dog"


def test_edits_of_a_relation_go_into_its_landmark():
    form = {"noun": "ball", "relation": ["left of", {"noun": "dog", "colour": "brown"}]}
    found = edited("ball left of the brown dog", form, 0)
    assert found["left_right"] == Edit("left_right", "ball right of the brown dog", 2)
    assert found["other_colour"].meant is None  # no dog of any other colour


def test_edits_that_change_nothing_are_not_asked():
    """The second of three from the left is the second from the right, too."""
    things = (*SCENE.things[::2], thing("ball", 0.5, "green"))
    form = {"noun": "ball", "pick": ["left", 2]}
    found = edited("2nd ball from the left", form, 2, replace(SCENE, things=things))
    assert "left_right" not in found and "mirrored_kept" not in found
    assert found["synonym"].expression == "second ball from the left" and found["synonym"].meant == 2


def test_ambiguous_edits_mean_nothing():
    found = edited("dog", {"noun": "dog"}, 1)
    assert found["other_name"].meant is None  # even if the name is "ball", of which there are two
    assert "shuffled" not in found and "left_right" not in found


def test_swap():
    table = {"orange": "red", "left": "right"}
    assert swap("an orange cup left of an apple", table) == "a red cup right of an apple"
    assert swap("a red cup", {"red": "orange"}) == "an orange cup"
    assert swap({"place": "top left", "wears": ["hat", None], "pick": ["left", 2]}, table) == {
        "place": "top right",
        "wears": ["hat", None],
        "pick": ["right", 2],
    }


# RefMini's memory


def test_remembered_scenes_are_what_the_pictures_show(samples: RefDataset):
    memory, objects = remembered(samples), with_instances(samples, "oracle").source
    for record in samples.records:
        scene = memory.scenes[record.image_id]
        assert (paint(scene, 128).masks == objects.masks(record.image_id)).all()
        target = objects.of_picture[record.image_id].index(record.ann_id)
        assert resolve(_form(memory.forms[record.sent_id]), scene) == {target}


def test_what_is_not_remembered(tmp_path: Path):
    root = build_refmini(tmp_path / "small", seed=3, train=3, val=3, progress=False)
    file = root / "refmini" / "instances.json"
    document = json.loads(file.read_text())
    for image in document["images"]:
        image["scene"] = "another/" + image["scene"]
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match="its seeds give other scenes today"):
        remembered(open_split(root, "val"))
    for image in document["images"]:
        del image["scene"]
    file.write_text(json.dumps(document))
    samples = open_split(root, "val")
    assert remembered(samples) is None
    method = Answers(lambda picture, _: sure(picture[..., 0] > 128))
    assert set(dissect(method, samples, CRIS_2022, progress=False)) == {
        *("n", "protocol", "errors", "worst", "closest_calls", "thresholds")
    }


def test_confusions():
    """Of five dogs' questions two had the other dog for an answer and one a ball; chance is one of three."""
    dog, other = thing("dog", 0.2, "brown"), thing("dog", 0.8, "black", scale=1.3)
    balls = (thing("ball", 0.5, "brown"), thing("ball", 0.9, "red"))
    scene = Scene("meadow", (balls[0], dog, other, balls[1]), "x")
    wrong = [finding("wrong object", kind, target=1, other=o) for kind, o in [("size", 2), ("colour", 0)]]
    findings = [finding("right", "colour"), *wrong, finding("wrong object", "size", target=1, other=2)]

    class Samples:
        records = tuple(type("Record", (), {"image_id": 7}) for _ in findings)

    found = confusions(findings, Samples, {7: scene})
    assert list(found) == ["all", "colour", "size"] and [row["n"] for row in found.values()] == [3, 1, 2]
    assert found["size"]["name"] == {"chosen": 100, "chance": 33.33}
    assert found["all"]["category"] == {"chosen": 66.67, "chance": 33.33}
    assert found["all"]["colour"] == {"chosen": 33.33, "chance": 33.33}
    assert found["all"]["size"] == {"chosen": 33.33, "chance": 66.67}
    assert found["all"]["opposite side"] == {"chosen": 66.67, "chance": 66.67}


# Reactions

KEPT = ("synonym", "shuffled", "mirrored", "mirrored_both")
CHANGED = ("left_right", "other_colour", "other_name", "mirrored_kept")


def test_who_does_not_listen_does_not_react(samples: RefDataset):
    """It marks what is bright: the same whatever is said, and mirrored in the mirror."""
    method = Answers(lambda picture, _: sure(picture[..., 0] > 200))
    found = reactions(method, samples, remembered(samples), CRIS_2022, progress=False)
    assert {*KEPT, *CHANGED} <= set(found)
    for row in found.values():
        assert (row["same_answer"], row["iou"], row["interval"]) == (100, 100, [100, 100])
    assert all(found[name]["right_before"] == found[name]["right_after"] for name in KEPT)


def test_who_understands_follows(world: Path):
    """Its answers are those that the edits mean, looked up by picture and words."""
    samples = open_split(world, None)
    memory, known = remembered(samples), {}
    for i, record in enumerate(samples.records):
        objects, target = place_of_target(samples, i)
        scene, form = memory.scenes[record.image_id], memory.forms[record.sent_id]
        rng = random.Random(f"0/{record.sent_id}")
        for edit in edits_of(record.expression, form, scene, target, rng):
            flip = slice(None, None, -1 if edit.mirrored else 1)
            picture = np.asarray(samples[i].image)[:, flip]
            mask = np.zeros((128, 128), dtype=bool) if edit.meant is None else objects[edit.meant][:, flip]
            known[picture.tobytes(), edit.expression] = mask
    method = Answers(lambda picture, said: sure(known[picture.tobytes(), said]))
    found = reactions(method, samples, memory, LAVT_2022, progress=False)
    assert found["unedited"] == {
        **{"n": len(samples), "n_meant": len(samples), "same_answer": 100, "iou": 100},
        **{"interval": [100, 100], "right_before": 100, "right_after": 100},
    }
    for name in KEPT:
        assert found[name]["same_answer"] == found[name]["right_after"] == 100, name
    for name in CHANGED:
        assert found[name]["same_answer"] == 0 and 0 < found[name]["n_meant"] < found[name]["n"], name
        assert found[name]["right_before"] == found[name]["right_after"] == 100, name


def test_two_empty_answers_are_not_compared(samples: RefDataset):
    method = Answers(lambda *_: sure(np.zeros((8, 8), dtype=bool)))
    found = reactions(method, samples, remembered(samples), CRIS_2022, progress=False)["unedited"]
    assert found == {"n": 0, "n_meant": len(samples), "right_before": 0, "right_after": 0}


# Thresholds


def blurred(samples: RefDataset) -> Answers:
    """Every answer is its own noise around the truth, 32 x 32."""

    def answer(_, said: str) -> np.ndarray:
        rng = np.random.default_rng(int(said))
        small = samples[int(said)].mask[::4, ::4]
        return np.where(small, 2.0, -2.0) + 2 * rng.normal(size=small.shape)

    return Answers(answer)


def test_sweep_is_evaluate_at_each_threshold(samples: RefDataset):
    method, asked = blurred(samples), numbered(samples)
    found = sweep(method, asked, thresholds=(0.05, 0.35, 0.5, 0.9), progress=False)
    assert list(found) == ["cris_2022", "lavt_2022"]
    for protocol in (CRIS_2022, LAVT_2022):
        for threshold, scores in found[protocol.name].items():
            assert scores == evaluate(method, asked, at(protocol, threshold), progress=False).scores
    own = {"cris_2022": (CRIS_2022, 0.35), "lavt_2022": (LAVT_2022, 0.5)}
    for name, (protocol, threshold) in own.items():
        assert at(protocol, threshold) == protocol
        assert found[name][threshold] == evaluate(method, asked, protocol, progress=False).scores
    assert len({scores.overall_iou() for scores in found["cris_2022"].values()}) == 4


def test_what_a_threshold_buys():
    def split(ious: dict[float, int]) -> dict:
        found = {threshold: CRIS_2022.scores() for threshold in ious}
        for threshold, percent in ious.items():
            truth = np.ones((1, 100), dtype=bool)
            found[threshold].add(np.arange(100)[None] < percent, truth, image_id=0)
        return found

    val, test = split({0.3: 60, 0.5: 70, 0.7: 65}), split({0.3: 48, 0.5: 50, 0.7: 54})
    assert bought(val, test, "oIoU") == {
        **{"chosen": 0.5, "value": 50, "best": 0.7, "best_value": 54, "points": 4}
    }
    assert bought(test, test, "mIoU")["points"] == 0


def test_answers_in_batches_are_answers_one_by_one(samples: RefDataset):
    method, asked = blurred(samples), numbered(samples)
    whole = list(answers(method, asked, CRIS_2022, LAVT_2022))
    single = list(answers(method, asked, LAVT_2022, batch_size=1))
    said = [str(i) for i in range(len(samples))]
    assert [s.expression for s, *_ in whole] == [s.expression for s, _ in single] == said
    for (_, probabilities, logits), (_, alone) in zip(whole, single, strict=True):
        assert (logits == alone).all() and (probabilities != logits).any()


# The command


def test_command(world: Path, tmp_path: Path):
    def rislib(*words: object) -> str:
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False).output

    run, file = tmp_path / "cris", tmp_path / "anatomy.json"
    rislib("train", "cris", "--data", world, "--samples", 24, "--out", run)
    shown = rislib("anatomy", run, "--data", world, "--split", "testB", "--json", file)
    numbers = json.loads(file.read_text())
    n = len(open_split(world, "testB"))
    assert numbers["n"] == n == sum(numbers["errors"]["all"].values())
    assert (numbers["run"], numbers["split"], numbers["protocol"]) == ("cris", "testB", "cris_2022")
    assert {"confusions", "reactions", "worst", "closest_calls", "commit", "machine"} <= set(numbers)
    assert all(error in shown for error in ERRORS) and "mirrored_kept" in shown
    assert len(numbers["thresholds"]["lavt_2022"]) == 19
    assert numbers["bought"]["cris_2022"]["mIoU"]["points"] >= 0

    with pytest.raises(ValueError, match="no protocol 'x'"):
        rislib("anatomy", run, "--data", world, "--protocol", "x")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"blind": True}))
    with pytest.raises(ValueError, match="trained blind"):
        rislib("anatomy", run, "--data", world)
