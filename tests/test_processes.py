"""Several processes: one batch shared out, one evaluation, one writer, and what if one of them dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import SAMPLES, smooth
from safetensors import safe_open
from safetensors.torch import load_file
from test_training import QUICK, ToyDataset, log_of, losses_of, stopped, train

from rislib.evaluation import CRIS_2022, evaluate
from rislib.runs import evaluate_run, read_log, read_record
from rislib.training import fit

pytestmark = pytest.mark.processes


KINDS = {"copies": {}, "shares": {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}}


def torchrun(kind: str, task: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Two processes of tests/launched.py, on CPUs, each with a copy or a share of the weights."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("launched.py")
    return subprocess.run(
        [*launcher, str(script), task, *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | KINDS[kind],
        capture_output=True,
        text=True,
        timeout=900,  # seconds on an idle machine
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    """What one process made, `one`, and what two did: `two`, `otherwise`, and of `half` the second half."""
    folder = tmp_path_factory.mktemp("processes")
    fit(smooth(), ToyDataset(20), QUICK, out=folder / "one", **SAMPLES)
    stopped(folder / "half", method=smooth())
    with safe_open(folder / "half" / "checkpoint.safetensors", framework="pt") as file:
        assert 0 < int(file.metadata()["step"]) < 40
    done = torchrun(kind, "train", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["two", "otherwise", "half"])
def test_the_curve_is_the_one_of_a_single_process(folder: Path, name: str):
    one, other = losses_of(folder / "one"), losses_of(folder / name)
    assert [step for step, _ in other] == list(range(1, 41))
    assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], abs=1e-5)
    assert one[-1][1] < 0.9 * one[0][1]  # something was learned


def measured(run: Path) -> list[float]:
    """What `measure` found at its validations."""
    return [r["validation"]["bce"] for r in log_of(run) if "bce" in r.get("validation", {})]


@pytest.mark.parametrize("name", ["two", "otherwise", "half"])
def test_so_are_the_files_and_the_validations(folder: Path, name: str):
    for file in ("model.safetensors", "checkpoint.safetensors"):
        one, other = load_file(folder / "one" / file), load_file(folder / name / file)
        torch.testing.assert_close(other, one, rtol=0, atol=1e-5)
    one, other = (measured(folder / name) for name in ("one", name))
    assert (len(one), len(other)) == (10, 6 if name == "half" else 10)
    assert other == pytest.approx(one[-len(other) :], abs=1e-5)


def test_weights_are_shared_out_while_it_trains_and_whole_afterwards(folder: Path, kind: str):
    first, second = (json.loads((folder / f"left{rank}.json").read_text()) for rank in range(2))
    assert first["measured"] == second["measured"]
    assert first["measured"] == pytest.approx(log_of(folder / "two")[-1]["validation"], abs=1e-6)
    whole, frozen = first["held"], 9
    assert second["held"] == whole == sum(p.numel() for p in smooth().parameters())
    held = [left["held_in_training"] for left in (first, second)]
    if kind == "copies":
        assert held == [whole, whole]
    else:
        assert sum(held) == whole + frozen and max(held) < 0.6 * whole


def test_every_sample_is_asked_once_and_counted_once(folder: Path):
    first, second = (json.loads((folder / f"asked{rank}.json").read_text()) for rank in range(2))
    asked = first.pop("asked"), second.pop("asked")
    assert sorted(asked[0] + asked[1]) == list(range(51)) and min(map(len, asked)) > 20
    alone = evaluate(smooth(), ToyDataset(17), CRIS_2022, batch_size=4, progress=False)
    assert first == second == {**alone.to_json(), "scores": vars(alone.scores)}


def test_a_dead_process_is_named_and_the_others_work_can_be_gone_on_with(
    tmp_path: Path, folder: Path, kind: str
):
    done = torchrun(kind, "die", tmp_path)
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert len(losses_of(tmp_path)) == 12
    train(tmp_path, method=smooth(seed=7), resume=True)
    one, other = losses_of(folder / "one"), losses_of(tmp_path)
    assert [loss for _, loss in other] == pytest.approx([loss for _, loss in one], abs=1e-5)


def test_the_command_line_writes_and_prints_once(tmp_path: Path, world: Path):
    done = torchrun("copies", "command_line", tmp_path, world)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    assert read_record(run)["processes"] == 2
    assert [record["step"] for record in read_log(run)] == [1, 2]
    assert done.stdout.count("hours") == done.stdout.count("95 % interval") / 2 == 1
    alone = evaluate_run(run, data=str(world), progress=False).to_json()
    assert json.loads((tmp_path / "val.json").read_text()).items() >= alone.items()
