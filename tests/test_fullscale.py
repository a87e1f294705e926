"""Full scale, tried on small networks: recipes, micro-batches, checkpointing, compile, the dry run."""

from __future__ import annotations

import shutil
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from launched import smooth
from parity import mini_batch
from safetensors.torch import load_file
from shared import Clock
from test_training import QUICK, ToyDataset, ToyMethod, losses_of, stopped, train
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typer.testing import CliRunner

import rislib.cli
import rislib.rehearsal
from rislib.cli import app, main
from rislib.data import DataError, open_split
from rislib.methods import BUILDERS, build
from rislib.rehearsal import rehearse
from rislib.runs import choose_recipe
from rislib.training import (
    CRIS_2022,
    CRIS_2022_SLIP,
    MAIL_2021,
    MINI,
    RECIPES,
    Recipe,
    parameter_groups,
    step,
)
from rislib.training.recipe import set_rates
from rislib.training.recompute import checkpoint_blocks
from rislib.training.step import make_accelerator, optimise, prepare

# --- recipes ----------------------------------------------------------------------------------


def rates(recipe: Recipe, progress: float) -> dict[str, float]:
    """The learning rates of a parameter outside, and of one inside the encoder."""
    optimiser = torch.optim.SGD(parameter_groups(ToyMethod(), recipe))
    assert set_rates(optimiser, recipe, progress) == recipe.rate(progress) * recipe.learning_rate
    found = {name: group["lr"] for group in optimiser.param_groups for name in group["param_names"]}
    return found["head.weight"], found["encoder.0.weight"]


def test_cris_s_slip_is_a_first_epoch_at_the_full_rate_and_nothing_else():
    expected = {0: (1e-4, 1e-4), 0.9: (1e-4, 1e-4), 1: (1e-4, 1e-5), 35: (1e-5, 1e-6)}
    for epoch, (head, encoder) in expected.items():
        assert rates(CRIS_2022_SLIP, epoch / 50) == pytest.approx((head, encoder))
        assert rates(CRIS_2022, epoch / 50) == pytest.approx((head, head / 10))


