"""Ask a trained method about a picture.

    predictor = Predictor.from_run("runs/cris")
    predictor.set_image("street.png")
    predictor.segment("the woman in the red hat left of the car").mask

The picture is encoded once; each further expression costs only what depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rislib.data import box_of_mask, open_picture, to_tensor
from rislib.data.batches import instances_to_tensor
from rislib.evaluation import CRIS_2022, Protocol
from rislib.evaluation.protocols import score_maps
from rislib.nouns import Method
from rislib.runs import load_method


@dataclass(frozen=True)
class Segmentation:
    """The answer to one expression, at the picture's own size."""

    expression: str
    mask: np.ndarray  # (H, W) bool
    probability: np.ndarray  # (H, W) float32 in [0, 1]
    box: tuple[int, int, int, int] | None  # left, top, width, height in pixels; None where nothing was found


class Predictor:
    """A method that remembers the picture it was shown.

    Args:
        method: any trained method; put into eval mode.
        protocol: decides the threshold (`cris_2022`: a probability above 0.35).
        device: where to run; the method's own when None.
    """

    def __init__(
        self, method: Method, *, protocol: Protocol = CRIS_2022, device: torch.device | str | None = None
    ) -> None:
        self.method = method.eval() if device is None else method.eval().to(device)
        self.protocol = replace(protocol, resolution="original")
        self._features: Any = None
        self._size: tuple[int, int] | None = None

    @classmethod
    def from_run(cls, run: Path | str, **options) -> Predictor:
        """A predictor for the network of a run folder. `options` go to the constructor."""
        return cls(load_method(run), **options)

    @torch.inference_mode()
    def set_image(
        self, image: Image.Image | np.ndarray | Path | str, instances: np.ndarray | None = None
    ) -> None:
        """Look at a picture of any size: PIL, an array (H, W, 3) uint8, or a file (read upright).

        instances (N, H, W) bool are masks of things in it, best first, for methods that read them (MaIL).
        """
        if isinstance(image, (str, Path)):
            image = open_picture(image)
        elif isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        image = image.convert("RGB")
        device = next(self.method.parameters()).device
        preprocessing = self.method.preprocessing
        if instances is not None:
            instances = instances_to_tensor(instances, preprocessing)[None].to(device)
        self._size = (image.height, image.width)
        self._features = self.method.look(to_tensor(image, preprocessing)[None].to(device), instances)

    @torch.inference_mode()
    def segment(self, expression: str) -> Segmentation:
        """What `expression` refers to in the picture.

        Raises:
            RuntimeError: no picture was set.
            ValueError: the expression is empty.
        """
        if self._size is None:
            raise RuntimeError("show me a picture first: set_image(...)")
        if not expression.strip():
            raise ValueError("the expression is empty")
        device = next(self.method.parameters()).device
        tokens, token_mask = self.method.tokenize([expression])
        logits = self.method.segment(self._features, tokens.to(device), token_mask.to(device))  # (1, 1, h, w)
        scores = score_maps(logits, self.method.preprocessing, [self._size], self.protocol)[0]
        mask = self.protocol.foreground(scores)
        probability = scores.clip(0, 1) if self.protocol.score == "probability" else 1 / (1 + np.exp(-scores))
        return Segmentation(expression, mask, probability, box_of_mask(mask) if mask.any() else None)
