"""Metrics against torchmetrics, protocols against slow loops, reports over a method of known answers."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchmetrics.classification import BinaryJaccardIndex

from rislib.evaluation import (
    CRIS_2022,
    LAVT_2022,
    PROTOCOLS,
    Report,
    Scores,
    blinded,
    evaluate,
    intersection_and_union,
    predict_masks,
    score_maps,
    shuffled,
    target_mask,
)
from rislib.evaluation.thresholds import sweep
from rislib.nouns import Method, Preprocessing, Sample

REAL = Path(os.environ.get("RISLIB_REAL_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))

LETTERBOX = Preprocessing(24, "letterbox", (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))
STRETCH = Preprocessing(24, "stretch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# (I, U, picture, kind) of one expression, empty union included.
counts = st.tuples(
    st.integers(0, 50), st.integers(0, 50), st.integers(0, 5), st.sampled_from(["colour", "size", None])
).map(lambda c: (c[0], c[0] + c[1], c[2], c[3]))


def masks_with(intersection: int, union: int, pixels: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """A prediction and a target, each (1, pixels), with the given counts."""
    prediction, target = np.zeros((2, 1, pixels), dtype=bool)
    target[:, :union] = True
    prediction[:, :intersection] = True
    return prediction, target


def scores_of(entries: list[tuple], **kwargs) -> Scores:
    scores = Scores(**kwargs)
    for intersection, union, picture, kind in entries:
        scores.add(*masks_with(intersection, union), image_id=picture, kind=kind)
    return scores


# Metrics


def test_metrics_agree_with_torchmetrics():
    """mIoU is the mean of its index per expression, oIoU its index of all pixels pooled."""
    rng = np.random.default_rng(0)
    scores, each, pooled = Scores(), [], BinaryJaccardIndex()
    for i in range(40):
        prediction, target = rng.random((2, 13, 7 + i)) < rng.random((2, 1, 1))
        scores.add(prediction, target, image_id=i)
        pair = torch.from_numpy(prediction).int(), torch.from_numpy(target).int()
        each.append(BinaryJaccardIndex()(*pair).item())
        pooled.update(*pair)
    assert scores.ious() == pytest.approx(each, abs=1e-6)
    assert scores.mean_iou() == pytest.approx(100 * np.mean(each), abs=1e-4)
    assert scores.overall_iou() == pytest.approx(100 * pooled.compute().item(), abs=1e-4)


@given(st.lists(counts, min_size=1, max_size=20))
def test_streaming_is_batch(entries):
    """Added one by one, in integers, it is what one exact sum over everything says."""
    summary = scores_of(entries).summary()
    ious = [Fraction(i, u) if u else Fraction(0) for i, u, _, _ in entries]
    overall = Fraction(sum(e[0] for e in entries), max(sum(e[1] for e in entries), 1))
    assert summary["oIoU"] == pytest.approx(float(100 * overall))
    assert summary["mIoU"] == pytest.approx(float(100 * sum(ious) / len(ious)))
    for level in range(5, 10):
        share = Fraction(sum(iou >= Fraction(level, 10) for iou in ious), len(ious))
        assert summary[f"P@0.{level}"] == pytest.approx(float(100 * share))


@settings(max_examples=50)
@given(st.data(), st.lists(counts, min_size=1, max_size=15))
def test_order_does_not_matter(data, entries):
    shuffled_entries = data.draw(st.permutations(entries))
    one, other = Report(CRIS_2022, scores_of(entries)), Report(CRIS_2022, scores_of(shuffled_entries))
    assert one.scores.summary() == other.scores.summary()
    assert one.scores.interval("mIoU", resamples=20) == other.scores.interval("mIoU", resamples=20)
    assert one.to_json() == other.to_json()


@given(st.lists(counts, max_size=10), st.lists(counts, min_size=1, max_size=10))
def test_merged_halves_are_the_whole(first, second):
    merged = scores_of(first).merge(scores_of(second))
    assert merged == scores_of(first + second)
    assert len(merged) == len(first) + len(second)


def test_scores_of_different_protocols_do_not_merge():
    with pytest.raises(ValueError, match="different protocols"):
        CRIS_2022.scores().merge(LAVT_2022.scores())


def test_merging_leaves_the_halves_alone():
    first, second = scores_of([(1, 2, 0, None)]), scores_of([(2, 2, 1, None)])
    first.merge(second).add(*masks_with(1, 1), image_id=2)
    assert (len(first), len(second)) == (1, 1)


@pytest.mark.parametrize("level", [0.5, 0.6, 0.7, 0.8, 0.9])
def test_precision_at_exactly_its_level(level):
    """An IoU of exactly X counts under >=, and does not under >."""
    entries = [(round(10 * level), 10, 0, None)]
    assert scores_of(entries, strict=False).precision_at(level) == 100
    assert scores_of(entries, strict=True).precision_at(level) == 0
    assert LAVT_2022.scores().merge(scores_of(entries)).precision_at(level) == 100
    assert scores_of(entries, eps=CRIS_2022.eps, strict=CRIS_2022.strict_precision).precision_at(level) == 0


def test_eps_is_added_to_the_union():
    scores = scores_of([(3, 4, 0, None), (0, 0, 0, None)], eps=2)
    assert scores.ious().tolist() == [0.5, 0]
    assert scores.overall_iou() == 75


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_perfect_and_empty_predictions(protocol):
    target = np.arange(35).reshape(5, 7) % 3 == 0
    perfect, empty = protocol.scores(), protocol.scores()
    perfect.add(target, target, image_id=0)
    empty.add(np.zeros_like(target), target, image_id=0)
    assert all(value == pytest.approx(100, abs=1e-4) for value in perfect.summary().values())
    assert set(empty.summary().values()) == {0}


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_nothing_predicted_where_nothing_is_counts_as_zero(protocol):
    scores = protocol.scores()
    scores.add(*np.zeros((2, 3, 3), dtype=bool), image_id=0)
    assert set(scores.summary().values()) == {0}
    assert scores.interval() == (0, 0)


def test_masks_of_unlike_shape_or_type_are_refused():
    mask = np.ones((3, 4), dtype=bool)
    with pytest.raises(ValueError, match="shape"):
        intersection_and_union(mask, mask.T)
    with pytest.raises(TypeError, match="uint8"):
        intersection_and_union(mask, 255 * mask.astype(np.uint8))


def test_a_metric_of_nothing_is_refused():
    for metric in (Scores.overall_iou, Scores.mean_iou, Scores.summary, Scores.interval):
        with pytest.raises(ValueError, match="nothing has been counted"):
            metric(Scores())


def test_by_kind():
    scores = scores_of([(1, 2, 0, "size"), (3, 4, 0, "colour"), (0, 4, 1, "size"), (9, 9, 2, None)])
    kinds = scores.by_kind()
    assert list(kinds) == ["colour", "size"]
    assert kinds["size"].overall_iou() == pytest.approx(100 / 6)
    assert kinds["size"].mean_iou() == 25
    assert len(kinds["size"]) == 2


# The bootstrap


def random_entries(pictures: int, seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    unions = rng.integers(50, 100, pictures)
    return [(int(rng.integers(0, union + 1)), int(union), i, None) for i, union in enumerate(unions)]


@pytest.mark.parametrize("metric", ["oIoU", "mIoU"])
@pytest.mark.parametrize("pictures", [1, 2, 30, 300])
def test_interval_contains_the_metric(metric, pictures):
    scores = scores_of(random_entries(pictures))
    low, high = scores.interval(metric)
    assert low - 1e-9 <= scores.summary()[metric] <= high + 1e-9


def test_interval_shrinks_with_the_square_root_of_n():
    few, many = (scores_of(random_entries(n)).interval() for n in (40, 1000))
    assert (few[1] - few[0]) / (many[1] - many[0]) == pytest.approx(5, rel=0.3)


def test_interval_is_seeded():
    scores = scores_of(random_entries(30))
    assert scores.interval(seed=1) == scores.interval(seed=1)
    assert scores.interval(seed=1) != scores.interval(seed=2)


@pytest.mark.parametrize("metric", ["oIoU", "mIoU"])
def test_interval_resamples_pictures(metric):
    """To ask everything four times about the same pictures makes no number more certain; new pictures do."""
    entries = random_entries(40)
    once = scores_of(entries).interval(metric)
    again = scores_of(4 * entries).interval(metric)
    anew = scores_of([(i, u, picture + 40 * k, None) for k in range(4) for i, u, picture, _ in entries])
    assert again == pytest.approx(once)
    low, high = anew.interval(metric)
    assert (high - low) == pytest.approx((once[1] - once[0]) / 2, rel=0.25)


def test_interval_agrees_with_a_loop():
    entries = random_entries(60)
    rng = np.random.default_rng(3)
    resampled = []
    for _ in range(3000):
        drawn = [entries[i] for i in rng.integers(0, 60, 60)]
        resampled.append(100 * sum(e[0] for e in drawn) / sum(e[1] for e in drawn))
    expected = np.percentile(resampled, [2.5, 97.5])
    assert scores_of(entries).interval(resamples=3000) == pytest.approx(expected, abs=0.6)


# Protocols, each written again as loops


def cubic(t: float) -> float:
    """Keys' cubic kernel with a = -0.75, as OpenCV and PyTorch have it."""
    a, t = -0.75, abs(t)
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def sample_cubic(row: np.ndarray, x: float, beyond: str) -> float:
    """A line of pixels read at x; beyond its ends are the last pixel's value ("edge") or zeros ("zero")."""
    total, first = 0.0, math.floor(x)
    for i in range(first - 1, first + 3):
        inside = 0 <= i < len(row)
        value = row[min(max(i, 0), len(row) - 1)] if inside or beyond == "edge" else 0.0
        total += cubic(x - i) * value
    return total


