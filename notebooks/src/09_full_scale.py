# %% [markdown]
# # 09 · Full scale
#
# **From a laptop to one GPU, and to eight. Not a line of a method changes. What changes is the bill: bytes,
# hours, and a few habits that were harmless while everything was small.**
#
# You reckon what fits into a card's memory. You cut a batch in pieces and share it out between processes, and
# find out when that is the same as one large batch, and when it is not. You read a profile, and estimate what
# a RefCOCO training would cost on *your* machine. At the end you bring your own pictures.
#
# *Time: 60 minutes. You need: lesson 04 (CRIS). No GPU: every cell runs on two cores.*

# %% tags=["parameters"]
profile = "cpu"  # "ci" takes seconds, "cpu" minutes, "gpu" is the full-scale world

# %% tags=["imports"]
import csv
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

# %% tags=["imports"]
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.data import DistributedSampler

# %% tags=["imports"]
from rislib import viz
from rislib.benchmark import benchmark, ceiling, count_flops, random_batch
from rislib.course import check, hint, show
from rislib.course.recorded import recorded
from rislib.data import build_refmini, cached, check_folder, import_own, make_batch, open_split
from rislib.data.published import PUBLISHED
from rislib.data.refmini.build import draw_picture, draw_pictures
from rislib.demo import one_per_picture
from rislib.evaluation import CRIS_2022, evaluate

# %% tags=["imports"]
from rislib.methods import BUILDERS, build
from rislib.methods.cris import cris_mini
from rislib.nouns import Batch
from rislib.predict import Predictor
from rislib.rehearsal import rehearse
from rislib.runs import load_method, train_run
from rislib.study.report import NAMES
from rislib.training import MINI, RECIPES, epoch_order, fit
from rislib.training.recompute import checkpoint_blocks

# %% [markdown]
# ## 1 · The same class, other arguments
#
# A RefMini scene can be painted at any size. Here is what mini CRIS sees of one, and what CRIS at full size
# would see.

# %%
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
folder = Path(tempfile.mkdtemp())
seen = [draw_picture("lesson 09/0", "val", "refmini", side).painting.image for side in (96, 416)]
show(
    viz.gallery([np.asarray(picture) for picture in seen], ["96 × 96 pixels", "416 × 416 pixels"], width=6),
    alt="The same drawn scene twice: at 96 pixels its edges are coarse, at 416 they are fine.",
)

# %% [markdown]
# We build all five methods in both sizes. The device "meta" gives tensors a shape and a type, and no memory:
# a network of a gigabyte costs nothing there.

# %%
networks = {}
with torch.device("meta"):
    for method, size in BUILDERS:
        if size != "r101":
            networks[method, size] = build(method, size, pretrained=False).train()


def count(parameters):
    return sum(p.numel() for p in parameters)


# %% tags=["nbval-check-output"]
print(f"{'':17}parameters  in encoders  picture  words  cells of the mask")
for (method, size), network in networks.items():
    own, side = count(network.parameters()), network.preprocessing.size
    encoders = count(network.encoder_parameters()) / own
    with torch.device("meta"), torch.no_grad():
        batch = random_batch(network, 2)
        cells = network(batch.image, batch.tokens, batch.token_mask, batch.instances).shape[3]
    print(f"{NAMES[method]:10}{size:5}{own / 1e6:10.1f} M{encoders:13.0%}{side:9}", end="")
    print(f"{network.tokenizer.context_length:7}{cells:12} × {cells}")

# %% [markdown]
# *The mini's encoders were pretrained by this project on drawn scenes. Those of full size come from others:
# CLIP (CRIS, CM-MaskSD), Swin and BERT (LAVT, MagNet), ViLT (MaIL).*
#
# **Think!** Full-size CRIS has 35 times the parameters of the mini. Does a picture also cost 35 times as
# much?
#
# *More. A convolution uses each of its weights once for every cell of its map, and there are more cells.* We
# count: two FLOP (floating point operations) for each multiplication with its addition. This works on "meta",
# too.


# %%
def flop_of(network):
    """FLOP of a network on "meta" for one sample: of its losses, and of these with the way back."""
    loss = []
    with torch.device("meta"):
        two = random_batch(network, 2)  # with one, batch norm would not train
        forward = count_flops(lambda: loss.append(sum(network.losses(two).values())))
        back = count_flops(lambda: loss.pop().backward())
    return forward / 2, (forward + back) / 2


cris_full, flop = networks["cris", "r50"], {}
for size in ("mini", "r50"):
    forward, flop[size] = flop_of(networks["cris", size])
    print(f"{size:4} {forward / 1e9:6.1f} GFLOP to answer, {flop[size] / 1e9:6.1f} to learn from one sample")
print(f"{flop['r50'] / flop['mini']:.0f} times as much")

# %% [markdown]
# *To learn costs three times what it costs to answer: the way forward, and on the way back one product for
# the gradient of the input and one for that of the weights. Keep the 3; it comes back.*
#
# ## 2 · What lies in memory
#
# A network that learns with Adam keeps **four numbers for each parameter**: the weight, its gradient, and two
# running averages, of the gradient and of its square. Each is a 32-bit float, four bytes.
#
# And in *mixed precision*? `autocast` to bf16 computes products with floats of 16 bits, two bytes. But it
# makes them from the weights on the fly: weights, gradients and averages **stay in 32 bits**. Section 3 shows
# why they must.
#
# ### Exercise 1: bytes before the first picture (easy, 5 minutes)
#
# Some parameters may be frozen. They are only read: they have no gradient and no averages.


# %% exercise="training_bytes"
def training_bytes(learning, frozen):
    """Numbers of learning and of frozen parameters -> bytes that an Adam training holds, under autocast."""
    # BEGIN SOLUTION
    return 4 * (4 * learning + frozen)
    # END SOLUTION


# %% tests="training_bytes"
def cases():
    yield 1000, 0
    yield 1000, 500
    yield 146_849_121, 1


hints = (
    "How many numbers belong to a parameter that learns? How many to one that is only read?",
    "Weight, gradient, two averages: 4. A frozen one: 1. Each has 32 bits, with autocast and without.",
    "`4 * (4 * learning + frozen)`",
)


def wrong_twelve(learning, frozen):
    """12 bytes for a parameter that learns. Perhaps the gradient is missing, or one of Adam's averages? Or
    did you take weight and gradient for two bytes each? All four are there, with four bytes."""
    return 4 * (3 * learning + frozen)


def wrong_copy(learning, frozen):
    """you added a copy of the weights in two bytes. Autocast makes it in each step, and drops it again."""
    return training_bytes(learning, frozen) + 2 * (learning + frozen)


