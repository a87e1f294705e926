"""Several processes: one batch shared out, one evaluation, one writer, and what if one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import SAMPLES, smooth
from safetensors import safe_open
from test_training import QUICK, ToyDataset, losses_of, stopped, train

from rislib.evaluation import CRIS_2022, evaluate
from rislib.runs import evaluate_run, read_log, read_record
from rislib.training import fit

pytestmark = pytest.mark.processes


def torchrun(task: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of tests/launched.py, on this machine's CPU."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("launched.py")
    return subprocess.run(
        [*launcher, str(script), task, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,  # seconds on an idle machine
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process made, `one`, and what two did: `two`, `micro`, and of `half` the second half."""
    folder = tmp_path_factory.mktemp("processes")
    fit(smooth(), ToyDataset(20), QUICK, out=folder / "one", **SAMPLES)
    stopped(folder / "half", method=smooth())
    with safe_open(folder / "half" / "checkpoint.safetensors", framework="pt") as file:
        assert 0 < int(file.metadata()["step"]) < 40
    done = torchrun("train", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["two", "micro", "half"])
def test_the_curve_is_the_one_of_a_single_process(folder: Path, name: str):
    one, other = losses_of(folder / "one"), losses_of(folder / name)
    assert [step for step, _ in other] == list(range(1, 41))
    assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], abs=1e-5)
    assert one[-1][1] < 0.9 * one[0][1]  # something was learned


def test_every_sample_is_asked_once_and_counted_once(folder: Path):
    first, second = (json.loads((folder / f"asked{rank}.json").read_text()) for rank in range(2))
    asked = first.pop("asked"), second.pop("asked")
    assert sorted(asked[0] + asked[1]) == list(range(51)) and min(map(len, asked)) > 20
    alone = evaluate(smooth(), ToyDataset(17), CRIS_2022, batch_size=4, progress=False)
    assert first == second == {**alone.to_json(), "scores": vars(alone.scores)}


def test_a_dead_process_is_named_and_the_others_work_can_be_gone_on_with(tmp_path: Path, folder: Path):
    done = torchrun("die", tmp_path)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert len(losses_of(tmp_path)) == 12
    train(tmp_path, method=smooth(seed=7), resume=True)
    one, other = losses_of(folder / "one"), losses_of(tmp_path)
    assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], abs=1e-5)


def test_the_command_line_writes_and_prints_once(tmp_path: Path, world: Path):
    done = torchrun("command_line", tmp_path, world)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert read_record(run)["processes"] == 2
    assert [record["step"] for record in read_log(run)] == [1, 2]
    assert done.stdout.count("hours") == done.stdout.count("95 % interval") / 2 == 1
    alone = evaluate_run(run, data=str(world), progress=False).to_json()
    assert json.loads((tmp_path / "val.json").read_text()).items() >= alone.items()