def test_mail_s_rate_rises_for_a_tenth_and_falls_in_a_straight_line():
    assert [rates(MAIL_2021, p)[0] for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx(
        [0, 5e-5, 1e-4, 5e-5, 0]
    )


def test_recipes_have_names_and_papers_have_epochs():
    epochs = {name: recipe.epochs for name, recipe in RECIPES.items() if recipe.epochs}
    assert epochs == {
        "cris_2022": 50,
        "cris_2022_slip": 50,
        "lavt_2022": 40,
        "magnet_2024": 40,
        "cm_masksd_2024": 50,
        "mail_2021": 40,
    }
    assert choose_recipe("cris", "mini") is MINI and choose_recipe("cris", "mini", "cris_2022") is CRIS_2022
    assert choose_recipe("cris", "r50", "cris_2022", precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match=r"no recipe 'cris'; there are .*, cris_2022, "):
        choose_recipe("cris", "r50", "cris")
    with pytest.raises(ValueError, match=r"say which recipe the network follows; there are"):
        choose_recipe("cris", "r50")


def test_the_recipe_s_epochs_are_the_budget_unless_told_otherwise(tmp_path):
    recipe = Recipe(batch_size=8, precision="fp32", epochs=2)
    assert train(tmp_path, recipe=recipe, samples_budget=None).samples == 40
    assert train(tmp_path, recipe=recipe, samples_budget=None, epochs=4).samples == 80
    assert train(tmp_path, recipe=recipe, samples_budget=16).samples == 16


def test_refcoco_has_a_name(world: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("RISLIB_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"refcocog/instances\.json"):
        open_split("refcocog", "val")
    shutil.copytree(world / "refmini", tmp_path / "refcocog")
    (references,) = (tmp_path / "refcocog").glob("refs(*).json")
    references.rename(references.with_name("refs(umd).json"))
    assert len(open_split("refcocog", "val")) == len(open_split(world, "val"))


# --- micro-batches ----------------------------------------------------------------------------


class Looking(ToyMethod):
    """Remembers how many samples it saw at a time."""

    def losses(self, batch):
        self.seen = [*getattr(self, "seen", []), len(batch.tokens)]
        return super().losses(batch)


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_micro_batches_learn_as_the_batch_does(tmp_path, micro_batch):
    whole, parts = (Looking(dropout=0, norm=False) for _ in range(2))
    train(tmp_path / "whole", method=whole)
    train(tmp_path / "parts", method=parts, micro_batch=micro_batch)
    assert set(whole.seen) == {8} and set(parts.seen) == {micro_batch} and sum(parts.seen) == 320
    losses = [[loss for _, loss in losses_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-4)


def test_batch_norm_sees_a_micro_batch(tmp_path):
    """So that these are another training: what the docstring of `loop.py` says."""
    for name, micro_batch in (("whole", None), ("parts", 2)):
        train(tmp_path / name, method=ToyMethod(dropout=0), micro_batch=micro_batch, samples_budget=80)
    first = [losses_of(tmp_path / name)[0][1] for name in ("whole", "parts")]
    assert first[0] != pytest.approx(first[1], abs=1e-4)


def test_micro_batches_must_add_up(tmp_path):
    with pytest.raises(ValueError, match="micro-batches of 3 cannot add up to 8 samples"):
        train(tmp_path, micro_batch=3)
    train(tmp_path, micro_batch=100, samples_budget=8)  # at most so many


def test_a_run_goes_on_with_other_micro_batches(tmp_path):
    train(tmp_path / "whole", method=smooth())
    stopped(tmp_path / "parts", method=smooth(), micro_batch=4)
    train(tmp_path / "parts", method=smooth(seed=7), resume=True, micro_batch=2)
    losses = [[loss for _, loss in losses_of(tmp_path / name)] for name in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


# --- checkpointing ----------------------------------------------------------------------------


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive; those that were there before only when touched."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        results = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self.add(tensor.untyped_storage())
        return results

    def add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self.free, key, size)

    def free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def one_step(method, batches, **how) -> tuple[dict[str, torch.Tensor], int]:
    """What a step leaves behind: losses, gradients, weights and statistics; and the most bytes it held.

    The optimiser's averages, which it makes at its end, are not among these.
    """
    accelerator = make_accelerator("fp32")
    network, optimiser = prepare(method, QUICK, accelerator, **how)
    torch.manual_seed(2)
    peaks = []
    optimiser.optimizer.register_step_pre_hook(lambda *_: peaks.append(held.peak))
    with Held() as held:
        losses, _, norm = optimise(network, optimiser, accelerator, batches)
    gradients = {f"{name}.grad": p.grad for name, p in method.named_parameters() if p.grad is not None}
    return {**losses, "norm": norm, **gradients, **method.state_dict()}, peaks[0]


@pytest.mark.parametrize("name", [name for name, preset in BUILDERS if preset == "mini"])
def test_checkpointing_changes_no_bit_and_saves_memory(name: str, vocabulary: Path):
    found, peaks = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        method = build(name, "mini", pretrained=False, vocabulary=vocabulary)
        left, peak = one_step(method, [mini_batch(method)], checkpointing=checkpointing)
        found.append(left)
        peaks.append(peak)
    assert found[0].keys() == found[1].keys()
    assert [key for key, value in found[0].items() if not torch.equal(value, found[1][key])] == []
    # The rest is gradients, and what lies outside of blocks: in MagNet, most.
    assert peaks[1] < (0.9 if name == "magnet" else 0.7) * peaks[0]


def test_after_a_training_blocks_remember_again(tmp_path, vocabulary: Path):
    method = build("mail", "mini", pretrained=False, vocabulary=vocabulary)
    checkpoint_blocks(method)
    assert any("forward" in vars(module) for module in method.modules())
    checkpoint_blocks(method, on=False)
    assert not any("forward" in vars(module) for module in method.modules())


def test_compiled_losses_are_the_same(tmp_path, monkeypatch):
    """With the compiler's first half only: the second takes minutes on two cores."""
    compiled = []

    def compile(*args, **keywords):
        compiled.append(args)
        return real(*args, **{**keywords, "backend": "eager"})

    real = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    for name, on in (("plain", False), ("compiled", True)):
        train(tmp_path / name, method=smooth(), compile=on, samples_budget=80)
    assert len(compiled) == 1
    plain, other = ([loss for _, loss in losses_of(tmp_path / name)] for name in ("plain", "compiled"))
    assert other == pytest.approx(plain, abs=1e-5)


# --- the dry run ------------------------------------------------------------------------------


class Slow(ToyDataset):
    """Half a second a sample; the first twenty take longer."""

    def __init__(self, references: int, clock: Clock) -> None:
        super().__init__(references)
        self.clock, self.read = clock, 0

    def __getitem__(self, index: int):
        self.read += 1
        self.clock.seconds += 7 if self.read < 20 else 0.5
        return super().__getitem__(index)


class SlowMethod(ToyMethod):
    """Two seconds for the losses of a batch."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def losses(self, batch):
        self.clock.seconds += 2
        return super().losses(batch)


@pytest.mark.parametrize(
    ("budget", "steps"), [({"epochs": 24}, 60), ({"samples_budget": 81}, 11), ({"minutes": 2}, 10), ({}, 5)]
)
def test_the_dry_run_projects_what_it_measured(clock, tmp_path, monkeypatch, budget, steps):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe(batch_size=8, precision="fp32", epochs=2)
    measured = rehearse(SlowMethod(clock), Slow(20, clock), recipe, micro_batch=2, steps=4, **budget)
    assert measured.step_seconds == 8 * 0.5 + 4 * 2
    assert measured.waiting_seconds == 4
    assert measured.steps == steps
    assert measured.hours == pytest.approx(steps * measured.step_seconds / 3600)
    assert (measured.references, measured.micro_batch, measured.processes) == (20, 2, 1)
    assert measured.parameters == measured.learning + 9  # one is frozen
    assert measured.peak_gib > 0.05
    assert f"{steps} steps" in measured.table()
    assert list(tmp_path.iterdir()) == []


def test_the_dry_run_uses_up_what_workers_had_ready(clock):
    method = SlowMethod(clock)
    rehearse(method, ToyDataset(20), QUICK, samples_budget=80, workers=2, steps=1, warmup=1)
    assert clock.seconds == 2 * (1 + 2 * 2 + 1)


def test_the_command_line_measures_and_writes_nothing(world: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = ["train", "cris", "--data", str(world), "--recipe", "cris_2022", "--dry-run"]
    small = ["--precision", "bf16", "--micro-batch", "8"]
    monkeypatch.setitem(RECIPES, "cris_2022", replace(CRIS_2022, batch_size=16))  # 64 take long on a CPU
    result = CliRunner().invoke(app, [*asked, *small])
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    assert "16 samples, on each device 8 at a time" in result.output
    assert "188 steps: 50.13 epochs of 60 references" in result.output
    assert list(tmp_path.iterdir()) == []


def test_what_the_command_line_needs_to_know():
    for missing, message in {
        ("--out", "x"): "either --minutes or --samples",
        ("--out", "x", "--minutes", "1", "--epochs", "1"): "either --minutes or --samples",
        ("--epochs", "1"): "say where: --out",
    }.items():
        result = CliRunner().invoke(app, ["train", "cris", *missing])
        assert result.exit_code == 2 and message in result.output


# --- processes that cannot be, or are no more -------------------------------------------------


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_other_ways_to_share_weights_are_refused(monkeypatch, kind):
    monkeypatch.setattr(step, "Accelerator", lambda **_: SimpleNamespace(distributed_type=kind))
    with pytest.raises(ValueError, match=rf"{kind.value} is not supported.*--use_fsdp --fsdp_version 2"):
        make_accelerator("bf16")


def test_the_first_fsdp_is_refused(monkeypatch):
    """It is what accelerate means unless it is told a version."""
    monkeypatch.setattr(step, "sharing", lambda: True)
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    with pytest.raises(ValueError, match="launch with --use_fsdp --fsdp_version 2"):
        make_accelerator("bf16")


def test_a_lost_process_is_one_line_and_other_errors_are_not(monkeypatch, capsys):
    def lose(message: str):
        raise RuntimeError(message)

    lost = (
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:9614: Connection reset"
    )
    monkeypatch.setattr(rislib.cli, "app", partial(lose, lost))
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err.startswith("error: another process of this launch is gone")
    monkeypatch.setattr(rislib.cli, "app", partial(lose, "mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        main()
