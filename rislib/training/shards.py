"""FSDP: weights, gradients and the optimiser's averages shared out between processes (arXiv 2304.11277).

Each process holds its rows of every parameter that learns. For a step all gather the rest, and of the
gradients each keeps its rows again. The network is one unit: within a step it is whole, so that losses may
call any part of it, as often as they like. They must reach the same parameters in every process: a network
that leaves some out in one of them alone would wait forever, where DistributedDataParallel finds out.

accelerate is asked whether, and torch does it: accelerate's own FSDP knows no CPUs, and turns all into bf16
that a recipe computes in mixed precision.
"""

from __future__ import annotations

import os

import torch
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def sharing() -> bool:
    """Whether accelerate is configured for FSDP, by `accelerate launch --use_fsdp` or by the environment."""
    return torch.distributed.is_initialized() and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def share_out(network: nn.Module) -> FSDPModule:
    """Leave to each process its rows of the first one's parameters, as DTensors. Frozen ones stay whole.

    Raises:
        ValueError: a parameter that learns is a scalar.
    """
    broadcast(network.state_dict())
    return fully_shard(network, ignored_params={p for p in network.parameters() if not p.requires_grad})


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. Of a DTensor, each process must ask for them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows(tensor: Tensor, like: Tensor | None) -> Tensor:
    """Those rows of a whole tensor that this process holds of `like`: all, if that is no DTensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def gather(network: nn.Module) -> dict[nn.Parameter, nn.Parameter]:
    """Give every process the whole network. Returns what `exchange` takes to share it out again."""
    shared = [parameter for parameter in network.parameters() if isinstance(parameter, DTensor)]
    wholes = {part: nn.Parameter(whole(part), part.requires_grad) for part in shared}
    exchange(network, wholes)
    return {parameter: part for part, parameter in wholes.items()}


def exchange(network: nn.Module, parameters: dict[nn.Parameter, nn.Parameter]) -> None:
    """Put the values of `parameters` where their keys are."""
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter in parameters:
                setattr(module, name, parameters[parameter])
