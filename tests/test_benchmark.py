"""The benchmark: what it counts, where it says the time goes, and that it times what it says it times."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from shared import Clock
from torch import nn
from torch.nn import functional as F

import rislib.benchmark
from rislib.benchmark import (
    REST,
    Benchmark,
    benchmark,
    ceiling,
    count_flops,
    forward_step,
    module_times,
    random_batch,
    train_step,
)
from rislib.methods import BUILDERS, CRIS, cris_mini, lavt_mini, magnet_mini
from rislib.training import Recipe
from rislib.training.step import make_accelerator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def measured() -> Benchmark:
    return benchmark("cris_mini", mode="forward", batch=3, steps=3, warmup=1)


# --- FLOPs ------------------------------------------------------------------------------------


class Tiny(nn.Module):
    """A product of each kind, all of which can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.linear = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.forgotten = nn.Linear(1000, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.conv(image).flatten(2).transpose(1, 2)  # (B, 16, 8) of 4 x 4 pixels
        x = self.linear(x)  # (B, 16, 16)
        x, _ = self.attention(x, x, x, need_weights=False)
        return F.scaled_dot_product_attention(x, x, x)


def test_flops_equal_a_count_by_hand():
    model, image = Tiny().eval(), torch.randn(5, 3, 4, 4)
    conv = 2 * 16 * 8 * (3 * 3 * 3)
    linear = 2 * 16 * 8 * 16
    projections = 4 * 2 * 16 * 16 * 16  # query, key, value, out
    products = 2 * 2 * 16 * 16 * 16  # scores and sums; the number of heads does not matter
    forward = 5 * (conv + linear + projections + 2 * products)
    with torch.no_grad():  # where torch's attention modules take a shortcut
        assert count_flops(partial(model, image)) == forward

    # Backward, each product becomes two; but no gradient is asked of the image.
    assert count_flops(lambda: model(image).sum().backward()) == 3 * forward - 5 * conv


def test_a_method_flops_do_not_depend_on_how_it_runs(measured: Benchmark):
    """Two samples stand for all: three times one sample's is what three cost."""
    method = cris_mini(pretrained=False)
    assert measured.tflop * 1e12 == pytest.approx(
        count_flops(partial(forward_step(method), random_batch(method, 3))), rel=1e-12
    )


# --- time -------------------------------------------------------------------------------------


class Working(nn.Module):
    """A module that takes `seconds`, the half of them after its children."""

    def __init__(self, clock: Clock, seconds: float, **children: nn.Module) -> None:
        super().__init__()
        self.clock, self.seconds = clock, seconds
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self) -> None:
        self.clock.seconds += self.seconds / 2
        for child in self.children():
            child()
        self.clock.seconds += self.seconds / 2


def test_time_goes_where_it_was_spent(clock: Clock):
    work = partial(Working, clock)
    model = work(
        2,
        tower=work(4, long=work(60, piece=work(6), other=work(6)), short=work(0.5), brief=work(11)),
        head=work(5.5),
    )  # 95 seconds in all
    times = module_times(model, model, CPU)
    # 60 + 6 + 6 is not shown by its pieces, which are below a fifteenth; the tower is shown by its parts.
    # short, with half a hundredth, is left to the rest, together with the tower's own 4 and the model's 2.
    assert times == pytest.approx({"tower.long": 72, "tower.brief": 11, "head": 5.5, REST: 6.5})
    assert list(times) == ["tower.long", "tower.brief", "head", REST]


def test_time_between_modules_belongs_to_what_holds_both(clock: Clock):
    """As in Swin and CLIP, whose blocks are called by a method, and whose own forward is never called."""
    model = nn.ModuleDict({"swin": nn.ModuleDict({"norm": Working(clock, 1), "mlp": Working(clock, 2)})})
    model["head"] = Working(clock, 3)

    def forward() -> None:
        model["swin"]["norm"]()
        clock.seconds += 30  # attention, written in a method
        model["swin"]["mlp"]()
        clock.seconds += 4  # not within swin any more
        model["head"]()

    times = module_times(model, forward, CPU)
    assert times == pytest.approx({"swin": 33, "head": 3, REST: 4})
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_fastest_run_counts(clock: Clock):
    model = nn.ModuleDict({"a": Working(clock, 1), "b": Working(clock, 2)})
    delays = iter([5, 0, 7])

    def forward() -> None:
        model["a"]()
        model["b"]()
        clock.seconds += next(delays)

    assert module_times(model, forward, CPU, runs=3) == pytest.approx({"b": 2, "a": 1, REST: 0})


def test_the_ceiling_is_the_best_product(clock: Clock, monkeypatch):
    durations = iter([0.5, 0.25, *[1.0] * 18])
    sizes = []

    def product(a: torch.Tensor, b: torch.Tensor) -> None:
        sizes.append((a.shape, b.shape, a.dtype))
        clock.seconds += next(durations)

    monkeypatch.setattr(torch, "mm", product)
    assert ceiling(CPU, "bf16") == 2 * 1024**3 / 0.25
    assert set(sizes) == {((1024, 1024), (1024, 1024), torch.bfloat16)}


