"""What the processes do that test_processes.py launches: `torchrun tests/launched.py TASK FOLDER ...`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from test_training import QUICK, ToyDataset, ToyMethod, Watched
from torch import nn
from torch.distributed.tensor import DTensor

from rislib.cli import app
from rislib.data import make_batch
from rislib.evaluation import CRIS_2022, evaluate
from rislib.nouns import Method
from rislib.processes import processes
from rislib.training import fit
from rislib.training.step import make_accelerator, prepare


def smooth(seed: int = 0) -> ToyMethod:
    """Nothing in it is normalised over a batch, and nothing drops out."""
    return ToyMethod(dropout=0, norm=False, seed=seed)


def measure(method: Method) -> dict[str, float]:
    """The losses of a batch; numbers that a `fit` can log as its validation."""
    samples = list(ToyDataset(6))
    losses = method.losses(make_batch(samples, method.preprocessing, method.tokenize))
    return {name: loss.item() for name, loss in losses.items()}


SAMPLES = {"samples_budget": 320, "validate": measure, "progress": False}


def held(network: nn.Module) -> int:
    """How many numbers of its weights are in this process."""
    return sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in network.parameters())


def train(folder: Path) -> None:
    """From the start, otherwise, from where a single process was; what is left; and one evaluation."""
    method = smooth()
    fit(method, ToyDataset(20), QUICK, out=folder / "two", **SAMPLES)
    left = {"measured": measure(method), "held": held(method)}
    network, _ = prepare(smooth(), QUICK, make_accelerator("fp32"))
    left["held_in_training"] = held(network)
    (folder / f"left{processes().process_index}.json").write_text(json.dumps(left))
    otherwise = {"micro_batch": 2, "channels_last": True}
    fit(smooth(), ToyDataset(20), QUICK, out=folder / "otherwise", **otherwise, **SAMPLES)
    fit(smooth(seed=7), ToyDataset(20), QUICK, out=folder / "half", resume=True, **SAMPLES)
    asked = Watched(17)
    report = evaluate(smooth(), asked, CRIS_2022, batch_size=4, progress=False, together=True)
    numbers = {"asked": asked.indices, **report.to_json(), "scores": vars(report.scores)}
    (folder / f"asked{processes().process_index}.json").write_text(json.dumps(numbers))


class Mortal(ToyMethod):
    """Its second process is killed in step 13."""

    calls = 0

    def losses(self, batch):
        self.calls += 1
        if self.calls == 13 and processes().process_index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().losses(batch)


def die(folder: Path) -> None:
    method = Mortal(dropout=0, norm=False)
    fit(method, ToyDataset(20), QUICK, out=folder, checkpoint_every=0, log_every=1, **SAMPLES)


def command_line(folder: Path, world: str) -> None:
    run = str(folder / "run")
    for command in (
        ["train", "cris", "--data", world, "--samples", "48", "--precision", "fp32", "--out", run],
        ["train", "cris", "--data", world, "--epochs", "2", "--micro-batch", "6", "--dry-run"],
        ["evaluate", run, "--data", world, "--json", str(folder / "val.json")],
    ):
        app(command, standalone_mode=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    task, folder, *more = sys.argv[1:]
    {"train": train, "die": die, "command_line": command_line}[task](Path(folder), *more)
    torch.distributed.destroy_process_group()
