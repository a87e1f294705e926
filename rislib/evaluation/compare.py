"""Is one method better than another? A difference in points, with a 95 % interval.

Two things are random, and each has its interval. With other *pictures* of the same sort the difference would
be another: both methods are asked about the same ones, so pictures are drawn again in pairs. With another
*seed* each training would have ended elsewhere: runs of the same seed saw the same samples in the same order,
so they are compared two by two. Which of the two intervals is wider says what there was too little of.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Student's t, 97.5 %, for 0, 1, ... 9 degrees of freedom.
STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Difference:
    """Points of percent by which the first is ahead of the second, and between which bounds that may lie."""

    points: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Does the interval leave no doubt about the sign?"""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.points:+.1f}"
        return f"{self.points:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


def compare_pictures(
    first: Sequence[Mapping[str, Sequence]],
    second: Sequence[Mapping[str, Sequence]],
    metric: Literal["oIoU", "mIoU"] = "oIoU",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Difference:
    """Paired bootstrap over pictures; trainings stay as they are.

    Args:
        first, second: for each run of a method `Scores.by_picture()`. Of several runs (seeds) the
            means are compared.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3; pictures are drawn,
    each with all of its expressions and for both methods at once.

    Raises:
        ValueError: runs were not asked about the same pictures and expressions.
    """
    asked = {(tuple(run["image_ids"]), tuple(run["expressions"])) for run in (*first, *second)}
    if len(asked) != 1:
        raise ValueError(
            "only runs that were asked about the same pictures can be compared picture by picture"
        )
    ahead = _redrawn(first, metric, resamples, seed) - _redrawn(second, metric, resamples, seed)
    return Difference(float(ahead[0]), *np.percentile(ahead[1:], [2.5, 97.5]).tolist())


def mean_interval(
    runs: Sequence[Mapping[str, Sequence]],
    metric: Literal["oIoU", "mIoU"] = "oIoU",
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval over pictures, (low, high) in percent, of the mean of several runs."""
    low, high = np.percentile(_redrawn(runs, metric, resamples, seed)[1:], [2.5, 97.5])
    return float(low), float(high)


def compare_seeds(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Student's 95 % interval of the mean difference; pictures stay as they are.

    Args:
        first, second: one metric of runs, in percent; run i of both had the same seed. One pair alone has no
            interval: its bounds are infinite.

    Raises:
        ValueError: not as many of one as of the other, none, or more than ten.
    """
    if len(first) != len(second) or not 0 < len(first) <= len(STUDENT):
        raise ValueError(f"{len(first)} and {len(second)} runs cannot be paired")
    differences = np.subtract(first, second)
    points, n = float(differences.mean()), len(differences)
    if n == 1:
        return Difference(points, -math.inf, math.inf)
    half = STUDENT[n - 1] * float(differences.std(ddof=1)) / math.sqrt(n)
    return Difference(points, points - half, points + half)


def _redrawn(runs: Sequence[Mapping[str, Sequence]], metric: str, resamples: int, seed: int) -> np.ndarray:
    """The runs' mean metric in percent, (1 + resamples,): of all pictures, then of pictures drawn anew."""
    above, below = {"oIoU": ("intersections", "unions"), "mIoU": ("ious", "expressions")}[metric]
    pictures = len(runs[0]["image_ids"])
    drawn = np.random.default_rng(seed).multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples)
    drawn = np.concatenate([np.ones((1, pictures)), drawn])  # (1 + resamples, pictures)
    # Where nothing was marked and nothing was there, both sums are 0, and so is the metric.
    return np.mean([100 * (drawn @ run[above]) / np.maximum(drawn @ run[below], 1) for run in runs], axis=0)
