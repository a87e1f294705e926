"""The processes of one launch: those that `accelerate launch` or torchrun started, or this one alone."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(
    hours=6
)  # while one of them validates, draws a world or caches pictures, the others wait


def processes() -> PartialState:
    """How many there are, which of them this one is, and its device. Without a GPU they talk through gloo."""
    # Left to itself, accelerate takes processes on CPUs for strangers: each would train alone.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def lost_another(error: RuntimeError) -> bool:
    """Whether `error` says that another process is gone: torch has no exception of its own for gloo's."""
    return "gloo" in str(error) or isinstance(error, getattr(torch.distributed, "DistError", ()))
