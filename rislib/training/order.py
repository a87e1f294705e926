"""Which samples a step sees, and what is random in it: a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from accelerate.utils import set_seed
from torch.utils.data import DataLoader

from rislib.data.batches import make_batch
from rislib.data.cache import settings_of
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
    """The samples of step number `step`, in micro-batches: a function of (seed, step) alone.

    Each process makes its share of them.

    Raises:
        ValueError: the processes cannot share a batch equally, or cut their share into such micro-batches; or
            the samples' pictures are cached for another preprocessing.
    """

    def __init__(
        self,
        samples: Sequence,
        method: Method,
        recipe: Recipe,
        seed: int,
        *,
        rank: int = 0,
        processes: int = 1,
        micro_batch: int | None = None,
    ) -> None:
        self.samples, self.references = samples, samples.by_reference()
        self.pictures = samples.by_image() if recipe.by_picture else None
        self.preprocessing, self.tokenize = method.preprocessing, method.tokenize
        cache = getattr(samples, "cache", None)
        if cache is not None and cache.settings != settings_of(self.preprocessing):
            raise ValueError(f"{cache.folder} holds pictures for another network: its preprocessing differs")
        self.seed, self.rank = seed, rank
        self.batch_size, self.share = recipe.batch_size, recipe.batch_size // processes
        if self.batch_size % processes:
            raise ValueError(f"{processes} processes cannot share a batch of {self.batch_size} equally")
        self.micro_batch = min(micro_batch or self.share, self.share)
        if self.share % self.micro_batch:
            raise ValueError(f"micro-batches of {micro_batch} cannot add up to {self.share} samples")
        self.epoch, self.order = -1, []

    def __getitem__(self, step: int) -> list[Batch]:
        seed_step(self.seed, step, self.rank)  # for datasets that augment
        first = step * self.batch_size + self.rank * self.share
        return [self._batch(start) for start in range(first, first + self.share, self.micro_batch)]

    def _batch(self, first: int) -> Batch:
        samples = [self.samples[self._index(number)] for number in range(first, first + self.micro_batch)]
        by_picture = self.pictures is not None
        return make_batch(samples, self.preprocessing, self.tokenize, share_pictures=by_picture)

    def _index(self, number: int) -> int:
        """The index of the sample that is shown as the training's `number`-th."""
        epoch, place = divmod(number, len(self.references))
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = epoch_order(self.references, self.seed, epoch, pictures=self.pictures)
        return self.order[place]


def load(
    batches: Batches, steps: Iterable[int], device: torch.device, *, workers: int, channels_last: bool
) -> Iterator[list[Batch]]:
    """The micro-batches of one step after the other, on the device."""
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    for step in DataLoader(batches, batch_size=None, sampler=steps, num_workers=workers):
        moved = [batch.to(device) for batch in step]
        yield [replace(batch, image=batch.image.to(memory_format=memory_format)) for batch in moved]


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and torch for one step of one process."""
    set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))
