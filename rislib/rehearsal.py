"""What would a training cost on this machine? A few of its steps are done and timed; nothing is written.

print(rehearse(cris_r50("openai"), samples, CRIS_2022, micro_batch=16).table())
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from rislib.benchmark import now, peak_memory
from rislib.nouns import Method
from rislib.training import Recipe, machine
from rislib.training.loop import budget_of, count_steps
from rislib.training.order import Batches, load, seed_step
from rislib.training.recipe import set_rates
from rislib.training.recompute import checkpoint_blocks
from rislib.training.shards import gather
from rislib.training.step import make_accelerator, optimise, prepare

PREFETCHED = 2  # batches that each worker of a DataLoader has ready


@dataclass(frozen=True)
class Rehearsal:
    """What `rehearse` measured. Times are of this process, one of `processes`."""

    parameters: int
    learning: int  # of these
    references: int  # that an epoch shows
    batch_size: int  # of a step, over all processes
    micro_batch: int
    processes: int
    precision: str
    peak_gib: float  # allocated on a GPU in these steps; on a CPU the most that the process ever held
    step_seconds: float  # median, with the wait for its samples
    waiting_seconds: float  # median, of that wait
    steps: int  # of the whole training
    hours: float  # the same, without validations and checkpoints
    device: str

    @property
    def samples_per_second(self) -> float:
        """Over all processes."""
        return self.batch_size / self.step_seconds

    def table(self) -> str:
        """For a terminal."""
        milliseconds, waiting = 1e3 * self.step_seconds, 1e3 * self.waiting_seconds
        epochs = self.steps * self.batch_size / self.references
        lines = [
            f"on {self.processes} x {self.device}, {self.precision}",
            f"parameters    {self.parameters / 1e6:9.1f} M, of which {self.learning / 1e6:.1f} M learn",
            f"a step        {self.batch_size:9,} samples, on each device {self.micro_batch} at a time",
            f"memory        {self.peak_gib:9.2f} GiB on each",
            f"time          {milliseconds:9.1f} ms a step, {waiting:.1f} of them waiting for samples",
            f"              {self.samples_per_second:9.1f} samples/s",
            f"the training  {self.steps:9,} steps: {epochs:.2f} epochs of {self.references:,} references",
            f"takes         {self.hours:9.2f} hours, but for validations and checkpoints",
        ]
        return "\n".join(f"  {line}" for line in lines)


def rehearse(
    method: Method,
    samples: Sequence,
    recipe: Recipe,
    *,
    seed: int = 0,
    samples_budget: int | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
    workers: int = 0,
    micro_batch: int | None = None,
    checkpointing: bool = False,
    compile: bool = False,
    channels_last: bool = False,
    steps: int = 10,
    warmup: int = 3,
) -> Rehearsal:
    """Do the first steps of `fit`, time them, and reckon how long all of them would take.

    Arguments and errors as in `fit`, and the method learns as there.

    Args:
        steps, warmup: how many are timed, after how many that are not. What workers had ready is used up
            before the first that is.
    """
    references = len(samples.by_reference())
    budget = budget_of(recipe, samples=samples_budget, minutes=minutes, epochs=epochs)
    whole = count_steps(budget, references=references, batch_size=recipe.batch_size)
    accelerator = make_accelerator(recipe.precision)
    device, rank = accelerator.device, accelerator.process_index
    batches = Batches(
        samples, method, recipe, seed, rank=rank, processes=accelerator.num_processes, micro_batch=micro_batch
    )
    network, optimiser = prepare(
        method,
        recipe,
        accelerator,
        channels_last=channels_last,
        checkpointing=checkpointing,
        compile=compile,
    )
    warmup += PREFETCHED * workers
    loader = load(batches, itertools.count(), device, workers=workers, channels_last=channels_last)
    waits, times = [], []
    for step in range(warmup + steps):
        if step == warmup and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        start = now(device)
        micro_batches = next(loader)
        waits.append(now(device) - start)
        set_rates(optimiser, recipe, 0.5)  # a rate that it has for long: the first may be 0
        seed_step(seed, step, rank)
        optimise(network, optimiser, accelerator, micro_batches, recipe.clip_norm)
        times.append(now(device) - start)
    checkpoint_blocks(method, on=False)
    gather(method)

    seconds = median(times[warmup:])
    whole = whole or round(60 * minutes / seconds)
    return Rehearsal(
        parameters=sum(p.numel() for p in method.parameters()),
        learning=sum(p.numel() for p in method.parameters() if p.requires_grad),
        references=references,
        batch_size=recipe.batch_size,
        micro_batch=batches.micro_batch,
        processes=accelerator.num_processes,
        precision=recipe.precision,
        peak_gib=peak_memory(device) / 2**30,
        step_seconds=seconds,
        waiting_seconds=median(waits[warmup:]),
        steps=whole,
        hours=whole * seconds / 3600,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["cpu"],
    )
