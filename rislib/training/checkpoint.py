"""All that a training is, in one file: weights, the optimiser's averages, a few numbers. No pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rislib.nouns import Method
from rislib.training.shards import rows, whole


def save_checkpoint(
    file: Path,
    method: Method,
    optimiser: torch.optim.Optimizer,
    accelerator: Accelerator,
    facts: dict[str, Any],
) -> None:
    """Save all that `restore_checkpoint` needs: model.<name>, optimiser.<name>.<average>, and facts."""
    tensors = {f"model.{name}": value for name, value in method.state_dict().items()}
    for name, parameter in _named_parameters(optimiser):
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{name}.{key}"] = value
    place = "cpu" if accelerator.is_main_process else "meta"  # others help to gather, and keep nothing
    for name in sorted(tensors):  # in one order: after a resumption each process has its own
        if isinstance(tensors[name], DTensor):
            tensors[name] = whole(tensors[name]).to(place)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None  # fp16: a few numbers
    if accelerator.is_main_process:
        save_tensors(file, tensors, {**facts, "scaler": scaler})


def restore_checkpoint(
    file: Path,
    method: Method,
    optimiser: torch.optim.Optimizer,
    accelerator: Accelerator,
    identity: dict[str, Any],
) -> tuple[int, float]:
    """Put back what `save_checkpoint` saved; steps done and seconds spent. Refuses another run's."""
    with safe_open(file, framework="pt") as stored:
        facts = {key: json.loads(text) for key, text in (stored.metadata() or {}).items()}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for key, value in json.loads(json.dumps(identity)).items():
        if facts.get(key) != value:
            raise ValueError(f"{file} cannot be resumed: {key} was {facts.get(key)}, and is {value} now")
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    state = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    own = method.state_dict()
    method.load_state_dict({name: rows(tensor, own.get(name)) for name, tensor in state.items()})
    parameters = dict(_named_parameters(optimiser))
    for path in tensors.keys() - weights.keys():
        name, _, key = path.removeprefix("optimiser.").rpartition(".")
        parameter, tensor = parameters[name], tensors[path]
        # Averages must lie in memory as their parameter does, channels last or not: fused kernels rely on it.
        like = parameter if tensor.shape == parameter.shape else tensor
        value = torch.empty_like(like, dtype=tensor.dtype, device=parameter.device)
        optimiser.state[parameter][key] = value.copy_(rows(tensor, like))
    if accelerator.scaler and facts["scaler"]:
        accelerator.scaler.load_state_dict(facts["scaler"])
    return facts["step"], facts["seconds"]


def _named_parameters(optimiser: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    groups = optimiser.param_groups
    return [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]


def save_tensors(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a safetensors file that is complete whenever it is there: a kill leaves the one before."""
    copies = {
        # A copy each, since safetensors refuses tensors that share memory or are not contiguous.
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    partial = file.with_suffix(".partial")
    save_file(copies, partial, metadata={key: json.dumps(value) for key, value in facts.items()})
    with partial.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(partial, file)