def sample_linear(row: np.ndarray, x: float) -> float:
    first = min(math.floor(x), len(row) - 2)
    return row[first] * (1 - (x - first)) + row[first + 1] * (x - first)


def read(plane: np.ndarray, ys: list[float], xs: list[float], sample) -> np.ndarray:
    """(h, w) read at every pair of coordinates, one axis after the other."""
    rows = np.array([[sample(row, x) for x in xs] for row in plane])  # (h, len(xs))
    return np.array([[sample(column, y) for y in ys] for column in rows.T]).T  # (len(ys), len(xs))


def corners_aligned(length: int, size: int) -> list[float]:
    return [i * (length - 1) / (size - 1) for i in range(size)]


def cris_by_hand(logits: np.ndarray, height: int, width: int, size: int) -> np.ndarray:
    """(h, w) logits -> (height, width) probabilities, as CRIS's inference does."""
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    coordinates = corners_aligned(len(logits), size)
    square = read(probability, coordinates, coordinates, lambda row, x: sample_cubic(row, x, "edge"))
    scale = min(size / height, size / width)
    ys = [y * scale + (size - height * scale) / 2 for y in range(height)]
    xs = [x * scale + (size - width * scale) / 2 for x in range(width)]
    return read(square, ys, xs, lambda row, x: sample_cubic(row, x, "zero"))


