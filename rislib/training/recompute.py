"""Activation checkpointing: memory for time (Chen et al., 2016, arXiv 1604.06174).

What a block computes between its input and its output is forgotten at once, and computed again when the
backward pass needs it: a third more work. Losses and gradients are the same, dropout included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from open_clip.modified_resnet import Bottleneck
from open_clip.transformer import ResidualAttentionBlock
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.vilt.modeling_vilt import ViltLayer

from rislib.encoders.swin import SwinEncoder
from rislib.methods.layers import DecoderLayer
from rislib.methods.mask2former import DeformableLayer

BLOCKS = {
    Bottleneck: "forward",
    ResidualAttentionBlock: "forward",
    BertLayer: "forward",
    ViltLayer: "forward",
    SwinEncoder: "block",  # which it calls for each of its blocks
    DecoderLayer: "forward",
    DeformableLayer: "forward",
}


def checkpoint_blocks(network: nn.Module, on: bool = True) -> None:
    """From now on the blocks of all towers and decoders in `network` forget and compute again, or do not."""
    for module in network.modules():
        if (name := BLOCKS.get(type(module))) is not None:
            vars(module).pop(name, None)  # whatever an earlier call has put before the class's own
            if on:
                setattr(module, name, partial(_checkpointed, module, getattr(module, name)))


def _checkpointed(module: nn.Module, compute: Callable, *inputs: Any, **options: Any) -> Any:
    def first_and_again() -> tuple[AbstractContextManager, AbstractContextManager]:
        return nullcontext(), _statistics_set_aside(module)

    # A compiler sees for itself what must not happen twice, and knows no such contexts.
    contexts = {} if torch.compiler.is_compiling() else {"context_fn": first_and_again}
    return checkpoint(compute, *inputs, use_reentrant=False, **contexts, **options)


@contextmanager
def _statistics_set_aside(module: nn.Module) -> Iterator[None]:
    """Batch norms within `module` remember in copies that are then forgotten: they see no batch twice."""
    norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm))]
    remembered = [(norm, name, value) for norm in norms for name, value in norm.named_buffers()]
    for norm, name, value in remembered:
        setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, name, value in remembered:
            setattr(norm, name, value)
