"""Published checkpoints -> our modules.

A published state dict is renamed entry by entry, and every entry is either used or refused: a checkpoint
that fits by half never loads in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from rislib.methods.cris import CRIS, cris_r50, cris_r101

# The published names of CRIS (github.com/DerrickWang005/CRIS.pytorch) and ours, the first match counts.
_CRIS_NAMES = (
    (r"backbone\.visual\.attnpool\.connect\.", "connect."),
    (r"backbone\.", "clip.model."),
    (r"neck\.txt_proj\.", "neck.sentence."),
    (r"neck\.f1_v_proj\.", "neck.p5."),
    (r"neck\.f2_v_proj\.", "neck.p4."),
    (r"neck\.f3_v_proj\.", "neck.p3."),
    (r"neck\.norm_layer\.", "neck.norm."),
    (r"neck\.f2_cat\.", "neck.fuse4."),
    (r"neck\.f3_cat\.", "neck.fuse3."),
    (r"neck\.f4_proj([345])\.", r"neck.q\1."),
    (r"neck\.aggr\.", "neck.aggregate."),
    (r"neck\.coordconv\.0\.conv1\.", "neck.coordinates.0."),
    (r"neck\.coordconv\.1\.", "neck.coordinates.1."),
    (r"decoder\.layers\.(\d+)\.self_attn\.", r"decoder.layers.\1.self_attention."),
    (r"decoder\.layers\.(\d+)\.self_attn_norm\.", r"decoder.layers.\1.self_attention_norm."),
    (r"decoder\.layers\.(\d+)\.multihead_attn\.", r"decoder.layers.\1.cross_attention."),
    (r"decoder\.layers\.(\d+)\.cross_attn_norm\.", r"decoder.layers.\1.cross_attention_norm."),
    (r"proj\.vis\.", "projector.pixels."),
    (r"proj\.txt\.", "projector.sentence."),
)

_BUILDERS: dict[str, Callable[..., CRIS]] = {"cris_r50": cris_r50, "cris_r101": cris_r101}


def load_published(name: str, state_dict: Mapping[str, Tensor], **options) -> CRIS:
    """The network `name` with a published state dict's weights, in eval mode.

    Args:
        name: "cris_r50" or "cris_r101".
        state_dict: as published; the "module." that DistributedDataParallel puts in front is tolerated.
        options: keyword arguments of the builder, such as dropout.

    Raises:
        ValueError: `name` is unknown, or some entries are missing, unexpected or misshapen: all are listed,
            under their published names where there is one.
    """
    if name not in _BUILDERS:
        raise ValueError(f"no published checkpoint is known as {name!r}, only {', '.join(_BUILDERS)}")
    model = _BUILDERS[name](pretrained=None, **options)
    published = {key.removeprefix("module."): value for key, value in state_dict.items()}
    fill(model, {rename(key): value for key, value in published.items()})
    return model.eval()