def wrong_half(learning, frozen):
    """two bytes a number. Autocast rounds what goes into a product; what is kept stays in 32 bits."""
    return training_bytes(learning, frozen) // 2


def wrong_frozen(learning, frozen):
    """you counted frozen parameters like the others. Nobody needs their gradients, and Adam does not know
    them."""
    return training_bytes(learning + frozen, 0)


def wrong_file(learning, frozen):
    """this is the size of the file of weights. To learn takes more than to know."""
    return 4 * (learning + frozen)


def wrong_without(learning, frozen):
    """you left out the frozen parameters. They do not learn, but they must be there to be read."""
    return training_bytes(learning, 0)


# %% points=2
check(training_bytes)

# %% tags=["nbval-check-output"]
GIB = 2**30
learning, state = {}, {}
for method, size in [key for key in networks if key[1] != "mini"]:
    network = networks[method, size]
    learning[method] = count(p for p in network.parameters() if p.requires_grad)
    state[method] = 16 * learning[method] + 4 * (count(network.parameters()) - learning[method])
    print(f"{NAMES[method]:10} {state[method] / GIB:.1f} GiB of weights, gradients and averages")

# %% [markdown]
# That is the smaller part. For the way back autograd keeps what the way forward computed: the
# **activations**. There is no formula for them that one would like to write down. But PyTorch lets us watch:
# each tensor that it puts aside goes through a hook of ours.


# %%
def kept_bytes(network, batch, bf16=False):
    """Bytes that autograd keeps of one forward pass, beside the weights."""
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept = {}  # by the memory they lie in: two tensors may share it

    def look(tensor):
        memory = tensor.untyped_storage()
        if memory._cdata not in weights:
            kept[memory._cdata] = memory.nbytes()
        return tensor

    with saved_tensors_hooks(look, lambda x: x), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        network.losses(batch)
    return sum(kept.values())


# %% [markdown]
# We ask mini CRIS, with 2, 4 and 8 samples at once. And we try a third way: **checkpointing** forgets what
# lies within a block, and computes it again when the way back comes by.

# %%
torch.manual_seed(0)
model, sizes = cris_mini().train(), (2, 4, 8)
batches = [random_batch(model, size) for size in sizes]
kept = {
    "fp32": [kept_bytes(model, batch) for batch in batches],
    "bf16": [kept_bytes(model, batch, bf16=True) for batch in batches],
}
checkpoint_blocks(model)
kept["fp32, checkpointing"] = [kept_bytes(model, batch) for batch in batches]
checkpoint_blocks(model, on=False)

# %%
figure, axes = viz.chart("What autograd keeps, mini CRIS", "samples in a batch", "MiB")
for (name, values), colour in zip(kept.items(), (viz.INK, viz.PREDICTION, viz.TRUTH), strict=True):
    slope, start = np.polyfit(sizes, np.array(values) / 2**20, 1)
    axes.plot([0, 8], [start, start + 8 * slope], color=colour, linewidth=1, linestyle=":")
    axes.plot(sizes, np.array(values) / 2**20, "o-", color=colour, linewidth=1.8, markersize=4)
    axes.annotate(name, (8.15, start + 8 * slope), color=colour, fontsize=9, va="center")
    print(f"{name:20} {start:4.1f} MiB, and {slope:4.1f} for each sample")
axes.set(xlim=(0, 10.6), xticks=(0, 2, 4, 8), ylim=(0, None))
show(
    figure, alt="Three straight lines over the batch size; fp32 is the steepest, checkpointing the flattest."
)

# %% [markdown]
# *Straight lines: activations grow with the batch, and bf16 nearly halves what a sample costs. Its line does
# not start at nothing: 4.1 million weights in two bytes each, the copies that autocast makes.*
#
# Checkpointing saves more: of each block only its input is kept. (On the way back one block at a time comes
# to life again.) Is the answer still the same, and what does it cost?


# %%
def gradient(network, batches):
    """The gradient of the mean loss over all samples of these batches, as one long vector."""
    network.zero_grad()
    total = sum(len(batch.tokens) for batch in batches)
    for batch in batches:
        loss = sum(network.losses(batch).values())
        (loss * len(batch.tokens) / total).backward()
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


# %%
plain = gradient(model, batches[:1])
checkpoint_blocks(model)
again = gradient(model, batches[:1])
checkpoint_blocks(model, on=False)
print("the same gradient:", torch.allclose(plain, again, rtol=1e-3, atol=1e-6))

# %% [markdown]
# *The same. The price is time: the way forward is walked twice. One of three parts becomes two, so a step
# takes **up to a third longer**. In `fit` it is an argument, `checkpointing=True`.*
#
# ### Will it fit?
#
# The same hook counts on "meta". So we know about full size without owning it.

# %%
with torch.device("meta"):
    two = random_batch(cris_full, 2)
each = kept_bytes(cris_full, two) / 2
checkpoint_blocks(cris_full)
lean = kept_bytes(cris_full, two) / 2
checkpoint_blocks(cris_full, on=False)
for size in (4, 16, 64):
    whole, less = ((state["cris"] + size * one) / GIB for one in (each, lean))
    print(f"CRIS, R50, {size:2} samples at once: {whole:5.1f} GiB in fp32, {less:5.1f} with checkpointing")

# %%
record = recorded("bench_cpu/cris_r50_train_fp32")
reckoned, peak = (state["cris"] + record["batch"] * each) / GIB, record["peak_gib"]
more = peak / reckoned - 1
print(f"{record['batch']} samples: reckoned {reckoned:.1f} GiB, at its peak {peak:.1f}: {more:.0%} more")

# %% [markdown]
# *The difference is what nobody counts: the gradients of activations on their way back, the scratch memory of
# convolutions, and (that training ran on a CPU) Python with all its libraries. **Reckon, then add a half.***
#
# **Think!** CRIS was trained with 64 samples a step, on eight cards of 16 GB, in fp16. Why does that fit, and
# 64 on one card of 16 GB not?
#
# *Each of the eight holds eight samples: the state once, and eight times a sample. One card would have to
# hold 64 times a sample. But it need not, not at once: section 4.*
#
# ## 3 · Numbers with few bits
#
# A floating point number has a sign, an exponent and digits. fp16 and bf16 both have 16 bits, and spend them
# differently: fp16 on digits, bf16 on range.

# %% tags=["nbval-check-output"]
print("       largest   smallest*   after 1 comes")
for name, dtype in {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}.items():
    info = torch.finfo(dtype)
    print(f"{name}   {info.max:.1e}   {info.smallest_normal:.1e}   1 + {info.eps:.1e}")

# %% [markdown]
# (*\* with all its digits. Below it digits are lost one by one; in fp16 the very last number is 6 · 10⁻⁸.*)
#
# Why must weights stay in 32 bits? A step of training changes a weight by a thousandth of itself, or less:

