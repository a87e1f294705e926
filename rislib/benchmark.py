"""How fast is a method on this machine, how fast could it be, and where does its time go?

    print(benchmark("cris_r50", mode="train", batch=16, precision="bf16").table())

The measure of what could be is a plain product of two square matrices, timed on the same device in the same
precision: its FLOP/s are the ceiling, of which a network reaches a share.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate, pairwise, takewhile
from statistics import median
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rislib.methods import BUILDERS, build, part_options
from rislib.nouns import Batch, Method
from rislib.training import Recipe, machine
from rislib.training.step import losses_of, make_accelerator, optimise, prepare

METHODS = {builder.__name__: key for key, builder in BUILDERS.items()}
MODES = ("forward", "train")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
REST = "the rest"  # of `Benchmark.by_module`


@dataclass(frozen=True)
class Benchmark:
    """What `benchmark` measured."""

    method: str
    without: tuple[str, ...]  # these of its parts
    mode: str
    batch: int
    precision: str
    compile: bool
    channels_last: bool
    steps: int  # that were timed
    median_ms: float  # per step
    best_ms: float
    peak_gib: float  # allocated on a GPU during the steps; on a CPU the most that the process ever held
    tflop: float  # per step, of matrix products and convolutions
    ceiling_tflop_per_second: float  # of a plain matrix product
    by_module: dict[str, float]  # dotted name -> ms of a forward pass, not compiled, as `module_times` says
    device: str
    threads: int
    torch: str

    @property
    def images_per_second(self) -> float:
        """Of the median step, as are the next two."""
        return 1e3 * self.batch / self.median_ms

    @property
    def tflop_per_second(self) -> float:
        return 1e3 * self.tflop / self.median_ms

    @property
    def share(self) -> float:
        """Of the ceiling. A GPU's fp32 convolutions may pass it: torch rounds them to TF32, products not."""
        return self.tflop_per_second / self.ceiling_tflop_per_second

    def to_json(self) -> dict[str, Any]:
        """The fields, images_per_second, tflop_per_second and share, to five digits.

        by_module becomes {name: {"ms", "share"}}, shares of that pass.
        """
        derived = {name: getattr(self, name) for name in ("images_per_second", "tflop_per_second", "share")}
        whole = sum(self.by_module.values())
        return {
            **{name: _five_digits(value) for name, value in (asdict(self) | derived).items()},
            "by_module": {
                name: {"ms": _five_digits(ms), "share": _five_digits(ms / whole)}
                for name, ms in self.by_module.items()
            },
        }

    def table(self) -> str:
        """The same for a terminal."""
        options = [f"without {part}" for part in self.without]
        options += ["compiled"] * self.compile + ["channels last"] * self.channels_last
        what = ", ".join([self.method, self.mode, f"batch {self.batch}", self.precision, *options])
        lines = [
            what,
            f"{self.device}, threads: {self.threads}, torch {self.torch}",
            "",
            f"  images/s      {self.images_per_second:10.3f}",
            f"  ms per step   {self.median_ms:10.1f}   median of {self.steps}, best {self.best_ms:.1f}",
            f"  peak memory   {self.peak_gib:10.2f}   GiB",
            f"  TFLOP         {self.tflop:10.4f}   per step",
            f"  TFLOP/s       {self.tflop_per_second:10.4f}   {self.share:.1%} of a matrix product's "
            f"{self.ceiling_tflop_per_second:.4f}",
            "",
        ]
        title, whole = "forward pass, not compiled", sum(self.by_module.values())
        width = max(map(len, [*self.by_module, title]))
        lines.append(f"  {title:<{width}}{'ms':>10}{'share':>8}")
        lines += [f"  {name:<{width}}{ms:10.1f}{ms / whole:8.0%}" for name, ms in self.by_module.items()]
        return "\n".join(lines)


