"""One `fit` for every method.

Training can be interrupted at any moment, with `kill -9` if need be, and resumed as if nothing had
happened. Two decisions make that simple:

- Everything random is a function of (seed, step): which sentences a batch holds, what dropout drops.
  There is no generator whose state would have to be saved.
- The learning rate is a function of the progress in [0, 1] alone. There is no scheduler either.

What remains is the weights, the optimiser's averages and a few numbers: one safetensors file.

Devices, mixed precision and several processes are left to accelerate. `accelerate launch` starts as
many processes as there are GPUs; a batch is then shared out between them, so that
`Recipe.batch_size` is always the batch that one optimiser step sees.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast, set_seed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from rislib.data.batches import make_batch
from rislib.nouns import Batch, Method


@dataclass(frozen=True)
class Recipe:
    """How a method is trained. How long, `fit` is told; all times here are fractions of that.

    The defaults belong to no paper. With warm-up the first step has rate 0: it only starts Adam's averages.

    Raises:
        ValueError: the warm-up would leave no time for anything else, or a choice is unknown.
    """

    optimiser: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3  # at its peak
    encoder_factor: float = 1.0  # times the learning rate, for `Method.encoder_parameters()`
    weight_decay: float = 0.01  # of matrices and kernels; never of biases, norms and scalars
    schedule: Literal["cosine", "multistep", "poly", "constant"] = "cosine"
    warmup: float = 0.0  # the rate rises linearly from 0 this long
    milestones: tuple[float, ...] = ()  # multistep: at each of them, times `gamma`
    gamma: float = 0.1
    power: float = 0.9  # poly: (1 - progress) ** power
    batch_size: int = 32  # of one optimiser step, over all processes
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # fp16 needs a GPU; CPUs train it in fp32
    clip_norm: float = 0.0  # largest norm of all gradients together; 0: no clipping

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of the training in [0, 1), not {self.warmup}")
        for field in ("optimiser", "schedule", "precision"):
            choices = get_args(get_type_hints(Recipe)[field])
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is one of {', '.join(choices)}, not {getattr(self, field)!r}")

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a fraction of `learning_rate`."""
        if progress < self.warmup:
            return progress / self.warmup
        after_warmup = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * after_warmup))
        if self.schedule == "poly":
            return (1 - after_warmup) ** self.power
        if self.schedule == "multistep":
            return self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        return 1.0