# %%
for dtype in (torch.float32, torch.bfloat16):
    weight = torch.ones((), dtype=dtype)
    for _ in range(100):
        weight += 1e-3
    print(f"{dtype!s:15}  1 + 100 × 0.001 = {weight.item():.2f}")

# %% [markdown]
# *In bf16 the next number after 1 is 1.0078. A thousandth is rounded away, a hundred times in a row. **The
# network would not learn, and nothing would complain.***
#
# And the range? On the way back a gradient reaches every convolution and every linear layer of the network.
# Here are all of these gradients, after three steps of training.

# %%
small = build_refmini(folder / "small", train=96, val=24, progress=False)
train = open_split(small, "train")
torch.manual_seed(0)
model = cris_mini().train()
batch = make_batch([train[i[0]] for i in train.by_reference()[:8]], model.preprocessing, model.tokenize)
optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
for _ in range(3):
    gradient(model, [batch])
    optimiser.step()

# %%
gradients = []


def watch(layer, given, out):
    out.register_hook(gradients.append)


layers = [layer for layer in model.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
hooks = [layer.register_forward_hook(watch) for layer in layers]
gradient(model, [batch])
for hook in hooks:
    hook.remove()
sizes = torch.cat([each.flatten()[::7] for each in gradients]).abs()  # every seventh is plenty
sizes = sizes[sizes > 0]

# %%
figure, axes = viz.chart("Gradients within mini CRIS, and what fp16 can hold", "size", "percent", height=2.8)
axes.axvspan(-50, -24, color=viz.PREDICTION, alpha=0.12, linewidth=0)
axes.axvspan(-24, -14, color=viz.PREDICTION, alpha=0.05, linewidth=0)
for factor, name, colour in ((1, "as they are", viz.INK), (2**16, "loss × 65,536", viz.TRUTH)):
    exponents = np.log2((factor * sizes).numpy())
    share = np.full(len(sizes), 100 / len(sizes))
    axes.hist(exponents, np.arange(-50, 12), weights=share, color=colour, alpha=0.6, label=name)
ticks = (-48, -40, -32, -24, -14, 0, 8)
axes.set_xticks(ticks, [f"$2^{{{x}}}$" for x in ticks])
axes.set(xlim=(-50, 12), ylim=(0, 1.2 * axes.get_ylim()[1]))
for x, text in ((-37, "fp16: zero"), (-19, "few digits")):
    axes.text(x, 0.92 * axes.get_ylim()[1], text, fontsize=9, color=viz.PREDICTION, ha="center")
viz.legend(axes)
show(figure, alt="Two histograms of the gradients' sizes; as they are, many are too small for fp16.")

# %%
for name, lost in {
    "fp16": (sizes.half() == 0),
    "fp16, loss × 65,536": ((2**16 * sizes).half() == 0),
    "bf16": (sizes.bfloat16() == 0),
}.items():
    print(f"{name:20} {lost.float().mean():6.1%} of these gradients become 0")

# %% [markdown]
# *So fp16 needs **loss scaling**: multiply the loss, and with it all gradients, by a large number; divide
# again in 32 bits, before the step. If something overflows, skip the step and take a smaller number. bf16
# needs none of this: its range is that of fp32. (The few that it loses lie below 10⁻⁴⁰, where fp32 itself has
# few digits left.) It has fewer digits, and gradients do not mind.*
#
# (CRIS was trained in fp16: its cards knew no bf16. If yours does, take bf16.)
#
# What does autocast do, then? It decides for each operation:

# %%
types = {}
conv, norm = model.neck.p3[0], model.neck.p3[1]
for name, layer in {"a convolution": conv, "its batch norm": norm}.items():
    layer.register_forward_hook(lambda layer, given, out, name=name: types.update({name: out.dtype}))
with torch.autocast("cpu", torch.bfloat16):
    loss = sum(model.losses(batch).values())
loss.backward()
types |= {"the loss": loss.dtype, "a weight": conv.weight.dtype, "its gradient": conv.weight.grad.dtype}
for name, dtype in types.items():
    print(f"{name:15} {dtype}")

# %% [markdown]
# ## 4 · A large batch, in pieces
#
# The recipe says 64, the card holds 16. Then send four pieces of 16 through, one after the other. PyTorch
# *adds* each gradient to what is there already, until `zero_grad` is called. One step follows, at the end.
# This is **gradient accumulation**; in `fit` it is `micro_batch=16`.
#
# When is it the same? If the loss is a mean over samples, a mean of all must come out, not a sum of means.
#
# ### Exercise 2: accumulate (medium, 10 minutes)
#
# `F.mse_loss` is the mean over what it is given. The last piece may be smaller. Beware: the checks run your
# function on a make-believe card that holds the activations of `micro` samples, and no more.


# %% exercise="accumulated_gradients"
def accumulated_gradients(network, x, y, micro):
    """The gradients of the mean squared error over all samples, `micro` samples at a time.

    x (B, D), y (B,); network(x) is (B,) -> a list of tensors, one for each of network.parameters()
    """
    # BEGIN SOLUTION
    network.zero_grad()
    for some_x, some_y in zip(x.split(micro), y.split(micro), strict=True):
        loss = F.mse_loss(network(some_x), some_y)
        (loss * len(some_x) / len(x)).backward()
    return [p.grad for p in network.parameters()]
    # END SOLUTION


# %% tests="accumulated_gradients"
class Card(nn.Module):
    """A network on a card with room for few samples. The way back frees what the way forward took."""

    def __init__(self, room):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))
        self.bias = nn.Parameter(torch.tensor(0.1))
        self.room, self.taken = room, 0

    def forward(self, x):
        self.taken += len(x)
        if self.taken > self.room:
            raise MemoryError(f"there are {self.taken} samples on a card with room for {self.room}")
        out = torch.tanh(x @ self.weight + self.bias)
        out.register_hook(lambda gradient: self.free(len(x)))
        return out

    def free(self, samples):
        self.taken -= samples

    def __repr__(self):
        return f"a network, on a card with room for {self.room} samples"


def cases():
    generator = torch.Generator().manual_seed(0)
    for samples, micro in ((6, 3), (10, 4)):
        x, y = torch.randn(samples, 3, generator=generator), torch.randn(samples, generator=generator)
        yield Card(micro), x, y, micro


hints = (
    "`x.split(micro)` gives the pieces. Call `backward` for each of them; gradients add up by themselves.",
    "The mean over all is a weighted sum of the pieces' means. What is the weight of a piece of n samples?",
    "`(loss * len(some_x) / len(x)).backward()` for each piece, and after the loop "
    "`[p.grad for p in network.parameters()]`.",
)


