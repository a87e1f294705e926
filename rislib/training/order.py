"""Which samples a step sees, and what is random in it: a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accelerate.utils import set_seed

from rislib.data.batches import make_batch
from rislib.nouns import Batch, Method
from rislib.training.recipe import Recipe


def epoch_order(
    references: Sequence[Sequence[int]],
    seed: int,
    epoch: int,
    *,
    pictures: Sequence[Sequence[int]] | None = None,
) -> list[int]:
    """The samples an epoch shows: of every reference one sentence at random, in random order.

    `references` holds the indices of each reference's sentences, as `by_reference()` returns them. With
    `pictures`, the same of `by_image()`, what is said of one picture comes in a row.
    """
    rng = np.random.default_rng([seed, epoch])
    sentences = rng.integers([len(indices) for indices in references])
    order = [references[r][sentences[r]] for r in rng.permutation(len(references))]
    if pictures is not None:
        ranks = zip(rng.permutation(len(pictures)), pictures, strict=True)
        rank_of = {index: rank for rank, indices in ranks for index in indices}
        order.sort(key=rank_of.__getitem__)
    return order


class Batches:
    """Batch number `step` is a function of (seed, step) alone. Each process makes its share of it."""

    def __init__(
        self, samples: Sequence, method: Method, recipe: Recipe, seed: int, rank: int, processes: int
    ) -> None:
        self.samples, self.references = samples, samples.by_reference()
        self.pictures = samples.by_image() if recipe.by_picture else None
        self.preprocessing, self.tokenize = method.preprocessing, method.tokenize
        self.seed, self.rank = seed, rank
        self.batch_size, self.share = recipe.batch_size, recipe.batch_size // processes
        self.epoch, self.order = -1, []

    def __getitem__(self, step: int) -> Batch:
        seed_step(self.seed, step, self.rank)  # for datasets that augment
        first = step * self.batch_size + self.rank * self.share
        samples = [self.samples[self._index(number)] for number in range(first, first + self.share)]
        by_picture = self.pictures is not None
        return make_batch(samples, self.preprocessing, self.tokenize, share_pictures=by_picture)

    def _index(self, number: int) -> int:
        """The index of the sample that is shown as the training's `number`-th."""
        epoch, place = divmod(number, len(self.references))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = epoch_order(self.references, self.seed, epoch, pictures=self.pictures)
        return self.order[place]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and torch for one step of one process."""
    set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
