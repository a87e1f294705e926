"""Published checkpoints -> our modules.

Every entry of a published state dict is either used or refused: a checkpoint that fits by half never loads
in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rislib.methods.cris import CRIS, cris_r50, cris_r101

# Parts of our names and of the published ones (github.com/DerrickWang005/CRIS.pytorch)
_CRIS_NAMES = (
    ("connect.", "backbone.visual.attnpool.connect."),
    ("clip.model.", "backbone."),
    ("neck.p3.", "neck.f3_v_proj."),
    ("neck.p4.", "neck.f2_v_proj."),
    ("neck.p5.", "neck.f1_v_proj."),
    ("neck.sentence.", "neck.txt_proj."),
    ("neck.norm.", "neck.norm_layer."),
    ("neck.fuse4.", "neck.f2_cat."),
    ("neck.fuse3.", "neck.f3_cat."),
    ("neck.q", "neck.f4_proj"),
    ("neck.aggregate.", "neck.aggr."),
    ("neck.coordinates.0.", "neck.coordconv.0.conv1."),
    ("neck.coordinates.1.", "neck.coordconv.1."),
    (".self_attention.", ".self_attn."),
    (".self_attention_norm.", ".self_attn_norm."),
    (".cross_attention.", ".multihead_attn."),
    (".cross_attention_norm.", ".cross_attn_norm."),
    ("projector.pixels.", "proj.vis."),
    ("projector.sentence.", "proj.txt."),
)

_PUBLISHED = {"cris_r50": (cris_r50, _CRIS_NAMES), "cris_r101": (cris_r101, _CRIS_NAMES)}


def load_published(name: str, state_dict: Mapping[str, Tensor], **options) -> CRIS:
    """The network `name` with a published state dict's weights, in eval mode.

    Args:
        name: "cris_r50" or "cris_r101".
        state_dict: as published; the "module." that DistributedDataParallel puts in front is tolerated.
        options: keyword arguments of the builder, such as `dropout`.

    Raises:
        ValueError: `name` is unknown, or entries are missing, unexpected or misshapen: all are listed.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"no published checkpoint is known as {name!r}, only {', '.join(_PUBLISHED)}")
    build, names = _PUBLISHED[name]
    model = build(**options)
    fill(model, {key.removeprefix("module."): value for key, value in state_dict.items()}, names)
    return model.eval()


def published_name(ours: str, names: Sequence[tuple[str, str]]) -> str:
    """The name that one of our parameters has in the published checkpoint."""
    for part, published in names:
        ours = ours.replace(part, published)
    return ours


@torch.no_grad()
def fill(model: nn.Module, published: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> None:
    """Copy a published state dict into `model`, or, if anything does not fit, change nothing and raise.

    Batch norm's step counters may be missing: no result depends on them.

    Raises:
        ValueError: lists every entry that is missing, unexpected or misshapen, under its published name.
    """
    wanted = {published_name(name, names): tensor for name, tensor in model.state_dict().items()}
    problems = [
        *(
            f"missing: {name}"
            for name in wanted
            if name not in published and not name.endswith("num_batches_tracked")
        ),
        *(f"unexpected: {name}" for name in published if name not in wanted),
        *(
            f"misshapen: {name} is {tuple(published[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in published and published[name].shape != tensor.shape
        ),
    ]
    if problems:
        raise ValueError("this checkpoint does not fit:\n  " + "\n  ".join(problems))
    for name, tensor in published.items():
        wanted[name].copy_(tensor)
