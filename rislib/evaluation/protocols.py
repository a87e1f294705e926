"""Named protocols: how a number is made.

Papers print "IoU" and mean different things: at the picture's own size or at the network's, after a
threshold at 0.35 or at one half, averaged over expressions or over pixels. Numbers made differently cannot
be compared, although tables put them side by side. A `Protocol` writes all of it down, and a report always
carries its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rislib.data.transforms import geometry_for
from rislib.evaluation.metrics import Scores
from rislib.nouns import Preprocessing


@dataclass(frozen=True)
class Protocol:
    """How logits become a mask, and masks a number. Every sentence of every reference is one expression."""

    name: str
    resolution: Literal["original", "input"]  # where masks are compared: the picture's size, or the network's
    score: Literal["probability", "logit"]  # what is resized and then compared with `threshold`
    resize: Literal["bicubic", "bilinear"]  # from the logits' size to the input's, corners aligned
    threshold: float
    strict_threshold: bool  # foreground is score > threshold; otherwise score >= threshold
    strict_precision: bool  # P@X counts IoU > X; otherwise IoU >= X
    eps: float  # IoU = I / (U + eps)
    headline: Literal["mIoU", "oIoU"]  # the metric that papers using this protocol compare
    source: str

    def foreground(self, scores: np.ndarray) -> np.ndarray:
        """Scores of any shape -> bool."""
        threshold = np.float32(self.threshold)
        return scores > threshold if self.strict_threshold else scores >= threshold

    def scores(self) -> Scores:
        """Empty scores that count as this protocol does."""
        return Scores(eps=self.eps, strict=self.strict_precision)


# The "IoU" of CRIS's tables is a mean over expressions, as its author confirms (issue 12). Its validation
# during training differs from this in one point: it takes the first sentence of each reference only.
CRIS_2022 = Protocol(
    name="cris_2022",
    resolution="original",
    score="probability",
    resize="bicubic",
    threshold=0.35,
    strict_threshold=True,
    strict_precision=True,
    eps=1e-6,
    headline="mIoU",
    source="CRIS (CVPR 2022), DerrickWang005/CRIS.pytorch, engine/engine.py, inference()",
)

# The arg max of two classes is "foreground logit - background logit > 0", and a tie is background. One thing
# of the published code is left out on purpose: it adds up an object's polygons and keeps the value 1 alone,
# so that pixels under two overlapping polygons of one object (value 2) turn into background.
LAVT_2022 = Protocol(
    name="lavt_2022",
    resolution="input",
    score="logit",
    resize="bilinear",
    threshold=0.0,
    strict_threshold=True,
    strict_precision=False,
    eps=0.0,
    headline="oIoU",
    source="LAVT (CVPR 2022), yz93/LAVT-RIS, test.py, evaluate()",
)

PROTOCOLS = {protocol.name: protocol for protocol in (CRIS_2022, LAVT_2022)}


@torch.inference_mode()
def score_maps(
    logits: Tensor,
    preprocessing: Preprocessing,
    sizes: Sequence[tuple[int, int]],
    protocol: Protocol,
) -> list[np.ndarray]:
    """From a method's logits to what the protocol thresholds: probabilities, or resized logits.

    Args:
        logits: (B, 1, h, w), of any floating type, on any device.
        preprocessing: of the method that made them.
        sizes: (height, width) of each original picture.
        protocol: `resolution`, `score` and `resize` are used.

    Returns:
        B maps, float32: each (height, width), or (size, size) if the protocol compares at the input's size.

    Raises:
        ValueError: there are not as many sizes as logits.
    """
    if len(sizes) != len(logits):
        raise ValueError(f"{len(logits)} logit maps but {len(sizes)} picture sizes")
    scores = logits.float()
    if protocol.score == "probability":
        scores = scores.sigmoid()
    scores = F.interpolate(scores, (preprocessing.size,) * 2, mode=protocol.resize, align_corners=True)
    maps = list(scores.squeeze(1).cpu().numpy())  # B of (size, size)
    if protocol.resolution == "original":
        maps = [geometry_for(preprocessing, *size).inverse(m) for m, size in zip(maps, sizes, strict=True)]
    return maps


def predict_masks(
    logits: Tensor,
    preprocessing: Preprocessing,
    sizes: Sequence[tuple[int, int]],
    protocol: Protocol,
) -> list[np.ndarray]:
    """From a method's logits to masks: the one way there is, for evaluation and for use.

    Arguments and errors as in `score_maps`; B masks, bool, of the same sizes. To see a mask at the picture's
    own size under a protocol that compares at the network's, pass `replace(protocol, resolution="original")`.
    """
    return [protocol.foreground(scores) for scores in score_maps(logits, preprocessing, sizes, protocol)]


def target_mask(mask: np.ndarray, preprocessing: Preprocessing, protocol: Protocol) -> np.ndarray:
    """The ground truth (H, W) bool where the protocol compares: as it is, or brought to (size, size).

    A stretched mask takes its nearest pixel, as in LAVT. A letterboxed one, which no published code compares
    at the input's size, is interpolated and cut at one half.
    """
    if protocol.resolution == "original":
        return mask
    return geometry_for(preprocessing, *mask.shape).mask(mask) > 0.5
