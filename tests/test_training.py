"""Training: what a resumed run must equal, what a rate must be, what a checkpoint holds."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import socket
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from rislib.data import make_batch
from rislib.nouns import Method, Preprocessing, Sample
from rislib.training import (
    MINI,
    MINI_SWIN,
    Recipe,
    checkpoint,
    epoch_order,
    fit,
    git_commit,
    machine,
    mini_recipe,
    parameter_groups,
)

torch.set_num_threads(1)

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
VOCABULARY = ["", *COLOURS, "the", "one"]  # 0 is padding
QUICK = Recipe(learning_rate=5e-3, encoder_factor=0.5, batch_size=8, precision="fp32", clip_norm=1.0)


class ToyDataset:
    """Pictures of two coloured halves; an expression names one of them, in one of three ways."""

    def __init__(self, references: int) -> None:
        rng = np.random.default_rng(0)
        self.pairs = [rng.permutation(list(COLOURS))[:2] for _ in range(references)]

    def __len__(self) -> int:
        return 3 * len(self.pairs)

    def by_reference(self) -> list[list[int]]:
        return [[3 * r, 3 * r + 1, 3 * r + 2] for r in range(len(self.pairs))]

    def __getitem__(self, index: int) -> Sample:
        reference, sentence = divmod(index, 3)
        left, right = self.pairs[reference]
        pixels = np.zeros((8, 8, 3), np.uint8)
        pixels[:, :4], pixels[:, 4:] = COLOURS[left], COLOURS[right]
        mask = np.zeros((8, 8), bool)
        mask[:, :4] = True
        words = (left, f"the {left}", f"the {left} one")[sentence]
        return Sample(
            Image.fromarray(pixels), words, mask, reference, reference, reference, index, "train", "half"
        )


class ToyMethod(Method):
    """All that makes resuming hard: running statistics, dropout, an embedding, a frozen and an idle part."""

    preprocessing = Preprocessing(size=8, resize="stretch", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def __init__(self, *, dropout: float = 0.3, norm: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        normalise = nn.BatchNorm2d(16) if norm else nn.Identity()
        self.encoder = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), normalise)
        self.words = nn.Embedding(len(VOCABULARY), 16, padding_idx=0)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(16, 1, 1)
        self.idle = nn.Linear(2, 2)
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)

    def tokenize(self, expressions):
        rows = [[VOCABULARY.index(word) for word in expression.split()] for expression in expressions]
        tokens = torch.tensor([row + [0] * (3 - len(row)) for row in rows])
        return tokens, tokens != 0

    def encode_image(self, image):
        return self.encoder(image).relu()

    def segment(self, features, tokens, token_mask):
        words = self.words(tokens).sum(1)[:, :, None, None]
        return self.head(self.dropout(features * words))

    def losses(self, batch):
        logits = self.segment(self.features(batch), batch.tokens, batch.token_mask)
        return {
            "bce": F.binary_cross_entropy_with_logits(logits, batch.mask),
            "l2": 1e-3 * logits.square().mean(),
        }

    def encoder_parameters(self):
        return self.encoder.parameters()


def train(folder, *, method=None, references=20, recipe=QUICK, **keywords):
    method = method or ToyMethod()
    keywords = {"samples_budget": 320, "progress": False} | keywords
    return fit(method, ToyDataset(references), recipe, out=folder, **keywords)


def log_of(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def losses_of(folder) -> list[tuple[int, float]]:
    return [(record["step"], record["loss"]) for record in log_of(folder) if "loss" in record]


def assert_same_run(one, other) -> None:
    """Weights, statistics, averages and every logged loss, bit for bit."""
    for name in ("checkpoint.safetensors", "model.safetensors"):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert [key for key in left if not torch.equal(left[key], right[key])] == []
    assert losses_of(one) == losses_of(other)


# --- killed and resumed ---------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["rislib.training", "torch._dynamo", "pytest"])  # imported once for all children


def start(target, *args):
    process = SPAWN.Process(target=target, args=args, daemon=True)
    process.start()
    return process


def child(folder, precision, moment=None):
    """Train with a checkpoint at every step; die at a `moment` of the third, if one is named."""
    torch.set_num_threads(1)
    if moment:
        die_while_saving(moment)
    recipe = replace(QUICK, precision=precision)
    train(folder, recipe=recipe, resume=True, checkpoint_every=0, log_every=1)


def die_while_saving(moment: str) -> None:
    save_file, replace_file, calls = checkpoint.save_file, os.replace, []

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def torn_save(tensors, path, metadata):
        calls.append(path)
        save_file(tensors, path, metadata=metadata)
        if len(calls) == 3 and moment == "half written":
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def dying_replace(source, target):
        if len(calls) == 3 and moment == "before it is renamed":
            die()
        replace_file(source, target)
        if len(calls) == 3 and moment == "after it is renamed":
            die()

    checkpoint.save_file, checkpoint.os.replace = torn_save, dying_replace


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One run per precision that nothing happened to."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    for precision in ("fp32", "bf16"):
        train(folder / precision, recipe=replace(QUICK, precision=precision))
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(tmp_path, uninterrupted, precision):
    rng = random.Random(precision)
    log, exits = tmp_path / "log.jsonl", []
    for step in (rng.randint(2, 7), rng.randint(9, 15), rng.randint(17, 23), rng.randint(25, 31), math.inf):
        process = start(child, tmp_path, precision)
        while process.is_alive() and lines_in(log) < step:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))  # a step takes 10 ms here, and half of it is the checkpoint
        process.kill()
        process.join()
        exits.append(process.exitcode)
    assert exits.count(-signal.SIGKILL) >= 2 and exits[-1] == 0
    assert_same_run(tmp_path, uninterrupted / precision)


def lines_in(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("moment", ["half written", "before it is renamed", "after it is renamed"])
def test_killed_while_a_checkpoint_is_written(tmp_path, uninterrupted, moment):
    process = start(child, tmp_path, "fp32", moment)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        assert int(file.metadata()["step"]) == (3 if moment == "after it is renamed" else 2)
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted / "fp32")


class Stop(Exception):
    pass


def stop_halfway(calls=2):
    """A `validate` that ends the run as if it had been interrupted, at its last call but some."""
    seen = []

    def validate(method):
        seen.append(method.training)
        if len(seen) == calls:
            raise Stop
        return {"calls": float(len(seen))}

    return validate


def stopped(folder, **keywords):
    with pytest.raises(Stop):
        train(folder, validate=stop_halfway(), validations=4, checkpoint_every=0, log_every=1, **keywords)


def test_channels_last_resumes_bit_for_bit(tmp_path):
    """The optimiser's averages must get their parameter's memory format back."""
    train(tmp_path / "whole", channels_last=True)
    stopped(tmp_path / "parts", channels_last=True)
    train(tmp_path / "parts", channels_last=True, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resume_without_checkpoint_starts_and_after_the_end_does_nothing(tmp_path, uninterrupted):
    train(tmp_path, resume=True)
    assert_same_run(tmp_path, uninterrupted / "fp32")
    method = ToyMethod(seed=5)
    run = train(tmp_path, method=method, resume=True)
    assert run.steps == 40
    assert_same_run(tmp_path, uninterrupted / "fp32")
    stored = load_file(uninterrupted / "fp32" / "model.safetensors")
    assert all(torch.equal(value, stored[name]) for name, value in method.state_dict().items())


def test_without_resume_the_folder_is_trained_anew(tmp_path, uninterrupted):
    stopped(tmp_path)
    train(tmp_path)
    assert_same_run(tmp_path, uninterrupted / "fp32")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"recipe": replace(QUICK, learning_rate=1e-4)}, "recipe"),
        ({"samples_budget": 640}, "budget"),
        ({"samples_budget": None, "epochs": 16}, "budget"),
        ({"references": 21}, "references"),
    ],
)
def test_resuming_another_run_is_refused(tmp_path, uninterrupted, change, named):
    checkpoint = tmp_path / "checkpoint.safetensors"
    checkpoint.write_bytes((uninterrupted / "fp32" / checkpoint.name).read_bytes())
    with pytest.raises(ValueError, match=rf"checkpoint\.safetensors cannot be resumed: {named} was"):
        train(tmp_path, resume=True, **change)


# --- files ----------------------------------------------------------------------------------------------


def test_files_hold_no_pickle_and_are_safetensors(tmp_path, monkeypatch):
    def forbidden(*args, **keywords):
        raise AssertionError("a pickle was written")

    for module, name in [(torch, "save"), (pickle, "dump"), (pickle, "dumps"), (pickle, "Pickler")]:
        monkeypatch.setattr(module, name, forbidden)
    method = ToyMethod()
    run = train(tmp_path, method=method, checkpoint_every=0)
    assert run.folder == tmp_path
    assert {file.name for file in tmp_path.iterdir()} == {
        "checkpoint.safetensors",
        "log.jsonl",
        "model.safetensors",
    }

    weights = load_file(tmp_path / "model.safetensors")
    assert weights.keys() == method.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in method.state_dict().items())
    tensors = load_file(tmp_path / "checkpoint.safetensors")
    assert {name for name in tensors if name.startswith("optimiser.head.weight.")} == {
        f"optimiser.head.weight.{key}" for key in ("step", "exp_avg", "exp_avg_sq")
    }
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        facts = {key: json.loads(text) for key, text in file.metadata().items()}
    assert facts["step"] == 40 and facts["seed"] == 0 and facts["seconds"] > 0
    assert facts["recipe"] == json.loads(json.dumps(asdict(QUICK)))


def test_log_has_every_step_with_its_losses(tmp_path):
    train(tmp_path, log_every=7)
    records = log_of(tmp_path)
    assert [record["step"] for record in records] == list(range(1, 41))
    assert [record["samples"] for record in records] == [8 * n for n in range(1, 41)]
    for record in records:
        assert record["loss"] == pytest.approx(sum(record["losses"].values()), rel=1e-5)
        assert record["losses"].keys() == {"bce", "l2"}
        assert record["grad_norm"] > 0 and record["samples_per_second"] > 0
    rates = [record["learning_rate"] for record in records]
    assert rates == [pytest.approx(5e-3 * QUICK.rate(step / 40)) for step in range(40)]


def test_validation_happens_in_eval_mode_and_changes_nothing(tmp_path, uninterrupted):
    modes = []

    def validate(method):
        modes.append(method.training)
        torch.rand(3)
        return {"oiou": 0.5}

    train(tmp_path, validate=validate, validations=4)
    lines = [record for record in log_of(tmp_path) if "validation" in record]
    assert modes == [False] * 4
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[0]["validation"] == {"oiou": 0.5}
    trained, expected = (
        load_file(folder / "model.safetensors") for folder in (tmp_path, uninterrupted / "fp32")
    )
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


# --- rates and groups -----------------------------------------------------------------------------------


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.25, 0.5, 0.7, 0.99, 1.0])
def test_rates_against_closed_forms(progress):
    assert Recipe(schedule="cosine").rate(progress) == pytest.approx(math.cos(math.pi * progress / 2) ** 2)
    assert Recipe(schedule="poly", power=0.9).rate(progress) == pytest.approx((1 - progress) ** 0.9)
    assert Recipe(schedule="constant").rate(progress) == 1
    steps = Recipe(schedule="multistep", milestones=(0.25, 0.7), gamma=0.1)
    assert steps.rate(progress) == pytest.approx(1 if progress < 0.25 else 0.1 if progress < 0.7 else 0.01)


def test_multistep_drops_exactly_after_epoch_35_of_50():
    """As a scheduler stepped once per epoch does: with 7 steps per epoch, step 245 is the first slow one."""
    cris = Recipe(schedule="multistep", milestones=(35 / 50,))
    assert cris.rate(244 / 350) == 1
    assert cris.rate(245 / 350) == pytest.approx(0.1)


def test_warmup_rises_linearly_to_the_peak_and_goes_on_from_there():
    recipe = Recipe(schedule="cosine", warmup=0.2)
    assert [recipe.rate(p) for p in (0, 0.05, 0.1)] == pytest.approx([0, 0.25, 0.5])
    assert recipe.rate(0.2) == 1
    assert recipe.rate(0.6) == pytest.approx(0.5)
    assert recipe.rate(1) == pytest.approx(0)


def test_bad_recipes_are_refused():
    with pytest.raises(ValueError, match="warmup"):
        Recipe(warmup=1)
    with pytest.raises(ValueError, match=r"schedule is one of cosine, .*sawtooth"):
        Recipe(schedule="sawtooth")


def test_groups_have_the_right_rate_and_decay_only_matrices():
    recipe = Recipe(learning_rate=1e-2, encoder_factor=0.1, weight_decay=0.05)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in parameter_groups(ToyMethod(), recipe)
        for name, _ in group["params"]
    }
    assert {name: (pytest.approx(lr), decay) for name, (lr, decay) in found.items()} == {
        "encoder.0.weight": (1e-3, 0.05),
        "encoder.0.bias": (1e-3, 0),
        "encoder.1.weight": (1e-3, 0),
        "encoder.1.bias": (1e-3, 0),
        "words.weight": (1e-2, 0.05),
        "head.weight": (1e-2, 0.05),
        "head.bias": (1e-2, 0),
        "idle.weight": (1e-2, 0.05),
        "idle.bias": (1e-2, 0),
    }


def test_decay_may_go_by_name():
    recipe = Recipe(weight_decay=0.05, undecayed=("words", "encoder.1"))
    groups = parameter_groups(ToyMethod(), recipe)
    undecayed = {name for group in groups if group["weight_decay"] == 0 for name, _ in group["params"]}
    assert undecayed == {"words.weight", "encoder.1.weight", "encoder.1.bias"}


def test_first_adam_step_moves_each_group_by_its_rate(tmp_path):
    """Adam's first step is the learning rate times the gradient's sign: the groups' rates do arrive."""
    method, start = ToyMethod(dropout=0), ToyMethod(dropout=0)
    recipe = Recipe(
        "adam", learning_rate=1e-2, encoder_factor=0.1, weight_decay=0, schedule="constant", precision="fp32"
    )
    train(tmp_path, method=method, recipe=recipe, samples_budget=1)
    assert (method.head.weight - start.head.weight).abs().max().item() == pytest.approx(1e-2, rel=1e-3)
    moved = (method.encoder[0].weight - start.encoder[0].weight).abs()
    assert moved.max().item() == pytest.approx(1e-3, rel=1e-3)
    assert torch.equal(method.idle.weight, start.idle.weight)