MINI = Recipe(
    learning_rate=1e-3, encoder_factor=0.3, weight_decay=0.01, warmup=0.05, batch_size=16, clip_norm=1.0
)
"""For the mini world, some minutes on two CPU cores. Chosen by us, from no paper."""


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
    channels_last: bool = False,
    progress: bool = True,
) -> Run:
    """Train `method` in place on `samples` and leave it in eval mode, on the device it was trained on.

    An epoch shows every reference once, with one of its sentences at random (as CRIS does in its code).
    Epochs follow each other without a seam: a batch may end one and begin the next.

    With the same number of processes and threads a resumed run equals an uninterrupted one bit for bit
    on a CPU; on a GPU after `torch.use_deterministic_algorithms(True)`. That is true of budgets in samples
    and epochs. With `minutes` the schedule fits itself to the clock, so no two runs are alike.

    Args:
        samples: a `rislib.data.RefDataset`, or any sequence of `Sample` that has `by_reference()`.
        out: the run's folder. Without `resume` the training in it is started anew.
        seed: decides the order, the sentences, and all that is random in a step; not the initial weights.
        samples_budget, minutes, epochs: how long to train. Exactly one of them. Minutes count validation
            and saving; they go on where they were when a run is resumed.
        resume: go on from the folder's checkpoint, if there is one yet.
        checkpoint_every: seconds between checkpoints. Only the last one is kept.
        log_every: steps between looks at the losses (and at the time for a checkpoint). Every step is
            logged, but to read a loss is to wait for the GPU.
        validate: called with the method in eval mode, by the first process only; its numbers are logged.
        validations: how many times, at equal distances, the last one at the end.
        workers: processes that prepare batches; 0 prepares them in between the steps.
        channels_last: keep pictures and kernels in that memory format; often faster on GPUs.

    Raises:
        ValueError: not exactly one budget; no samples; a batch that the processes cannot share equally; or
            a checkpoint to resume from that was made with another seed, recipe, budget or data.
        FloatingPointError: a loss is not finite. The message names the step and all its losses.
    """
    budget = {"samples": samples_budget, "minutes": minutes, "epochs": epochs}
    references = samples.by_reference()
    steps = _steps(budget, references=len(references), batch_size=recipe.batch_size)
    # What a run and its resumption must have in common.
    identity = {
        "seed": seed,
        "recipe": asdict(recipe),
        "budget": budget,
        "references": len(references),
        "sentences": sum(map(len, references)),
    }

    accelerator = _accelerator(recipe.precision)
    rank, processes = accelerator.process_index, accelerator.num_processes
    if recipe.batch_size % processes:
        raise ValueError(f"{processes} processes cannot share a batch of {recipe.batch_size} equally")
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    method.to(accelerator.device, memory_format=memory_format).train()
    if processes > 1 and accelerator.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(method)
    network, optimiser = accelerator.prepare(_Losses(method), _optimiser(method, recipe, accelerator.device))

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.safetensors"
    step, seconds = 0, 0.0
    if resume and checkpoint.exists():
        step, seconds = _restore(checkpoint, method, optimiser, accelerator, identity)
    elif accelerator.is_main_process:
        checkpoint.unlink(missing_ok=True)
    log = _Log(folder / "log.jsonl", accelerator, recipe.batch_size, first_step=step)
    clock = _Clock(accelerator, seconds, steps=steps, minutes=minutes)
    saved_at = seconds

    batches = _Batches(samples, method, seed, recipe.batch_size, rank, processes)
    upcoming = itertools.count(step) if steps is None else range(step, steps)
    loader = iter(DataLoader(batches, batch_size=None, sampler=upcoming, num_workers=workers))
    done = clock.progress(step)
    bar = tqdm(
        total=1.0,
        initial=done,
        bar_format="{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        disable=not (progress and accelerator.is_main_process),
    )
    while done < 1:
        batch = next(loader).to(accelerator.device)
        if channels_last:
            batch = replace(batch, image=batch.image.contiguous(memory_format=memory_format))
        rate = recipe.rate(done)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["initial_lr"]

        _seed(seed, step, rank)
        with _attention(accelerator.device):
            losses = network(batch)
        loss = sum(losses.values())
        optimiser.zero_grad()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(method.parameters(), recipe.clip_norm or math.inf)
        optimiser.step()

        step += 1
        before, done = done, clock.progress(step)
        log.add(step, clock.local(), rate * recipe.learning_rate, loss, norm, losses)
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
            _checkpoint(checkpoint, method, optimiser, accelerator, facts)
        log.restart_timer()

    bar.close()
    method.eval()
    if accelerator.is_main_process:
        _save(folder / "model.safetensors", method.state_dict(), {})
    accelerator.wait_for_everyone()
    return Run(folder, steps=step, samples=step * recipe.batch_size, seconds=clock.seconds())


