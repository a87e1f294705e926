"""From samples to a batch: the one place where pictures and words become tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rislib.data.transforms import geometry_for, to_tensor
from rislib.nouns import Batch, Preprocessing, Sample

Tokenize = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


def make_batch(
    samples: Sequence[Sample],
    preprocessing: Preprocessing,
    tokenize: Tokenize,
    *,
    share_pictures: bool = False,
) -> Batch:
    """B samples -> a Batch of (B, 3, size, size) pictures, their words and their masks.

    `tokenize` maps B expressions to tokens (B, L) and token_mask (B, L); a method's own `preprocessing`
    and `tokenize` fit here. Instances are collated if every sample has them, as (B, N, size, size) with
    N the most of any sample; samples that have fewer are filled up with empty masks. With `share_pictures`
    a picture (by its `image_id`) that several samples show is in the batch once, and so are its instances.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    geometries = [geometry_for(preprocessing, *sample.mask.shape) for sample in samples]
    tokens, token_mask = tokenize([sample.expression for sample in samples])
    shown = {sample.image_id: sample for sample in samples}
    if share_pictures and len(shown) < len(samples):
        rows = {image_id: row for row, image_id in enumerate(shown)}
        showing = list(shown.values())
        picture = torch.tensor([rows[sample.image_id] for sample in samples])
    else:
        showing, picture = samples, None
    masks = [geometry.mask(sample.mask) for geometry, sample in zip(geometries, samples, strict=True)]
    return Batch(
        image=torch.stack([to_tensor(sample.image, preprocessing) for sample in showing]),
        tokens=tokens,
        token_mask=token_mask,
        mask=torch.from_numpy(np.stack(masks)[:, None]),  # (B, 1, size, size)
        instances=_collate_instances(showing, preprocessing),
        picture=picture,
    )


def instances_to_tensor(masks: np.ndarray, preprocessing: Preprocessing) -> Tensor:
    """A picture's instance masks (N, H, W) bool -> (N, size, size) float32 in [0, 1]."""
    geometry = geometry_for(preprocessing, *masks.shape[1:])
    resized = [torch.from_numpy(geometry.mask(mask)) for mask in masks]
    return torch.stack(resized) if resized else torch.zeros(0, preprocessing.size, preprocessing.size)


def _collate_instances(samples: Sequence[Sample], preprocessing: Preprocessing) -> Tensor | None:
    """The samples' instance masks -> (B, N, size, size) float32, or None where a sample has none."""
    if any(sample.instances is None for sample in samples):
        return None
    tensors = [instances_to_tensor(sample.instances, preprocessing) for sample in samples]
    return pad_sequence(tensors, batch_first=True)
