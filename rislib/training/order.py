"""Which samples a step sees, and what is random in it: a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from accelerate.utils import set_seed

from rislib.data.batches import make_batch
from rislib.nouns import Batch, Method


def epoch_order(references: Sequence[Sequence[int]], seed: int, epoch: int) -> list[int]:
    """The samples an epoch shows: of every reference one sentence at random, in random order.

    `references` holds the indices of each reference's sentences, as `by_reference()` returns them.
    """
    rng = np.random.default_rng([seed, epoch])
    sentences = rng.integers([len(indices) for indices in references])
    return [references[r][sentences[r]] for r in rng.permutation(len(references))]


class Batches:
    """Batch number `step` is a function of (seed, step) alone. Each process makes its share of it."""

    def __init__(
        self, samples: Sequence, method: Method, seed: int, batch_size: int, rank: int, processes: int
    ) -> None:
        self.samples, self.references = samples, samples.by_reference()
        self.preprocessing, self.tokenize = method.preprocessing, method.tokenize
        self.seed, self.batch_size, self.rank, self.processes = seed, batch_size, rank, processes
        self.epoch, self.order = -1, []

    def __getitem__(self, step: int) -> Batch:
        seed_step(self.seed, step, self.rank)  # for datasets that augment
        share = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.processes)
        samples = [self.samples[self._index(number)] for number in share]
        return make_batch(samples, self.preprocessing, self.tokenize)

    def _index(self, number: int) -> int:
        """The index of the sample that is shown as the training's `number`-th."""
        epoch, place = divmod(number, len(self.references))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.references, self.seed, epoch)
        return self.order[place]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and torch for one step of one process."""
    set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