def parameter_groups(method: Method, recipe: Recipe) -> list[dict[str, Any]]:
    """The groups an optimiser gets: encoder or not, times decayed or not; empty ones left out.

    Each holds `params` as (name, parameter) pairs, `lr`, the same as `initial_lr`, and `weight_decay`.
    Frozen parameters are in none. Vectors and scalars (biases, norms, temperatures) are not decayed.
    """
    encoder = {id(parameter) for parameter in method.encoder_parameters()}
    groups = []
    for in_encoder, decayed in itertools.product((False, True), (True, False)):
        params = [
            (name, parameter)
            for name, parameter in method.named_parameters()
            if parameter.requires_grad
            and (id(parameter) in encoder) == in_encoder
            and (parameter.ndim >= 2) == decayed
        ]
        lr = recipe.learning_rate * (recipe.encoder_factor if in_encoder else 1.0)
        decay = recipe.weight_decay if decayed else 0.0
        groups.append({"params": params, "lr": lr, "initial_lr": lr, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def epoch_order(references: Sequence[Sequence[int]], seed: int, epoch: int) -> list[int]:
    """The samples an epoch shows: of every reference one sentence at random, in random order.

    `references` holds the indices of each reference's sentences, as `by_reference()` returns them.
    """
    rng = np.random.default_rng([seed, epoch])
    sentences = rng.integers([len(indices) for indices in references])
    return [references[r][sentences[r]] for r in rng.permutation(len(references))]


def machine() -> dict[str, Any]:
    """What to put beside a number: processor, cores, device, and the versions of Python and torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_commit() -> str | None:
    """The commit of the checkout rislib runs from, with "-dirty" if it was changed; None without one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # installed, perhaps inside another project's checkout
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        return subprocess.check_output(command, cwd=root, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


class _Losses(nn.Module):
    """A method whose forward gives its losses: forward is all that DistributedDataParallel wraps."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.method.losses(batch)


class _Batches:
    """Batch number `step` is a function of (seed, step) alone. Each process makes its share of it."""

    def __init__(
        self, samples: Sequence, method: Method, seed: int, batch_size: int, rank: int, processes: int
    ) -> None:
        self.samples, self.references = samples, samples.by_reference()
        self.preprocessing, self.tokenize = method.preprocessing, method.tokenize
        self.seed, self.batch_size, self.rank, self.processes = seed, batch_size, rank, processes
        self.epoch, self.order = -1, []

    def __getitem__(self, step: int) -> Batch:
        _seed(self.seed, step, self.rank)  # for datasets that augment
        share = range(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.processes)
        samples = [self.samples[self._index(number)] for number in share]
        return make_batch(samples, self.preprocessing, self.tokenize)

    def _index(self, number: int) -> int:
        """The index of the sample that is shown as the training's `number`-th."""
        epoch, place = divmod(number, len(self.references))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, epoch_order(self.references, self.seed, epoch)
        return self.order[place]


class _Clock:
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


class _Log:
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
        values = iter(self.accelerator.reduce(values, "mean").tolist())  # the only wait for the GPU
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


def _attention(device: torch.device) -> contextlib.AbstractContextManager:
    """The fastest attention to train with: torch's fused one has a slow backward pass on CPUs."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()


def _seed(seed: int, step: int, rank: int) -> None:
    """Seed Python, NumPy and torch for one step of one process."""
    set_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0]))


def _steps(budget: dict[str, float | None], *, references: int, batch_size: int) -> int | None:
    """How many optimiser steps the budget buys; None where the clock decides."""
    if sum(amount is not None for amount in budget.values()) != 1:
        raise ValueError("say exactly one of samples_budget, minutes and epochs")
    if references == 0:
        raise ValueError("there are no samples to train on")
    if budget["minutes"] is not None:
        return None
    samples = budget["samples"] if budget["epochs"] is None else budget["epochs"] * references
    return max(1, math.ceil(samples / batch_size))


def _accelerator(precision: str) -> Accelerator:
    # accelerate keeps one state per process and refuses a second precision; notebooks train many times.
    AcceleratorState._reset_state()
    # Pretrained towers have parameters that no loss depends on, such as CLIP's temperature.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, kwargs_handlers=[unused])


def _optimiser(method: Method, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimiser]
    return kind(parameter_groups(method, recipe), fused=device.type in {"cpu", "cuda", "mps", "xpu"})


def _validate(
    validate: Callable[[Method], dict[str, float]], method: Method, accelerator: Accelerator
) -> dict[str, float]:
    """The first process's numbers; the others wait for it and get none."""
    numbers: dict[str, float] = {}
    if accelerator.is_main_process:
        method.eval()
        with torch.no_grad():
            numbers = validate(method)
        method.train()
    accelerator.wait_for_everyone()
    return numbers


def _checkpoint(
    file: Path,
    method: Method,
    optimiser: torch.optim.Optimizer,
    accelerator: Accelerator,
    facts: dict[str, Any],
) -> None:
    """Save all that `_restore` needs: model.<name> and optimiser.<name>.<average>, facts as metadata."""
    tensors = {f"model.{name}": value for name, value in method.state_dict().items()}
    for name, parameter in _named_parameters(optimiser):
        for key, value in optimiser.state[parameter].items():
            tensors[f"optimiser.{name}.{key}"] = value
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else None  # fp16: a few numbers
    if accelerator.is_main_process:
        _save(file, tensors, {**facts, "scaler": scaler})


def _restore(
    file: Path,
    method: Method,
    optimiser: torch.optim.Optimizer,
    accelerator: Accelerator,
    identity: dict[str, Any],
) -> tuple[int, float]:
    """Put back what `_checkpoint` saved; steps done and seconds spent. Refuses another run's."""
    with safe_open(file, framework="pt") as stored:
        facts = {key: json.loads(text) for key, text in (stored.metadata() or {}).items()}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    for key, value in json.loads(json.dumps(identity)).items():
        if facts.get(key) != value:
            raise ValueError(f"{file} cannot be resumed: {key} was {facts.get(key)}, and is {value} now")
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    method.load_state_dict({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    parameters = dict(_named_parameters(optimiser))
    for path in tensors.keys() - weights.keys():
        name, _, key = path.removeprefix("optimiser.").rpartition(".")
        parameter, tensor = parameters[name], tensors[path]
        # Averages must lie in memory as their parameter does, channels last or not: fused kernels rely on it.
        like = parameter if tensor.shape == parameter.shape else tensor
        value = torch.empty_like(like, dtype=tensor.dtype, device=parameter.device)
        optimiser.state[parameter][key] = value.copy_(tensor)
    if accelerator.scaler and facts["scaler"]:
        accelerator.scaler.load_state_dict(facts["scaler"])
    return facts["step"], facts["seconds"]


def _named_parameters(optimiser: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    groups = optimiser.param_groups
    return [pair for group in groups for pair in zip(group["param_names"], group["params"], strict=True)]


def _save(file: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
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