def added(network, x, y, micro, weight):
    for some_x, some_y in zip(x.split(micro), y.split(micro), strict=True):
        (weight(len(some_x)) * F.mse_loss(network(some_x), some_y)).backward()
    return [p.grad for p in network.parameters()]


def wrong_sum(network, x, y, micro):
    """you added the means of all pieces. Two pieces, and every step is twice as long: with plain SGD that is
    another learning rate. (Adam would hide it, but for weight decay and clipping.)"""
    return added(network, x, y, micro, lambda n: 1)


def wrong_equal(network, x, y, micro):
    """you divided by the number of pieces, so all count alike. The last piece is smaller: each of its samples
    would count more than the others."""
    return added(network, x, y, micro, lambda n: 1 / math.ceil(len(x) / micro))


def wrong_micro(network, x, y, micro):
    """you weighted every piece with micro / B. The last one holds fewer samples than that."""
    return added(network, x, y, micro, lambda n: micro / len(x))


def wrong_zeroed(network, x, y, micro):
    """you set the gradients to zero between the pieces. What is left is the last piece's part alone."""
    some_x, some_y = x.split(micro)[-1], y.split(micro)[-1]
    return added(network, some_x, some_y, micro, lambda n: n / len(x))


def wrong_at_once(network, x, y, micro):
    """all activations were there at once. Either the whole batch went through in one go, or you added up the
    losses and called `backward` once, at the end: until then no piece is let go. `backward` belongs in the
    loop."""
    return added(network, x, y, len(x), lambda n: 1)


def wrong_dropped(network, x, y, micro):
    """the last piece is missing. It is smaller than the others, and counts all the same."""
    whole = len(x) // micro * micro
    return added(network, x[:whole], y[:whole], micro, lambda n: n / whole)


# %% points=4
check(accumulated_gradients)

# %% [markdown]
# Now the real thing: mini CRIS, eight samples, whole and in pieces. Then the same with its batch norms taking
# their averages from memory (`eval`) in place of the batch.


# %%
def cut(batch, pieces):
    """The batch in so many pieces."""
    rows = torch.arange(len(batch.tokens)).chunk(pieces)
    fields = {name: x for name, x in vars(batch).items() if x is not None}
    return [Batch(**{name: x[some] for name, x in fields.items()}) for some in rows]


# %%
norms = [layer for layer in model.modules() if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
for title, memory in {"batch norm as usual": False, "batch norm from memory": True}.items():
    for norm in norms:
        norm.train(not memory)
    whole = gradient(model, [batch])
    for pieces in (2, 4):
        apart = (gradient(model, cut(batch, pieces)) - whole).norm() / whole.norm()
        print(f"{title:23} {pieces} pieces: the gradient is off by {apart:.2%} of its size")

# %% [markdown]
# *With batch norm's memory the gradients are equal, but for rounding. With batch norm as usual they are
# quite different: it subtracts the mean **of the piece**, so what happens to a sample depends on who sits
# beside it. CRIS normalises the sentence's vector in this way, too. In a piece of two samples each number of
# it becomes about +1 for the one and −1 for the other, whatever was said. (And batch norm's memory is moved
# once for each piece.)*
#
# What does one do about it?
#
# - Keep the pieces as large as the card allows. A mean over 16 pictures is good enough; one over 2 is not.
# - On several GPUs `SyncBatchNorm` takes the mean over all of them: CRIS's code and `fit` do that. It helps
#   across processes, not across pieces in a row.
# - Or train with layer norms, as transformers do. They look at one sample only.
#
# ## 5 · Several processes
#
# Eight GPUs, eight processes. Each has the whole network, and the same weights. Each takes its share of the
# batch, and goes forward and back. Then they exchange gradients, and all make **the same step**. So weights
# travel once, before the first step, from process 0 to all, and stay the same everywhere. This is *data
# parallelism*; PyTorch calls it DDP.
#
# Who takes what? In `fit` the order of an epoch is a function of the seed. Every process knows it, so nobody
# has to be told. (`Recipe.batch_size` is the batch over all processes.)

# %%
references = train.by_reference()
order = epoch_order(references, seed=0, epoch=0)
batch_size, processes = 6, 2
share = batch_size // processes
for rank in range(processes):
    print(f"step 1, process {rank}:", "; ".join(train[i].expression for i in order[rank * share :][:share]))

# %% [markdown]
# ### Exercise 3: all-reduce (easy, 5 minutes)
#
# The exchange is an **all-reduce**: each process brings a tensor, and each holds the mean of all of them
# afterwards. Here the processes are entries of a list.


# %% exercise="all_reduced"
def all_reduced(gradients):
    """A tensor of each process, all of one shape -> a list of tensors: what each process then holds."""
    # BEGIN SOLUTION
    mean = sum(gradients) / len(gradients)
    return [mean.clone() for _ in gradients]
    # END SOLUTION


# %% tests="all_reduced"
def cases():
    yield ([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])],)
    yield ([torch.tensor([1.0, 5.0]), torch.tensor([2.0, 5.0]), torch.tensor([9.0, -1.0])],)


hints = (
    "First compute the mean, from all of them. Only then give it out.",
    "`sum` adds tensors, too. How many are there?",
    "`mean = sum(gradients) / len(gradients)`, and a list of as many copies of it.",
)


def wrong_sum(gradients):
    """this is the sum, which is what `dist.all_reduce` gives you. Each process had the *mean* over its share:
    the mean of these is wanted, or gradients grow with the number of GPUs."""
    return [sum(gradients) for _ in gradients]


def wrong_overwritten(gradients):
    """you wrote into the list while you were still reading from it. The second process then averages with
    what the first has already received. Compute the mean first."""
    gradients = list(gradients)
    for rank in range(len(gradients)):
        gradients[rank] = sum(gradients) / len(gradients)
    return gradients


def wrong_first(gradients):
    """only the first process received the mean. The others would step in other directions, and after one step
    no two have the same weights."""
    return [all_reduced(gradients)[0], *gradients[1:]]


def wrong_inside(gradients):
    """you averaged the numbers within each tensor. The mean is over processes: each number with its like."""
    return [g.mean().expand_as(g).clone() for g in gradients]


def wrong_one(gradients):
    """that is one tensor. Every process must hold it: a list, with an entry for each of them."""
    return all_reduced(gradients)[0]


# %% points=2
check(all_reduced)

# %% [markdown]
# (The plain mean is right as long as all shares are equally large; `fit` refuses a batch that cannot be
# shared out so. Otherwise: weights, as in exercise 2.)
#
# So much for lists. Now two real processes. Both run the same program; all that tells them apart is their
# `rank`. A notebook is one process, so we write the program into a file.

# %%
START = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import mse_loss

