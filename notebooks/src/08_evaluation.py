# %% [markdown]
# # 08 · Evaluation
#
# **Five methods, one table, and everybody believes its last column. This lesson is about how such a column is
# made, how far it can be trusted, and what it does not say.**
#
# You count pixels by hand, and see one table crown two winners. You learn how sure a number is, and cheat in
# four ways to find out what each buys. You ask what a score owes to the words, give every mistake a name, and
# in the end read one honest table.
#
# *Time: 60 minutes. You need: lesson 04 (CRIS). Lessons 05 to 07 introduce the other methods.*

# %% tags=["parameters"]
profile = "cpu"  # "ci" takes seconds, "cpu" minutes, "gpu" is the full-scale world

# %% tags=["imports"]
import copy
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import ipywidgets
import numpy as np
import torch
from IPython.display import display
from PIL import ImageColor, ImageOps

# %% tags=["imports"]
from rislib import viz
from rislib.course import check, hint, show
from rislib.course.recorded import measured, recorded
from rislib.data import build_refmini, open_split, with_instances
from rislib.data.refmini.build import draw_picture

# %% tags=["imports"]
from rislib.evaluation import CRIS_2022, PROTOCOLS, Scores, answers, blinded, evaluate, shuffled
from rislib.evaluation.anatomy import ERRORS, confusions, count_errors, find_errors, gallery
from rislib.evaluation.compare import compare_pictures, compare_seeds, mean_interval
from rislib.evaluation.edits import SIDES, reactions, remembered, swap
from rislib.evaluation.metrics import intersection_and_union
from rislib.methods.cris import cris_mini
from rislib.predict import Predictor
from rislib.study.claims import PUBLISHED
from rislib.study.figures import ERROR_COLOURS
from rislib.study.report import LABELS, NAMES
from rislib.training import MINI, fit

# %% [markdown]
# ## 1 · One picture, one answer
#
# Two masks: the truth, and an answer. Where do they meet? Blue is the truth alone, pink the answer alone,
# and dark is both.


# %%
def compared(answer, truth):
    """Two masks (H, W) bool as one picture: blue, pink, and dark where both are."""
    colours = [ImageColor.getrgb(colour) for colour in ("#f3f4f6", viz.TRUTH, viz.PREDICTION, viz.INK)]
    return np.array(colours, np.uint8)[truth + 2 * answer]


truth, answer = np.zeros((2, 6, 9), bool)
truth[1:5, 2:6] = True
answer[2:5, 3:8] = True
figure = viz.gallery([compared(answer, truth)], ["count the fields"], width=3.4)
figure.axes[0].vlines(range(1, 9), 0, 6, color="white", linewidth=1)
figure.axes[0].hlines(range(1, 6), 0, 9, color="white", linewidth=1)
show(figure, alt="A grid of 6 by 9 fields: 7 blue, 6 pink, 9 dark.")

# %% [markdown]
# Count before you read on. **IoU**, intersection over union, is the dark fields by all coloured ones.

# %% tags=["nbval-check-output"]
intersection, union = intersection_and_union(answer, truth)
print(f"{intersection} dark, {union} coloured: IoU {intersection / union:.2f}")
print(f"of the thing's {truth.sum()} fields {intersection / truth.sum():.0%} were found")
print(f"of the answer's {answer.sum()} fields {intersection / answer.sum():.0%} are right")

# %% [markdown]
# *More than half was found, more than half is right, and still the IoU is 0.41. It punishes both kinds of
# mistakes at once.*
#
# ### An answer of a network
#
# For all that follows we need a network that makes mistakes. Profile `cpu` trains CRIS on 4,800 samples, in
# a minute or two. (`ci` sees 192, which proves that everything runs and nothing more.) On its way we keep
# eight *checkpoints*: the weights as they were.

# %%
folder = Path(tempfile.mkdtemp())
if profile == "ci":
    world = build_refmini(folder / "world", train=240, val=36, progress=False)
    samples = 192
else:
    world = "refmini"
    samples = 4_800 if profile == "cpu" else 24_000

# %%
checkpoints = []


def keep(network):
    checkpoints.append(copy.deepcopy(network.state_dict()))
    return {}


torch.manual_seed(0)
model, train = cris_mini(), open_split(world, "train")
run = fit(
    model, train, MINI, out=folder, samples_budget=samples, validate=keep, validations=8, channels_last=True
)
model.cpu()  # if it was trained on a GPU: what follows is little work
print(f"{run.samples:,} samples, {len(checkpoints)} checkpoints")

# %% [markdown]
# We ask it up to 600 sentences of val. Here is the first about each of three pictures. Under the protocol
# `cris_2022` a pixel belongs to the answer if its probability is above 0.35.

# %%
asked = open_split(world, "val")[: 60 if profile == "ci" else 600]
some = [asked[indices[0]] for indices in asked.by_image()[:3]]
predictor = Predictor(model)
panels, captions = [], []
for sample in some:
    predictor.set_image(sample.image)
    mask = predictor.segment(sample.expression).mask
    both, either = intersection_and_union(mask, sample.mask)
    panels += [viz.overlay(sample.image, mask, truth=sample.mask, scale=4), compared(mask, sample.mask)]
    captions += [f"“{sample.expression}”", f"{both} of {either} pixels\nIoU {both / either:.2f}"]
show(viz.gallery(panels, captions, columns=6, width=9.6), alt="Three answers. " + "; ".join(captions))

# %% [markdown]
# ## 2 · From answers to one number
#
# Each of n sentences leaves two numbers behind, the intersection $I_i$ and the union $U_i$. The field makes
# three kinds of metrics of them:
#
# | | | in words |
# |---|---|---|
# | **mIoU** | $\frac1n \sum_i \frac{I_i}{U_i}$ | every *sentence* counts the same |
# | **oIoU** | $\sum_i I_i \,/\, \sum_i U_i$ | every *pixel* counts the same, so large things count more |
# | **P@X** | share of $i$ with $\frac{I_i}{U_i} > X$ | how often is it good enough? |
#
# All in percent. First P@X, for every X at once:

# %%
scores = evaluate(model, asked, CRIS_2022).scores
levels = np.linspace(0, 1, 101)
above = [scores.precision_at(level) for level in levels]
figure, axes = viz.chart("Is CRIS good enough?", "X, the IoU that is enough", "P@X, percent of answers")
axes.fill_between(levels, above, color=viz.PREDICTION, alpha=0.12, linewidth=0)
axes.plot(levels, above, color=viz.PREDICTION, linewidth=2)
for x in (0.5, 0.7, 0.9):
    share = scores.precision_at(x)
    axes.text(x + 0.01, share + 2, f"P@{x} {share:.0f}", fontsize=9, color=viz.INK)
axes.set(xlim=(0, 1), ylim=(0, 110))
show(figure, alt=f"A falling curve. P@0.5 is {scores.precision_at(0.5):.0f} percent.")
print(f"the area below the curve: {np.trapezoid(above, levels):.1f}   mIoU: {scores.mean_iou():.1f}")

# %% [markdown]
# *The area below this curve **is** the mIoU. P@0.5 asks whether the right thing was found, P@0.9 how well it
# was drawn; mIoU mixes both questions.*
#
# ### Exercise 1: above, or at least? (easy, 5 minutes)
#
# CRIS counts an answer if its IoU is *above* X, LAVT if it is *at least* X. Write both.


# %% exercise="share_above"
def share_above(ious, level, strict):
    """P@X in percent, a float. ious (n,) in [0, 1]; strict: count IoU > level, otherwise IoU >= level."""
    # BEGIN SOLUTION
    good = ious > level if strict else ious >= level
    return float(100 * good.mean())
    # END SOLUTION


# %% tests="share_above"
def cases():
    ious = np.array([0.5, 0.25, 0.75, 0.5, 1.0, 0.0, 0.9, 0.625])
    yield ious, 0.5, True
    yield ious, 0.5, False
    yield ious[1:4], 0.75, True
    yield ious[1:4], 0.75, False


hints = (
    "A comparison of an array with a number gives an array of True and False.",
    "The mean of True and False is the share of True.",
    "`good = ious > level if strict else ious >= level`, then `float(100 * good.mean())`.",
)


