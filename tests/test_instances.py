"""Instance masks: proposals there and back, oracle, none, and whatever can be wrong with a file of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import save_file
from test_refcoco import HEIGHT, WIDTH, documents, put, without, write_folder
from typer.testing import CliRunner

from rislib import encoders
from rislib.cli import app
from rislib.data import (
    DataError,
    RefDataset,
    encode_mask,
    load_refcoco,
    open_split,
    propose,
    recall,
    with_instances,
)
from rislib.data.instances import average_recall
from rislib.encoders import fingerprint
from rislib.encoders.segmenter import SEGMENTERS, segmenter_mini
from rislib.methods import CRIS
from rislib.runs import read_record


def load(root: Path, split: str | None = None) -> RefDataset:
    return load_refcoco(root, "toy", "me", split)


def box(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top:bottom, left:right] = True
    return mask


def entry(mask: np.ndarray, score: Any, image_id: int = 1) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": 1, "segmentation": encode_mask(mask), "score": score}


def write_results(root: Path, rows: Any) -> Path:
    file = root / "found.json"
    file.write_text(json.dumps(rows))
    return file


@dataclass
class Looker:
    """Finds what is as red as its picture (everything) and the lower half. Knows pixels and nothing else."""

    name: str = "mini"
    weights: str = "none"

    def segment(self, image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
        red = np.array(image)[:, :, 0]
        low = np.arange(len(red))[:, None] > len(red) // 2
        return np.stack([red == red[0, 0], low & (red == red[0, 0])]), np.float32([0.9, red[0, 0] / 256])


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the segmenter's weights."""
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path / "data",))
    file = tmp_path / "data/weights/segmenter.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"some weights")
    return file


# --- a file of proposals ----------------------------------------------------------------------


def test_proposals_there_and_back(tmp_path: Path, weights: Path) -> None:
    samples = load(write_folder(tmp_path / "world"))
    segmenter = Looker(weights=fingerprint("segmenter"))
    file = propose(samples, segmenter, progress=False)
    assert file == tmp_path / "world/toy/proposals.json"
    found = with_instances(samples, "proposals", min_score=0.0)
    assert (samples.instances_from, found.instances_from) == ("none", "proposals")
    for before, after in zip(samples, found, strict=True):
        masks, _ = segmenter.segment(before.image)
        assert before.instances is None and after.expression == before.expression
        assert after.instances.dtype == bool and np.array_equal(after.instances, masks)
    # Others can read it, too.
    read = COCO(str(tmp_path / "world/toy/instances.json")).loadRes(str(file))
    (surest,) = (a for a in read.loadAnns(read.getAnnIds([2])) if a["score"] == 0.9)
    assert read.annToMask(surest).all() and surest["bbox"] == [0, 0, WIDTH, HEIGHT]