def lavt_by_hand(two_classes: np.ndarray, size: int) -> np.ndarray:
    """(2, h, w) logits of background and foreground -> (size, size) bool by arg max."""
    coordinates = corners_aligned(two_classes.shape[-1], size)
    square = np.stack([read(plane, coordinates, coordinates, sample_linear) for plane in two_classes])
    return square.argmax(0) == 1


def nearest_by_hand(mask: np.ndarray, size: int) -> np.ndarray:
    height, width = mask.shape
    out = np.zeros((size, size), dtype=bool)
    for y in range(size):
        for x in range(size):
            out[y, x] = mask[int((y + 0.5) * height / size), int((x + 0.5) * width / size)]
    return out


class Answers(Method):
    """Knows every answer: the expression "3" gets the logits of row 3, whatever the picture."""

    def __init__(self, logits: np.ndarray, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.answers = nn.Parameter(torch.from_numpy(logits).float())  # (n, h, w)
        self.frozen = nn.Dropout().eval()
        self.preprocessing = preprocessing
        self.pictures: list[int] = []  # that were encoded, batch by batch
        self.batches: list[int] = []  # sentences, batch by batch

    def tokenize(self, expressions):
        tokens = torch.tensor([[int(expression)] for expression in expressions])
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    def encode_image(self, image):
        assert not self.training and not torch.is_grad_enabled()
        assert image.shape[1:] == (3, self.preprocessing.size, self.preprocessing.size)
        self.pictures.append(len(image))
        return image

    def segment(self, features, tokens, token_mask):
        self.batches.append(len(tokens))
        return self.answers[tokens[:, 0]][:, None]

    def losses(self, batch):
        raise NotImplementedError

    def encoder_parameters(self):
        return []


def smooth_noise(rng: np.random.Generator, *shape: int) -> np.ndarray:
    noise = rng.normal(size=shape)
    return 3 * (noise + np.roll(noise, 1, -1) + np.roll(noise, 1, -2))


def random_samples(count: int, sizes: list[tuple[int, int]], seed: int = 0) -> list[Sample]:
    """Sample i says "i"; pictures are noise of the given (height, width), in turn; three samples each."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        height, width = sizes[(i // 3) % len(sizes)]
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        mask = smooth_noise(rng, height, width) > 0
        kind = ["colour", "size"][i % 2]
        samples.append(Sample(image, str(i), mask, i // 3, i, i, i, "val", "thing", kind=kind))
    return samples


def table_by_hand(pairs: list[tuple[np.ndarray, np.ndarray]], eps: float, strict: bool) -> dict[str, float]:
    ious, total_i, total_u = [], 0, 0
    for prediction, target in pairs:
        i = sum(bool(p and t) for p, t in zip(prediction.flat, target.flat, strict=True))
        u = sum(bool(p or t) for p, t in zip(prediction.flat, target.flat, strict=True))
        total_i, total_u = total_i + i, total_u + u
        ious.append(i / (u + eps) if u else 0.0)
    table = {"oIoU": 100 * total_i / total_u, "mIoU": 100 * sum(ious) / len(ious)}
    for level in (0.5, 0.6, 0.7, 0.8, 0.9):
        hits = [iou > level if strict else iou >= level for iou in ious]
        table[f"P@{level}"] = 100 * sum(hits) / len(hits)
    return {name: round(value, 4) for name, value in table.items()}


def test_cris_2022_end_to_end():
    """Threshold 0.35 on probabilities at each picture's own, non-square, size."""
    samples = random_samples(9, [(31, 17), (20, 40), (24, 24)])
    logits = smooth_noise(np.random.default_rng(1), 9, 6, 6)
    by_hand = [cris_by_hand(m, *s.mask.shape, 24) for m, s in zip(logits, samples, strict=True)]
    maps = score_maps(
        torch.from_numpy(logits)[:, None], LETTERBOX, [s.mask.shape for s in samples], CRIS_2022
    )
    for ours, theirs in zip(maps, by_hand, strict=True):
        assert ours == pytest.approx(theirs, abs=2e-5)

    pairs = [(m > 0.35, s.mask) for m, s in zip(by_hand, samples, strict=True)]
    report = evaluate(Answers(logits, LETTERBOX), samples, CRIS_2022, batch_size=4, progress=False).to_json()
    expected = table_by_hand(pairs, eps=1e-6, strict=True)
    assert {name: report[name] for name in expected} == expected


def test_lavt_2022_end_to_end():
    """Arg max of two classes at the input's size, against the ground truth brought there."""
    samples = random_samples(9, [(31, 17), (20, 40), (24, 24)])
    two_classes = smooth_noise(np.random.default_rng(2), 9, 2, 6, 6)
    pairs = [
        (lavt_by_hand(planes, 24), nearest_by_hand(sample.mask, 24))
        for planes, sample in zip(two_classes, samples, strict=True)
    ]
    method = Answers(two_classes[:, 1] - two_classes[:, 0], STRETCH)
    report = evaluate(method, samples, LAVT_2022, batch_size=4, progress=False).to_json()
    expected = table_by_hand(pairs, eps=0, strict=False)
    assert {name: report[name] for name in expected} == expected


def test_thresholds_are_strict():
    """A probability of exactly 0.35 and a logit of exactly 0 (a tie of two classes) are background."""
    exactly = np.array([0.35, np.nextafter(np.float32(0.35), np.float32(1))], dtype=np.float32)
    assert CRIS_2022.foreground(exactly).tolist() == [False, True]
    assert replace(CRIS_2022, strict_threshold=False).foreground(exactly).tolist() == [True, True]
    assert not predict_masks(torch.zeros(1, 1, 6, 6), STRETCH, [(9, 5)], LAVT_2022)[0].any()
    assert predict_masks(torch.full((1, 1, 6, 6), 1e-6), STRETCH, [(9, 5)], LAVT_2022)[0].all()


@pytest.mark.parametrize("preprocessing", [LETTERBOX, STRETCH], ids=["letterbox", "stretch"])
@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_every_method_fits_every_protocol(preprocessing, protocol):
    """Prediction and ground truth meet at one size, and a mask sent there and back is itself again."""
    mask = np.zeros((50, 30), dtype=bool)
    mask[10:34, 6:22] = True
    truth = target_mask(mask, preprocessing, replace(protocol, resolution="input"))
    logits = torch.from_numpy(np.where(truth, 8.0, -8.0))[None, None]
    prediction = predict_masks(logits, preprocessing, [mask.shape], protocol)[0]
    target = target_mask(mask, preprocessing, protocol)
    assert prediction.dtype == bool
    intersection, union = intersection_and_union(prediction, target)
    assert intersection / union > 0.85
    assert target.shape == (mask.shape if protocol is CRIS_2022 else (24, 24))


def test_as_many_sizes_as_logits():
    with pytest.raises(ValueError, match="2 logit maps but 1"):
        predict_masks(torch.zeros(2, 1, 6, 6), STRETCH, [(9, 5)], CRIS_2022)


def test_sizes_are_shares_of_the_picture():
    scores = Scores()
    for pixels in (4, 5, 8, 9, 100):  # of 100
        mask = np.arange(100).reshape(10, 10) < pixels
        scores.add(mask, mask, image_id=0)
    assert {size: len(part) for size, part in scores.by_size().items()} == {
        "small": 1,
        "medium": 2,
        "large": 2,
    }


def test_sums_by_picture_are_all_that_an_interval_needs():
    entries = [(1, 4, 7, None), (2, 5, 3, None), (4, 4, 7, None)]
    assert scores_of(entries).by_picture() == {
        "image_ids": [3, 7],
        "expressions": [1, 2],
        "intersections": [2, 5],
        "unions": [5, 8],
        "ious": [0.4, 1.25],
    }


# Reports


@pytest.fixture
def evaluated():
    samples = random_samples(12, [(31, 17), (20, 40)])
    return samples, Answers(smooth_noise(np.random.default_rng(3), 12, 6, 6), LETTERBOX)


@pytest.mark.parametrize("protocol", [CRIS_2022, LAVT_2022], ids=lambda protocol: protocol.name)
def test_the_size_of_a_thing_is_its_share_of_the_whole_picture(evaluated, protocol):
    """Also where a protocol compares on a letterboxed square, of which bars are a part."""
    samples, method = evaluated
    shares = [sample.mask.mean() for sample in samples]
    assert evaluate(method, samples, protocol, progress=False).scores.shares == pytest.approx(shares)
    (counted,) = sweep(method, samples, [protocol], [0.5], progress=False)[protocol.name].values()
    assert counted.shares == pytest.approx(shares)


def test_report_as_json(evaluated):
    samples, method = evaluated
    report = evaluate(method, samples, CRIS_2022, progress=False)
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    metrics = ["oIoU", "mIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]
    assert list(found) == [*metrics, "n", "protocol", "interval", "by_kind", "by_size"]
    assert (found["n"], found["protocol"]) == (12, "cris_2022")
    assert found["interval"][0] < found["oIoU"] < found["interval"][1]
    assert list(found["by_kind"]) == ["colour", "size"]
    assert all(list(part) == ["oIoU", "mIoU", "n"] for part in found["by_kind"].values())
    for parts in (found["by_kind"], found["by_size"]):
        assert sum(part["n"] for part in parts.values()) == 12
    assert all(found[name] == round(found[name], 4) for name in metrics)


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS)
def test_table_carries_the_protocol_and_puts_its_metric_first(evaluated, protocol):
    samples, method = evaluated
    report = evaluate(method, samples, protocol, progress=False)
    table = report.table()
    assert table.splitlines()[0].startswith(protocol.name)
    other = {"oIoU": "mIoU", "mIoU": "oIoU"}[protocol.headline]
    assert table.index(protocol.headline) < table.index(other)
    assert f"{report.scores.overall_iou():.2f}" in table
    assert "colour" in table


@pytest.mark.parametrize(("batch_size", "pictures"), [(1, [1] * 12), (5, [2, 3, 1]), (100, [4])])
def test_batch_size_does_not_matter(evaluated, batch_size, pictures):
    """Twelve sentences, three about each picture, which is encoded once per batch."""
    samples, method = evaluated
    scores = evaluate(method, samples, CRIS_2022, batch_size=batch_size, progress=False).scores
    assert sum(method.batches) == 12 and max(method.batches) == min(batch_size, 12)
    assert method.pictures == pictures
    assert scores == evaluate(method, samples, CRIS_2022, progress=False).scores


def test_modes_come_back_module_by_module(evaluated):
    samples, method = evaluated
    method.train()
    method.frozen.eval()
    evaluate(method, samples, CRIS_2022, progress=False)
    assert method.training and not method.frozen.training


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_changes_little(evaluated, precision):
    samples, method = evaluated
    half = evaluate(method, samples, CRIS_2022, precision=precision, progress=False)
    full = evaluate(method, samples, CRIS_2022, progress=False)
    assert half.scores.overall_iou() == pytest.approx(full.scores.overall_iou(), abs=1)


def test_what_cannot_be_evaluated_is_refused(evaluated):
    samples, method = evaluated
    with pytest.raises(ValueError, match="no samples"):
        evaluate(method, [], CRIS_2022)
    with pytest.raises(ValueError, match="fp64"):
        evaluate(method, samples, CRIS_2022, precision="fp64")


# Controls


@dataclass(frozen=True)
class Said:
    image_id: int
    expression: str


class Dataset:
    """The two things of a RefDataset that the controls use."""

    def __init__(self, records: list[Said]) -> None:
        self.records = tuple(records)

    def __len__(self) -> int:
        return len(self.records)

    def with_expressions(self, expressions: list[str]) -> Dataset:
        pairs = zip(self.records, expressions, strict=True)
        return Dataset([replace(record, expression=expression) for record, expression in pairs])


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from("abcdefgh")), min_size=1, max_size=30),
    st.integers(0, 99),
)
def test_shuffled_keeps_no_expression_of_its_own_picture(said, seed):
    """Even if the same words are said of several pictures; pictures that nothing else fits are refused."""
    data = Dataset([Said(*pair) for pair in said])
    words = {image_id: {e for i, e in said if i == image_id} for image_id, _ in said}
    everything = set().union(*words.values())
    if any(own == everything for own in words.values()):
        with pytest.raises(ValueError, match="no picture has an expression other than"):
            shuffled(data, seed)
        return
    for record in shuffled(data, seed).records:
        assert record.expression in everything - words[record.image_id]