def wrong_always_strict(ious, level, strict):
    """your comparison is always >. An answer with exactly this IoU counts if `strict` is False."""
    return share_above(ious, level, True)


def wrong_always_reached(ious, level, strict):
    """your comparison is always >=. If `strict`, an IoU of exactly X is not enough."""
    return share_above(ious, level, False)


def wrong_fraction(ious, level, strict):
    """a fraction instead of percent: multiply by 100, as papers do."""
    return share_above(ious, level, strict) / 100


def wrong_mean_of_good(ious, level, strict):
    """this is the mean IoU of the good answers. P@X asks how many there are, and not how good they are."""
    good = ious[ious > level] if strict else ious[ious >= level]
    return float(100 * good.mean()) if len(good) else 0.0


# %% points=2
check(share_above)

# %% [markdown]
# Does one sign matter? Wherever IoUs fall *exactly* on X: with small masks, and whenever somebody rounds.

# %% tags=["nbval-check-output"]
counts = [(1, 2), (2, 4), (3, 4), (2, 3)]  # four tiny masks: pixels of intersection and union
strict, loose = Scores(strict=True), Scores(strict=False)
for each in (strict, loose):
    each.intersections, each.unions = map(list, zip(*counts, strict=True))
print(f"P@0.5 with >: {strict.precision_at(0.5):.0f}   with >=: {loose.precision_at(0.5):.0f}")

# %% [markdown]
# ### Two things, two winners
#
# Two sentences, two networks. A draws the large thing without a fault, and misses the small one by a quarter
# of its width. B cuts a quarter off the large thing, and has the small one right.

