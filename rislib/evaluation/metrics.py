"""The metrics of referring segmentation, counted in integers.

One expression leaves two whole numbers behind: the pixels that prediction and ground truth share (I),
and the pixels that either of them has (U). Every metric is made of these:

- IoU of one expression: I / U
- mIoU, the mean IoU: every expression counts the same
- oIoU, the overall IoU: sum of all I / sum of all U, so that large objects count more
- P@X, precision at X: the share of expressions whose IoU is above X

Because integers are kept and not running means, two halves of a data set can be counted apart and merged,
in any order, and the result is the same to the last bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from rislib.evaluation.compare import mean_interval

PRECISION_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)
# Shares of the picture, at most; of RefMini's val they are 28, 45 and 28 %.
SIZES = {"small": 0.04, "medium": 0.08, "large": 1.0}


def intersection_and_union(prediction: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Pixels that both masks have, and pixels that at least one of them has.

    Args:
        prediction: (H, W) bool.
        target: (H, W) bool.

    Raises:
        ValueError: the masks differ in shape.
        TypeError: one of them is not boolean. Masks of 0 and 255, or soft ones, need a threshold first.
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction {prediction.shape} and target {target.shape} differ in shape")
    if prediction.dtype != bool or target.dtype != bool:
        raise TypeError(f"masks must be bool, got prediction {prediction.dtype} and target {target.dtype}")
    intersection = np.count_nonzero(prediction & target)
    union = np.count_nonzero(prediction | target)
    return int(intersection), int(union)


@dataclass
class Scores:
    """What has been counted so far, one entry per expression. All results are in percent.

    Args:
        eps: added to the union of each expression: IoU = I / (U + eps). An expression whose prediction
            and ground truth are both empty has IoU 0, whatever eps is.
        strict: P@X counts IoU > X; otherwise IoU >= X.
    """

    eps: float = 0.0
    strict: bool = False
    intersections: list[int] = field(default_factory=list, repr=False)
    unions: list[int] = field(default_factory=list, repr=False)
    image_ids: list[int] = field(default_factory=list, repr=False)
    kinds: list[str | None] = field(default_factory=list, repr=False)
    shares: list[float] = field(default_factory=list, repr=False)  # of the picture that the target covers

    def add(
        self,
        prediction: np.ndarray,
        target: np.ndarray,
        *,
        image_id: int,
        kind: str | None = None,
        share: float | None = None,
    ) -> None:
        """Count one expression. Masks are (H, W) bool; errors as in `intersection_and_union`.

        Args:
            share: of the picture that the target covers; of `target` if None. They differ where a protocol
                compares on a letterboxed square.
        """
        intersection, union = intersection_and_union(prediction, target)
        self.intersections.append(intersection)
        self.unions.append(union)
        self.image_ids.append(image_id)
        self.kinds.append(kind)
        self.shares.append(float(target.mean()) if share is None else share)

    def merge(self, other: Scores) -> Scores:
        """The counts of both together, as new scores.

        Raises:
            ValueError: they were made with different eps or strictness.
        """
        if (self.eps, self.strict) != (other.eps, other.strict):
            raise ValueError("scores made under different protocols cannot be merged")
        return Scores(
            self.eps,
            self.strict,
            self.intersections + other.intersections,
            self.unions + other.unions,
            self.image_ids + other.image_ids,
            self.kinds + other.kinds,
            self.shares + other.shares,
        )

    def __len__(self) -> int:
        return len(self.unions)

    def ious(self) -> np.ndarray:
        """IoU of each expression, (n,) float64 in [0, 1] (not percent), in the order they were added."""
        union = np.asarray(self.unions, dtype=np.float64)
        return _ratio(np.asarray(self.intersections), union + self.eps * (union > 0))

    def overall_iou(self) -> float:
        """oIoU: sum of intersections / sum of unions. No eps: a sum over a data set needs none."""
        self._require_some()
        return 100 * sum(self.intersections) / max(sum(self.unions), 1)

    def mean_iou(self) -> float:
        """mIoU: the mean of `ious`."""
        self._require_some()
        # fsum rounds once, at the end; a plain sum would depend on the order.
        return 100 * math.fsum(self.ious()) / len(self)

    def precision_at(self, level: float) -> float:
        """P@X: the share of expressions whose IoU reaches `level` (in [0, 1]), or exceeds it if `strict`."""
        self._require_some()
        ious = self.ious()
        return 100 * np.count_nonzero(ious > level if self.strict else ious >= level) / len(self)

    def summary(self) -> dict[str, float]:
        """Every metric by the name that papers give it: oIoU, mIoU, P@0.5 ... P@0.9."""
        precisions = {f"P@{level}": self.precision_at(level) for level in PRECISION_LEVELS}
        return {"oIoU": self.overall_iou(), "mIoU": self.mean_iou()} | precisions

    def by_kind(self) -> dict[str, Scores]:
        """The scores of each kind of expression, sorted by name. Expressions without a kind are left out."""
        known = sorted({kind for kind in self.kinds if kind is not None})
        return {kind: self._select([k == kind for k in self.kinds]) for kind in known}

    def by_size(self) -> dict[str, Scores]:
        """The scores of small, medium and large targets, as far as there are any: see `SIZES`."""
        names, edges = list(SIZES), np.asarray(list(SIZES.values()))
        sizes = [names[i] for i in np.searchsorted(edges, self.shares)]
        return {name: self._select([size == name for size in sizes]) for name in names if name in sizes}

    def by_picture(self) -> dict[str, list]:
        """The sums over each picture's expressions, pictures in the order of their ids.

        They are all that an interval needs, or a comparison of two methods, since pictures are what is drawn.

        Returns:
            {"image_ids", "expressions", "intersections", "unions", "ious"}; IoUs in [0, 1].
        """
        columns = (np.ones(len(self)), self.intersections, self.unions, self.ious())
        # Sorted first, so that neither the sums nor the draws know in which order expressions were added.
        order = np.lexsort((*columns, self.image_ids))
        image_ids, picture = np.unique(np.asarray(self.image_ids)[order], return_inverse=True)
        n, intersections, unions, ious = (np.bincount(picture, np.asarray(c)[order]) for c in columns)
        return {
            "image_ids": image_ids.tolist(),
            "expressions": n.astype(int).tolist(),
            "intersections": intersections.astype(int).tolist(),
            "unions": unions.astype(int).tolist(),
            "ious": ious.tolist(),
        }

    def interval(
        self,
        metric: Literal["oIoU", "mIoU"] = "oIoU",
        *,
        resamples: int = 1000,
        seed: int = 0,
    ) -> tuple[float, float]:
        """95 % bootstrap interval: where the metric might lie with other pictures of the same sort.

        Pictures are drawn with replacement, each with all of its expressions. Expressions about one picture
        succeed and fail together, so drawing them one by one would promise too narrow an interval.

        Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3 (percentile
        interval); resampling whole clusters as in Davison and Hinkley (1997), section 3.8.

        Returns:
            (low, high) in percent.
        """
        self._require_some()
        return mean_interval([self.by_picture()], metric, resamples=resamples, seed=seed)

    def _select(self, keep: list[bool]) -> Scores:
        columns = (self.intersections, self.unions, self.image_ids, self.kinds, self.shares)
        return Scores(
            self.eps, self.strict, *([v for v, k in zip(c, keep, strict=True) if k] for c in columns)
        )

    def _require_some(self) -> None:
        if not self.unions:
            raise ValueError("nothing has been counted yet: a metric of no expression is undefined")


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """numerator / denominator, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(denominator)), where=denominator > 0)
