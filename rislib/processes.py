"""The processes of one launch: those that `accelerate launch` or torchrun started, or this one alone."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """How many there are, which of them this one is, and its device. Without a GPU they talk through gloo."""
    # Left to itself, accelerate takes processes on CPUs for strangers: each would train alone.
    return PartialState(cpu=not torch.accelerator.is_available())


def lost_another(error: RuntimeError) -> bool:
    """Whether `error` says that another process is gone: torch has no exception of its own for gloo's."""
    return "gloo" in str(error) or isinstance(error, getattr(torch.distributed, "DistError", ()))
