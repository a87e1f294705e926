"""One `fit` for every method.

Training can be interrupted at any moment, with `kill -9` if need be, and resumed as if nothing had
happened. Two decisions make that simple:

- Everything random is a function of (seed, step): which sentences a batch holds, what dropout drops.
  There is no generator whose state would have to be saved.
- The learning rate is a function of the progress in [0, 1] alone. There is no scheduler either.

What remains is the weights, the optimiser's averages and a few numbers: one safetensors file.

Devices, mixed precision and several processes are left to accelerate. `accelerate launch` starts as
many processes as there are GPUs; a batch is then shared out between them, and may be cut into
micro-batches for small ones, so that `Recipe.batch_size` is always the batch that one optimiser step
sees. Where accelerate is configured for FSDP, weights are shared out, too (`shards.py`). None of this changes
anything but rounding, with two exceptions:

- Batch norm is over all processes on GPUs; on CPUs, and with micro-batches, over what one forward pass sees.
- Some losses are no means over samples: LAVT's weighs pixels, MagNet's draw some by lot, CM-MaskSD's VMLSD
  leaves out sentences of one word. The parts' means differ a little from the mean of all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from rislib.nouns import Method
from rislib.training.checkpoint import restore_checkpoint, save_checkpoint, save_tensors
from rislib.training.log import Clock, Log
from rislib.training.order import Batches, load, seed_step
from rislib.training.recipe import Recipe, set_rates
from rislib.training.recompute import checkpoint_blocks
from rislib.training.shards import exchange, gather
from rislib.training.step import make_accelerator, optimise, prepare


@dataclass(frozen=True)
class Run:
    """What `fit` did. The folder holds model.safetensors, checkpoint.safetensors and log.jsonl."""

    folder: Path
    steps: int
    samples: int
    seconds: float  # of training, validation and saving, over all resumptions


def fit(
    method: Method,
    samples: Sequence,
    recipe: Recipe,
    *,
    out: str | Path,
    seed: int = 0,
    samples_budget: int | None = None,
    minutes: float | None = None,
    epochs: float | None = None,
    resume: bool = False,
    checkpoint_every: float = 60.0,
    log_every: int = 10,
    validate: Callable[[Method], dict[str, float]] | None = None,
    validations: int = 10,
    workers: int = 0,
    micro_batch: int | None = None,
    checkpointing: bool = False,
    compile: bool = False,
    channels_last: bool = False,
    progress: bool = True,
) -> Run:
    """Train `method` in place on `samples` and leave it in eval mode, on the device it was trained on.

    An epoch shows every reference once, with one of its sentences at random (as CRIS does in its code).
    Epochs follow each other without a seam: a batch may end one and begin the next.

    With the same number of processes and threads a resumed run equals an uninterrupted one bit for bit
    on a CPU; on a GPU LAVT and MaIL do after `torch.use_deterministic_algorithms(True)`. (Torch has no
    deterministic gradient of bicubic position tables, in CRIS and CM-MaskSD, nor of adaptive pooling, in
    MagNet, and raises.) That is true of budgets in samples and epochs. With `minutes` the schedule fits
    itself to the clock, so no two runs are alike.

    A run may go on with another number of processes or other micro-batches. Its losses are then the same up
    to rounding, but for the exceptions above, and for dropout, which differs from process to process.

    Args:
        samples: a `rislib.data.RefDataset`, or any sequence of `Sample` that has `by_reference()` (and, for
            recipes that train by picture, `by_image()`).
        out: the run's folder. Without `resume` the training in it is started anew.
        seed: decides the order, the sentences, and all that is random in a step; not the initial weights.
        samples_budget, minutes, epochs: how long to train. At most one of them; the recipe's epochs if none.
            Minutes count validation and saving; they go on where they were when a run is resumed.
        resume: go on from the folder's checkpoint, if there is one yet.
        checkpoint_every: seconds between checkpoints. Only the last one is kept.
        log_every: steps between looks at the losses (and at the time for a checkpoint). Every step is
            logged, but to read a loss is to wait for the GPU.
        validate: called with the method in eval mode, by the first process only; its numbers are logged.
        validations: how many times, at equal distances, the last one at the end.
        workers: processes that prepare batches; 0 prepares them in between the steps.
        micro_batch: at most so many samples at a time on each device; their gradients are added up.
        checkpointing: forget what blocks compute, and compute it again: less memory, see `recompute.py`.
        compile: run the losses through torch.compile; the first steps then take minutes.
        channels_last: keep pictures and kernels (with FSDP pictures only) in that memory format; often
            faster on GPUs.

    Raises:
        ValueError: not exactly one budget, above 0; no samples; a batch that cannot be shared equally, by
            processes or micro-batches; or a checkpoint to resume from that was made with another seed,
            recipe, budget or data.
        FloatingPointError: a loss is not finite. The message names the step and all its losses.
    """
    budget = budget_of(recipe, samples=samples_budget, minutes=minutes, epochs=epochs)
    references = samples.by_reference()
    steps = count_steps(budget, references=len(references), batch_size=recipe.batch_size)
    # What a run and its resumption must have in common.
    identity = {
        "seed": seed,
        "recipe": asdict(recipe),
        "budget": budget,
        "references": len(references),
        "sentences": sum(map(len, references)),
    }

    accelerator = make_accelerator(recipe.precision)
    rank, processes = accelerator.process_index, accelerator.num_processes
    batches = Batches(samples, method, recipe, seed, rank=rank, processes=processes, micro_batch=micro_batch)
    network, optimiser = prepare(
        method,
        recipe,
        accelerator,
        channels_last=channels_last,
        checkpointing=checkpointing,
        compile=compile,
    )

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    step, seconds = 0, 0.0
    if resume and checkpoint.exists():
        step, seconds = restore_checkpoint(checkpoint, method, optimiser, accelerator, identity)
    elif accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
        (folder / "model.safetensors").unlink(missing_ok=True)
    log = Log(folder / "log.jsonl", accelerator, recipe.batch_size, first_step=step)
    clock = Clock(accelerator, seconds, steps=steps, minutes=minutes)
    saved_at = seconds

    upcoming = itertools.count(step) if steps is None else range(step, steps)
    loader = load(batches, upcoming, accelerator.device, workers=workers, channels_last=channels_last)
    done = clock.progress(step)
    bar = tqdm(
        total=1.0,
        initial=done,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        disable=not (progress and accelerator.is_main_process),
    )
    while done < 1:
        micro_batches = next(loader)
        rate = set_rates(optimiser, recipe, done)
        seed_step(seed, step, rank)
        losses, loss, norm = optimise(network, optimiser, accelerator, micro_batches, recipe.clip_norm)

        step += 1
        before, done = done, clock.progress(step)
        log.add(step, clock.local(), rate, loss, norm, losses)
        validation_due = validate and math.floor(done * validations) > math.floor(before * validations)
        if len(log.pending) < log_every and not validation_due and done < 1:
            continue

        latest = log.write()
        bar.set_postfix_str(f"loss {latest['loss']:.4g}, {latest['samples_per_second']:.0f} samples/s")
        bar.update(done - bar.n)
        if validation_due:
            numbers = _validate(validate, method, accelerator)
            log.append({"step": step, "seconds": clock.local(), "validation": numbers})
        if clock.seconds() - saved_at >= checkpoint_every or done == 1:
            saved_at = clock.seconds()
            facts = {**identity, "step": step, "seconds": saved_at}
            save_checkpoint(checkpoint, method, optimiser, accelerator, facts)
        log.restart_timer()

    bar.close()
    checkpoint_blocks(method, on=False)
    gather(method)
    method.eval()
    if accelerator.is_main_process:
        save_tensors(folder / "model.safetensors", method.inference_state(), {})
    accelerator.wait_for_everyone()
    return Run(folder, steps=step, samples=step * recipe.batch_size, seconds=clock.seconds())


def budget_of(recipe: Recipe, **amounts: float | None) -> dict[str, float | None]:
    """Samples, minutes and epochs, or the recipe's epochs where there are none of these."""
    if all(amount is None for amount in amounts.values()):
        amounts["epochs"] = recipe.epochs
    return amounts


def count_steps(budget: dict[str, float | None], *, references: int, batch_size: int) -> int | None:
    """How many optimiser steps the budget buys; None where the clock decides."""
    if sum(amount is not None for amount in budget.values()) != 1:
        raise ValueError("say exactly one of samples_budget, minutes and epochs")
    if any(amount is not None and amount <= 0 for amount in budget.values()):
        raise ValueError(f"training takes more than nothing: {budget}")
    if references == 0:
        raise ValueError("there are no samples to train on")
    if budget["minutes"] is not None:
        return None
    samples = budget["samples"] if budget["epochs"] is None else budget["epochs"] * references
    return max(1, math.ceil(samples / batch_size))


def _validate(
    validate: Callable[[Method], dict[str, float]], method: Method, accelerator: Accelerator
) -> dict[str, float]:
    """The first process's numbers; the others wait for it and get none."""
    numbers: dict[str, float] = {}
    parts = gather(method)
    if accelerator.is_main_process:
        method.eval()
        with torch.no_grad():
            numbers = validate(method)
        method.train()
    exchange(method, parts)
    accelerator.wait_for_everyone()
    return numbers