# --- what is timed ----------------------------------------------------------------------------


@pytest.mark.parametrize("build", [cris_mini, lavt_mini, magnet_mini])
def test_a_random_batch_fits_every_method(build):
    method = build(pretrained=False)
    batch = random_batch(method, 2, channels_last=True)
    assert batch.image.shape == (2, 3, 96, 96)
    assert batch.image.is_contiguous(memory_format=torch.channels_last)
    assert batch.tokens.shape == (2, 32) and batch.token_mask.all()
    assert batch.tokens.max() < method.tokenizer.vocab_size
    assert method(batch.image, batch.tokens).isfinite().all()


def test_forward_changes_nothing_and_train_changes_what_learns():
    torch.manual_seed(0)
    method = cris_mini(pretrained=False)
    batch = random_batch(method, 2)
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    forward_step(method)(batch)
    assert all(torch.equal(before[name], tensor) for name, tensor in method.state_dict().items())

    forward, step = train_step(method, Recipe(precision="fp32"), make_accelerator("fp32"))
    assert set(forward(batch)) == {"text_to_pixel", "dice"}
    step(batch)
    moved = {name for name, p in method.named_parameters() if not torch.equal(before[name], p)}
    # A new ResNet's blocks begin closed, so that much of them has a gradient of zero in the first step.
    pushed = {name for name, p in method.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(pushed) > 100 and pushed <= moved
    assert "clip.model.logit_scale" not in moved  # frozen


def test_compiled_methods_are_counted_and_divided_like_others(monkeypatch):
    """With the compiler's first half only: the second takes minutes on two cores."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    options = {"mode": "train", "batch": 2, "precision": "bf16", "steps": 1, "warmup": 1}
    compiled, plain = (benchmark("cris_mini", compile=c, **options) for c in (True, False))
    assert compiled.tflop == plain.tflop > 0
    assert compiled.compile and set(compiled.by_module) & set(plain.by_module) > {REST}


# --- what is reported -------------------------------------------------------------------------


def test_numbers_agree_with_each_other(measured: Benchmark):
    seconds = measured.median_ms / 1e3
    assert measured.best_ms <= measured.median_ms
    assert measured.images_per_second == pytest.approx(3 / seconds)
    assert measured.tflop_per_second == pytest.approx(measured.tflop / seconds)
    assert measured.share == pytest.approx(measured.tflop / seconds / measured.ceiling_tflop_per_second)
    assert measured.peak_gib > sum(p.nbytes for p in cris_mini(pretrained=False).parameters()) / 2**30


def test_parts_are_the_method_s_and_sum_to_the_whole(measured: Benchmark):
    method: CRIS = cris_mini(pretrained=False)
    assert list(measured.by_module)[-1] == REST and len(measured.by_module) > 4
    names = [name for name in measured.by_module if name != REST]
    for name in names:
        method.get_submodule(name)  # raises if there is none
        assert not any(other.startswith(f"{name}.") for other in names), "counted twice"
    assert all(ms >= 0 for ms in measured.by_module.values())
    parts = measured.to_json()["by_module"]
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1, abs=1e-4)  # five digits each


def test_json_and_table_say_what_was_measured(measured: Benchmark):
    found = json.loads(json.dumps(measured.to_json()))
    asked = {"method": "cris_mini", "mode": "forward", "batch": 3, "precision": "fp32", "steps": 3}
    assert found.items() >= {**asked, "compile": False, "channels_last": True}.items()
    assert found["device"] and found["threads"] == torch.get_num_threads()
    for name in ("images_per_second", "median_ms", "peak_gib", "tflop", "tflop_per_second", "share"):
        assert found[name] == pytest.approx(getattr(measured, name), rel=1e-4)  # rounded to five digits
    table = measured.table()
    assert table.startswith("cris_mini, forward, batch 3, fp32, channels last\n")
    assert all(name in table for name in measured.by_module)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "cris_r18"}, "'cris_r18' is none of cris_mini, cris_r50, .*magnet_mini"),
        ({"without": ("neck",)}, "no part .neck."),
        ({"mode": "backward"}, "'backward' is none of forward, train"),
        ({"precision": "fp8"}, "'fp8' is none of fp32, bf16"),
        ({"batch": 0}, "one sample"),
        ({"steps": 0}, "one step"),
        ({"mode": "train", "batch": 1}, "2 samples or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(wrong: dict, message: str):
    with pytest.raises(ValueError, match=message):
        benchmark(**{"name": "cris_mini", **wrong})


def test_every_builder_has_its_own_name():
    assert len(rislib.benchmark.METHODS) == len(BUILDERS)


def test_a_method_can_be_measured_without_some_of_its_parts():
    whole, part = (
        benchmark("cm_masksd_mini", mode="train", batch=2, steps=1, warmup=0, without=without)
        for without in ((), ("lmvsd", "vmlsd"))
    )
    assert 1.5 * part.tflop < whole.tflop and part.without == ("lmvsd", "vmlsd")
    assert part.table().startswith("cm_masksd_mini, train, batch 2, fp32, without lmvsd, without vmlsd")