# %%
picture = draw_picture("lesson 08/24", "val", "refmini", 128)
image, masks = picture.painting.image, picture.painting.masks
said = ("white car", "white bird")
truths = [masks[i] for e in said for i, texts in picture.references.items() if e in [t.text for t in texts]]
car, bird = truths
columns = np.flatnonzero(bird.any(axis=0))
shifted = np.roll(bird, len(columns) // 4, axis=1)
cut = car & (np.cumsum(car.sum(axis=0)) > car.sum() / 4)
two = {"A": (car, shifted), "B": (cut, bird)}

# %% tags=["nbval-check-output"]
for name, given in two.items():
    pixels = [intersection_and_union(mask, true) for mask, true in zip(given, truths, strict=True)]
    (i, u), (k, v) = pixels
    print(f"{name}: car {i} of {u}, bird {k} of {v} pixels")
    print(f"   mIoU = mean of {i / u:.2f} and {k / v:.2f} = {50 * (i / u + k / v):.0f}", end="")
    print(f"   oIoU = {i + k} of {u + v} = {100 * (i + k) / (u + v):.0f}")

# %%
panels, captions = [], []
for name, given in two.items():
    for expression, mask, true in zip(said, given, truths, strict=True):
        panels.append(viz.overlay(image, mask, truth=true, scale=4))
        captions.append(f"{name}: “{expression}”")
alt = "The answers of A and B about a large car and a small bird, with the true outlines in blue."
show(viz.gallery(panels, captions, width=9.6), alt=alt)

# %% [markdown]
# *By oIoU A wins, by mIoU B, and by wide margins. The car has eight times the bird's pixels, so in oIoU it
# counts eight times as much.*
#
# **Think!** Which of the two should a robot have that is to pick up small things?
#
# *B. A metric is a statement about what matters. Whoever chooses the metric chooses the winner.*
#
# ### Exercise 2: both, from sums (medium, 5 minutes)
#
# A record in `results/` cannot keep all masks. For each picture it keeps four sums over that picture's
# sentences: how many there were, their intersections, their unions, and their IoUs. That is enough.


# %% exercise="from_sums"
def from_sums(expressions, intersections, unions, ious):
    """Sums over the sentences of each of P pictures, arrays (P,) -> (oIoU, mIoU) of all, floats in percent.

    expressions counts the sentences, intersections and unions their pixels, ious sums IoUs in [0, 1]
    """
    # BEGIN SOLUTION
    overall = intersections.sum() / unions.sum()
    mean = ious.sum() / expressions.sum()
    return float(100 * overall), float(100 * mean)
    # END SOLUTION


# %% tests="from_sums"
def cases():
    yield np.array([1, 4]), np.array([50, 900]), np.array([100, 1000]), np.array([0.5, 3.5])
    yield np.array([6, 2, 1]), np.array([300, 80, 0]), np.array([700, 90, 40]), np.array([2.4, 1.8, 0.0])


hints = (
    "Both metrics are a quotient of two sums over everything. Only the sums differ.",
    "oIoU needs intersections and unions; mIoU needs the sum of IoUs, and how many there are.",
    "`100 * intersections.sum() / unions.sum()` and `100 * ious.sum() / expressions.sum()`.",
)


def wrong_mean_of_ratios(expressions, intersections, unions, ious):
    """your oIoU is a mean of quotients, one for each picture. Add up first, divide once. (An "oIoU" that is
    averaged over batches, as some training loops print it, has the same fault.)"""
    mean = from_sums(expressions, intersections, unions, ious)[1]
    return float(100 * (intersections / unions).mean()), mean


def wrong_mean_of_means(expressions, intersections, unions, ious):
    """your mIoU is the mean over pictures of their means. Then a sentence counts less if its picture has many
    others. Divide the sum of all IoUs by the number of all sentences."""
    return from_sums(expressions, intersections, unions, ious)[0], float(100 * (ious / expressions).mean())


def wrong_by_pictures(expressions, intersections, unions, ious):
    """your mIoU was divided by the number of pictures. Each has several sentences, so it can even pass
    100."""
    return from_sums(expressions, intersections, unions, ious)[0], float(100 * ious.mean())


def wrong_swapped(expressions, intersections, unions, ious):
    """the two are exchanged. Overall means: all pixels together, divided once."""
    return from_sums(expressions, intersections, unions, ious)[::-1]


def wrong_fraction(expressions, intersections, unions, ious):
    """fractions instead of percent: multiply by 100."""
    return tuple(x / 100 for x in from_sums(expressions, intersections, unions, ious))


# %% points=2
check(from_sums)

# %% [markdown]
# ### Two metrics in one column
#
# This was published for RefCOCO: val, testA, testB. CRIS prints "IoU", which is mIoU, as its author confirms;
# LAVT, MagNet and MaIL print oIoU first, CM-MaskSD mIoU. (A star: taken from another publication's table,
# since we could not read it in the paper. Two stars: quoted from memory.)

# %% tags=["nbval-check-output"]
for paper, metrics in PUBLISHED.items():
    for name, numbers in metrics.items():
        print(f"{paper:12} {name}  {'   '.join(numbers.split()[:3])}")

# %% [markdown]
# Surveys print one column for all, so CM-MaskSD's mIoU gets to stand below LAVT's oIoU. How far is it ahead?


# %% tags=["nbval-check-output"]
def printed(paper, metric):
    """On RefCOCO val, percent."""
    return float(PUBLISHED[paper][metric].split()[0].strip("*"))


for ours, theirs in (("mIoU", "oIoU"), ("mIoU", "mIoU"), ("oIoU", "oIoU")):
    lead = printed("CM-MaskSD", ours) - printed("LAVT", theirs)
    print(f"CM-MaskSD's {ours} less LAVT's {theirs}: {lead:+.2f}")
for metric in ("oIoU", "mIoU"):
    lead = printed("MagNet", metric) - printed("CRIS (R101)", "mIoU")
    print(f"MagNet's {metric} less CRIS's mIoU: {lead:+.2f}")

# %% [markdown]
# *In the mixed column it is two points ahead. In mIoU the lead is a fifth of that, in oIoU it is behind. The
# mixture need not even help those who print it: MagNet's own page compares its oIoU with CRIS's mIoU, and so
# loses two points.*
#
# ## 3 · How sure?
#
# Our network has *one* oIoU on *these* pictures. With others of the same sort it would have been another.
# How far away? We have no others. But we can draw anew from those that we have, **with replacement**: some
# come twice, some not at all. Do that a thousand times, and see how the number moves. This is the
# **bootstrap** (Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993). The middle 95 % of these
# numbers are the interval.
#
# One thing decides whether that is honest: *what* is drawn. Sentences about one picture fail together: its
# crowd is hard for all of them. They are not new evidence. So whole **pictures** are drawn.
#
# ### Exercise 3: an interval, picture by picture (medium, 10 minutes)
#
# The lots are given: each row of `drawn` names P pictures. A picture that is named twice counts twice.


# %% exercise="bootstrap_interval"
def bootstrap_interval(picture, intersections, unions, drawn):
    """95 % interval of oIoU -> (low, high), floats in percent.

    picture, intersections, unions (n,) ints: of each sentence, pictures counted from 0 to P - 1;
    drawn (R, P) ints: R times P pictures
    """
    # BEGIN SOLUTION
    inside = np.bincount(picture, intersections)  # (P,) sums over the sentences of each picture
    around = np.bincount(picture, unions)
    overall = 100 * inside[drawn].sum(axis=1) / around[drawn].sum(axis=1)  # (R,)
    low, high = np.percentile(overall, [2.5, 97.5])
    return float(low), float(high)
    # END SOLUTION


# %% tests="bootstrap_interval"
def cases():
    rng = np.random.default_rng(0)
    for pictures, sentences in ((4, 9), (12, 40)):
        picture = np.concatenate([np.arange(pictures), rng.integers(pictures, size=sentences - pictures)])
        unions = rng.integers(50, 400, size=sentences)
        intersections = (unions * rng.random(sentences)).astype(int)
        yield picture, intersections, unions, rng.integers(pictures, size=(60, pictures))


hints = (
    "First go from sentences to pictures: `np.bincount(picture, intersections)` sums for each picture.",
    "An array may be indexed with a table: `inside[drawn]` has the shape (R, P). Sum over its rows.",
    "`100 * inside[drawn].sum(axis=1) / around[drawn].sum(axis=1)` are R values of oIoU. "
    "`np.percentile(..., [2.5, 97.5])` is the interval.",
)


def _redrawn(picture, intersections, unions, drawn):
    inside, around = np.bincount(picture, intersections), np.bincount(picture, unions)
    return 100 * inside[drawn].sum(axis=1) / around[drawn].sum(axis=1)


def _middle(values, ends=(2.5, 97.5)):
    return tuple(map(float, np.percentile(values, ends)))


def wrong_sentences(picture, intersections, unions, drawn):
    """you took the lots for sentences. They name pictures, each of which brings all of its sentences along:
    sum over these first."""
    return _middle(100 * intersections[drawn].sum(axis=1) / unions[drawn].sum(axis=1))


def wrong_once(picture, intersections, unions, drawn):
    """a picture that is drawn twice counted once (`np.isin` or a set does that). Then nothing is drawn with
    replacement: you only leave some out."""
    chosen = [np.isin(picture, row) for row in drawn]
    return _middle([100 * intersections[c].sum() / unions[c].sum() for c in chosen])


def wrong_standard_error(*arguments):
    """you divided by the root of the number of redraws. More redraws do not make the network surer. The
    spread of the redrawn numbers is what you look for, as it is."""
    overall = _redrawn(*arguments)
    half = 1.96 * overall.std() / len(overall) ** 0.5
    return float(overall.mean() - half), float(overall.mean() + half)


def wrong_extremes(*arguments):
    """these are the least and the greatest of all redraws. The more redraws, the farther apart they lie. Take
    the middle 95 %."""
    return _middle(_redrawn(*arguments), (0, 100))


def wrong_ninety(*arguments):
    """you cut 5 % off at each end, which leaves 90. For 95 % it is 2.5 and 97.5."""
    return _middle(_redrawn(*arguments), (5, 95))


def wrong_mean_of_ratios(picture, intersections, unions, drawn):
    """in each redraw you averaged quotients. oIoU adds up the drawn pixels first, and divides once."""
    quotients = np.bincount(picture, intersections) / np.bincount(picture, unions)
    return _middle(100 * quotients[drawn].mean(axis=1))


# %% points=3
check(bootstrap_interval)

# %% [markdown]
# Our network, redrawn a thousand times: by pictures, and, as one should not, by sentences.


# %%
def redrawn(counted):
    """oIoU of 1,000 redraws of the pictures, in percent, from `Scores.by_picture()`: (1000,)"""
    pictures = len(counted["image_ids"])
    times = np.random.default_rng(0).multinomial(pictures, [1 / pictures] * pictures, size=1000)
    return 100 * (times @ counted["intersections"]) / (times @ counted["unions"])


def width(runs, metric="oIoU"):
    """Of the 95 % interval over pictures, in points."""
    low, high = mean_interval(runs, metric)
    return high - low


# %%
alone = replace(scores, image_ids=list(range(len(scores))))  # as if each sentence had a picture of its own
draws = {"by pictures": scores.by_picture(), "by sentences": alone.by_picture()}
bins = np.linspace(*np.quantile(redrawn(draws["by pictures"]), (0, 1)), 41)
figure, axes = viz.chart("The same answers, redrawn 1,000 times", "oIoU, percent", "redraws", height=2.6)
for (name, counted), colour in zip(draws.items(), (viz.INK, "#f2a900"), strict=True):
    label = f"{name}: 95 % within {width([counted]):.1f} points"
    axes.hist(redrawn(counted), bins, histtype="step", linewidth=1.8, color=colour, label=label)
axes.margins(y=0.35)  # room for the legend
viz.legend(axes)
show(figure, alt="; ".join(f"{n}, 95 % within {width([c]):.1f} points" for n, c in draws.items()))
ratio = width([draws["by pictures"]]) / max(width([draws["by sentences"]]), 1e-9)
print(f"{len(scores)} sentences, {len(asked.by_image())} pictures.", end=" ")
print(f"By pictures it is {ratio:.2f} times as wide.")

# %% [markdown]
# ### Another seed
#
# The bootstrap asks: what if there had been other *pictures*? It does not ask: what if the *training* had
# gone another way? That takes more trainings. For this course all five methods were trained in the same
# world, with several seeds, on as many samples as five minutes hold on two processor cores: more for the
# quick, fewer for the slow. (`python -m rislib study run five_minutes` does it again. All tables:
# `results/REPORT.md`.)


# %%
def study(record="five_minutes", data="refmini", key="by_picture", named=NAMES):
    """{method: its recorded runs, by seed, that have `key`}, best method first."""
    runs = measured(record).get("runs", [])
    runs = [run for run in runs if run["data"] == data and key in run]
    runs.sort(key=lambda run: run["seed"])
    found = {name: [run for run in runs if run["variant"] == method] for method, name in named.items()}
    return dict(sorted(((n, r) for n, r in found.items() if r), key=lambda item: -mean_of(item[1])))


def mean_of(runs, metric="oIoU"):
    return np.mean([run[metric] for run in runs])


COLOUR = {name: viz.METHODS[method] for method, name in NAMES.items()}

# %%
if runs := study():
    figure, axes = viz.chart("Five minutes of training", "oIoU on RefMini val, percent", height=3.2)
    for row, (name, seeds) in enumerate(runs.items()):
        for k, run in enumerate(seeds):
            place = row + 0.2 * (k - (len(seeds) - 1) / 2)
            axes.plot(run["interval"], [place] * 2, color=COLOUR[name], alpha=0.45, linewidth=2)
            axes.plot(run["oIoU"], place, "o", color=COLOUR[name], markersize=5)
    axes.set_yticks(range(len(runs)), runs)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.grid(axis="x", color=viz.HAIRLINE, linewidth=0.8)
    show(figure, alt="oIoU of every single run, each with its interval over pictures.")

# %%
for name, seeds in study().items():
    if len(seeds) < 2:
        continue
    apart = np.std([run["oIoU"] for run in seeds], ddof=1)
    half = np.mean([width([run["by_picture"]]) / 2 for run in seeds])
    print(f"{name:10}seeds: standard deviation {apart:.1f}   pictures: half an interval {half:.1f}")

# %% [markdown]
# *A dot is one training, its line the interval over pictures. Two kinds of luck, and neither line knows of
# the other.*
#
# ### In pairs
#
# Now compare two networks. They were asked the same sentences. Some pictures are hard for both: that moves
# both numbers together, and makes both intervals wide. The *difference* does not care. Take the last of our
# checkpoints, and one from before:

# %%
last, before = checkpoints[-1], checkpoints[-3]
model.load_state_dict(before)
earlier = evaluate(model, asked, CRIS_2022).scores
model.load_state_dict(last)
pairs = {"earlier": earlier, "last": scores}
each = {name: np.divide(s.by_picture()["ious"], s.by_picture()["expressions"]) for name, s in pairs.items()}
figure, axes = viz.chart("A dot is a picture", "IoU, earlier", "IoU, last", width=4.4, height=3.8)
axes.set_aspect("equal")
axes.plot([0, 1], [0, 1], color=viz.QUIET, linewidth=1, zorder=0)
axes.text(0.03, 0.95, "last is better", fontsize=8.5, color=viz.QUIET)
axes.text(0.97, 0.03, "earlier is better", fontsize=8.5, color=viz.QUIET, ha="right")
axes.scatter(each["earlier"], each["last"], s=16, color=viz.PREDICTION, alpha=0.6, linewidth=0)
show(figure, alt="Pictures by their mean IoU under two checkpoints, scattered along the diagonal.")

# %%
for name, counted in pairs.items():
    print("{:8} {:.1f} mIoU ({:.1f} to {:.1f})".format(name, counted.mean_iou(), *counted.interval("mIoU")))
paired = compare_pictures([scores.by_picture()], [earlier.by_picture()], "mIoU")
beside = sum(width([counted.by_picture()], "mIoU") ** 2 for counted in pairs.values()) ** 0.5
print(f"last less earlier, in pairs: {paired}")
print(f"Width of that interval: {paired.high - paired.low:.1f}. Had they been asked about different", end=" ")
print(f"pictures: {beside:.1f}.")

# %% [markdown]
# *What lies along the diagonal is shared, and cancels. What is left is what the two networks do differently.*
#
# There is a second way to ask, without any redraw: **the sign-flip test**. If both networks were equally
# good, then who is ahead on a picture would be a toss of a coin. So toss: keep the size of each difference,
# give it a random sign. How often is the mean as far from 0 as the one that was seen? That share is the
# *p-value*. If it is small, luck is a poor explanation.
#
# ### Exercise 4: is it luck? (medium, 10 minutes)
#
# Ahead or behind, both would have surprised us: count by distance from 0. And count the toss that really
# happened as one more, so that p is never 0.


# %% exercise="sign_flip"
def sign_flip(differences, signs):
    """The p-value of a mean difference, a float above 0.

    differences (P,): one network less the other, picture by picture; signs (R, P) of +1 and -1: R tosses
    """
    # BEGIN SOLUTION
    tossed = np.abs((signs * differences).mean(axis=1))  # (R,)
    reached = (tossed >= abs(differences.mean())).sum()
    return float((1 + reached) / (1 + len(signs)))
    # END SOLUTION


# %% tests="sign_flip"
def cases():
    rng = np.random.default_rng(0)
    for shift, pictures in ((1, 10), (-2, 8), (4, 12)):
        differences = (rng.integers(-8, 9, size=pictures) + shift) / 8  # eighths: no rounding decides
        yield differences, rng.choice([-1, 1], size=(99, pictures))


hints = (
    "`signs * differences` is a table (R, P): each row is one toss. What is its mean?",
    "Compare `abs` with `abs`: a toss counts if it lies as far from 0 as what was seen, or farther.",
    "With `reached` of R tosses that far out, p is `(1 + reached) / (1 + R)`.",
)


def wrong_one_side(differences, signs):
    """only one side was counted. Before the experiment nobody knew who would be ahead, so a toss that is as
    far behind counts as well: compare absolute values."""
    tossed = (signs * differences).mean(axis=1)
    return float((1 + (tossed >= differences.mean()).sum()) / (1 + len(signs)))


def wrong_zero(differences, signs):
    """right, but for the one toss that has really happened. Without it p can be 0, and 99 tosses cannot prove
    that something never happens."""
    tossed = np.abs((signs * differences).mean(axis=1))
    return float((tossed >= abs(differences.mean())).mean())


def wrong_below(differences, signs):
    """you counted the tosses that stay *below* what was seen. That is about 1 - p: large where luck is a poor
    explanation."""
    tossed = np.abs((signs * differences).mean(axis=1))
    return float((1 + (tossed < abs(differences.mean())).sum()) / (1 + len(signs)))


def wrong_sum(differences, signs):
    """you compared sums with a mean. Sums are P times as large, so nearly every toss seems to reach it."""
    tossed = np.abs((signs * differences).sum(axis=1))
    return float((1 + (tossed >= abs(differences.mean())).sum()) / (1 + len(signs)))


def wrong_abs_first(differences, signs):
    """the absolute values were taken before the mean. Then every toss gives the same number. First the mean
    with its signs, then its distance from 0."""
    tossed = np.abs(signs * differences).mean(axis=1)
    return float((1 + (tossed >= abs(differences.mean())).sum()) / (1 + len(signs)))


# %% points=3
check(sign_flip)

# %% [markdown]
# A thousand tosses for our two checkpoints. (Here each picture counts the same, however many its sentences.)

# %%
differences = each["last"] - each["earlier"]
signs = np.random.default_rng(0).choice([-1, 1], size=(1000, len(differences)))
tossed, seen = 100 * (signs * differences).mean(axis=1), 100 * differences.mean()
p = (1 + (np.abs(tossed) >= abs(seen)).sum()) / 1001
figure, axes = viz.chart("If it were luck", "mean difference, points of IoU", "tosses", height=2.4)
axes.hist(tossed, 40, color=viz.FAINT, alpha=0.6)
axes.axvline(seen, color=viz.PREDICTION, linewidth=2, label=f"seen: {seen:+.1f}, p = {p:.3f}")
viz.legend(axes)
show(figure, alt=f"A histogram of tosses around 0, and a line at what was seen: {seen:+.1f}, p = {p:.3f}.")

# %% [markdown]
# Now the five methods, neighbours in the ranking. Pictures in pairs, then seeds in pairs: runs of one seed
# saw the samples in the same order, as far as their five minutes went.


# %%
def in_pairs(first, second):
    """Two methods' recorded runs -> how far the first is ahead in oIoU: by pictures, and by seeds."""
    shared = sorted({run["seed"] for run in first} & {run["seed"] for run in second})
    first, second = ([run for run in runs if run["seed"] in shared] for runs in (first, second))
    pictures = compare_pictures(*([run["by_picture"] for run in runs] for runs in (first, second)))
    return pictures, compare_seeds(*([run["oIoU"] for run in runs] for runs in (first, second)))


for (one, first), (two, second) in itertools.pairwise(study().items()):
    by_pictures, by_seeds = in_pairs(first, second)
    verdict = "decided" if by_pictures.decided and by_seeds.decided else "not decided"
    verdict = verdict if np.isfinite(by_seeds.high) else "one seed, so it cannot be decided"
    print(f"{one} ahead of {two}: by pictures {by_pictures}, by seeds {by_seeds}: {verdict}")

# %% [markdown]
# *Points of oIoU, and the 95 % interval. "Decided" is said only if neither interval contains 0. Of a few
# seeds one takes **Student's interval**: the mean, and to each side their standard deviation times a factor
# that grows as seeds get fewer. It is 2.5 for three of them, 9 for two; a single seed has no interval.*
#
# ## 4 · Protocol
#
# Lesson 04 gave one network two headlines: `cris_2022` (original size, probability above 0.35, mIoU) and
# `lavt_2022` (the network's size, above 0.5, oIoU). Is that a matter of style, or does it change who wins?


# %%
def swept(runs, protocol, metric):
    """{threshold on the probability: mean over the seeds}"""
    tables = [run["anatomy"]["thresholds"][protocol] for run in runs]
    return {float(t): np.mean([table[t][metric] for table in tables]) for t in tables[0]}


if runs := study(key="anatomy"):
    title = "The same answers, 19 thresholds"
    figure, axes = viz.chart(title, "threshold on the probability", "mIoU, cris_2022, percent", height=3.4)
    for name, seeds in runs.items():
        points = swept(seeds, "cris_2022", "mIoU")
        axes.plot(points.keys(), points.values(), color=COLOUR[name], linewidth=1.8, label=name)
    axes.axvline(0.35, color=viz.FAINT, linewidth=0.9, linestyle=":")
    viz.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    show(figure, alt=f"mIoU over the threshold: {', '.join(runs)}. A line at CRIS's own, 0.35.")

# %%
runs, rankings = study(key="anatomy"), set()
for protocol, metric in itertools.product(PROTOCOLS if runs else (), ("oIoU", "mIoU")):
    for threshold in (0.35, 0.5):
        values = {name: swept(seeds, protocol, metric)[threshold] for name, seeds in runs.items()}
        ranking = sorted(values, key=values.get, reverse=True)
        rankings.add(tuple(ranking))
        print(f"{protocol} {metric} {threshold:4}: ", ", ".join(f"{n} {values[n]:.1f}" for n in ranking))
if runs:
    print("All agree." if len(rankings) == 1 else f"That makes {len(rankings)} different rankings.")

# %% [markdown]
# *The same answers in all eight rows; only the counting differs. A ranking can hold where every number moves
# by points. So a protocol matters least inside one table, and most between two.*
#
# ### The cheat
#
# A threshold has to be chosen, and a checkpoint. On which pictures? On **val**, which is there for that. Then
# the test split is asked *once*. Here is an evaluation script that looks quite harmless. Four things in it
# are not. Find them before you read the exercise.


# %%
def leaky_score(val, test, thresholds):
    """mIoU in percent. A split: probabilities (C, n, H, W) of C checkpoints, and masks (n, H, W) bool."""
    best = 0.0
    maps, masks = test
    for checkpoint in range(len(maps)):
        for threshold in thresholds:
            ious = []
            for probability, mask in zip(maps[checkpoint], masks, strict=True):
                near = mask.any(axis=0, keepdims=True) & mask.any(axis=1, keepdims=True)
                answer = (probability > threshold) & near  # no far-away specks
                if answer.any():  # an IoU of nothing is undefined
                    ious.append((answer & mask).sum() / (answer | mask).sum())
            best = max(best, 100 * np.mean(ious or [0]))
    return best


# %% [markdown]
# ### Exercise 5: mend it (hard, 10 minutes)
#
# Choose checkpoint *and* threshold together: the pair that has the highest mIoU on val. Report what it has on
# test, over all sentences. No mask is empty.


# %% exercise="honest_score"
def honest_score(val, test, thresholds):
    """mIoU in percent, a float. A split: probabilities (C, n, H, W) of C checkpoints, masks (n, H, W)."""

    # BEGIN SOLUTION
    def score(split, checkpoint, threshold):
        answer, masks = split[0][checkpoint] > threshold, split[1]  # both (n, H, W)
        ious = (answer & masks).sum(axis=(1, 2)) / (answer | masks).sum(axis=(1, 2))
        return float(100 * ious.mean())

    choices = itertools.product(range(len(val[0])), thresholds)
    return score(test, *max(choices, key=lambda choice: score(val, *choice)))
    # END SOLUTION


# %% tests="honest_score"
def cases():
    def split(rng, n):
        masks = np.zeros((n, 6, 6), bool)
        for mask, (top, left) in zip(masks, rng.integers(0, 4, size=(n, 2)), strict=True):
            mask[top : top + 3, left : left + 2] = True
            mask[top, left + 1] = False
        sure = rng.uniform(0.1, 0.6, size=(3, n, 1, 1))
        return 0.6 * rng.random((3, n, 6, 6)) + sure * masks, masks

    for seed in (1, 6, 9):
        rng = np.random.default_rng(seed)
        yield split(rng, 5), split(rng, 7), [0.2, 0.3, 0.4, 0.5, 0.7]


hints = (
    "`val` is an argument, and the script never looks at it. Where should it? And which lines know the "
    "answer, `mask`, before the IoU is computed?",
    "Write a helper that scores one split with one checkpoint and one threshold, without `near` and without "
    "the `if`. An empty answer has IoU 0.",
    "`choices = itertools.product(range(len(val[0])), thresholds)`, then "
    "`max(choices, key=lambda choice: score(val, *choice))`, and `score(test, ...)` of that one.",
)


def _score(split, checkpoint, threshold, box=False, skip=False):
    answer, masks = split[0][checkpoint] > threshold, split[1]
    if box:
        answer = answer & masks.any(axis=1, keepdims=True) & masks.any(axis=2, keepdims=True)
    ious = (answer & masks).sum(axis=(1, 2)) / (answer | masks).sum(axis=(1, 2))
    kept = ious[answer.any(axis=(1, 2))] if skip else ious
    return float(100 * kept.mean()) if len(kept) else 0.0


def _best(split, thresholds, checkpoints=None, **leak):
    choices = itertools.product(checkpoints or range(len(split[0])), thresholds)
    return max(choices, key=lambda choice: _score(split, *choice, **leak))


def wrong_threshold(val, test, thresholds):
    """the checkpoint was chosen on val, the threshold on test. It is one number only, but chosen with the
    answers in sight."""
    checkpoint, _ = _best(val, thresholds)
    return _score(test, *_best(test, thresholds, [checkpoint]))


def wrong_checkpoint(val, test, thresholds):
    """the threshold was chosen on val, the checkpoint on test. That is "a checkpoint per split", which has
    been done for published tables."""
    _, threshold = _best(val, thresholds)
    return _score(test, *_best(test, [threshold]))


def wrong_both(val, test, thresholds):
    """checkpoint and threshold were both chosen on test. `val` is there to choose; test is asked once."""
    return _score(test, *_best(test, thresholds))


def wrong_box(val, test, thresholds):
    """`near` is still there: the box around the *true* mask. The answer is cleaned with the help of the
    solution. At the user's there is no such box."""
    return _score(test, *_best(val, thresholds, box=True), box=True)


def wrong_skip(val, test, thresholds):
    """answers that are empty are still left out. Who says nothing when in doubt is rewarded. Their IoU is 0,
    since the truth is not empty."""
    return _score(test, *_best(val, thresholds, skip=True), skip=True)


def wrong_reports_val(val, test, thresholds):
    """you reported the best score on val itself. That is the number by which you chose, so luck is in it. Ask
    test, once."""
    return _score(val, *_best(val, thresholds))


# %% points=4
check(honest_score)

# %% [markdown]
# What does each leak buy? We try it on our own network: its last three checkpoints, nineteen thresholds, 300
# sentences of val to choose, 300 of testA to report.


# %%
def probabilities_of(samples):
    """What the last three checkpoints say: probabilities (3, n, H, W), and the masks (n, H, W)."""
    maps = []
    for state in checkpoints[-3:]:
        model.load_state_dict(state)
        maps.append([found for _, found in answers(model, samples, CRIS_2022)])
    return np.array(maps), np.array([sample.mask for sample in samples])


few = 40 if profile == "ci" else 300
splits = {name: probabilities_of(open_split(world, name)[:few]) for name in ("val", "testA")}


# %%
def tried(split, box=False):
    """IoU (3, 19, n) of every checkpoint at every threshold, and whether there was an answer."""
    maps, masks = split
    near = masks.any(axis=1, keepdims=True) & masks.any(axis=2, keepdims=True)
    ious, said = np.zeros((2, len(maps), 19, len(masks)))
    for c, t in np.ndindex(ious.shape[:2]):
        answer = (maps[c] > 0.05 * (t + 1)) & (near | (not box))
        ious[c, t] = (answer & masks).sum(axis=(1, 2)) / (answer | masks).sum(axis=(1, 2))
        said[c, t] = answer.any(axis=(1, 2))
    return ious, said


there, here = (100 * tried(splits[name])[0].mean(axis=2) for name in ("val", "testA"))  # (3, 19) both
boxed, said = tried(splits["testA"], box=True)

# %%
checkpoint, threshold = np.unravel_index(there.argmax(), there.shape)
bought = {
    "honest: both chosen on val": here[checkpoint, threshold],
    "+ the threshold chosen on testA": here[checkpoint].max(),
    "+ the checkpoint, too": here.max(),
    "+ cut out with the true box": 100 * boxed.mean(axis=2).max(),
    "+ empty answers left out": 100 * (boxed.sum(axis=2) / np.maximum(said.sum(axis=2), 1)).max(),
}
colours = [viz.INK, *4 * [viz.FAINT]]
counted = f"mIoU of {few} sentences of testA, percent"
figure = viz.bars(bought, "Leak by leak", counted, colours=colours, digits=1)
show(figure, alt="; ".join(f"{name}: {value:.1f}" for name, value in bought.items()))
for (_, less), (name, more) in itertools.pairwise(bought.items()):
    print(f"{name:33}{more - less:+.2f}")

# %% [markdown]
# *To choose with the answers in sight can only gain; the more there is to choose, and the smaller the split,
# the more. And a box around the truth is most of the answer.* Compare the small leaks with the leads of
# section 2. CRIS's author says that a checkpoint was chosen for each split that is reported (issue 15 of the
# repository).
#
# A seed is a choice as well. What would the best of the recorded seeds buy, against their mean?

# %%
for name, seeds in study().items():
    if len(seeds) > 1:
        values = [run["oIoU"] for run in seeds]
        print(f"{name:10} mean of {len(seeds)} seeds {np.mean(values):.1f}, best {max(values):.1f}", end=": ")
        print(f"{max(values) - np.mean(values):+.1f}")

# %% [markdown]
# ## 5 · What does a score owe to the words?
#
# A method that never reads the sentence also gets a score. How much? Before we praise a method we ask those
# who cannot read:

# %%
objects = with_instances(asked, "oracle")
lots = np.random.default_rng(0)
tricks = {
    "all things at once": lambda things: things.any(axis=0),
    "the largest thing": lambda things: things[things.sum(axis=(1, 2)).argmax()],
    "a thing by lot": lambda things: things[lots.integers(len(things))],
}
blind = {}
for name, trick in tricks.items():
    blind[name] = Scores()
    for sample in objects:
        blind[name].add(trick(sample.instances), sample.mask, image_id=sample.image_id)

# %%
model.load_state_dict(last)
blind["our network, one word for all"] = evaluate(model, blinded(asked), CRIS_2022).scores
blind["our network, another picture's words"] = evaluate(model, shuffled(asked), CRIS_2022).scores
blind["our network"] = scores
percent = {name: counted.overall_iou() for name, counted in blind.items()}
colours = [*3 * [viz.FAINT], *2 * [viz.INK], viz.PREDICTION]
counted = f"oIoU of {len(asked)} sentences, percent"
figure = viz.bars(percent, "Who cannot read, and who can", counted, colours=colours)
show(figure, alt="; ".join(f"{name}: {value:.0f}" for name, value in percent.items()))
print("mIoU:", ", ".join(f"{name} {counted.mean_iou():.0f}" for name, counted in blind.items()))

# %% [markdown]
# *The first three know every outline, and no word. Above them begins what reading is worth.*
#
# **Think!** One network was *asked* blind here. Another could be *trained* blind, with one word in place of
# all sentences. Which of the two is the fairer baseline?
#
# *The one trained blind: it knows that it is blind, and learns the best guess. Ours was taught to listen, and
# is suddenly told nonsense. The record has both:*

# %%
for name, title in {"val": "asked", "shuffled": "with another's words", "blind": "trained blind"}.items():
    print(f"CRIS, {title:21}oIoU {recorded(f'cris_mini/{name}')['oIoU']:.1f}")
for name, seeds in study(key="shuffled").items():
    score, luck = mean_of(seeds), np.mean([run["shuffled"]["oIoU"] for run in seeds])
    print(f"{name:10} {score:.1f}, with another's words {luck:.1f}: {score - luck:.1f} are the words'")

# %% [markdown]
# *The one trained blind has even less. For it each thing of a picture is the right one only now and then. So
# its honest probability lies below 0.35 nearly everywhere, and it hardly answers at all. A fair baseline need
# not be a high one: that is why those who know every outline stand beside it.*
#
# ## 6 · What goes wrong?
#
# 55 points of IoU can be a hundred half-right answers, or 55 perfect ones and 45 about the wrong thing.
# RefMini knows every object of a picture, so each answer can be given a name. The first rule that holds
# counts:
#
# | | |
# |---|---|
# | **nothing** | the answer is empty |
# | **right** | IoU of 0.7 or more |
# | **boundary only** | IoU of 0.5 or more, and what is wrong lies along the edge |
# | **too much** | the thing is found, and more added than missed: *objects*, or *ground* |
# | **wrong object** | some other object is met better |
# | **part of it** | hardly anything but the thing, and not all of it |
# | **scattered** | what is left |
#
# `rislib/evaluation/anatomy.py` has the exact rules, `results/REPORT.md` how often they agree with an eye.


# %%
def stacked(counts, title):
    """{row: {error: how many}} as bars of 100 percent, and their alt text."""
    figure, axes = viz.chart(title, "percent of answers", width=8, height=1.2 + 0.3 * len(counts))
    rows, left = list(counts), np.zeros(len(counts))
    for error, colour in zip(ERRORS, ERROR_COLOURS, strict=True):
        share = np.array([100 * counts[row][error] / sum(counts[row].values()) for row in rows])
        axes.barh(range(len(rows)), share, left=left, color=colour, height=0.7, label=error)
        left += share
    axes.set_yticks(range(len(rows)), [f"{row} ({sum(counts[row].values()):,})" for row in rows])
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6))
    figure.legend(frameon=False, fontsize=8.5, ncols=4, loc="outside lower center")
    best = ", ".join(f"{row} {100 * counts[row]['right'] / sum(counts[row].values()):.0f}" for row in rows)
    return figure, f"Stacked bars of errors. Right, in percent: {best}."


