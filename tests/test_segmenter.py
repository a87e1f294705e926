"""The segmenter: what it answers, what it learns from, and the weights that stay."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rislib import encoders
from rislib.data import make_batch
from rislib.data.refmini import paint, sample_scene
from rislib.encoders import fingerprint, segmenter
from rislib.encoders.segmenter import Segmenter, coco_segmenter, segmenter_mini
from rislib.pretraining import Outlines, Scenes, pretrain
from rislib.pretraining.segmenter import decoded, outlined


class Answers(nn.Module):
    """In a Mask R-CNN's place: says what it was told to."""

    def __init__(self, boxes: list[list[float]], scores: list[float], empty: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))
        self.roi_heads = nn.Module()
        self.boxes, self.scores, self.empty = torch.tensor(boxes).float(), torch.tensor(scores), empty

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        masks = torch.zeros(len(self.boxes), 1, *images[0].shape[1:])
        for i, (left, top, right, bottom) in enumerate(self.boxes.int()):
            if i not in self.empty:
                masks[i, 0, top:bottom, left:right] = 0.8
        labels = torch.arange(len(self.boxes))  # each of another class
        return [{"boxes": self.boxes, "scores": self.scores, "labels": labels, "masks": masks}]


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(outlined, "test of outlines", 6, progress=False)


def mini(**filters: float) -> Segmenter:
    torch.manual_seed(0)
    return segmenter_mini(**filters)


def sure(**filters: float) -> Segmenter:
    """Untrained, and sure of everything: one that doubts would find nothing."""
    network = mini(**filters)
    with torch.no_grad():
        network.model.roi_heads.box_predictor.cls_score.bias.copy_(torch.tensor([-4.0, 4.0]))
    return network


# --- answers ----------------------------------------------------------------------------------


def test_doubles_of_other_classes_and_empty_masks_are_left_out() -> None:
    # IoU of the first two 7/8, of the third and the last 6/10. The fourth has no pixel.
    boxes = [[0, 0, 8, 8], [0, 0, 8, 7], [4, 0, 12, 8], [0, 8, 8, 12], [6, 0, 14, 8]]
    model = Answers(boxes, [0.7, 0.9, 0.8, 0.95, 0.75], empty=(3,))

    def found(**filters: float) -> list[int]:
        masks, scores = Segmenter(model, name="", weights="", **filters).segment(Image.new("RGB", (14, 12)))
        assert masks.dtype == bool and masks.shape[1:] == (12, 14)
        for mask, score in zip(masks, scores, strict=True):
            left, top, right, bottom = boxes[model.scores.tolist().index(score)]
            assert mask[top:bottom, left:right].all() and mask.sum() == (bottom - top) * (right - left)
        return [round(100 * float(score)) for score in scores]

    assert found() == [90, 80]
    assert found(overlap=0.61) == [90, 80, 75]
    assert found(overlap=0.9) == [90, 80, 75, 70]
    assert found(overlap=0.9, most=2) == [90, 80]


@pytest.mark.parametrize("size", [(128, 128), (200, 120)])
def test_masks_are_of_the_picture_and_the_surest_first(size: tuple[int, int]) -> None:
    picture = paint(sample_scene("segment"), 128).image.resize(size)
    masks, scores = sure().segment(picture)
    assert masks.shape == (len(scores), size[1], size[0]) and masks.dtype == bool
    assert 1 < len(masks) <= 16 and masks.any((1, 2)).all()
    assert (np.diff(scores) <= 0).all() and scores.min() >= 0.65
    assert len(sure(most=1).segment(picture)[0]) == 1
    doubtful, _ = mini().segment(picture)
    assert doubtful.shape == (0, size[1], size[0])
    cut = float(np.median(scores))
    assert 0 < len(sure(min_score=cut).segment(picture)[0]) < len(masks)


def test_it_is_small() -> None:
    assert sum(p.numel() for p in mini().parameters()) < 2_000_000


def test_without_weights_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="python -m rislib pretrain segmenter"):
        segmenter_mini(pretrained=True)


def test_the_one_for_photographs_warns_of_leakage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmenter, "maskrcnn_resnet50_fpn_v2", lambda weights: Answers([], []))
    with pytest.warns(UserWarning, match="val and test pictures of RefCOCO"):
        network = coco_segmenter(min_score=0.3)
    assert network.name == "coco" and network.model.roi_heads.score_thresh == 0.3

    def offline(weights: str) -> None:
        raise OSError("no network")

    monkeypatch.setattr(segmenter, "maskrcnn_resnet50_fpn_v2", offline)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError, match=r"no network.*another program"):
        coco_segmenter()