def test_shuffled_exchanges_whole_pictures():
    """Where all words differ, each picture's expressions go to one other picture, all of them."""
    data = Dataset([Said(picture, f"{picture}/{k}") for picture in range(20) for k in range(3)])
    records = shuffled(data, seed=1).records
    assert [r.image_id for r in records] == [r.image_id for r in data.records]
    assert sorted(r.expression for r in records) == sorted(r.expression for r in data.records)
    donors = [{r.expression.split("/")[0] for r in records if r.image_id == i} for i in range(20)]
    assert all(len(donor) == 1 for donor in donors)
    assert records == shuffled(data, seed=1).records != shuffled(data, seed=2).records


def test_blinded_says_the_same_everywhere():
    data = Dataset([Said(0, "red cup"), Said(1, "dog")])
    assert [r.expression for r in blinded(data).records] == ["thing", "thing"]
    assert [r.expression for r in blinded(data, word="object").records] == ["object", "object"]


@pytest.mark.skipif(not (REAL / "refcoco_real").exists(), reason="the real samples are not here")
def test_controls_on_real_samples():
    from rislib.data import load_refcoco

    samples = load_refcoco(REAL / "refcoco_real", "refcoco", "unc", "val")
    other = shuffled(samples)
    said = {(record.image_id, record.expression) for record in samples.records}
    assert not said & {(record.image_id, record.expression) for record in other.records}
    assert (other[3].mask == samples[3].mask).all()
    assert blinded(samples)[0].expression == "thing"