# %%
findings = find_errors(model, asked, CRIS_2022, progress=False)
figure, alt = stacked(count_errors(findings), "Our network, by what the sentence turns on")
show(figure, alt=alt)

# %% [markdown]
# ### The worst, and the closest calls
#
# Above those with the lowest IoU. Below those that could not decide between two things.

# %%
chosen = []
for places in gallery(findings, len(findings)).values():
    one_each = {asked.records[i].image_id: i for i in reversed(places)}  # of each picture the first
    chosen += sorted(one_each.values(), key=places.index)[:5]
panels, captions = [], []
for i in chosen:
    sample, finding = asked[i], findings[i]
    predictor.set_image(sample.image)
    mask = predictor.segment(sample.expression).mask
    panels.append(viz.overlay(sample.image, mask, truth=sample.mask, scale=4))
    captions.append(f"“{sample.expression}”\n{finding.error}, IoU {finding.iou:.2f}")
show(viz.gallery(panels, captions, columns=5, width=9.6), alt="Ten answers. " + "; ".join(captions))

# %% [markdown]
# ### Whom does it take for whom?
#
# Where another object was chosen: what has that in common with the right one? By itself that means little,
# since many things of a picture are alike. So beside it: how many of *all* other objects share it.

# %%
memory = remembered(asked)  # RefMini's scenes and the logical forms of its sentences
mixed_up = confusions(findings, asked, memory.scenes).get("all", {"n": 0})
shares = {name: pair for name, pair in mixed_up.items() if name != "n"}
figure, axes = viz.chart(
    f"{mixed_up['n']} wrong objects: they share with the right one", "percent", height=2.4
)
for row, pair in enumerate(shares.values()):
    axes.plot([pair["chance"], pair["chosen"]], [row, row], color=viz.HAIRLINE, linewidth=3)
    axes.plot(pair["chance"], row, "o", color=viz.FAINT)
    axes.plot(pair["chosen"], row, "o", color=viz.PREDICTION)