# --- order ----------------------------------------------------------------------------------------------


def test_an_epoch_shows_every_reference_once_with_varying_sentences():
    references = [[0, 1, 2], [3], [4, 5], *([6 + 2 * r, 7 + 2 * r] for r in range(50))]
    owner = {index: r for r, indices in enumerate(references) for index in indices}
    epochs = [epoch_order(references, 0, epoch) for epoch in range(30)]
    for order in epochs:
        assert sorted(owner[index] for index in order) == list(range(len(references)))
    assert len({tuple(order) for order in epochs}) == 30
    assert {index for order in epochs for index in order} == set(owner)
    assert epochs[3] == epoch_order(references, 0, 3) != epoch_order(references, 1, 3)


def test_by_picture_an_epoch_keeps_together_what_is_said_of_one():
    references = [[2 * r, 2 * r + 1] for r in range(60)]
    pictures = [[*references[r], *references[r + 30]] for r in range(30)]
    owner = {index: p for p, indices in enumerate(pictures) for index in indices}
    epochs = [epoch_order(references, 0, epoch, pictures=pictures) for epoch in range(9)]
    for order in epochs:
        assert sorted(index // 2 for index in order) == list(range(60))
        shown = [owner[index] for index in order]
        assert shown[::2] == shown[1::2] and sorted(shown[::2]) == list(range(30))
    assert len({tuple(owner[index] for index in order) for order in epochs}) == 9
    assert len({order[0] // 2 < order[1] // 2 for order in epochs}) == 2  # nor in the order of the references


class PairedDataset(ToyDataset):
    """Two references a picture, one to each of its halves."""

    def by_image(self) -> list[list[int]]:
        return [[*range(6 * p, 6 * p + 6)] for p in range(len(self.pairs) // 2)]

    def __getitem__(self, index: int) -> Sample:
        left, right = self.pairs[index // 6]
        sample = super().__getitem__(index // 6 * 3)
        flipped = index % 6 >= 3
        words, mask = (right, ~sample.mask) if flipped else (left, sample.mask)
        return replace(sample, expression=words, mask=mask, ref_id=index // 3, sent_id=index)


@pytest.mark.parametrize("norm", [False, True])
def test_sharing_a_picture_changes_no_loss_and_no_gradient(norm):
    samples = [PairedDataset(8)[index] for index in (0, 3, 6, 9, 11)]
    method = ToyMethod(dropout=0, norm=norm).train(not norm)  # statistics of a batch count pictures
    gradients = []
    for share_pictures in (False, True):
        batch = make_batch(samples, method.preprocessing, method.tokenize, share_pictures=share_pictures)
        method.zero_grad()
        losses = method.losses(batch)
        sum(losses.values()).backward()
        gradients.append(
            [losses["bce"].detach(), *(p.grad for p in method.parameters() if p.grad is not None)]
        )
    assert len(batch.image) == 2
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_recipe_by_picture_shows_each_picture_to_its_batch_once(tmp_path):
    seen = []

    class Looking(ToyMethod):
        def losses(self, batch):
            seen.append((len(batch.image), len(batch.tokens)))
            return super().losses(batch)

    recipe = replace(QUICK, by_picture=True)
    fit(Looking(), PairedDataset(24), recipe, out=tmp_path, epochs=2, progress=False)
    assert seen == [(4, 8)] * 6


class Watched(ToyDataset):
    """Remembers which samples were asked for."""

    def __init__(self, references: int) -> None:
        super().__init__(references)
        self.indices: list[int] = []

    @property
    def shown(self) -> list[int]:
        """Their references."""
        return [index // 3 for index in self.indices]

    def __getitem__(self, index: int) -> Sample:
        self.indices.append(index)
        return super().__getitem__(index)


def test_fit_shows_every_reference_once_per_epoch(tmp_path):
    """12 references in batches of 8: batches cross the borders of epochs."""
    samples = Watched(12)
    run = fit(ToyMethod(), samples, QUICK, out=tmp_path, epochs=4, progress=False)
    assert (run.steps, run.samples) == (6, 48)
    for epoch in range(4):
        assert sorted(samples.shown[12 * epoch : 12 * (epoch + 1)]) == list(range(12))


def test_workers_change_nothing(tmp_path):
    train(tmp_path / "none", samples_budget=48)
    train(tmp_path / "two", samples_budget=48, workers=2)
    assert_same_run(tmp_path / "none", tmp_path / "two")


# --- learning, time, errors -----------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_loss_goes_down(tmp_path, precision):
    method = ToyMethod(dropout=0)
    train(
        tmp_path,
        method=method,
        recipe=replace(QUICK, precision=precision, learning_rate=2e-2),
        samples_budget=1200,
    )
    losses = [loss for _, loss in losses_of(tmp_path)]
    assert np.mean(losses[-10:]) < 0.3 * np.mean(losses[:10])
    assert not method.training
    sample = ToyDataset(20)[1]
    batch = make_batch([sample], method.preprocessing, method.tokenize)
    with torch.no_grad():
        predicted = method(batch.image, batch.tokens)[0, 0] > 0
    assert (predicted.numpy() == sample.mask).mean() > 0.9


def test_one_process_can_train_in_one_precision_after_another(tmp_path):
    method = ToyMethod(dropout=0)
    losses = {}
    for precision in ("fp32", "bf16", "fp32"):
        train(tmp_path / precision, method=ToyMethod(dropout=0), recipe=replace(QUICK, precision=precision))
        losses.setdefault(precision, []).append(losses_of(tmp_path / precision))
    assert losses["fp32"][0] == losses["fp32"][1] != losses["bf16"][0]
    assert all(parameter.dtype == torch.float32 for parameter in method.parameters())


def longest_step(folder) -> float:
    """On a busy machine even a toy's step can take long, and the last one is always finished."""
    return float(np.diff([record["seconds"] for record in log_of(folder)]).max())


def test_a_budget_of_minutes_ends_on_time_with_a_small_rate(tmp_path):
    began = time.perf_counter()
    run = train(tmp_path, samples_budget=None, minutes=3 / 60, log_every=5)
    taken = time.perf_counter() - began
    assert 3 <= run.seconds <= taken
    assert taken < 4 + longest_step(tmp_path)  # saving and the rest of a busy machine
    records = log_of(tmp_path)
    assert records[0]["learning_rate"] > 0.9 * QUICK.learning_rate
    assert records[-1]["learning_rate"] < 0.01 * QUICK.learning_rate


def test_a_budget_of_minutes_goes_on_where_it_was(tmp_path):
    stopped(tmp_path, samples_budget=None, minutes=2 / 60)
    with safe_open(tmp_path / "checkpoint.safetensors", framework="pt") as file:
        step, seconds = int(file.metadata()["step"]), float(file.metadata()["seconds"])
    run = train(tmp_path, samples_budget=None, minutes=2 / 60, resume=True)
    assert 2 <= run.seconds < 2.2 + longest_step(tmp_path)
    assert [step for step, _ in losses_of(tmp_path)] == list(range(1, run.steps + 1))
    first = next(record for record in log_of(tmp_path) if record["step"] == step + 1)
    assert first["learning_rate"] <= QUICK.learning_rate * QUICK.rate(seconds / 2)


class Noisy(ToyMethod):
    """Remembers what each generator drew in each step."""

    def losses(self, batch):
        self.drawn = [*getattr(self, "drawn", []), (torch.rand(()).item(), random.random(), np.random.rand())]
        return super().losses(batch)


def test_what_is_random_differs_between_steps_and_seeds_only(tmp_path):
    drawn = []
    for seed in (0, 0, 1):
        method = Noisy()
        train(tmp_path, method=method, seed=seed, samples_budget=80)
        drawn.append(method.drawn)
    assert drawn[0] == drawn[1]
    for generator in range(3):
        assert len({step[generator] for step in drawn[0] + drawn[2]}) == 20


class Exploding(ToyMethod):
    def losses(self, batch):
        self.calls = getattr(self, "calls", 0) + 1
        losses = super().losses(batch)
        return losses | {"l2": losses["l2"] * (math.nan if self.calls == 13 else 1)}


def test_a_loss_that_is_not_finite_is_named(tmp_path):
    with pytest.raises(FloatingPointError, match=r"step 13: .*'bce': \d.*'l2': nan"):
        train(tmp_path, method=Exploding(), checkpoint_every=0)
    assert len(log_of(tmp_path)) == 12
    checkpoint = load_file(tmp_path / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in checkpoint.values())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"samples_budget": None}, "exactly one"),
        ({"minutes": 1.0}, "exactly one"),
        ({"references": 0}, "no samples"),
    ],
)
def test_bad_budgets_are_refused(tmp_path, keywords, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **keywords)


# --- several processes ----------------------------------------------------------------------------------


def one_of_two(folder, rank, port, budget):
    torch.set_num_threads(1)
    os.environ |= {
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    train(folder, method=ToyMethod(dropout=0, norm=False), log_every=4, checkpoint_every=0, **budget)
    torch.distributed.destroy_process_group()


def train_in_two_processes(folder, **budget):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [start(one_of_two, folder, rank, port, budget) for rank in range(2)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]


def test_two_processes_train_as_one_does(tmp_path):
    train(tmp_path / "one", method=ToyMethod(dropout=0, norm=False))
    train_in_two_processes(tmp_path / "two", samples_budget=320)
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert [step for step, _ in two] == list(range(1, 41))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)


def test_two_processes_agree_when_minutes_are_over(tmp_path):
    train_in_two_processes(tmp_path, samples_budget=None, minutes=1 / 60)
    assert log_of(tmp_path)[-1]["seconds"] >= 0.95


# --- beside the numbers ---------------------------------------------------------------------------------


def test_machine_and_commit_are_plain_json():
    facts = machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__ and facts["cores"] >= 1 and facts["cpu"]
    commit = git_commit()
    assert commit is None or len(commit.removesuffix("-dirty")) == 40


def test_methods_whose_towers_have_met_learn_more_slowly():
    assert mini_recipe("cris") is MINI
    assert mini_recipe("lavt") == mini_recipe("magnet") == MINI_SWIN != MINI


def test_mini_is_what_it_says():
    assert (MINI.optimiser, MINI.schedule, MINI.precision) == ("adamw", "cosine", "bf16")