def test_the_surest_remain_in_order_without_doubles(tmp_path: Path) -> None:
    samples = load(write_folder(tmp_path), "train")[:1]
    big, shifted, other = box(0, 0, 6, 6), box(1, 0, 7, 6), box(8, 0, 12, 6)  # IoU of the first two: 5/7
    beside, weak, empty = box(5, 0, 8, 6), box(0, 8, 4, 12), box(0, 0, 0, 0)
    rows = [
        *(entry(other, 0.7), entry(shifted, 0.8), entry(big, 0.9), entry(weak, 0.64)),
        *(entry(empty, 0.99), entry(beside, 1), entry(big, 0.95, image_id=2)),
    ]
    file = write_results(tmp_path, rows)

    def remaining(**filters: float) -> list[np.ndarray]:
        return list(with_instances(samples, file, **filters)[0].instances)

    def same(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
        return len(found) == len(expected) and all(map(np.array_equal, found, expected))

    assert same(remaining(), [beside, big, other])
    assert same(remaining(most=2), [beside, big])
    assert same(remaining(min_score=0.9), [beside, big])
    assert same(remaining(min_score=0.64), [beside, big, other, weak])
    assert same(remaining(overlap=0.8), [beside, big, shifted, other])
    assert same(remaining(overlap=0.124), [beside, other])  # IoU of beside and big: 6/48
    assert with_instances(samples, file).instances_from == str(file)


def test_a_picture_without_proposals_has_none(tmp_path: Path) -> None:
    samples = load(write_folder(tmp_path))
    found = with_instances(samples, write_results(tmp_path, [entry(box(0, 0, 3, 3), 0.9, image_id=2)]))
    assert [len(sample.instances) for sample in found] == [0, 0, 0, 1, 1]
    assert found[0].instances.shape == (0, HEIGHT, WIDTH) and found[0].instances.dtype == bool


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(7, 1, "image_id"), "proposal at place 1: image_id: no image 7"),
        (without(1, "image_id"), "proposal at place 1: image_id: missing"),
        (without(0, "score"), "proposal at place 0: score: missing"),
        (put("high", 0, "score"), "proposal at place 0: score: 'high' is no score"),
        (put(float("nan"), 0, "score"), "proposal at place 0: score: nan is no score"),
        (without(0, "segmentation"), "proposal at place 0: segmentation: missing: boxes are not enough"),
        (put(5, 0), "proposal at place 0: int instead of an object"),
        (
            put(encode_mask(np.ones((WIDTH, HEIGHT), bool)), 1, "segmentation"),
            "proposal at place 1: segmentation: run lengths of another size than the picture's 12 x 16",
        ),
        (
            put({"size": [HEIGHT, WIDTH], "counts": "0"}, 0, "segmentation"),
            "proposal at place 0: segmentation: run lengths that do not cover the 192 pixels of the picture",
        ),
    ],
)
def test_faults_name_their_place(tmp_path: Path, edit: Callable[[Any], None], message: str) -> None:
    samples = load(write_folder(tmp_path))
    rows = [entry(box(0, 0, 3, 3), 0.9), entry(box(5, 5, 9, 9), 0.8, image_id=2)]
    edit(rows)
    file = write_results(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        list(with_instances(samples, file))
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file or directory"), ("{}", "dict instead of a list"), ("[", "not readable as JSON")],
)
def test_files_that_are_none(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "found.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        with_instances(load(write_folder(tmp_path / "world")), file)


# --- proposals that are kept ------------------------------------------------------------------


def test_a_stale_cache_is_noticed(tmp_path: Path, weights: Path) -> None:
    samples = load(write_folder(tmp_path / "world"))
    with pytest.raises(DataError, match="no proposals yet: make them with `python -m rislib propose`"):
        with_instances(samples, "proposals")
    propose(samples, Looker(weights=fingerprint("segmenter")), progress=False)
    with_instances(samples, "proposals")
    weights.write_bytes(b"other weights")
    with pytest.raises(DataError, match="other weights than the segmenter has now: make them"):
        with_instances(samples, "proposals")
    propose(samples, Looker(weights=fingerprint("segmenter")), progress=False)
    with_instances(samples, "proposals")
    propose(samples, Looker(name="coco", weights="COCO"), progress=False)  # which the file has no say about
    with_instances(samples, "proposals")


def test_a_cache_of_other_pictures_is_noticed(tmp_path: Path, weights: Path) -> None:
    root = write_folder(tmp_path / "world")
    propose(load(root, "val"), Looker(weights=fingerprint("segmenter")), progress=False)
    assert with_instances(load(root, "val"), "proposals")[0].instances is not None
    with pytest.raises(DataError, match="without 1 of 2 pictures: make them"):
        with_instances(load(root), "proposals")


def test_proposals_never_come_from_the_truth(tmp_path: Path) -> None:
    """Other annotations, the same pictures: not a byte changes."""
    instances, _ = documents()
    shuffled = json.loads(json.dumps(instances))
    for annotation, other in zip(shuffled["annotations"], reversed(instances["annotations"]), strict=True):
        annotation["segmentation"] = other["segmentation"]
    assert shuffled["annotations"] != instances["annotations"]
    files = [
        propose(load(write_folder(tmp_path / name, document)), Looker(), progress=False)
        for name, document in (("one", instances), ("other", shuffled))
    ]
    assert files[0] != files[1] and files[0].read_bytes() == files[1].read_bytes()


# --- oracle and none --------------------------------------------------------------------------


def test_the_oracle_knows_every_annotation(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    samples = with_instances(load(root, "val"), "oracle")
    assert samples.instances_from == "oracle"
    expected = [box(4, 2, 8, 6), box(6, 2, 11, 7)]  # annotations 21 and 22
    for sample, target in zip(samples, expected, strict=True):
        assert np.array_equal(sample.instances, expected) and np.array_equal(sample.mask, target)


def test_the_source_stays_with_slices_and_other_words(tmp_path: Path) -> None:
    samples = with_instances(load(write_folder(tmp_path)), "oracle")
    for derived in (samples[3:], samples.with_expressions(["thing"] * 5)[3:]):
        assert derived.instances_from == "oracle" and len(derived[0].instances) == 2
    silent = with_instances(samples, "none")
    assert silent.instances_from == "none" and silent[0].instances is None
    assert samples[0].instances is not None  # the first ones are as they were


# --- how good they are ------------------------------------------------------------------------


def naive_recall(pictures: list[tuple[np.ndarray, np.ndarray]], iou: float) -> float:
    found = total = 0
    for objects, proposals in pictures:
        for thing in objects:
            total += 1
            for proposal in proposals:
                union = sum(a or b for a, b in zip(thing.flat, proposal.flat, strict=True))
                common = sum(a and b for a, b in zip(thing.flat, proposal.flat, strict=True))
                if common >= iou * union:
                    found += 1
                    break
    return 100 * found / total


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), density=st.sampled_from([0.3, 0.6, 0.9]))
def test_recall_equals_a_naive_loop(seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    pictures = []
    for _ in range(3):
        objects = rng.random((rng.integers(1, 4), 5, 4)) < density
        objects[:, 0, 0] = True  # an object has a pixel
        noise = rng.random((rng.integers(0, 6), 5, 4)) < rng.choice([0.05, 0.3])
        pictures.append((objects, objects[rng.integers(len(objects), size=len(noise))] ^ noise))
    measured = average_recall(pictures, (0.5, 0.75, 1.0))
    for iou in (0.5, 0.75, 1.0):
        assert measured[f"AR@{iou}"] == pytest.approx(naive_recall(pictures, iou), abs=0.006)
    assert measured["proposals"] == round(np.mean([len(proposals) for _, proposals in pictures]), 2)


def test_recall_of_samples(tmp_path: Path) -> None:
    samples = load(write_folder(tmp_path))
    truth = with_instances(samples, "oracle")
    assert recall(truth) == {"AR@0.5": 100.0, "AR@0.75": 100.0, "proposals": 2.0}
    first, second = truth[-1].instances  # of picture 2: 4 x 4 and 5 x 5 pixels
    near = second.copy()
    near[2] = False  # IoU 20/25
    rows = [entry(first & (np.arange(WIDTH) > 4), 0.9, 2), entry(near, 0.8, 2), entry(box(0, 11, 1, 12), 0.7)]
    found = with_instances(samples, write_results(tmp_path, rows))
    assert recall(found) == {"AR@0.5": 50.0, "AR@0.75": 50.0, "proposals": 1.5}
    assert recall(found, (0.8, 0.81))["AR@0.81"] == 0.0
    with pytest.raises(ValueError, match="no instance masks"):
        recall(samples)


# --- the command line -------------------------------------------------------------------------


def rislib(*arguments: object) -> str:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False).output


@pytest.fixture
def own_world(world: Path, tmp_path: Path) -> Path:
    """A copy that proposals can be kept in."""
    return Path(shutil.copytree(world, tmp_path / "world"))


def test_propose_keeps_what_an_untrained_segmenter_finds(own_world: Path, weights: Path) -> None:
    torch.manual_seed(0)
    untrained = segmenter_mini()
    with torch.no_grad():  # sure of everything, for otherwise it would find nothing
        untrained.model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([-9.0, 9.0]))
    save_file(untrained.state_dict(), weights)
    said = rislib("propose", own_world)
    assert str(own_world / "refmini/proposals.json") in said and '"AR@0.5": ' in said
    val = open_split(own_world, "val")
    found = with_instances(val, "proposals")
    same = segmenter_mini(pretrained=True)
    for i in (0, len(val) - 1):
        masks, scores = same.segment(val[i].image)
        assert 0 < len(masks) <= 16 and scores.min() > 0.65
        assert np.array_equal(found[i].instances, masks)
    assert json.loads(said.split("val ")[1]) == recall(found)