axes.set_yticks(range(len(shares)), shares)
axes.invert_yaxis()
alt = "; ".join("{}: {chosen:.0f} %, chance {chance:.0f} %".format(n, **p) for n, p in shares.items())
show(figure, alt=f"What wrongly chosen objects share with the right one. {alt}")

# %% [markdown]
# *Pink: the objects that were chosen. Grey: all other objects of these pictures. Pink to the right of grey
# means: this is what it mixes up. To the left: this it has understood.*
#
# And the five methods, as recorded, all seeds together:

# %%
if runs := study(key="anatomy"):
    found = {name: [run["anatomy"]["errors"]["all"] for run in seeds] for name, seeds in runs.items()}
    sums = {name: {e: sum(one[e] for one in each) for e in ERRORS} for name, each in found.items()}
    figure, alt = stacked(sums, "Five minutes of training, all of val")
    show(figure, alt=alt)

# %% [markdown]
# **Think!** Two methods have the same oIoU. One is often about the wrong object, the other draws bad edges.
# Which would you rather go on with?
#
# *Edges come with training and resolution. Wrong objects mean that words are not understood.*
#
# ### Small edits
#
# A different kind of question needs no truth at all: *change one thing, and see what happens*. If "left"
# becomes "right", the answer should move. If the picture is mirrored as well, it should stay where it is.

