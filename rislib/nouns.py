"""The nouns of referring image segmentation, as every floor of rislib uses them.

- `Sample`: one picture, one expression, the mask it refers to. What datasets hold.
- `Batch`: tensors, ready for a network. What methods are trained on.
- `Method`: a network that turns (image, tokens) into mask logits. One per paper.

The other two live where they are used: `rislib.evaluation.Protocol` says how a number
is made, `rislib.training.Recipe` how a method is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


@dataclass(frozen=True)
class Sample:
    """One expression about one picture, with the mask that it refers to."""

    image: Image.Image  # RGB, at its original size; out of a cache, at a network's
    expression: str
    mask: np.ndarray  # (H, W) bool, at the image's original size
    image_id: int
    ann_id: int
    ref_id: int
    sent_id: int
    split: str
    category: str
    kind: str | None = None  # what the expression turns on (colour, relation, ...), where known
    instances: np.ndarray | None = None  # (N, H, W) bool, masks of things, in their source's order


@dataclass(frozen=True)
class Batch:
    """What a method is trained on. B samples, L tokens, N instance masks; P pictures, mostly B of them."""

    image: Tensor  # (P, 3, H, W) float, normalised as the method's `preprocessing` says
    tokens: Tensor  # (B, L) int64
    token_mask: Tensor  # (B, L) bool, True at words and special tokens, False at padding
    mask: Tensor  # (B, 1, H, W) float in [0, 1], in the geometry of `image`
    instances: Tensor | None = None  # (P, N, H, W) float in [0, 1], each picture's; some may be empty
    picture: Tensor | None = None  # (B,) int64, the row of `image` that each sample shows; None: its own

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with every tensor on `device`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in tensors.items() if v is not None})


@dataclass(frozen=True)
class Reading:
    """What a method knows when it has read picture and sentence, and has not yet made a mask."""

    words: Tensor  # (B, L, C_t), a state per token
    tower: tuple[Tensor, ...]  # (B, C_i, h_i, w_i), finest first: the picture before words join in at stage i
    maps: tuple[Tensor, ...] = ()  # the same, after words have joined in, where they do
    sentence: Tensor | None = None  # (B, C_s), where one vector says it all


@dataclass(frozen=True)
class Preprocessing:
    """How a method wants its pictures. It travels with the network, since the papers disagree."""

    size: int  # side of the square input, pixels
    resize: Literal["letterbox", "stretch"]  # keep the aspect ratio and pad, or not
    mean: tuple[float, float, float]  # per channel, of values in [0, 1]; letterbox pads with it
    std: tuple[float, float, float]


class Method(nn.Module, ABC):
    """A referring segmentation network.

    A subclass sets `preprocessing` and `tokenizer` and implements the four abstract methods; whoever holds a
    Method can then train it (`rislib.training.fit`), measure it (`rislib.evaluation.evaluate`)
    and ask it (`rislib.predict.Predictor`) without knowing which paper it comes from.
    """

    preprocessing: Preprocessing
    tokenizer: Callable[[Sequence[str]], tuple[Tensor, Tensor]]  # as `tokenize` says
    built_by: tuple[Callable[..., Method], dict[str, Any]] | None = None  # see `named_size`

    # Parts by name: (builder options that leave it out, builder options that add it).
    parts: ClassVar[Mapping[str, tuple[dict[str, Any], dict[str, Any]]]] = {}
    # Modules, and builders' options, that only training needs: neither is in any exported network.
    training_only: ClassVar[tuple[str, ...]] = ("grounding", "mask_grounding")
    # Whether `encode_image` takes a second argument, the picture's instance masks, which may be None.
    reads_instances: ClassVar[bool] = False

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B expressions -> tokens (B, L) int64 and token_mask (B, L) bool, True at real tokens."""
        return self.tokenizer(expressions)

    @abstractmethod
    def encode_image(self, image: Tensor) -> Any:
        """image (B, 3, H, W) -> whatever of the computation does not depend on the expression.

        A tensor, or a dataclass of tensors, the pictures first.
        """

    @abstractmethod
    def segment(self, features: Any, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """What `encode_image` returned, and tokens (B, L) -> logits (B, 1, h, w)."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses, in the paper's names; their sum is minimised."""

    @abstractmethod
    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters that start from pretrained towers: recipes give them a smaller learning rate."""

    def read(self, features: Any, tokens: Tensor, token_mask: Tensor) -> Reading:
        """The first part of `segment`, for losses of words and pixels: see `rislib.methods.grounding`.

        Whatever the answer knows of the sentence must come from `tokens`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what it reads")

    def forward(
        self,
        image: Tensor,
        tokens: Tensor,
        token_mask: Tensor | None = None,
        instances: Tensor | None = None,
    ) -> Tensor:
        """image (B, 3, H, W), tokens (B, L) -> logits (B, 1, h, w), before any sigmoid.

        Without a `token_mask`, tokens of id 0 are padding. instances (B, N, H, W), where they are read.
        """
        token_mask = tokens != 0 if token_mask is None else token_mask
        return self.segment(self.look(image, instances), tokens, token_mask)

    def look(self, image: Tensor, instances: Tensor | None = None) -> Any:
        """`encode_image`, of any method: instances (B, N, H, W) reach only those who read them."""
        return self.encode_image(image, instances) if self.reads_instances else self.encode_image(image)

    def features(self, batch: Batch) -> Any:
        """What `encode_image` says of each sample's picture. Samples that share a picture share the work."""
        features = self.look(batch.image, batch.instances)
        return features if batch.picture is None else _rows(features, batch.picture)

    def strip(self) -> Self:
        """Remove, in place, the modules that only training needs; no mask changes."""
        for name, _ in list(self.named_children()):
            if name in self.training_only:
                setattr(self, name, None)
        return self

    def inference_state(self) -> dict[str, Tensor]:
        """The state dict without what `strip` removes."""
        state = self.state_dict()
        return {key: value for key, value in state.items() if key.split(".")[0] not in self.training_only}


def named_size(builder: Callable[..., Method]) -> Callable[..., Method]:
    """Decorates a builder: its networks remember that it made them, and from which options."""

    @wraps(builder)
    def build(*pretrained, **options) -> Method:
        network = builder(*pretrained, **options)
        options.pop("pretrained", None)  # where the weights began is no part of the network
        network.built_by = build, options
        return network

    return build


def _rows(features: Any, index: Tensor) -> Any:
    """These rows of a tensor, or of every tensor in a dataclass."""
    if isinstance(features, Tensor):
        return features.index_select(0, index)
    if not is_dataclass(features):
        return features
    return replace(features, **{f.name: _rows(getattr(features, f.name), index) for f in fields(features)})