def test_runs_and_reports_say_whose_masks_they_were(
    own_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train", "cris", "--data", own_world, "--samples", 24, "--out", tmp_path / "run")
    with pytest.raises(ValueError, match="CRIS reads no instance masks"):
        rislib(*train, "--instances", "oracle")

    read, encode_image = [], CRIS.encode_image

    def with_masks(self: CRIS, image: torch.Tensor, instances: torch.Tensor | None = None):
        read.append(instances)
        return encode_image(self, image)

    monkeypatch.setattr(CRIS, "reads_instances", True)
    monkeypatch.setattr(CRIS, "encode_image", with_masks)
    rislib(*train, "--instances", "oracle")
    assert all(
        masks.sum(dim=(2, 3)).gt(0).sum(dim=1).ge(4).all() for masks in read
    )  # scenes have four things
    assert read_record(tmp_path / "run")["instances"] == "oracle"
    with pytest.raises(ValueError, match="instances was oracle, and is none now"):
        rislib(*train, "--resume")

    read.clear()
    evaluate = ("evaluate", tmp_path / "run", "--data", own_world, "--json", tmp_path / "numbers.json")
    assert "instance masks: oracle (in training: oracle)" in rislib(*evaluate)
    assert read and all(masks is not None for masks in read)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert (numbers["instances"], numbers["instances_in_training"]) == ("oracle", "oracle")
    trained = read_record(tmp_path / "run")
    assert numbers["training"] == {key: trained[key] for key in ("command", "commit", "seed", "samples_seen")}

    read.clear()
    assert "instance masks: none (in training: oracle)" in rislib(*evaluate, "--instances", "none")
    assert read and all(masks is None for masks in read)
    assert json.loads((tmp_path / "numbers.json").read_text())["instances"] == "none"
    with pytest.raises(DataError, match="no proposals yet"):
        rislib(*evaluate, "--instances", "proposals")

    read.clear()
    monkeypatch.setitem(SEGMENTERS, "mini", lambda pretrained: Looker())
    picture = next((own_world / "images/refmini").glob("*.png"))
    segment = ("segment", picture, "the dog", "--run", tmp_path / "run", "--out", tmp_path / "answer.png")
    assert "say --segmenter mini, or coco" in rislib(*segment)
    rislib(*segment, "--segmenter", "mini")
    assert [masks.shape[:2] for masks in read] == [(1, 2)]
    assert "no segmenter 'best'; there are mini, coco" in rislib(*segment, "--segmenter", "best")


def test_a_run_that_says_nothing_of_masks_had_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"method": "cris"}))
    assert read_record(tmp_path)["instances"] == "none"
