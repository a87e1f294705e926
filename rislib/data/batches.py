"""From samples to a batch: the one place where pictures and words become tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from rislib.data.transforms import Geometry, geometry_for, to_tensor
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
    a picture (by its `image_id`) that several samples show is in the batch once.

    Raises:
        ValueError: without samples.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample")
    geometries = [geometry_for(preprocessing, *sample.mask.shape) for sample in samples]
    tokens, token_mask = tokenize([sample.expression for sample in samples])
    shown = {sample.image_id: sample.image for sample in samples}
    if share_pictures and len(shown) < len(samples):
        rows = {image_id: row for row, image_id in enumerate(shown)}
        images = list(shown.values())
        picture = torch.tensor([rows[sample.image_id] for sample in samples])
    else:
        images, picture = [sample.image for sample in samples], None
    masks = [geometry.mask(sample.mask) for geometry, sample in zip(geometries, samples, strict=True)]
    return Batch(
        image=torch.stack([to_tensor(image, preprocessing) for image in images]),
        tokens=tokens,
        token_mask=token_mask,
        mask=torch.from_numpy(np.stack(masks)[:, None]),  # (B, 1, size, size)
        instances=_collate_instances(samples, geometries, preprocessing.size),
        picture=picture,
    )


def _collate_instances(samples: Sequence[Sample], geometries: Sequence[Geometry], size: int) -> Tensor | None:
    """The samples' instance masks -> (B, N, size, size) float32, or None where a sample has none."""
    if any(sample.instances is None for sample in samples):
        return None
    most = max(len(sample.instances) for sample in samples)
    collated = torch.zeros(len(samples), most, size, size)
    for row, (sample, geometry) in enumerate(zip(samples, geometries, strict=True)):
        for column, mask in enumerate(sample.instances):
            collated[row, column] = torch.from_numpy(geometry.mask(mask))
    return collated
