"""What a pretraining consists of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor, nn

from rislib.encoders import load_weights
from rislib.nouns import Batch, Preprocessing
from rislib.pretraining.scenes import Draw, Scenes
from rislib.training import Recipe


class Learner(nn.Module, ABC):
    """An encoder, and whatever else it needs to be trained by `fit`. Only the encoder is kept.

    Attributes:
        encoder: the tower, or towers.
        draw: what it is trained on: a scene's seed -> pixels and texts.
        recipe: how.
        preprocessing: of its pictures.
    """

    encoder: nn.Module
    draw: Draw
    recipe: Recipe
    preprocessing: Preprocessing

    @abstractmethod
    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B texts, as `draw` made them -> whatever of them `losses` needs, in the tokens' place."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Named scalar losses; their sum is minimised."""

    @abstractmethod
    def measure(self, samples: Scenes) -> dict:
        """What it learned, on scenes never trained on: for the record."""

    def begin(self, weights: Path | str) -> None:
        """Begin with the weights of an earlier pretraining."""
        load_weights(self.encoder, weights)

    def finish(self, samples: Scenes) -> None:
        """Whatever is to be done to the encoder at the end. `samples` as in `measure`."""

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        return ()  # all learn at one rate

    def inference_state(self) -> dict[str, Tensor]:
        return self.encoder.state_dict()