# %%
sides = [i for i, record in enumerate(asked.records) if set(record.expression.split()) & SIDES.keys()]
i = next((i for i in sides if findings[i].error == "right"), sides[0])
sample, panels, captions = asked[i], [], []
for picture, view in ((sample.image, "as it is"), (ImageOps.mirror(sample.image), "mirrored")):
    predictor.set_image(picture)
    for expression in (sample.expression, swap(sample.expression, SIDES)):
        panels.append(viz.overlay(picture, predictor.segment(expression).mask, scale=4))
        captions.append(f"{view}\n“{expression}”")
show(viz.gallery(panels, captions, width=9.6), alt="Four answers. " + "; ".join(captions))

# %% [markdown]
# *In the first two the answer should move. In the first and the last it should be the same thing.*
#
# Now many edits. How often is the answer still the same (an IoU of 0.5 between before and after)?

# %%
MEANING = {
    "synonym": "a synonym",
    "mirrored": "mirrored, no side is named",
    "mirrored_both": "mirrored, left and right swapped",
    "shuffled": "words shuffled",
    "left_right": "left and right swapped",
    "top_bottom": "top and bottom swapped",
    "mirrored_kept": "mirrored, the sentence kept",
    "other_colour": "another colour",
    "other_name": "another name",
}
part = asked[: 30 if profile == "ci" else 150]
reacted = {"CRIS, here": [reactions(model, part, memory, CRIS_2022, progress=False)]}
for name, seeds in study(key="anatomy").items():
    reacted[name] = [run["anatomy"]["reactions"] for run in seeds]