def benchmark(
    name: str,
    *,
    without: Iterable[str] = (),
    mode: Literal["forward", "train"] = "forward",
    batch: int = 1,
    precision: Literal["fp32", "bf16"] = "fp32",
    compile: bool = False,
    channels_last: bool = True,
    steps: int = 10,
    warmup: int = 3,
) -> Benchmark:
    """Time a method with random weights on random pictures of its size and sentences of full length.

    The device is the one that `rislib.training.fit` would choose.

    Args:
        name: of a builder in `rislib.methods`, such as cris_r50.
        without: parts of the method to leave out, as in `rislib.methods.part_options`.
        mode: "forward", in eval mode without gradients; or "train", a step of `fit`: losses, backward pass,
            norm of the gradients, AdamW.
        precision: bf16 by autocast.
        compile: by torch.compile, the forward pass or the losses. FLOPs and times by module are always
            those of the network as it is written.
        channels_last: keep pictures and kernels in that memory format, as `rislib.runs` does in training.
        steps, warmup: how many are timed, after how many that are not.

    Raises:
        ValueError: unknown name, part, mode or precision, less than one of batch and steps, or training CRIS
            on batches of one.
    """
    for choice, choices in ((name, METHODS), (mode, MODES), (precision, PRECISIONS)):
        if choice not in choices:
            raise ValueError(f"{choice!r} is none of {', '.join(choices)}")
    if batch < 1 or steps < 1:
        raise ValueError(f"a benchmark takes one sample and one step at least, not {batch} and {steps}")
    training = mode == "train"
    accelerator = make_accelerator(precision)
    device = accelerator.device
    torch.manual_seed(0)
    family, size = METHODS[name]
    without = tuple(without)
    method = build(family, size, pretrained=False, **part_options(family, without=without))
    method.to(device, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    if training:
        # A rate at which random weights stay finite: numbers that are not may be slower.
        recipe = Recipe(learning_rate=1e-5, batch_size=batch, precision=precision)
        forward, step = train_step(method, recipe, accelerator, compile=compile)
    else:
        forward = step = forward_step(method, compile=compile)
    data = random_batch(method, batch, channels_last=channels_last).to(device)
    two = random_batch(method, 2, channels_last=channels_last).to(device)

    # One autocast around all forward steps casts the weights once. In training they change in each.
    autocast = nullcontext() if training else accelerator.autocast()
    with torch.set_grad_enabled(training), autocast:
        for _ in range(warmup):
            step(data)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = [_seconds(partial(step, data), device) for _ in range(steps)]
        peak = peak_memory(device)
        with torch.compiler.set_stance("force_eager"):
            by_module = module_times(method, partial(forward, data), device)
            # Two samples stand for all. torch overcounts the gradient of CRIS's last convolution, which has
            # a kernel per sample, in proportion to their number; batch norm would not train on one.
            flops = count_flops(partial(step, two)) / 2 * batch

    return Benchmark(
        method=name,
        without=without,
        mode=mode,
        batch=batch,
        precision=precision,
        compile=compile,
        channels_last=channels_last,
        steps=steps,
        median_ms=1e3 * median(seconds),
        best_ms=1e3 * min(seconds),
        peak_gib=peak / 2**30,
        tflop=flops / 1e12,
        ceiling_tflop_per_second=ceiling(device, precision) / 1e12,
        by_module={part: 1e3 * spent for part, spent in by_module.items()},
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else machine()["cpu"],
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


# --- what is timed ----------------------------------------------------------------------------


def random_batch(method: Method, batch: int, *, channels_last: bool = False) -> Batch:
    """Noise at the method's size, and words up to its tokenizer's length: no vocabulary file is needed.

    A method that reads instance masks gets as many as it can take.
    """
    size, length = method.preprocessing.size, method.tokenizer.context_length
    layout = torch.channels_last if channels_last else torch.contiguous_format
    instances = None
    if method.reads_instances:
        instances = (torch.rand(batch, method.instances, size, size) > 0.5).float()
    return Batch(
        instances=instances,
        image=torch.randn(batch, 3, size, size).contiguous(memory_format=layout),
        tokens=torch.randint(1, 100, (batch, length)),  # every vocabulary has these, RefMini's few more
        token_mask=torch.ones(batch, length, dtype=torch.bool),
        mask=(torch.rand(batch, 1, size, size) > 0.5).float(),
    )


def forward_step(method: Method, *, compile: bool = False) -> Callable[[Batch], Tensor]:
    """The method's forward pass in eval mode, of a batch."""
    method.eval()
    if compile:
        method.compile()
    return lambda batch: method(batch.image, batch.tokens, batch.token_mask, batch.instances)


def train_step(
    method: Method, recipe: Recipe, accelerator: Accelerator, *, compile: bool = False
) -> tuple[Callable[[Batch], dict[str, Tensor]], Callable[[Batch], Any]]:
    """A step of `fit`, as functions of a batch: its forward pass alone (the losses), and all of it."""
    network, optimiser = prepare(method, recipe, accelerator, compile=compile)

    def step(batch: Batch) -> Any:
        return optimise(network, optimiser, accelerator, [batch], recipe.clip_norm)

    return partial(losses_of, network), step


# --- how it is measured -----------------------------------------------------------------------


def ceiling(device: torch.device, precision: str) -> float:
    """FLOP/s of a plain product: 1024 x 1024 matrices on a CPU, 8192 x 8192 on others.

    The best of 20, since all else that happens on a machine only ever makes a product slower.
    """
    n = 1024 if device.type == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device, dtype=PRECISIONS[precision])
    return 2 * n**3 / min(_seconds(partial(torch.mm, a, b), device) for _ in range(20))


def count_flops(action: Callable[[], Any]) -> int:
    """FLOPs of all matrix products and convolutions in `action`: two for each multiplication and addition.

    Attention counts as its two products, whichever kernel computes it otherwise.
    """
    # Without gradients, modules of torch take shortcuts that the counter cannot see into.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def module_times(
    method: nn.Module, forward: Callable[[], Any], device: torch.device, *, runs: int = 5
) -> dict[str, float]:
    """Seconds that the parts of `method` take in `forward()`, the longest first: {dotted name: seconds}.

    A part that has a child with a fifteenth of the whole time is shown by its children instead: ResNets by
    their stages, a Swin not by its many blocks. What is left over, with parts below a hundredth, is REST.
    Of several runs the fastest counts. Hooks cost time themselves: small modules look a little slower than
    they are.
    """
    marks: list[tuple[str, float]] = []

    def mark(name: str, *_: Any) -> None:
        marks.append((name, now(device)))

    hooks = []
    for name, module in method.named_modules():
        hooks.append(module.register_forward_pre_hook(partial(mark, name)))
        hooks.append(module.register_forward_hook(partial(mark, name)))
    whole, fastest = math.inf, []
    for _ in range(runs):
        marks.clear()
        mark("")
        forward()
        mark("")
        if (seconds := marks[-1][1] - marks[0][1]) < whole:
            whole, fastest = seconds, marks.copy()
    for hook in hooks:
        hook.remove()

    # Much is computed between modules, in methods of their parents. From one mark to the next, the time
    # belongs to the smallest part that holds both.
    times: dict[str, float] = defaultdict(float)
    for (name, start), (next_name, end) in pairwise(fastest):
        for part in _common_parts(name, next_name):
            times[part] += end - start
    shown = {part: times[part] for part in _shown_parts(times, whole) if times[part] >= whole / 100}
    shown = dict(sorted(shown.items(), key=lambda item: -item[1]))
    return {**shown, REST: whole - sum(shown.values())}


def _common_parts(first: str, second: str) -> Iterator[str]:
    """What holds both modules, largest first: "a.b.c" and "a.b.d" -> "a", "a.b"."""
    pairs = zip(first.split("."), second.split("."), strict=False)
    common = (a for a, _ in takewhile(lambda pair: pair[0] == pair[1] != "", pairs))
    return accumulate(common, "{}.{}".format)


def _shown_parts(times: dict[str, float], whole: float, part: str = "") -> Iterator[str]:
    children = [name for name in times if name.rpartition(".")[0] == part]
    if part and all(times[child] < whole / 15 for child in children):
        yield part
    else:
        for child in children:
            yield from _shown_parts(times, whole, child)


def peak_memory(device: torch.device) -> int:
    """Bytes allocated on a GPU since they were last reset; on a CPU the most that the process ever held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _seconds(action: Callable[[], Any], device: torch.device) -> float:
    start = now(device)
    action()
    return now(device) - start


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that it was told to."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _five_digits(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value
