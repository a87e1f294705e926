"""One optimiser step: what `fit` repeats, and what `rislib.benchmark` times."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from rislib.nouns import Batch, Method
from rislib.processes import processes
from rislib.training.recipe import Recipe, parameter_groups
from rislib.training.recompute import checkpoint_blocks
from rislib.training.shards import share_out, sharing, whole


class Losses(nn.Module):
    """A method whose forward gives its losses: forward is all that DistributedDataParallel wraps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.losses(batch)


def make_accelerator(precision: str) -> Accelerator:
    """Accelerate for this process's device, in a recipe's precision.

    Raises:
        ValueError: accelerate is configured for DeepSpeed, Megatron or the first FSDP.
    """
    # accelerate keeps one state per process and refuses a second precision; notebooks train many times.
    AcceleratorState._reset_state()
    processes()
    if sharing() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError("of FSDP there is version 2 alone: launch with --use_fsdp --fsdp_version 2")
    # Pretrained towers have parameters that no loss depends on, such as CLIP's temperature.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[unused]
    )
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"{accelerator.distributed_type.value} is not supported: checkpoints would be torn. "
            "Launch with --multi_gpu or, to share out weights, with --use_fsdp --fsdp_version 2"
        )
    if accelerator.device.type == "cpu":
        _keep_memory()
    return accelerator


def make_optimiser(method: Method, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """The recipe's optimiser over `parameter_groups`, fused where torch can."""
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimiser]
    return kind(parameter_groups(method, recipe), fused=device.type in {"cpu", "cuda", "mps", "xpu"})


def prepare(
    method: Method,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    channels_last: bool = False,
    checkpointing: bool = False,
    compile: bool = False,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The method's `Losses`, on its device and ready to learn, and the optimiser. Arguments as in `fit`."""
    # FSDP refuses kernels that are not contiguous.
    memory_format = torch.channels_last if channels_last and not sharing() else torch.preserve_format
    method.to(accelerator.device, memory_format=memory_format).train()
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    checkpoint_blocks(method, checkpointing)
    losses = Losses(method)
    if compile:
        losses.compile()
    if sharing():
        in_precision = accelerator.prepare_model(losses, evaluation_mode=True)  # autocast alone, no DDP
        network = share_out(in_precision)  # first: the optimiser's parameters are the parts
        return network, accelerator.prepare_optimizer(make_optimiser(method, recipe, accelerator.device))
    return accelerator.prepare(losses, make_optimiser(method, recipe, accelerator.device))


def losses_of(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """The losses, with the attention that trains fastest."""
    with fast_attention(batch.image.device):
        return network(batch)


def fast_attention(device: torch.device) -> AbstractContextManager:
    """On CPUs torch's fused attention is slow backwards: written out it is faster."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def optimise(
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    accelerator: Accelerator,
    batches: Sequence[Batch],
    clip_norm: float = 0.0,
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """One step over micro-batches of one size, whose gradients add up to the mean.

    Returns their mean losses, the sum of these, and the norm of all gradients together before clipping.
    """
    optimiser.zero_grad()
    parts = []
    for number, batch in enumerate(batches, start=1):
        # Gradients travel between the processes once, with the last micro-batch.
        with nullcontext() if number == len(batches) else accelerator.no_sync(network):
            losses = losses_of(network, batch)
            with fast_attention(accelerator.device):  # checkpointed blocks compute it once more
                accelerator.backward(sum(losses.values()) / len(batches))
        parts.append({name: loss.detach() for name, loss in losses.items()})
    norm = whole(accelerator.clip_grad_norm_(network.parameters(), clip_norm or math.inf))
    optimiser.step()
    losses = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
    return losses, sum(losses.values()), norm


def _keep_memory() -> None:
    """Ask glibc to keep freed memory: mapping every large tensor anew takes a quarter of a CPU step."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            trim_threshold, mmap_max = -1, -4  # malloc.h
            libc.mallopt(trim_threshold, 2**31 - 1)
            libc.mallopt(mmap_max, 0)
