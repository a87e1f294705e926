"""Is one method better than another? `rislib.evaluation.compare` against plain loops and known quantiles."""

import math

import numpy as np
import pytest

from rislib.evaluation import Difference, Scores, compare_pictures, compare_seeds


def sums(rng: np.random.Generator, skill: float, pictures: int = 60) -> dict[str, list]:
    """A method that is right about a `skill`-th part of each union, noisily, one to three times a picture."""
    expressions = np.random.default_rng(0).integers(1, 4, pictures)  # the same for all methods
    unions = rng.integers(50, 500, pictures)
    return {
        "image_ids": list(range(pictures)),
        "expressions": expressions.tolist(),
        "intersections": (unions * np.clip(rng.normal(skill, 0.1, pictures), 0, 1)).astype(int).tolist(),
        "unions": unions.tolist(),
        "ious": (expressions * skill).tolist(),
    }


def o_iou(run, pictures):
    return 100 * sum(run["intersections"][i] for i in pictures) / sum(run["unions"][i] for i in pictures)


def test_the_difference_is_that_of_the_metric():
    rng = np.random.default_rng(1)
    better, worse = sums(rng, 0.7), sums(rng, 0.5)
    found = compare_pictures([better], [worse])
    assert found.points == pytest.approx(o_iou(better, range(60)) - o_iou(worse, range(60)))
    assert found.low < found.points < found.high and found.decided
    assert compare_pictures([better], [worse], "mIoU").points == pytest.approx(20)


def test_the_interval_agrees_with_a_loop_that_draws_pictures():
    rng = np.random.default_rng(2)
    first, second = sums(rng, 0.6), sums(rng, 0.58)
    differences = []
    for _ in range(4000):
        drawn = rng.integers(0, 60, 60)
        differences.append(o_iou(first, drawn) - o_iou(second, drawn))
    found = compare_pictures([first], [second], resamples=4000)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])), abs=0.3)


def test_pairs_are_kept_together():
    """Both fail on the same pictures: drawn apart, their difference would drown in that of the pictures."""
    rng = np.random.default_rng(3)
    run = sums(rng, 0.5)
    run["intersections"] = (np.asarray(run["unions"]) * rng.choice([0.1, 0.9], 60)).astype(int).tolist()
    ahead = {**run, "intersections": [i + 1 for i in run["intersections"]]}
    found = compare_pictures([ahead], [run])
    assert found.decided and found.high - found.low < 0.2


def test_several_runs_count_by_their_mean():
    rng = np.random.default_rng(4)
    runs, base = [sums(rng, 0.6), sums(rng, 0.5)], [sums(rng, 0.4)]
    each = [compare_pictures([run], base).points for run in runs]
    assert compare_pictures(runs, base).points == pytest.approx(np.mean(each))


def test_scores_give_what_is_compared():
    scores = Scores()
    for picture in (3, 1, 3):
        scores.add(np.eye(4, dtype=bool), np.ones((4, 4), bool), image_id=picture)
    assert compare_pictures([scores.by_picture()], [scores.by_picture()]) == Difference(0.0, 0.0, 0.0)


def test_other_pictures_cannot_be_compared():
    run = sums(np.random.default_rng(5), 0.5)
    other = {**run, "image_ids": [i + 1 for i in run["image_ids"]]}
    with pytest.raises(ValueError, match="same pictures"):
        compare_pictures([run], [other])


def test_seeds_by_students_formula():
    found = compare_seeds([54.0, 54.1, 54.8], [50.0, 52.1, 51.8])
    differences = np.array([4.0, 2.0, 3.0])
    half = 4.303 * differences.std(ddof=1) / math.sqrt(3)
    assert (found.points, found.low, found.high) == pytest.approx((3.0, 3 - half, 3 + half))
    assert found.decided and str(found) == "+3.0 (+0.5 to +5.5)"


def test_the_quantiles_hold_their_promise():
    """Of many small samples from a normal distribution, 95 % have its mean inside their interval."""
    rng = np.random.default_rng(6)
    for n in (2, 3, 5):
        drawn = rng.normal(1.0, 2.0, (4000, n))
        intervals = [compare_seeds(row, np.zeros(n)) for row in drawn]
        inside = np.mean([i.low <= 1.0 <= i.high for i in intervals])
        assert inside == pytest.approx(0.95, abs=0.012)


def test_one_seed_decides_nothing():
    found = compare_seeds([60.0], [10.0])
    assert not found.decided and str(found) == "+50.0"


def test_seeds_come_in_pairs():
    with pytest.raises(ValueError, match="2 and 1 runs"):
        compare_seeds([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="0 and 0 runs"):
        compare_seeds([], [])