dist.init_process_group("gloo")  # how CPUs talk; GPUs use "nccl"
rank, processes = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # the same weights and the same samples everywhere
network = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
x, y = torch.randn(8, 5), torch.randn(8, 1)
"""

# %%
STEP = """
mse_loss(network(x[rank::processes]), y[rank::processes]).backward()  # its own share
for p in network.parameters():
    dist.all_reduce(p.grad)  # in place: the sum over all processes
    p.grad /= processes
together = [p.grad.clone() for p in network.parameters()]
network.zero_grad()
mse_loss(network(x), y).backward()  # one process, one big batch
same = all(torch.allclose(p.grad, g) for p, g in zip(network.parameters(), together))
if rank == 0:  # or every line appears twice
    print(f"{processes} processes, {len(x)} samples. Gradients equal those of one big batch: {same}")
dist.destroy_process_group()
"""

# %% [markdown]
# Then we start it twice. Each process is told which one it is, of how many, and where they meet. (Here they
# need no network but this machine's own.)

# %%
program = folder / "two.py"
program.write_text(START + STEP)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    meet["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"


def launch(rank):
    """The program in a process of its own."""
    told = {"RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", **meet}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(program)], env=os.environ | told, **pipes)


# %% tags=["nbval-check-output"]
both = [launch(rank) for rank in range(2)]
said = [process.communicate(timeout=300) for process in both]
print("".join(out for out, _ in said).strip() or "".join(errors for _, errors in said))

# %% [markdown]
# A launcher does just that: `torchrun --nproc_per_node 2 two.py`. It also stops all if one fails.
#
# That is all of DDP, but for one thing: the real one does not wait for the end of the way back. It sends the
# gradients of the last layers while those of the first are still being computed.
#
# With rislib you write none of this. The same command, with a launcher before it:
#
# ```sh
# accelerate launch --multi_gpu --num_processes 8 -m rislib train cris --preset r50 --data refcoco \
#     --recipe cris_2022 --out runs/r50
# ```
#
# (In a notebook: `accelerate.notebook_launcher(train, num_processes=8)`, before anything in it has touched a
# GPU.)
#
# ### When the weights are too many
#
# In DDP each GPU holds all of section 2: 16 bytes for each parameter, eight times the same. **FSDP** (*fully
# sharded data parallelism*) shares them out. Each process keeps some rows of every weight, with their
# gradients and averages, and makes the step for these. Before the way forward all send each other their rows
# (*all-gather*), so that everybody has the whole weights. After the way back gradients are averaged, and each
# gets its rows of the mean (*reduce-scatter*). As much travels as in DDP: an all-reduce is these two in a
# row.
#
# What is the bill? The networks of section 2, on eight GPUs.

# %% tags=["nbval-check-output"]
gpus = 8
print(f"GiB on each of {gpus}     DDP    FSDP: between two steps    within a step")
for method, whole in state.items():
    between = whole - 16 * learning[method] * (1 - 1 / gpus)  # what is frozen stays whole
    within = between + 8 * learning[method]  # whole weights and whole gradients for a while
    print(f"{NAMES[method]:15}{whole / GIB:8.1f}{between / GIB:20.1f}{within / GIB:23.1f}")

# %% [markdown]
# *Between two steps an eighth. Within a step 8 bytes more for each parameter, however many GPUs there are:
# rislib gathers the whole network at once, so that losses may call any part of it. FSDP is made for far
# larger networks. There one gathers block by block, and lets go of each block at once. So it is gathered
# again on the way back, and half as much again travels.*
#
# **Think!** CRIS with 16 samples on each GPU is a little too large for your cards. FSDP or checkpointing?
#
# *Checkpointing: section 2 has 6.1 GiB in place of 13.5. Most of the 13.5 are activations. FSDP leaves them
# where they are: each GPU has its own samples.*
#
# What you type has another option in place of `--multi_gpu`:
#
# ```sh
# accelerate launch --use_fsdp --fsdp_version 2 --num_processes 8 -m rislib train cris --preset r50 \
#     --data refcoco --recipe cris_2022 --out runs/r50
# ```
#
# Files hold the whole network, as ever: a run may go on without FSDP, or with another number of processes.
#
# ### To evaluate with several
#
# In training it does not matter much if a sample is seen twice. In a score it does. PyTorch's own sampler
# deals out equal shares, since training needs them. Eleven samples, four processes; then RefCOCO's val split,
# eight processes:

# %% tags=["nbval-check-output"]
for rank in range(4):
    sampler = DistributedSampler(range(11), num_replicas=4, rank=rank, shuffle=False)
    print(f"process {rank} asks", list(sampler))
REFCOCO = PUBLISHED["refcoco", "unc"]  # how much each of its splits holds
val = REFCOCO["val"].references
twice = 8 * math.ceil(val / 8) - val
print(f"val: {val:,} references, {twice} count twice: up to {100 * twice / val:.2f} points of a mean")

# %% [markdown]
# *Twelve answers to eleven questions: sample 0 counts twice. CRIS's code validates in this way. The error is
# small, but not nothing: it changes with the number of GPUs.*
#
# ### Exercise 4: every sample exactly once (medium, 10 minutes)
#
# Deal out `count` samples in a row: process 0 gets the first ones, process 1 the next. Shares may differ by
# one; those of the first processes are the larger ones. What does process `rank` get?


# %% exercise="share_of"
def share_of(count, rank, processes):
    """How many samples, which process, of how many -> the list of indices that this process asks."""
    # BEGIN SOLUTION
    size, left = divmod(count, processes)
    first = rank * size + min(rank, left)
    return list(range(first, first + size + (rank < left)))
    # END SOLUTION


# %% tests="share_of"
def cases():
    for rank in range(4):
        yield 10, rank, 4
    for rank in range(4):
        yield 9, rank, 4
    yield 8, 1, 2
    yield 2, 3, 4


hints = (
    "`divmod(count, processes)`: how many does each get, and how many are left over?",
    "Of the processes before this one, `min(rank, left)` have got one more. So where does this one begin?",
    "`first = rank * size + min(rank, left)`; then `size` indices, and one more if `rank < left`.",
)


def wrong_padded(count, rank, processes):
    """shares of equal size, filled up from the beginning: some samples are asked twice."""
    size = math.ceil(count / processes)
    return [i % count for i in range(rank * size, (rank + 1) * size)]


def wrong_dropped(count, rank, processes):
    """shares of equal size, and what is left over is asked by nobody. The score is that of another split."""
    size = count // processes
    return list(range(rank * size, (rank + 1) * size))


def wrong_greedy(count, rank, processes):
    """each sample once, but shares are uneven: with 9 samples and 4 processes, three get 3 and the last one
    nothing. All wait for the slowest; differ by one at most."""
    size = math.ceil(count / processes)
    return list(range(count))[rank * size : (rank + 1) * size]


def wrong_last(count, rank, processes):
    """the last process takes all that is left over. With 7 samples and 4 processes: 1, 1, 1 and 4. All
    wait for the last one. Give one more to each of the first."""
    size = count // processes
    return list(range(rank * size, count if rank == processes - 1 else (rank + 1) * size))


def wrong_overlap(count, rank, processes):
    """the first processes get one more, but the others do not move up: the end of one share is the beginning
    of the next. Begin `min(rank, left)` later."""
    size, left = divmod(count, processes)
    return list(range(rank * size, rank * size + size + (rank < left)))


def wrong_dealt(count, rank, processes):
    """each sample once, but dealt like cards, one here and one there. Here a share lies in a row: neighbours
    often show the same picture, which is then encoded once."""
    return list(range(rank, count, processes))


# %% points=3
check(share_of)

# %% [markdown]
# `evaluate(..., together=True)` in rislib does that, with whole batches for samples. Then the *counts* are
# merged, not the scores: intersections and unions, from which one process computes what all would have.
#
# **Think!** Why not take the mean of the eight processes' scores?
#
# *For mIoU it would be right if all shares were equally large. For oIoU never: a quotient of sums is not the
# mean of quotients (lesson 04).*
#
# ## 6 · Where does the time go?
#
# Before you make something faster, measure what it does. First question: how fast could it be? The best that
# a machine can do is one large matrix product. Its speed is the **ceiling**; a network reaches a share of it.

# %%
name, bits = ("cris_r50", "bf16") if profile == "gpu" else ("cris_mini", "fp32")
amount = {"batch": 4, "steps": 1} if profile == "ci" else {"batch": 8, "steps": 3}
result = benchmark(name, mode="train", precision=bits, warmup=1, **amount)
print("\n".join(result.table().splitlines()[:8]))

# %% [markdown]
# *The last line is the answer. Full-size CRIS reached 61 % of the ceiling, on two cores in fp32 (a record;
# section 7 shows it). Small networks mostly stay further below: their products are too small to keep a
# processor busy, and much of the time goes into all that is no product.*
#
# Second question: which part takes it? And third: which operations are that?

# %%
whole = sum(result.by_module.values())
percent = {part: 100 * ms / whole for part, ms in list(result.by_module.items())[:8]}
title, limit = f"{name}: the way forward, by part", 1.15 * max(percent.values())
show(
    viz.bars(percent, title, "percent of the time", colours=viz.INK, limit=limit),
    alt="Bars: the share of the time that each part of the network takes.",
)

# %%
model.train()
batch, model = batch.to(device), model.to(device)
with torch.profiler.profile() as watched:
    gradient(model, [batch])
own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
times = {event.key.removeprefix("aten::"): getattr(event, own) for event in watched.key_averages()}
longest = sorted(times, key=times.get)[:-9:-1]
short = {key: key if len(key) <= 30 else f"{key[:29]}…" for key in longest}
percent = {short[key]: 100 * times[key] / sum(times.values()) for key in longest}

# %%
title, limit = "mini CRIS: forward and back, by operation", 1.15 * max(percent.values())
figure = viz.bars(percent, title, "percent of the time", colours=viz.INK, limit=limit)
show(figure, alt="Bars: the share of the time of eight operations.")

# %% [markdown]
# How to read it:
#
# - **Convolutions and `mm`** on top: the time goes where the work is. Faster means a faster machine, fewer
#   bits, or a smaller network.
# - **`copy_`, `add_`, `batch_norm`, `relu`** on top: memory is moved, hardly anything is computed.
#   `torch.compile` melts such operations together; `channels_last` spares copies.
# - **Nothing on top, and many rows**: thousands of small calls. On a GPU, larger batches help.
# - **The GPU waits**: look at the loader.
#
# ### Is the loader fast enough?
#
# A GPU eats samples. Somebody must read the picture, resize it to 416 pixels, and decode the mask. How many
# can one core get ready in a second? We draw a few scenes as large as RefCOCO's photographs.

# %%
large = build_refmini(folder / "large", size=640, train=24, val=1, progress=False)
samples = open_split(large, "train")


def ready(samples):
    """The first sample of each picture as full-size CRIS takes it, and how many one core makes a second."""
    start = time.process_time()  # what the processor worked, whatever else it had to do
    some = [samples[indices[0]] for indices in samples.by_image()]
    batches = [make_batch([sample], cris_full.preprocessing, cris_full.tokenize) for sample in some]
    return batches, len(batches) / (time.process_time() - start)


# %%
cris_full.tokenize(["once, so that the vocabulary is there"])
plain, per_core = ready(samples)
print(f"about {per_core:.0f} samples a second on one core of this machine")
for eats in (1, 50, 200, 1000):
    print(f"a device that learns from {eats:4} a second keeps {eats / per_core:5.1f} cores busy")

# %% [markdown]
# *A laptop that trains hardly waits for its loader. A fast GPU does: give it `workers=8` or more, or it
# idles.*
#
# Or give them less to do. Each epoch resizes the same pictures again. A **cache** resizes them once, writes
# them one behind the other into a file, and reads them from there in all epochs to come.

# %%
resized = cached(samples, cris_full.preprocessing, folder / "cache")  # here, and never again
again, per_core_cached = ready(resized)
pairs = list(zip(plain, again, strict=True))
same = all(torch.equal(a.image, b.image) and torch.equal(a.mask, b.mask) for a, b in pairs)
print(f"about {per_core_cached:.0f} samples a second with the cache. The same bits in every batch: {same}")

# %% [markdown]
# So few pictures are no measurement. A record has more, at CRIS's size and at LAVT's. Its goal is a GPU that
# does the 50 epochs of CRIS's recipe in half an hour.

# %%
record = recorded("loader")
goal = record["goal_samples_per_second"]
print(f"{'':16}resizing     samples a second, core      cores for {goal:,} a second")
for name in ("416 letterbox", "480 stretch"):
    both = record[name], record[f"{name}, cached"]
    slow, fast = (one["no_worker"]["per_cpu_second"] for one in both)
    many, few = (one["cores_for_the_goal"] for one in both)
    print(f"{name:17}{both[0]['percent']['resize pictures']:6.0f} %{slow:9.0f}, cached {fast:.0f}", end="")
    print(f"{many:16.1f}, cached {few:.1f}")
size = REFCOCO["train"].images * 3 * 416**2 / 1e9
print(f"RefCOCO's {REFCOCO['train'].images:,} pictures for training, of 416 pixels: {size:.1f} GB")

# %% [markdown]
# *The cache spares the resizing, and costs disk. What is left is masks, words, and to put the batch together.
# (In the record files lay in memory. What a slow disk makes of it is not measured.)*
#
# What you type is below. The first run that names the folder fills it; `python -m rislib data cache` does so
# beforehand.
#
# ```sh
# python -m rislib train cris --preset r50 --data refcoco --recipe cris_2022 --out runs/r50 \
#     --workers 8 --cache cache_416
# ```
#
# ## 7 · What would a RefCOCO run cost here?
#
# CRIS's recipe: 50 epochs of RefCOCO's 42,404 references. One sample costs what section 1 counted. Your
# machine does so many FLOP a second at best (section 6), and CRIS reaches a share of that.
#
# ### Exercise 5: hours (easy, 5 minutes)


# %% exercise="training_hours"
def training_hours(tflop, references, epochs, ceiling, share):
    """How long a training takes, in hours.

    tflop: 10^12 operations to learn from one sample. references: samples in an epoch.
    ceiling: 10^12 operations a second, of a matrix product. share: of that, in (0, 1].
    """
    # BEGIN SOLUTION
    return tflop * references * epochs / (ceiling * share) / 3600
    # END SOLUTION


# %% tests="training_hours"
def cases():
    yield 0.4, 42_404, 50, 1.2, 0.35
    yield 0.4, 1000, 1, 300.0, 0.5


hints = (
    "How many operations is the whole training? How many a second does the network get done?",
    "All: `tflop * references * epochs`. A second: `ceiling * share`.",
    "Divide the one by the other; an hour has 3600 seconds.",
)


def wrong_ceiling(tflop, references, epochs, ceiling, share):
    """you took the ceiling for what the network does. It reaches only a share of that."""
    return training_hours(tflop, references, epochs, ceiling, 1)


def wrong_share(tflop, references, epochs, ceiling, share):
    """you multiplied with the share. A smaller share means a *longer* training."""
    return training_hours(tflop, references, epochs, ceiling, 1 / share)


def wrong_minutes(tflop, references, epochs, ceiling, share):
    """these are minutes. Divide the seconds by 3600."""
    return 60 * training_hours(tflop, references, epochs, ceiling, share)


def wrong_three(tflop, references, epochs, ceiling, share):
    """a factor of 3 too much. `tflop` is what it takes to *learn* from a sample: the way back is in it."""
    return 3 * training_hours(tflop, references, epochs, ceiling, share)


def wrong_epoch(tflop, references, epochs, ceiling, share):
    """this is one epoch. There are more."""
    return training_hours(tflop, references, 1, ceiling, share)


def wrong_upside_down(tflop, references, epochs, ceiling, share):
    """upside down: the more work, the shorter yours becomes."""
    return 1 / training_hours(tflop, references, epochs, ceiling, share)


# %% points=2
check(training_hours)

# %% [markdown]
# Now for real. First *here*: we measure your ceiling, and suppose the share that CRIS reached elsewhere. Then
# there, on two cores, as measured.

# %%
WHOLE = RECIPES["cris_2022"].epochs * REFCOCO["train"].references
for precision in ("fp32", "bf16"):
    record = recorded(f"bench_cpu/cris_r50_train_{precision}")
    best, there = ceiling(device, precision) / 1e12, record["ceiling_tflop_per_second"]
    hours = WHOLE * flop["r50"] / 1e12 / (best * record["share"]) / 3600
    known = WHOLE / record["images_per_second"] / 3600
    print(f"{precision}: here {hours:,.1f} hours, with a ceiling of {best:.2f} TFLOP/s;", end="")
    print(f" there {known:,.0f} hours, with {there:.2f}")

# %% [markdown]
# How wrong may that be? Look at the shares that were ever measured: these, of training steps at full size,
# and of mini CRIS just now.

# %%
RECORDS = {
    "CRIS, R50, fp32": "cris_r50_train_fp32",
    "CRIS, R50, bf16": "cris_r50_train_bf16",
    "CM-MaskSD, bf16": "cm_masksd_b16_both",
    "CM-MaskSD without its branches, bf16": "cm_masksd_b16_plain",
}

# %%
shares = {title: 100 * recorded(f"bench_cpu/{name}")["share"] for title, name in RECORDS.items()}
shares[f"{result.method}, here, {bits}"] = 100 * result.share
show(
    viz.bars(
        shares,
        "Training: share of the ceiling",
        colours=[viz.METHODS["cris"]] * 2 + [viz.METHODS["cm_masksd"]] * 2 + [viz.INK],
    ),
    alt="Bars: " + ", ".join(f"{key} {value:.0f} %" for key, value in shares.items()),
)

# %% [markdown]
# *The recorded shares lie between a quarter and two thirds. So such an estimate is good to **a factor of
# two**, no better. It tells a night from a month, and that is what it is for. On a GPU of 100 TFLOP/s and a
# share of a third:*

# %%
hours = WHOLE * flop["r50"] / 1e12 / (100 / 3) / 3600
print(f"one such GPU {hours:.1f} hours; eight of them {hours / 8:.1f} at best")

# %% [markdown]
# Who wants to know better does a few steps, and times them. That is what `--dry-run` does, with your data,
# your device, and the loader:
#
# ```sh
# python -m rislib train cris --preset r50 --data refcoco --recipe cris_2022 --micro-batch 16 --dry-run
# ```
#
# Here it is for the mini, and then a real training of so many steps to see whether it was right.

# %%
steps, timed, warmup = (3, 2, 1) if profile == "ci" else (30, 3, 2)
settings = {"samples_budget": steps * MINI.batch_size, "channels_last": True}
torch.manual_seed(0)
rehearsed = rehearse(cris_mini(), train, MINI, steps=timed, warmup=warmup, **settings)
print(rehearsed.table())

# %%
start = time.perf_counter()
fit(cris_mini(), train, MINI, out=folder / "steps", progress=False, **settings)
seconds, projected = time.perf_counter() - start, 3600 * rehearsed.hours
print(f"{steps} steps: projected {projected:.1f} s, real {seconds:.1f} s ({seconds / projected - 1:+.0%})")
record = recorded("dry_run")
projected, seconds = record["projected_seconds"], record["measured_seconds"]
print(f"recorded, {record['dry_run']['steps']} steps: projected {projected:.1f} s, real {seconds:.1f} s")

# %% [markdown]
# *The real one also starts, warms up, and saves itself: in a short run that shows, in a long one not.*
#
# ## 8 · Your own pictures
#
# All that you need is a folder of pictures, and one table: `expressions.csv` names a picture, a sentence, and
# a mask (a PNG in which the thing is not 0). So that this runs everywhere we draw the pictures, but such as
# no network here has seen: **it is night**. Put photographs of your own in their place, and all that follows
# stays as it is.


# %%
def take(folder, drawn):
    """Save a drawn picture, darkened, and its masks; gives rows of the table: image, expression, mask."""
    number = len(list(folder.glob("*.png")))
    dark = np.asarray(drawn.painting.image) * (0.35, 0.4, 0.6)  # little light, and that blue
    Image.fromarray(dark.astype(np.uint8)).save(folder / f"{number}.png")
    for thing, said in drawn.references.items():
        mask = f"masks/{number}_{thing}.png"
        Image.fromarray(drawn.painting.masks[thing]).save(folder / mask)
        yield from ([f"{number}.png", expression.text, mask] for expression in said)


# %%
own, rows = folder / "my_pictures", []
(own / "masks").mkdir(parents=True)
for drawn in islice(draw_pictures("own", "train", "refmini", 128, 10_000), 30 if profile == "ci" else 64):
    rows += take(own, drawn)


def write_table(rows):
    with (own / "expressions.csv").open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([["image", "expression", "mask"], *rows])


write_table(rows)
print(*(own / "expressions.csv").read_text(encoding="utf-8").splitlines()[:4], sep="\n")

# %% [markdown]
# Tables made by hand have mistakes. `check_folder` (`rislib data check my_pictures` on the command line)
# finds them, one line each: where, and what to do. We lose a mask, and empty a sentence.

# %% tags=["nbval-check-output"]
lost = (own / rows[0][2]).rename(own / "masks/lost.png")
write_table([*rows[:6], [rows[6][0], "", rows[6][2]], *rows[7:]])
print(*check_folder(own).faults, sep="\n")
lost.rename(own / rows[0][2])
write_table(rows)

# %% [markdown]
# Mended. Now `import_own` (`rislib data import`) writes RefCOCO's layout. From here on this is a dataset like
# any other.

# %%
print(*check_folder(own).lines(), sep="\n")
mine = import_own(own, folder / "my_data")
test = open_split(str(mine), "test")

# %% [markdown]
# Nobody gave a split, so pictures were dealt out, eight of ten to `train`. Whole pictures: of two sentences
# about one picture, one in `train` and one in `test`, the second would be no test.
#
# **Three pictures and a sentence each are enough to ask a network.** Ours is trained by day, for 75 seconds
# in profile `cpu`.

# %%
budget = {"ci": {"samples": 48}, "cpu": {"minutes": 1.25}, "gpu": {"minutes": 5}}[profile]
world = str(small) if profile == "ci" else "refmini"
runs = {"by day": train_run("cris", out=folder / "by day", data=world, progress=False, **budget)}
three = one_per_picture(test, 3, seed=0)


def asked(run):
    """A contact sheet of what a run answers to the three."""
    predictor, masks = Predictor.from_run(run), []
    for sample in three:
        predictor.set_image(sample.image)
        masks.append(predictor.segment(sample.expression).mask)
    return viz.contact_sheet(three, masks, columns=3, width=8, title=f"Trained {run.name}")


# %%
said = "; ".join(sample.expression for sample in three)
show(asked(runs["by day"]), alt=f"Dark pictures, and what a network says that was trained by day: {said}.")

# %% [markdown]
# *It sees little, most likely: nobody ever showed it darkness.* **Fifty pictures are enough to learn that.**
# `start=` (`--start` on the command line) goes on from a run's weights.

# %%
amount = 24 if profile == "ci" else 1200
out, day = folder / "by day, then by night", runs["by day"]
runs[out.name] = train_run("cris", out=out, data=str(mine), start=day, samples=amount, progress=False)
show(asked(out), alt=f"The same pictures, after it has learned from dark ones: {said}.")

# %%
lights = {"night": test, "day": open_split(world, "val")[: 24 if profile == "ci" else 300]}
for name, run in runs.items():
    for light, samples in lights.items():
        scores = evaluate(load_method(run), samples, CRIS_2022, progress=False).scores
        low, high = scores.interval("oIoU")
        print(f"{name:21} asked by {light:5}: {scores.overall_iou():4.1f} oIoU ({low:.0f} to {high:.0f})")

# %% [markdown]
# Six test pictures decide little: look at the intervals. A record has more: 12,000 samples by day; then 50
# pictures by night, or these and 50 by day; a hundred others are asked.

# %%
record = recorded("night")
for title, key in {"by day": "before", "then by night": "night", "then by both": "both"}.items():
    night, day = (record[key][light]["oIoU"] for light in ("night", "day"))
    print(f"trained {title:13}: asked by night {night:.1f} oIoU, by day {day:.1f}")

# %% [markdown]
# **Think!** What has the network paid for its nights?
#
# *Its days: nothing in fifty dark pictures asks for them, so they are forgotten. Show it some old pictures as
# well ("both"), or train for less. Whoever fine-tunes should measure both.*
#
# ## 9 · What it takes to claim a number
#
# A training at full size is expensive, so it is often done once. That is where this course began to matter:
#
# - **Protocol.** Resolution, threshold, which sentences, mIoU or oIoU: say it (lessons 04 and 08). `evaluate`
#   writes it beside each number.
# - **Selection.** Choose the checkpoint on val, once, and report test whatever it says. Not one checkpoint
#   for each split (lesson 08 measured what that buys).
# - **Seeds.** Three runs at least, or the interval over pictures and the words "one run". RefCOCO's val is
#   large; the luck of a seed is not in that interval.
# - **The recipe**, all of it: `run.json` keeps it, with commit, command, data and machine.
# - **What fell short.** Also when it is your own.
#
# Data and weights are not ours to ship. RefCOCO's annotations and COCO's pictures: `python -m rislib data
# get`, then `data check`, which holds every count against the published ones. The encoders come from the hub
# at first use. `data/README.md` says where each file goes.
#
# ## Summary
#
# - Nothing of a method changes at full size; its arguments do. The bill is paid in bytes and hours, and both
#   can be reckoned beforehand: 16 bytes for each parameter, activations for each sample, three times the FLOP
#   of an answer.
# - bf16 keeps the range and gives up digits, in products only. Weights stay in 32 bits.
# - A batch in pieces, or over processes, gives the same gradient **if** every sample counts once and alike,
#   and nothing is normalised over the batch.
# - More GPUs hold more samples. FSDP shares out the 16 bytes a parameter as well, but no activations.
# - Measure before you make faster. Where the loader is slow, workers share its work, and a cache spares it.
# - An estimate from FLOP is good to a factor of two. A dry run is better.
#
# This was the last lesson. You know now how five methods find what a sentence means, what each of their parts
# is worth, and how to find out whether that is true. **Where to go on:** take one claim of a paper that you
# doubt, and test it here in an evening. Read the method files once more, from top to bottom; they are short.
# Then point `--data` at something that nobody has segmented yet. Goodbye, and have a good journey.