# %%
figure, axes = viz.chart("Is the answer still the same?", "percent of answers", width=8, height=5)
for k, (name, found) in enumerate(reacted.items()):
    same = [[one.get(edit, {}).get("same_answer", np.nan) for edit in MEANING] for one in found]
    look = {"color": COLOUR[name]} if name in COLOUR else {"marker": "D", "color": COLOUR["CRIS"]}
    rows = np.arange(len(MEANING)) + 0.1 * (k - 2.5)
    axes.scatter(np.mean(same, axis=0), rows, s=36, label=name, zorder=3, **look)
axes.axhspan(-0.5, 2.5, color=viz.TRUTH, alpha=0.08, linewidth=0, zorder=0)
axes.axhspan(3.5, 8.5, color=viz.PREDICTION, alpha=0.05, linewidth=0, zorder=0)
axes.set_yticks(range(len(MEANING)), MEANING.values())
axes.set(xlim=(-2, 102), ylim=(8.5, -0.5))
viz.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
show(figure, alt="How often the answer stays the same: a row for each edit, a mark for each network.")

# %% [markdown]
# *Blue band: the meaning has not changed, 100 % would be right. Pink band: it has, and 0 % would be right.
# Shuffled words lie between: some sentences bear it. A network that stays when "left" becomes "right" found
# the thing for another reason than that word.*
#
# ## 7 · One honest table
#
# All that has been said, in one place: the same world, one protocol (`cris_2022`), as many samples as five
# minutes held in earlier runs on two cores (several machines, none idle); mean over seeds, the interval over
# pictures, the range of the seeds, both metrics.

# %%
row = "{:11}{:>6}  {:14}{:14}{:>5}{:>7}{:>7}{:>9}".format
if runs := study():
    print(row("", "oIoU", "pictures", "seeds", "mIoU", "P@0.5", "P@0.9", "samples"))
for name, seeds in runs.items():
    oiou, miou, half, fine = (f"{mean_of(seeds, m):.1f}" for m in ("oIoU", "mIoU", "P@0.5", "P@0.9"))
    pictures = "{:.1f} to {:.1f}".format(*mean_interval([run["by_picture"] for run in seeds]))
    ends = "{:.1f} to {:.1f}".format(*(end(run["oIoU"] for run in seeds) for end in (min, max)))
    ends = ends if len(seeds) > 1 else "one seed"
    print(row(name, oiou, pictures, ends, miou, half, fine, f"{mean_of(seeds, 'samples_seen'):,.0f}"))

# %% [markdown]
# Is the first really first? All others against it, in pairs. Thick: 95 % by pictures. Thin: by seeds.

# %%
if len(runs := study()) > 1:
    (first, best), *others = runs.items()
    figure, axes = viz.chart(f"Behind {first}", "points of oIoU", height=0.9 + 0.42 * len(others))
    for row, (name, seeds) in enumerate(others):
        for found, shift, line in zip(in_pairs(seeds, best), (-0.13, 0.13), (3.5, 1.3), strict=True):
            if np.isfinite(found.high):
                axes.plot([found.low, found.high], [row + shift] * 2, color=COLOUR[name], linewidth=line)
            axes.plot(found.points, row + shift, "o", color=COLOUR[name], markersize=5)
    axes.axvline(0, color=viz.INK, linewidth=0.8)
    axes.set_yticks(range(len(others)), [name for name, _ in others])
    axes.set_ylim(len(others) - 0.5, -0.5)
    show(figure, alt="; ".join(f"{name} {in_pairs(seeds, best)[0]}" for name, seeds in others))

# %% [markdown]
# ### The leaderboard
#
# Choose a study, a metric, and what is looked at: all sentences, a kind of them, a size of target, the other
# protocol, or another picture's words. Bars are means, dots seeds. A line is the interval over pictures; of
# parts the record keeps no pictures, so there is none. What was not recorded stays empty.


# %%
def value(run, metric, part):
    """One number of a recorded run, or None if it was not recorded."""
    swept = run.get("anatomy", {}).get("thresholds", {})
    parts = {"everything": run, "another picture's words": run.get("shuffled", {})}
    parts["protocol lavt_2022"] = swept.get("lavt_2022", {}).get("0.5", {})
    parts |= {f"kind: {name}": numbers for name, numbers in run["by_kind"].items()}
    parts |= {f"size: {name}": numbers for name, numbers in run["by_size"].items()}
    return parts.get(part, {}).get(metric)


def places(runs, metric, part):
    """{method: its recorded values}, the best first. runs: as `study` gives them."""
    found = {n: [value(run, metric, part) for run in seeds] for n, seeds in runs.items()}
    found = {n: [v for v in values if v is not None] for n, values in found.items()}
    return dict(sorted(((n, v) for n, v in found.items() if v), key=lambda item: -np.mean(item[1])))


# %%
def leaderboard(source, metric, part):
    """A figure and its alt text. source: record and data."""
    found = places(runs := study(*source), metric, part)
    figure, axes = viz.chart(f"{metric}, {part}", f"{metric}, percent", height=2.7)
    for row, (name, values) in enumerate(found.items()):
        axes.barh(row, np.mean(values), color=COLOUR[name], alpha=0.35, height=0.66)
        axes.scatter(values, [row] * len(values), color=COLOUR[name], s=18, zorder=3)
        axes.text(1, row, f"{np.mean(values):.1f}", va="center", fontsize=9, color=viz.INK)
        if part == "everything" and metric in ("oIoU", "mIoU"):
            interval = mean_interval([run["by_picture"] for run in runs[name]], metric)
            axes.plot(interval, [row + 0.22] * 2, color=viz.INK, linewidth=1.3)
    axes.set_yticks(range(len(found)), found)
    axes.set(xlim=(0, 100), ylim=(max(len(found), 1) - 0.4, -0.6))
    axes.grid(visible=False)
    return figure, f"{metric}, {part}: {', '.join(f'{n} {np.mean(v):.1f}' for n, v in found.items())}"


