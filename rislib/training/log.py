"""What a training writes down as it goes, and the clock that it goes by."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor


class Clock:
    """Seconds and progress of a training, over all its resumptions."""

    def __init__(
        self, accelerator: Accelerator, before: float, *, steps: int | None, minutes: float | None
    ) -> None:
        self.accelerator, self.steps, self.minutes = accelerator, steps, minutes
        self.start = time.perf_counter() - before

    def local(self) -> float:
        return time.perf_counter() - self.start

    def seconds(self) -> float:
        """The first process's seconds: where time decides, all processes must decide the same."""
        if self.accelerator.num_processes == 1:
            return self.local()
        return broadcast(torch.tensor([self.local()], device=self.accelerator.device)).item()

    def progress(self, step: int) -> float:
        """The part of the training, in [0, 1], that is over after `step` steps."""
        return min(1.0, step / self.steps if self.steps else self.seconds() / (60 * self.minutes))


class Log:
    """log.jsonl, one object per step. Losses stay on the device until many are read at once."""

    def __init__(self, file: Path, accelerator: Accelerator, batch_size: int, *, first_step: int) -> None:
        self.file, self.accelerator, self.batch_size = file, accelerator, batch_size
        self.pending: list[tuple[dict[str, Any], list[str], list[Tensor]]] = []
        if accelerator.is_main_process:
            self._cut(first_step)
        self.restart_timer()

    def _cut(self, step: int) -> None:
        """Keep the lines up to `step`: what came after the checkpoint is going to happen again."""
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        # A kill may have torn the last line; those that a checkpoint covers were whole before it was made.
        kept = [line for line in lines if line.endswith("}\n") and json.loads(line)["step"] <= step]
        shorter = self.file.with_suffix(".partial")
        shorter.write_text("".join(kept))
        os.replace(shorter, self.file)

    def restart_timer(self) -> None:
        """Leave the time since the last `write` out of samples_per_second."""
        self.timer = time.perf_counter()

    def add(self, step: int, seconds: float, rate: float, loss: Tensor, norm: Tensor, losses: dict) -> None:
        facts = {"step": step, "samples": step * self.batch_size, "seconds": seconds, "learning_rate": rate}
        tensors = [loss.detach(), norm, *(value.detach() for value in losses.values())]
        self.pending.append((facts, list(losses), tensors))

    def write(self) -> dict[str, Any]:
        """Write the pending steps, losses averaged over the processes, and return the last one's record."""
        values = torch.stack([value.float() for _, _, tensors in self.pending for value in tensors])
        values = iter(self.accelerator.reduce(values, "mean").tolist())  # here we wait for the GPU
        speed = len(self.pending) * self.batch_size / (time.perf_counter() - self.timer)
        for facts, names, _ in self.pending:
            loss, norm = next(values), next(values)
            losses = {name: next(values) for name in names}
            if not math.isfinite(loss):
                raise FloatingPointError(f"step {facts['step']}: the loss is not finite: {losses}")
            # fp16 skips steps whose gradients overflow, and JSON knows no infinity.
            norm = norm if math.isfinite(norm) else None
            record = {**facts, "loss": loss, "losses": losses, "grad_norm": norm, "samples_per_second": speed}
            self.append(record)
        self.pending.clear()
        return record

    def append(self, record: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with self.file.open("a") as file:
                file.write(json.dumps(record) + "\n")