def test_the_one_for_photographs_builds_without_files() -> None:
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        network = coco_segmenter(pretrained=False)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(46.4e6, rel=0.002)


# --- learning ---------------------------------------------------------------------------------


def test_outlines_are_what_is_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels, (text,) = outlined("any seed")
    cast = random.Random("outline/any seed").choice(("any", "any", "people", "things"))
    painting = paint(sample_scene("any seed", cast), 128)
    assert np.array_equal(pixels, painting.image)
    assert np.array_equal(decoded(text), painting.masks[painting.masks.any((1, 2))])


def test_nothing_is_learned_from_scenes_of_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """RefMini's seeds are "0/train/17"; those here all begin with a word."""
    seeds: list[str] = []

    def spy(seed: str) -> tuple[np.ndarray, list[str]]:
        seeds.append(seed)
        return outlined("any seed")

    class Inline:
        def __init__(self, **_: object) -> None: ...
        def __enter__(self) -> Inline:
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, draw, items, chunksize):
            return map(draw, items)

    monkeypatch.setattr("rislib.pretraining.scenes.ProcessPoolExecutor", Inline)
    Scenes(spy, "train/0", 3, progress=False)
    assert seeds == ["pretrain/train/0/0", "pretrain/train/0/1", "pretrain/train/0/2"]


def test_targets_equal_a_naive_loop(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Outlines(mini())
    batch = make_batch([scenes[i] for i in range(6)], learner.preprocessing, learner.tokenize)
    given = []
    monkeypatch.setattr(learner.encoder.model, "forward", lambda *given_: given.append(given_) or {})
    learner.losses(batch)
    (images, targets) = given[0]
    assert len({len(target["boxes"]) for target in targets}) > 1  # so that something had to be filled up
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        assert np.array_equal((image * 255).round().permute(1, 2, 0), scenes.pixels[i])
        masks = decoded(scenes.texts[i][0])
        assert np.array_equal(target["masks"], masks)
        assert target["labels"].tolist() == [1] * len(masks) and target["labels"].dtype == torch.int64
        for mask, found in zip(masks, target["boxes"].tolist(), strict=True):
            y, x = mask.nonzero()
            assert found == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_it_learns(scenes: Scenes) -> None:
    learner = Outlines(mini()).train()
    batch = make_batch([scenes[i] for i in range(3)], learner.preprocessing, learner.tokenize)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    sums = []
    for step in range(8):
        torch.manual_seed(step)
        losses = learner.losses(batch)
        loss = sum(losses.values())
        optimiser.zero_grad()
        loss.backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.isfinite().all() for p in learner.parameters())
        optimiser.step()
        sums.append(loss.item())
    assert len(losses) == 5 and sums[-1] < 0.75 * sums[0], sums


def test_measure_of_nothing_and_of_a_cheat(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Outlines(mini())
    assert learner.measure(scenes)["proposals_of_things"] == {"AR@0.5": 0, "AR@0.75": 0, "proposals": 0}
    texts = {sample.image.tobytes(): sample.expression for sample in scenes}

    def cheat(image: Image.Image) -> tuple[np.ndarray, None]:
        return decoded(texts[image.tobytes()]).astype(bool)[1:], None  # all but one

    monkeypatch.setattr(learner.encoder, "segment", cheat)
    things = sum(len(decoded(text)) for text in texts.values())
    share = round(100 * (1 - 6 / things), 2)
    assert learner.measure(scenes)["proposals_of_things"] == {
        **{"AR@0.5": share, "AR@0.75": share},
        "proposals": round(things / 6 - 1, 2),
    }


def test_pretrain_leaves_weights_and_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    measured = pretrain("segmenter", minutes=0.03, out="weights", scenes=24, test_scenes=8)
    record = json.loads((tmp_path / "weights/segmenter.json").read_text())
    assert record["proposals_of_things"] == measured["proposals_of_things"]
    assert record["samples_seen"] >= 8 and "loss_mask" in record["curve"][0]["losses"]
    trained = segmenter_mini(pretrained=True)  # from tmp_path
    assert trained.weights == fingerprint("segmenter")
    assert record["parameters"] == sum(p.numel() for p in trained.parameters())
    fresh = mini().state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in trained.state_dict().items())