# %%
PARTS = ["everything", "protocol lavt_2022", "another picture's words"]
PARTS += [f"size: {name}" for name in ("small", "medium", "large")]
PARTS += [f"kind: {kind}" for kind in sorted({record.kind for record in asked.records})]
SOURCES = {"five minutes": ("five_minutes", "refmini")}
if measured("equal_samples"):  # made by: python -m rislib study run equal_samples
    SOURCES["5,000 samples"] = ("equal_samples", "refmini")
    SOURCES["5,000, no place words"] = ("equal_samples", "refmini+")
    SOURCES["5,000, long sentences"] = ("equal_samples", "refminig")
figure, alt = leaderboard(SOURCES["five minutes"], "oIoU", "everything")
board = show(figure, alt=alt)

# %%
study_box = ipywidgets.Dropdown(options=SOURCES, description="study")
metric_box = ipywidgets.Dropdown(options=("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9"), description="metric")
part_box = ipywidgets.Dropdown(options=PARTS, description="of")


def choose(change):
    figure, alt = leaderboard(study_box.value, metric_box.value, part_box.value)
    board.update(figure, alt=alt)


for box in (study_box, metric_box, part_box):
    box.observe(choose, "value")
display(ipywidgets.HBox([study_box, metric_box, part_box]))

# %% [markdown]
# Without a kernel, or in a hurry: all kinds and sizes at once.

# %%
runs, named = study(), [part for part in PARTS if part.startswith(("size", "kind"))]
if rows := {part: found for part in named if (found := places(runs, "oIoU", part))}:
    figure, axes = viz.chart("By kind of sentence, by size of target", "oIoU, percent", width=8, height=4.2)
    for method in next(iter(rows.values())):
        means = [np.mean(found.get(method, np.nan)) for found in rows.values()]
        axes.scatter(means, range(len(rows)), color=COLOUR[method], s=40, label=method)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    viz.legend(axes, loc="center left", bbox_to_anchor=(1, 0.5))
    show(figure, alt="oIoU of each method, by size of target and by kind of sentence.")
leaders = {part: next(iter(found)) for part, found in rows.items()}
for method in dict.fromkeys(leaders.values()):
    print(f"{method} leads in: {', '.join(part for part, leader in leaders.items() if leader == method)}")

# %% [markdown]
# ## 8 · What the papers print, what we measured
#
# RefCOCO val, from section 2, each with its true metric. Lines join the two metrics of one method.

# %%
figure, axes = viz.chart("RefCOCO val, as published", "percent", height=2.6)
for row, (paper, metrics) in enumerate(PUBLISHED.items()):
    values = {name: printed(paper, name) for name in metrics}
    axes.plot(values.values(), [row] * len(values), color=viz.HAIRLINE, linewidth=3, zorder=1)
    for name, number in values.items():
        fill = viz.INK if name == "oIoU" else "white"
        axes.scatter(number, row, s=44, color=fill, edgecolor=viz.INK, zorder=2)
        axes.text(number, row - 0.24, f"{name} {number:.2f}", fontsize=8, color=viz.INK, ha="center")
axes.set_yticks(range(len(PUBLISHED)), PUBLISHED)
axes.set(ylim=(len(PUBLISHED) - 0.6, -0.7), xlim=(69.4, 78.2))
show(figure, alt="; ".join(f"{p} {n} {printed(p, n)}" for p, numbers in PUBLISHED.items() for n in numbers))

# %%
runs = study()
for name in ("oIoU", "mIoU"):
    papers = {paper: printed(paper, name) for paper, numbers in PUBLISHED.items() if name in numbers}
    ours = {method: mean_of(seeds, name) for method, seeds in runs.items()}
    for title, column in (("RefCOCO val, published", papers), ("RefMini val, here", ours)):
        ranked = sorted(column, key=column.get, reverse=True)
        print(f"{name} {title:24}", ", ".join(f"{n} {column[n]:.1f}" for n in ranked) or "no record yet")

# %% [markdown]
# **Which of the published ones may be compared?** Those in one metric and one protocol:
#
# - LAVT and MagNet, in oIoU: both at 480 pixels, against masks of that size, at one half.
# - LAVT, MagNet and CM-MaskSD in mIoU, with a grain of salt: CM-MaskSD's protocol is not known (it probably
#   follows CRIS), and MagNet's mIoU was printed by others.
# - CRIS in mIoU with CM-MaskSD, if that follows CRIS; with LAVT (lesson 05) only roughly, as the sizes and
#   thresholds differ. MaIL with LAVT and MagNet in oIoU, its protocol being unknown.
#
# LAVT's page says how far equal trainings lie apart on RefCOCO val: half a point up or down. All printed rows
# are single runs, without an interval. By that measure LAVT and CM-MaskSD are not told apart in either
# metric.
#
# **And ours?** With none of them. Other pictures (drawn), other towers (small, with another pretraining),
# five minutes in place of 40 to 50 epochs. A method that learns slowly and far has no chance here. What can
# be compared is within our table; what can be carried over is at most a *question*.
#
# ## 9 · What the table still hides
#
# **Think!** Before you read the answers: name three things that an honest table like ours cannot show.
#
# *Our world.* Flat drawings of twenty sorts of things, in a hundred words. Whoever reads places well wins
# here: six sentences in ten name one (in RefCOCO as well, lesson 01). Do those of your users?
#
# *Our budget.* Five minutes ask who learns *quickly*. Here is what four times as many samples make of some of
# them (one seed; *main branch alone* is CM-MaskSD without distillation; *a token per mask* is MaIL as it
# did best here, see lesson 06):

# %%
soon, late = (study(record, named=LABELS) for record in ("five_minutes", "plateau"))
for name, runs in late.items():
    print(f"{name:28} five minutes {mean_of(soon[name]):.1f} oIoU, four times as long {mean_of(runs):.1f}")

# %% [markdown]
# The first two have changed places. None has stopped learning: the order after a day may be another again.
#
# *A head start.* CRIS begins with towers that were pretrained together, picture and words in one space.
# LAVT's and MagNet's have never met. So the table compares methods *with* their pretraining.
#
# **Think!** How would you take the head start away? And would that be fairer?
#
# *Give all the same towers, or none. But then no method is what its paper describes: to use CLIP is half of
# the idea of CRIS. There is no comparison without a choice; there are only choices that are said.*
#
# *One machine.* Five minutes on two processor cores are not five minutes on a GPU. MaIL reads hundreds of
# tokens anew for each sentence, which hurts it here more than there. So here are equal *samples*, 5,000 of
# each, in RefMini and in the two others of lesson 01: RefMini+ names no place, RefMiniG speaks in sentences.

# %%
for data in ("refmini", "refmini+", "refminig"):
    runs = study("equal_samples", data)
    print(f"{data:9}", ", ".join(f"{name} {mean_of(seeds):.1f}" for name, seeds in runs.items()))

# %% [markdown]
# *MaIL leads in RefMini and in RefMiniG; in RefMini+ CRIS is level with it, and CM-MaskSD behind both. (In
# RefMini the seeds do not decide it: one of MaIL's three trainings fell.) A table of one world says who
# reads* its *sentences.*
#
# **Think!** "MaIL needs places, so it loses its lead where there are none." How would you test that?
#
# *Look at the other kinds, in the leaderboard. In RefMini MaIL is far ahead at colours, too. What changes is
# CRIS: trained without places, it knows colours, sizes and names better than before. A good story is quickly
# told; this one did not survive the next table.*
#
# *Who tuned it.* All recipes were tuned by the same people, some for longer than others. The baseline of a
# paper is rarely tuned as its own method is.
#
# *The mean itself.* A method may be first over all, and last for those sentences that you need.
#
# ## Summary
#
# - IoU punishes both what is missed and what is too much. oIoU counts pixels, mIoU sentences, P@X good
#   answers: they can crown different winners, so a number without its metric and protocol says nothing.
# - Draw whole pictures for an interval; compare in pairs; train several seeds. Pictures and seeds are two
#   kinds of luck.
# - Everything is chosen on val, test is asked once. Ask also those who cannot read the words.
# - Give mistakes names. Two equal scores can be two different networks.
#
# **Next:** lesson 09, full scale: photographs, published weights, and a GPU.
