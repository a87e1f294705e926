# %% [markdown]
# # 07 · Masked distillation
#
# **Teacher and student are one network, with the same weights. The teacher sees all. From the student, half
# of what matters most is hidden. Both must give the same answer.** Only somebody who knows how a picture and
# its words hang together can do that.
#
# You let a sentence choose which patches of a picture are hidden, and a picture which words. You train the
# network on its own answers, and you find out what happens when a teacher listens to its student.
#
# The paper is *CM-MaskSD: Cross-Modality Masked Self-Distillation for Referring Image Segmentation* by Wang
# and others, IEEE Transactions on Multimedia, 2024 ([arXiv 2305.11481](https://arxiv.org/abs/2305.11481)).
#
# *Time: 75 minutes. You need: lesson 02 (CLIP, cosines) and lesson 04 (CRIS).*

# %% tags=["parameters"]
profile = "cpu"  # "ci" takes seconds, "cpu" minutes, "gpu" is the full-scale world

# %% tags=["imports"]
import copy
import json
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

# %% tags=["imports"]
from rislib import viz
from rislib.course import check, hint, show
from rislib.course.recorded import measured, recorded
from rislib.data import build_refmini, make_batch, open_split
from rislib.data.refmini import CATEGORIES, COLOURS
from rislib.data.refmini.build import draw_picture
from rislib.evaluation import CRIS_2022, Scores, predict_masks
from rislib.methods.cm_masksd import cm_masksd_b16, cm_masksd_mini
from rislib.methods.layers import no_running_statistics
from rislib.methods.masking import ranks
from rislib.nouns import Sample
from rislib.training import MINI, fit

# %% [markdown]
# ## 1 · Hide something, and ask
#
# A learner who always sees everything takes the easy way. "The blue bird": there is one blue patch, so that
# must be it. Take that patch away, and the learner has to use all the rest.
#
# This is an old idea. What changes is what is hidden, who chooses it, and what is asked:
#
# | | hidden | chosen | asked for | who knows the answer |
# |---|---|---|---|---|
# | [BERT](https://arxiv.org/abs/1810.04805), 2018 | 15 % of the words | by lot | the words | the sentence |
# | [MAE](https://arxiv.org/abs/2111.06377), 2022 | 75 % of patches | by lot | their pixels | the picture |
# | [iBOT](https://arxiv.org/abs/2111.07832), 2022 | some patches | by lot | what they mean | a teacher |
# | **CM-MaskSD** | patches; words | **by the other side** | **the mask** | the network itself |
#
# iBOT's teacher is a slow copy of the student that sees the whole picture. CM-MaskSD's is the student itself.
#
# In *distillation* a student learns the soft answers of a teacher: not yes or no, but "80 % yes". In
# **self**-distillation both are the same network. So there is no wiser teacher here. The teacher only knows
# more because it *sees* more.
#
# Our picture shows two birds, so there are two sentences about it:

# %%
picture = draw_picture("lesson 07/0", "val", "refmini", 128)
image, masks = picture.painting.image, picture.painting.masks
birds = []
for i, thing in enumerate(picture.scene.things):
    if thing.name == "bird":
        birds.append(Sample(image, f"{thing.colour} bird", masks[i], 0, i, i, 0, "val", "bird"))
birds.sort(key=lambda sample: sample.expression)
print(*(sample.expression for sample in birds), sep="; ")

# %% [markdown]
# The network's picture tower is a ViT: it cuts the picture into square *patches*, and turns each into a
# vector. `cm_masksd_mini` is CM-MaskSD with small towers. CLIP's towers come pretrained, everything behind
# them is still random.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
model = cm_masksd_mini().eval()
batch = make_batch(birds, model.preprocessing, model.tokenize, share_pictures=True)
with torch.inference_mode():
    seen = model.features(batch)  # the same picture twice, once for each sentence
    reading = model.read(seen, batch.tokens, batch.token_mask)
rows, columns = seen.dense.shape[2:]
print(f"pictures of {model.preprocessing.size} pixels become {rows} x {columns} patches")
for name, x in {"patches P": seen.patches, "map V": seen.dense, "sentence w": reading.sentence}.items():
    print(f"{name:11}{tuple(x.shape)}")

# %% [markdown]
# Now we hide patches: three quarters by lot, as MAE does; and those that CM-MaskSD hides for each sentence.


# %%
def hide(image, chosen):
    """The picture with the chosen patches (N,) bool painted over."""
    side = math.isqrt(len(chosen))
    cells = Image.fromarray(chosen.reshape(side, side).numpy())
    paint = Image.new("RGB", image.size, viz.INK)
    return Image.composite(paint, image, cells.resize(image.size, Image.Resampling.NEAREST))


# %%
torch.manual_seed(1)
by_lot = torch.rand(rows * columns) < 0.75
with torch.inference_mode():
    chosen = model.choose_patches(seen, reading)  # (2, N) bool
panels = [image, hide(image, by_lot), *(hide(image, one) for one in chosen)]
captions = ["the picture", "MAE: 75 %, by lot", *(f"chosen by “{s.expression}”" for s in birds)]
show(
    viz.gallery(panels, captions, width=9),
    alt="The picture; most of it hidden by lot; two times an eighth of it hidden, as two sentences choose.",
)

# %% [markdown]
# *MAE hides far more. It must: neighbouring patches are alike, and a small hole could be filled by copying
# its border. Here the holes are few, but in chosen places. Are they well chosen? This is the plan; section 3
# looks at what comes of it.*
#
# ## 2 · What was published, and what was not
#
# Of this paper we could look up a figure of the whole, the abstract, results, and a summary by others.
# **There is no code**: its repository holds a licence and an announcement. So what follows is *our reading*.
# Three branches, all with the same weights:
#
# ```text
# main        P ──▶ CLIP ──▶ V, v                  (all there is when the network is used)
#             T ──▶ CLIP ──▶ W, w ──▶ neck(V, w) ──▶ decoder(·, W) ──▶ head ──▶ M   ◀── true mask
#
# LMVSD       the sentence hides patches
#             P' ─▶ CLIP ──▶ V' ────▶ neck(V', w) ─▶ decoder(·, W) ──▶ head ──▶ M_p ◀── M
#
# VMLSD       the picture hides words
#             T' ─▶ CLIP ──▶ W' ────▶ neck(W', v) ─▶ decoder(V, ·) ──▶ head ──▶ M_w ◀── M
# ```
#
# Capital letters are many vectors, one for each patch (V) or word (W). Small ones are one vector for all (v,
# w). All can be compared in CLIP's common space. The long names: *language-guided masked visual
# self-distillation* and *visual-guided masked language self-distillation*.
#
# | | for example |
# |---|---|
# | **stated** | the branches, and what goes where; top K, then α % of them, in place; M teaches M_p and M_w |
# | **inferred** | the ViT's size; K, α, and the lot; the stand-in; the neck; how M teaches, and the stop |
# | **ours** | how K and α are rounded; for trainings of minutes: a Dice loss, a neck that is told cosines |
#
# The whole list opens `rislib/methods/cm_masksd.py`. Read it now; it is short.
#
# **Think!** Much is inferred. How can one write such a thing down honestly?
#
# *Each doubtful choice is an argument, such as `guided=False` or `stop_gradient=False`. Who has a better
# reading changes one word, not the code. And numbers come from such arguments, one changed at a time:
# section 7.*
#
# ## 3 · Which patches does the sentence choose?
#
# How much is patch $i$ about the sentence? Both are vectors in CLIP's common space. So take their cosine:
#
# $$c_i = \cos(V_i, w) = \frac{V_i \cdot w}{\lVert V_i \rVert\, \lVert w \rVert}$$
#
# No parameter is needed for that. Lesson 02 used the same number to point at things.


# %%
def read(network, batch):
    """What the network knows of pictures and sentences before anything is hidden."""
    picture = network.features(batch)
    return picture, network.read(picture, batch.tokens, batch.token_mask)


def likeness(picture, reading):
    """The cosine of each patch and the sentence: (B, N)."""
    return F.cosine_similarity(picture.dense.flatten(2), reading.sentence[:, :, None], dim=1)


# %% [markdown]
# Then two steps. **Top K:** the K patches of the highest cosines, here a quarter of all. **Then α:** of these
# K, half are drawn by lot and hidden. The other half stays.
#
# **Think!** Why not simply hide all K?
#
# *Then there would be nothing left of the thing: the student could only guess, and guesses teach little. And
# with the lot every step hides something else.*
#
# ### Exercise 1: top K, then α (medium, 15 minutes)
#
# Write it for patches *and* words. A sentence's start, end and padding can never be hidden, so some tokens
# are not `eligible`. K is a share of the eligible ones, rounded up. α is a share of K, rounded down, but at
# least one. If nothing is eligible, nothing is chosen.
#
# The lot is given, one number for each token, so that the answer is determined: of the K, those with the
# **smallest** lots are hidden.


# %% exercise="choose_tokens"
def choose_tokens(score, eligible, lot, top, share):
    """Some tokens of the highest scores, to be hidden.

    score, eligible (bool) and lot (B, N); top is K, share is alpha, in (0, 1] -> (B, N) bool
    """
    # BEGIN SOLUTION
    chosen = torch.zeros_like(eligible)
    for b in range(len(score)):
        k = math.ceil(top * int(eligible[b].sum()))
        best = score[b].masked_fill(~eligible[b], -torch.inf).topk(k).indices  # (k,)
        count = min(k, max(1, math.floor(share * k)))
        drawn = lot[b, best].topk(count, largest=False).indices  # (count,), among the best
        chosen[b, best[drawn]] = True
    return chosen
    # END SOLUTION


# %% tests="choose_tokens"
def cases():
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    yield 2 * random(1, 12) - 1, torch.ones(1, 12) > 0, random(1, 12), 0.5, 0.5
    words = torch.tensor(
        [[0, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0], [0] * 8]
    )
    yield -random(4, 8), words > 0, random(4, 8), 0.5, 0.5  # all cosines are negative
    yield 2 * random(2, 10) - 1, torch.ones(2, 10) > 0, random(2, 10), 0.25, 1.0


hints = (
    "One row at a time: first the indices of the K best, then some of *these* indices.",
    "What is not eligible gets the score -inf: `score[b].masked_fill(~eligible[b], -torch.inf)`. `x.topk(k)` "
    "has `.indices`; with `largest=False` it finds the smallest.",
    "`best = ....topk(k).indices`, `drawn = lot[b, best].topk(count, largest=False).indices`, "
    "`chosen[b, best[drawn]] = True`, with `count = min(k, max(1, math.floor(share * k)))`.",
)


def wrong_hard(score, eligible, lot, top, share):
    """you hid the alpha best of the K best. Then K and alpha are one number, and the same tokens are hidden
    every time. Among the K the lot decides."""
    return choose_tokens(score, eligible, -score, top, share)


def wrong_lot_first(score, eligible, lot, top, share):
    """you drew alpha first, and took the best K of those. So a token that is about nothing can be hidden.
    First the K best, then the lot among them."""
    return choose_tokens(-lot, eligible, -score, share, top)


def wrong_all_k(score, eligible, lot, top, share):
    """all K are hidden. Of these only the share alpha is: the rest must stay."""
    return choose_tokens(score, eligible, lot, top, 1.0)


def wrong_zero(score, eligible, lot, top, share):
    """you gave 0 to what is not eligible. But cosines may be negative, and then 0 is the highest of all. Use
    -torch.inf."""
    score = score * eligible
    k = (top * eligible.sum(dim=1)).ceil().int()
    chosen = torch.zeros_like(eligible)
    for b in range(len(score)):
        best = score[b].topk(k[b]).indices
        count = min(int(k[b]), max(1, math.floor(share * int(k[b]))))
        chosen[b, best[lot[b, best].topk(count, largest=False).indices]] = True
    return chosen


def wrong_length(score, eligible, lot, top, share):
    """your K is a share of all tokens, padding and all. Short sentences would lose more than long ones: count
    the eligible ones of each row."""
    k = math.ceil(top * score.shape[1])
    candidates = torch.zeros_like(eligible)
    best = score.masked_fill(~eligible, -torch.inf).topk(k, dim=1).indices
    candidates = candidates.scatter(1, best, True) & eligible
    return choose_tokens(score, candidates, lot, 1.0, share)


def wrong_lowest(score, eligible, lot, top, share):
    """these are the tokens of the *lowest* scores, which have least to do with the sentence."""
    return choose_tokens(-score, eligible, lot, top, share)


def wrong_none(score, eligible, lot, top, share):
    """where K is small, nothing is hidden: the share is rounded down to 0. At least one."""
    k = (top * eligible.sum(dim=1)).ceil()
    return choose_tokens(score, eligible, lot, top, share) & ((share * k).floor() > 0)[:, None]


def wrong_positions(score, eligible, lot, top, share):
    """the lot's winners are places *among the best*, and you took them for places in the row. Look them up:
    `best[drawn]`."""
    chosen = torch.zeros_like(eligible)
    for b in range(len(score)):
        k = math.ceil(top * int(eligible[b].sum()))
        best = score[b].masked_fill(~eligible[b], -torch.inf).topk(k).indices
        count = min(k, max(1, math.floor(share * k)))
        chosen[b, lot[b, best].topk(count, largest=False).indices] = True
    return chosen


# %% points=4
check(choose_tokens)

# %% [markdown]
# The library does the same for all rows at once, with ranks instead of a loop.
#
# Now see it work. We build a small world, and take sentences from its val split beside our bird.

# %%
folder = Path(tempfile.mkdtemp())
small = build_refmini(folder / "small", train=240, val=120, progress=False)
val = open_split(small, "val")
asked = [sample for sample in val if len(sample.expression.split()) > 1]  # one word alone is never hidden
many = make_batch(asked, model.preprocessing, model.tokenize, share_pictures=True)
print(f"{len(asked)} sentences about {len(many.image)} pictures")


# %%
def quarter_of(picture, reading):
    """Which quarter each patch belongs to by its cosine, 0 to 3: (B, N). Quarter 0 is the top K."""
    score = likeness(picture, reading)
    return ranks(-score, torch.ones_like(score) > 0) * 4 // score.shape[1]


def share_within(chosen, batch):
    """The part of each thing's area that lies in the chosen patches: (B,), percent."""
    side = math.isqrt(chosen.shape[1])
    covered = F.adaptive_avg_pool2d(batch.mask, side).flatten(1)  # (B, N)
    return 100 * (covered * chosen).sum(dim=1) / covered.sum(dim=1)


# %%
@torch.inference_mode()
def choices(network, samples):
    """A row for each sample: the picture, the cosines, the top K, and what is hidden of these."""
    few, panels, captions = make_batch(samples, network.preprocessing, network.tokenize), [], []
    picture, reading = read(network, few)
    score, top = likeness(picture, reading), quarter_of(picture, reading) == 0
    within, hidden = share_within(top, few), network.choose_patches(picture, reading)
    for sample, c, best, percent, gone in zip(samples, score, top, within, hidden, strict=True):
        outlined = viz.overlay(sample.image, np.zeros_like(sample.mask), truth=sample.mask, scale=4)
        panels += [outlined, c.unflatten(0, (rows, -1))]
        panels += [hide(sample.image, ~best), hide(sample.image, gone)]
        captions += [f"“{sample.expression}”", f"cosines, {c.min():.2f} to {c.max():.2f}"]
        captions += [f"top K holds {percent:.0f} % of the thing", "hidden: half of these"]
    return viz.gallery(panels, captions, columns=4, width=9, limits=(None, None))


# %%
torch.manual_seed(2)
shown_samples = [birds[0], *(asked[i] for i in np.random.default_rng(7).choice(len(asked), 3, replace=False))]
show(
    choices(model, shown_samples),
    alt="Four rows: a picture, a map of its cosines, only its best quarter, and half of that hidden. "
    + "; ".join(sample.expression for sample in shown_samples),
)

# %% [markdown]
# *Bright cells are most like the sentence; each map has its own scale. In the third panel only the top K are
# left, in the fourth half of these are gone. Are they where the thing is?*
#
# Four samples prove nothing. So we sort all patches of a picture by their cosines into four quarters. In
# which of them does the thing lie, over all sentences? By lot each quarter would hold a quarter of it.

# %%
NAMES = ("most alike: the top K", "second quarter", "third quarter", "least alike")


@torch.inference_mode()
def where_things_lie(network):
    """Mean part of a thing's area in each quarter of the patches, percent."""
    quarter = quarter_of(*read(network, many))
    shares = [share_within(quarter == number, many).mean().item() for number in range(4)]
    return dict(zip(NAMES, shares, strict=True))


# %%
before = where_things_lie(model)
counted = f"percent of {len(asked)} things' area, which is {100 * many.mask.mean():.0f} % of their pictures"
figure = viz.bars(before, "In which quarter does the thing lie? Before training", counted, colours=viz.FAINT)
show(figure, alt="; ".join(f"{name}: {value:.0f} %" for name, value in before.items()))
held = before[NAMES[0]]
print(f"The top K hold {held:.0f} % of a thing, {'more' if held > 25 else 'less'} than by lot.")

# %% [markdown]
# **A known trouble.** Li and others (*CLIP Surgery*, 2023,
# [arXiv 2304.05653](https://arxiv.org/abs/2304.05653)) looked at the cosines of OpenAI's CLIP. They often
# favour the *background*! A sentence that chooses by them hides walls, streets and sky.
#
# How can that be? CLIP was trained with v, the vector of the whole picture. Nobody ever asked *where*. And in
# a transformer a patch may hold what it has read from all others. Patches of plain background have room for
# it: they serve as notepads for the whole picture (*Vision Transformers Need Registers*, 2024,
# [arXiv 2309.16588](https://arxiv.org/abs/2309.16588)).
#
# Our own first ViT had it, too. So it went to school again: its patches learnt from the maps of lesson 02's
# small ResNet, whose cells cannot see so far. How often does the patch that is most like a sentence lie on
# its thing? (One patch, not a quarter of them; all of val.)

# %%
for title, name in {"from captions alone": "pointing_vit_captions", "from maps, too": "pointing_vit"}.items():
    record = recorded(name)
    print(f"{title:20}{record['all']:5.1f} % on the thing, by lot {record['chance']:.1f} %")

# %% [markdown]
# Nobody has sent OpenAI's ViT to that school. **Look at what is chosen, before you believe in a choice.**
#
# The sentence may choose better as training goes on, since gradients reach V and w. We look again in section
# 5.
#
# **Think!** What is α = 100 %? And K = 100 %?
#
# *With α = 100 % the lot has no say: the same patches every time. With K = 100 % the sentence has none: plain
# random masking. Both rivals of the idea are settings of it.*
#
# ## 4 · Hidden, but still there
#
# How does one hide a patch from a transformer? MAE *drops* it: three quarters of the tokens are gone, and
# three quarters of the work. Here that is no option. Neck, decoder and head want a **map**, with a vector for
# each place.
#
# So a hidden patch is *replaced*: all hidden patches get one and the same learned vector. This happens
# **before positions are added**. The student then knows: here, in row 5 and column 3, is something that I may
# not see.
#
# ### Exercise 2: hide in place (easy, 10 minutes)
#
# Replace the chosen patches, then add the positions to all.


# %% exercise="hide_in_place"
def hide_in_place(patches, chosen, stand_in, positions):
    """What the transformer gets to see.

    patches (B, N, C), chosen (B, N) bool, stand_in (C,) for all hidden ones, positions (N, C) -> (B, N, C)
    """
    # BEGIN SOLUTION
    hidden = torch.where(chosen[:, :, None], stand_in, patches)
    return hidden + positions
    # END SOLUTION


# %% tests="hide_in_place"
def cases():
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    for chosen in ([[0, 1, 0, 1], [1, 0, 0, 1]], [[0, 0, 1, 0], [0, 0, 0, 0]]):
        yield random(2, 4, 3), torch.tensor(chosen) > 0, random(3), random(4, 3)


hints = (
    "`torch.where(condition, a, b)` takes from a where the condition is True, else from b.",
    "The condition lacks an axis for the C numbers of a patch: `chosen[:, :, None]`.",
    "`torch.where(chosen[:, :, None], stand_in, patches) + positions`",
)


def wrong_late(patches, chosen, stand_in, positions):
    """you hid the patches after their positions were added. Now all holes are one and the same token: the
    student knows how many there are, and not where."""
    return torch.where(chosen[:, :, None], stand_in, patches + positions)


def wrong_zero(patches, chosen, stand_in, positions):
    """there are zeros in the holes. That is the library's `replacement="zero"`; asked for is the learned
    vector."""
    return hide_in_place(patches, chosen, torch.zeros_like(stand_in), positions)


def wrong_added(patches, chosen, stand_in, positions):
    """you added the stand-in to what is there. Then nothing is hidden: the network can subtract it again."""
    return patches + chosen[:, :, None] * stand_in + positions


def wrong_no_positions(patches, chosen, stand_in, positions):
    """the positions are missing. Without them a transformer sees a bag of patches."""
    return torch.where(chosen[:, :, None], stand_in, patches)


def wrong_dropped(patches, chosen, stand_in, positions):
    """you dropped the hidden patches, as MAE does. What is left is no map any more, and pictures with more
    holes have fewer tokens than others of the same batch."""
    kept = [(x + positions)[~c] for x, c in zip(patches, chosen, strict=True)]
    return torch.stack([x[: min(map(len, kept))] for x in kept])


# %% points=2
check(hide_in_place)

# %% [markdown]
# And a hidden **word**? The same, with the embedding of the word. But CLIP's text tower reads from left to
# right: each word sees the words before it, and never those behind. So a hidden word changes what *later*
# words mean, and nothing else. We hide the words of a sentence one after the other:


# %%
@torch.inference_mode()
def moved(network, sentence):
    """How far each word's state moves (column), as a share of it, when one word (row) is hidden: (L, L)."""
    tokens, _ = network.tokenize([sentence])
    embedded = network.clip.model.token_embedding(tokens)  # (1, L, C)
    whole = network.clip.encode_words(embedded, tokens).words
    one_by_one = torch.eye(tokens.shape[1], dtype=torch.bool)
    holes = network.vmlsd(embedded.expand(len(one_by_one), -1, -1), one_by_one)
    words = network.clip.encode_words(holes, tokens.expand(len(one_by_one), -1)).words
    return (words - whole).norm(dim=2) / whole.norm(dim=2)


# %%
def heat(values, down, across, y, x, title=""):
    """A table of numbers, dark where they are high; below 0.05 a dot, and where they are 0 nothing."""
    figure, axes = viz.chart(title, x, y, width=6.4, height=0.7 + 0.38 * len(down))
    low, high = np.nanmin(values), np.nanmax(values)
    axes.imshow(values, cmap="RdPu", vmin=low, vmax=2 * high - low, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.1f}" if value >= 0.05 else "·" if value > 1e-4 else ""
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=viz.INK)
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    axes.grid(visible=False)
    return figure


# %%
said = "the bird left of the yellow bird"
words, table = said.split(), moved(model, said)[1:-1].numpy()  # start and end are never hidden
figure = heat(table, words, ["start", *words, "end"], "hidden word", "how far this token's state moves")
show(figure, alt="A table: hiding a word moves its own state and later ones, and none before it.")

# %% [markdown]
# *Left of the diagonal nothing moves. A dot is a very small move, below 0.05. At the right: the end token
# hears of every hidden word, but of some of them hardly anything. Its state becomes the sentence's vector w.*
#
# **Think!** The last word of a sentence is hidden. Which states know of it?
#
# *Its own and the end token's, no other. The word before it was read in full, without knowing what follows.*
#
# Which words does the picture choose? ★ marks the top K, that half of a sentence's words whose states are
# most like v. Of these half are hidden, at least one. (Never start, end and padding; and never a sentence's
# only word: nothing would be left to agree about.)


# %%
def pieces_of(sentence):
    """The words, as the network cuts the sentence."""
    return [model.tokenizer.decode([token]) for token in model.tokenize([sentence])[0][0].tolist()][1:-1]


# %%
@torch.inference_mode()
def candidates(network):
    """Of each sentence the words, and which of them are in its top K: a list of lists of (word, bool)."""
    picture, reading = read(network, many)
    states = reading.words @ network.clip.model.text_projection  # into the common space
    cosines = F.cosine_similarity(states, picture.vector[:, None], dim=2)  # (B, L)
    sentences = []
    for sample, c in zip(asked, cosines, strict=True):
        words = pieces_of(sample.expression)
        best = c[1 : 1 + len(words)].topk(math.ceil(0.5 * len(words))).indices.tolist()
        sentences.append([(word, place in best) for place, word in enumerate(words)])
    return sentences


# %%
KINDS = {"names": CATEGORIES, "colours": COLOURS, "places": ("left", "right", "top", "bottom", "middle")}


def print_kinds(network):
    """How common each kind of word is, and how common in the top K."""
    pairs = [pair for sentence in candidates(network) for pair in sentence]
    for kind, names in KINDS.items():
        of_all = 100 * np.mean([word in names for word, _ in pairs])
        of_top = 100 * np.mean([word in names for word, top in pairs if top])
        print(f"{kind:8}{of_all:3.0f} % of all words, {of_top:3.0f} % of the top K")


# %%
for sentence in candidates(model)[5::45]:
    print("  ".join(f"{word}{'★' if top else ' '}" for word, top in sentence))
print_kinds(model)

# %% [markdown]
# **Think!** What would you hide from somebody who looks for "dog at the bottom"?
#
# *"Dog" or "bottom". Are names more common in the top K than among all words? If they are not, then the same
# trouble as with the patches is here: the picture chooses "the" and "at", and its student misses nothing.*
#
# ## 5 · Two losses
#
# $$L = \underbrace{\mathrm{BCE}(M, \text{mask})}_{\text{main}} + \underbrace{D(M_p,
# \operatorname{sg} M)}_{\text{LMVSD}} + \underbrace{D(M_w, \operatorname{sg} M)}_{\text{VMLSD}} \qquad\qquad
# D(a, b) = \mathrm{BCE}(a, \sigma(b))$$
#
# In words: the true mask teaches the teacher, pixel by pixel, as in CRIS. The teacher's *probabilities* teach
# both students. No true mask ever reaches them. And sg, "stop gradient", says that the teacher is taken as it
# is: the loss may move the student, not the teacher.
#
# BCE with a soft target asks: say 80 % where the teacher says 80 %. Its smallest value is not 0 then, but the
# teacher's own doubt (its *entropy*). So these curves cannot fall to zero while the teacher is unsure.
#
# ### Exercise 3: learn from a soft answer (medium, 10 minutes)
#
# Write the loss of each sample, the mean over its pixels. The last line, which is given, asks autograd who is
# moved by it. The teacher must not be.


# %% exercise="learn_from"
def learn_from(student, teacher):
    """Logits (B, 1, h, w) of both -> the loss of each sample (B,), the gradients at student and teacher."""
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    # BEGIN SOLUTION
    target = teacher.detach().sigmoid()
    each = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    loss = each.mean(dim=(1, 2, 3))  # (B,)
    # END SOLUTION
    return loss.detach(), *torch.autograd.grad(loss.sum(), (student, teacher), materialize_grads=True)


# %% tests="learn_from"
def cases():
    generator = torch.Generator().manual_seed(0)
    for size in (3, 5):
        student, teacher = 2 * torch.randn(2, 2, 1, size, 4, generator=generator, dtype=torch.float64)
        yield student, teacher


hints = (
    "The target of BCE is a probability: `teacher.sigmoid()`. The student's logits go in as they are.",
    "`teacher.detach()` has the same numbers, and no gradient goes through it.",
    '`F.binary_cross_entropy_with_logits(student, teacher.detach().sigmoid(), reduction="none")`, and then '
    "`loss = each.mean(dim=(1, 2, 3))`.",
)


def wrong_flows(student, teacher):
    """the losses are right, but the gradient flows into the teacher, too. Take its target from
    `teacher.detach()`. What else would happen you see in section 6."""
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    each = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    loss = each.mean(dim=(1, 2, 3))
    return loss.detach(), *torch.autograd.grad(loss.sum(), (student, teacher), materialize_grads=True)


def wrong_detached(student, teacher):
    """you detached the student. Now only the teacher learns: it comes down to what the student sees."""
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    each = F.binary_cross_entropy_with_logits(student.detach(), teacher.sigmoid(), reduction="none")
    loss = each.mean(dim=(1, 2, 3))
    return loss.detach(), *torch.autograd.grad(loss.sum(), (student, teacher), materialize_grads=True)


def wrong_swapped(student, teacher):
    """the roles are exchanged: your teacher learns the student's answer."""
    loss, first, second = learn_from(teacher, student)
    return loss, second, first


def wrong_hard(student, teacher):
    """you made a yes or no of the teacher's answer. "60 % yes" and "99 % yes" then teach the same; its doubt
    is what a soft target is for."""
    return learn_from(student, 1000 * teacher.sign())


def wrong_logits(student, teacher):
    """the target is a logit. BCE wants a probability there: `.sigmoid()`. (It does not complain, and its
    value may even be negative.)"""
    student, teacher = student.requires_grad_(), teacher.requires_grad_()
    each = F.binary_cross_entropy_with_logits(student, teacher.detach(), reduction="none")
    loss = each.mean(dim=(1, 2, 3))
    return loss.detach(), *torch.autograd.grad(loss.sum(), (student, teacher), materialize_grads=True)


def wrong_one_number(student, teacher):
    """this is one number for the whole batch. Keep the samples apart: some of them are not taught (sentences
    of one word), and must not count."""
    loss, first, second = learn_from(student, teacher)
    return loss.mean(), first / len(student), second


def wrong_sum(student, teacher):
    """you summed over the pixels. The mean does not depend on the size of the map."""
    pixels = student[0].numel()
    loss, first, second = learn_from(student, teacher)
    return loss * pixels, first * pixels, second


# %% points=3
check(learn_from)

# %% [markdown]
# ### Training
#
# Both branches on, K and α as above. Profile `cpu` trains for a minute and a half; profile `ci` sees 96
# samples, which proves that everything runs and nothing more.

# %%
if profile == "ci":
    world, budget = small, {"samples_budget": 96}
else:
    world, budget = "refmini", {"minutes": 1.5 if profile == "cpu" else 5}
untrained = copy.deepcopy(model)  # to compare with, later
run = fit(model, open_split(world, "train"), MINI, out=folder / "run", channels_last=True, **budget)
model.cpu()  # if it was trained on a GPU: what follows is little work
print(f"{run.samples:,} samples, {run.samples / run.seconds:.0f} a second")

# %%
log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
kinds = {"main": ("segmentation",), "students": ("lmvsd", "vmlsd")}
curves = {}
for kind, names in kinds.items():
    curves[kind] = [{**step, "loss": np.mean([step["losses"][name] for name in names])} for step in log]
show(
    viz.learning_curve(curves, against="samples", width=7),
    alt=f"The loss of the main branch and the mean of its students' over {run.samples:,} samples.",
)

# %% [markdown]
# ### Teacher and students, side by side
#
# The three branches once more, step by step, with the library's parts. (Batch norm in the head works as in
# training: each branch is normalised by itself, and only the main branch is remembered for later.)


# %%
def three_inputs(network, batch):
    """What the decoder gets in the three branches, and the patches and words that were hidden."""
    picture, reading = read(network, batch)
    patches = network.choose_patches(picture, reading)  # (B, N) bool
    words = network.choose_words(picture, reading, batch)  # (B, L) bool
    holes = network.encode_patches(network.lmvsd(picture.patches, patches), batch.image.shape[2:])
    teacher = network.neck(picture, reading.sentence), reading.words
    first = network.neck(holes, reading.sentence), reading.words
    second = network.without_words(words, picture, batch.tokens)
    return (teacher, first, second), patches, words


# %%
@torch.inference_mode()
def three_answers(network, samples):
    """Masks of the teacher and both students, three lists of (H, W) bool; and what was hidden."""
    batch = make_batch(samples, network.preprocessing, network.tokenize, share_pictures=True)
    sizes = [sample.mask.shape for sample in samples]
    network.train()
    with no_running_statistics(network):
        inputs, patches, words = three_inputs(network, batch)
        logits = [network.head(network.decoder(x, said, batch.token_mask)) for x, said in inputs]
    network.eval()
    return [predict_masks(x, network.preprocessing, sizes, CRIS_2022) for x in logits], patches, words


# %%
def with_holes_in(sample, hidden):
    """The sentence, [?] for hidden words; hidden (L,) bool, of tokens."""
    pairs = zip(pieces_of(sample.expression), hidden[1:].tolist(), strict=False)
    return " ".join("[?]" if gone else piece for piece, gone in pairs)


# %%
some = asked[:: 4 if profile == "ci" else 2]
torch.manual_seed(4)
answers, patches, words = three_answers(model, some)

# %%
several = np.random.default_rng(3).choice(len(some), 3, replace=False)
panels, captions = [], []
for i in several:
    sample, masks = some[i], [masks[i] for masks in answers]
    marked = [viz.overlay(sample.image, mask, truth=sample.mask, scale=4) for mask in masks]
    panels += [hide(sample.image, patches[i]), *marked]
    said = ["teacher: sees all", "without these patches", f"“{with_holes_in(sample, words[i])}”"]
    empty = ["" if mask.any() else "\n(nothing marked)" for mask in masks]
    captions += [f"“{sample.expression}”", *(a + b for a, b in zip(said, empty, strict=True))]

# %%
show(
    viz.gallery(panels, captions, columns=4, width=9),
    alt="A row each: the picture with holes, teacher, both students; the truth is outlined. "
    + "; ".join(some[i].expression for i in several),
)

# %% [markdown]
# *From left to right: what the first student sees, the teacher, the first student (patches hidden), the
# second student (words hidden, written below). The blue line is the truth.*
#
# How much does it cost a student not to see? The mean IoU of each with the true mask. To compare, as many
# patches and words are hidden *by lot*.


# %%
def ious(answers):
    """The IoU of each mask for `some`, percent."""
    scores = Scores()
    for mask, sample in zip(answers, some, strict=True):
        scores.add(mask, sample.mask, image_id=sample.image_id)
    return 100 * scores.ious()


# %%
by_choice = [ious(masks) for masks in answers]  # teacher, first and second student
model.lmvsd.guided = model.vmlsd.guided = False
torch.manual_seed(4)
by_lot = [ious(masks) for masks in three_answers(model, some)[0]]
model.lmvsd.guided = model.vmlsd.guided = True
percent = {"nothing hidden (teacher)": by_choice[0].mean()}
for what, lot, choice in zip(("patches", "words"), by_lot[1:], by_choice[1:], strict=True):
    percent |= {f"{what} by lot": lot.mean(), f"{what} by choice": choice.mean()}
colours = [viz.INK, viz.FAINT, viz.PREDICTION, viz.FAINT, viz.PREDICTION]
figure = viz.bars(percent, f"Mean IoU of {len(some)} answers with the true masks", colours=colours)
show(figure, alt="; ".join(f"{name}: {value:.0f}" for name, value in percent.items()))

# %% [markdown]
# *If pink is clearly shorter than the grey above it, the other side has chosen well: what it hides is missed
# more than what the lot hides. The loss wants all bars to be as long as the first. Where both bars of a pair
# are near 0, that student does not answer yet (an empty panel above), and the pair says nothing.* Clearly? We
# compare answer by answer, with the standard error. (It takes answers as independent. Those about one picture
# are not, so it is rather too small: lesson 08.)

# %%
for what, lot, choice in zip(("patches", "words"), by_lot[1:], by_choice[1:], strict=True):
    lost, error = (lot - choice).mean(), (lot - choice).std(ddof=1) / len(some) ** 0.5
    how = "more" if lost > 0 else "less"
    print(f"{what}: the choice costs {abs(lost):.1f} (± {error:.1f}) points {how} than the lot", end="")
    print(": chance may explain that" if abs(lost) < 2 * error else "")

# %% [markdown]
# ### And what is chosen now?

# %%
after = where_things_lie(model)
both = {}
for name in NAMES:
    both |= {f"{name}, before": before[name], f"{name}, after": after[name]}
print_kinds(model)
colours = 4 * [viz.FAINT, viz.PREDICTION]
figure = viz.bars(both, "In which quarter?", "percent of the things' area", colours=colours, groups=2)
show(figure, alt="; ".join(f"{name}: {value:.0f} %" for name, value in both.items()))

# %%
torch.manual_seed(2)
show(
    choices(model, shown_samples),
    alt="As above, after training: pictures, maps of cosines, the best quarter, and half of it hidden. "
    + "; ".join(sample.expression for sample in shown_samples),
)

# %% [markdown]
# A minute and a half is short. For the record it was followed for longer:

# %%
followed = measured("masksd_chosen")
if followed:
    moments, percents = followed["samples"], followed["percent_of_mask_chosen"]
    figure, axes = viz.chart("Which part of the thing lies in the top K?", "samples trained on", "percent")
    axes.plot(moments, percents, "o-", color=viz.PREDICTION, linewidth=2)
    axes.axhline(followed["chance"], color=viz.FAINT, linestyle=":", linewidth=1.5)
    axes.text(moments[-1], followed["chance"] + 2, "by lot", fontsize=9, color=viz.QUIET, ha="right")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_ylim(0, 100)
    show(figure, alt=f"{percents[0]:.0f} percent at first, {percents[-1]:.0f} in the end.")
    print(f"First {percents[0]:.0f} %, at the lowest {min(percents):.0f} %, in the end {percents[-1]:.0f} %.")

# %% [markdown]
# **Think!** Whoever expected a curve that rises sees another one. Who taught the network to find things?
#
# *Its pretraining. In training the cosine between sentence and patch decides what is hidden, and in the mini
# world the neck hears it among many other things; but no loss asks that it be large on the thing. The first
# steps shake the ViT, and afterwards it comes back to where it was, and no further.*
#
# ## 6 · Why the gradient is stopped
#
# Let go of the stop for a moment. BCE then has two ways of becoming small: the student comes to the teacher,
# *or the teacher comes to the student*. For one pixel with the teacher's logit $b$ and the student's $a$:
#
# $$\frac{\partial D}{\partial a} = \sigma(a) - \sigma(b) \qquad\qquad \frac{\partial D}{\partial b} = -a\,
# \sigma'(b)$$
#
# The first is zero where both agree. Look at the second: it is zero only where $a = 0$, or where the teacher
# is completely sure ($\sigma' = 0$). As long as the student leans to yes ($a > 0$), the teacher is pushed to
# yes, for ever, *whatever the truth is*. Agreement is not enough: the loss pays for being **sure**.
#
# A toy: nine pixels, whose teachers say between 12 and 88 %. Their students begin anywhere.


# %%
def follow(stopped, truth=None, steps=300):
    """Nine free logits of teachers and students under D -> probabilities (steps, 2, 9)."""
    teacher = torch.linspace(-2, 2, 9, requires_grad=True)
    student = torch.randn(9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimiser, path = torch.optim.SGD([teacher, student], lr=0.5), []
    for _ in range(steps):
        path.append(torch.stack([teacher, student]).detach().sigmoid())
        target = (teacher.detach() if stopped else teacher).sigmoid()
        loss = F.binary_cross_entropy_with_logits(student, target, reduction="sum")
        if truth is not None:
            loss = loss + F.binary_cross_entropy_with_logits(teacher, truth, reduction="sum")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return torch.stack(path)


# %%
often = torch.full((9,), 0.3)
toys = {
    "stopped": follow(True),
    "flowing": follow(False),
    "stopped; the truth is 30 %": follow(True, often),
    "flowing; the truth is 30 %": follow(False, often),
}

# %%
figure = viz.Drawing((9.6, 2.7), layout="constrained")
for number, (title, path) in enumerate(toys.items(), 1):
    axes = figure.add_subplot(1, 4, number, ylim=(-0.02, 1.02), xticks=(0, 150, 300))
    axes.set_title(title, fontsize=9.5, color=viz.INK)
    students = axes.plot(path[:, 1], color=viz.TRUTH, linewidth=1.2, linestyle=":")
    teachers = axes.plot(path[:, 0], color=viz.PREDICTION, linewidth=1.4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(viz.HAIRLINE)
    axes.tick_params(labelsize=8, labelcolor=viz.QUIET, length=0)
    axes.set_xlabel("step", fontsize=8.5, color=viz.QUIET)
figure.axes[0].set_ylabel("probability", fontsize=8.5, color=viz.QUIET)
viz.legend(figure.axes[0], handles=[teachers[0], students[0]], labels=["teachers", "students"], fontsize=8)
show(figure, alt="Stopped, students come to their teachers. Flowing, all run to 0 or 1, or below the truth.")

# %% tags=["nbval-check-output"]
for title, path in toys.items():
    teachers, students = path[-1]
    print(f"{title:27} teachers say {teachers.min():.2f} to {teachers.max():.2f}, ", end="")
    print(f"students within {(teachers - students).abs().max():.2f} of them")

# %% [markdown]
# *Pink: teachers; blue, dotted: their students. Stopped: teachers stay, students come. Flowing: all agree,
# and all are sure of it; what they are sure of is an accident of their beginning. This is the **collapse**.*
#
# In training the true mask teaches the teacher as well: panels 3 and 4. Say that of all pixels that look like
# this, three of ten belong to the object. The honest answer is 30 %. Stopped, the teacher finds it. Flowing,
# it settles far below: **no collapse, but too sure of itself**. Where the truth is a clear 0 or 1 and the
# student is on the right side, both pull the same way, and little is lost.
#
# And in the network? We ask autograd which of the three masks are reached by the two distillation losses.


# %%
def reached(stop_gradient):
    """The size of the gradient of LMVSD + VMLSD at the logits of teacher, first and second student."""
    torch.manual_seed(0)
    network, logits = cm_masksd_mini(stop_gradient=stop_gradient).train(), []
    network.head.register_forward_hook(lambda module, given, out: logits.append(out))
    losses = network.losses(batch)
    loss = losses["lmvsd"] + losses["vmlsd"]
    return [gradient.norm() for gradient in torch.autograd.grad(loss, logits, materialize_grads=True)]


# %% tags=["nbval-check-output"]
for stop_gradient in (True, False):
    says = ["nothing" if size == 0 else "something" for size in reached(stop_gradient)]
    print(f"stop_gradient={stop_gradient!s:6} teacher hears {says[0]:10} students hear {says[1]}, {says[2]}")

# %% [markdown]
# (Teacher and students share their *weights*, so a student's lesson still changes how the teacher answers
# next time. What is stopped is the direct way: giving in.)
#
# Whether a real training collapses when the gradient flows stands in the next section, as *gradient flows*.
#
# ## 7 · What the paper claims, what we measured
#
# On the val splits, beside LAVT. (CM-MaskSD's numbers come from tables that others made of it, since we have
# not seen its own. One of them even mixed the two metrics; we have sorted them.)
#
# | | metric | RefCOCO | RefCOCO+ | G-Ref (UMD) |
# |---|---|---|---|---|
# | LAVT | mIoU | 74.46 | 65.81 | 63.34 |
# | CM-MaskSD | mIoU | 74.89 | 67.47 | 66.53 |
# | LAVT | oIoU | 72.73 | 62.14 | 61.24 |
# | CM-MaskSD | oIoU | 72.18 | 64.47 | 62.67\* |
#
# (\* From memory, unchecked.)
#
# **Think!** Is CM-MaskSD better than LAVT on RefCOCO?
#
# *By mIoU yes, by 0.4 points; by oIoU no, by 0.6. (Lesson 04: in oIoU large things count more.) Equal
# trainings of LAVT lie about half a point apart (lesson 05). So on RefCOCO neither difference says much.*
#
# The paper also compares guided with random masking, and other strategies, in favour of its own; so says the
# summary. We have not seen those numbers. Here are ours, from the mini world: `python -m rislib study
# run masksd_ablation`, several seeds.

# %%
CAPTIONS = {
    "plain": "plain: main branch only",
    "lmvsd": "patches hidden (LMVSD)",
    "vmlsd": "words hidden (VMLSD)",
    "both": "both",
    "both random": "both, hidden by lot",
    "both V2": "both, other wiring (V2)",
    "both flowing": "both, gradient flows",
    "plain 10 %": "plain, a tenth of the data",
    "both 10 %": "both, a tenth of the data",
    "plain N1": "plain, the neck as drawn (N1)",
    "plain N2": "plain, the neck of CRIS (N2)",
}
AGAINST = dict.fromkeys(("lmvsd", "vmlsd", "both", "plain N1", "plain N2"), "plain")
AGAINST["both 10 %"] = "plain 10 %"  # whoever is not here is held against "both"

# %%
ablation = {}  # variant -> {seed: its record}, in the order of the captions
runs = measured("masksd_ablation").get("runs", [])
for one in sorted(runs, key=lambda one: [*CAPTIONS].index(one["variant"])):
    ablation.setdefault(one["variant"], {})[one["seed"]] = one

# %%
if ablation:
    title = "CM-MaskSD and its variants, mini world"
    scores = {CAPTIONS[name]: [one["oIoU"] for one in runs.values()] for name, runs in ablation.items()}
    colours = [viz.METHODS["cm_masksd"]] * len(scores)
    figure = viz.variants(scores, title, colours=colours, limits=(37, 49))
    show(figure, alt="oIoU of each variant: mean, standard deviation over seeds, and every single run.")

# %% [markdown]
# *Squares: mean and standard deviation over the seeds. Grey dots: the single runs. An arrow: far to the left,
# its mean. V2: the sentence with holes simply goes the way of the main branch.*
#
# As before we compare in pairs, seed by seed, and believe a difference only if all seeds agree on its sign.
# (That is the least to ask: by luck alone three seeds agree one time in four. Lesson 08 asks for more.)


# %%
def pairs(variant, base):
    """The records of both, for each seed that both have."""
    seeds = ablation[variant].keys() & ablation.get(base, {})
    return [(ablation[variant][seed], ablation[base][seed]) for seed in sorted(seeds)]


# %%
for variant in [name for name in ablation if name not in ("plain", "plain 10 %")]:
    base = AGAINST.get(variant, "both")
    change = [one["oIoU"] - other["oIoU"] for one, other in pairs(variant, base)]
    if not change:
        continue
    agree = "better in every seed" if min(change) > 0 else "worse in every seed"
    agree = "seeds disagree" if min(change) < 0 < max(change) else agree
    agree = agree if len(change) > 1 else "a single seed"
    print(f"{CAPTIONS[variant]}, against {CAPTIONS[base]}:")
    print(f"  {np.mean(change):+.1f} oIoU ({min(change):+.1f} to {max(change):+.1f}), {agree}")

# %% [markdown]
# **Think!** Suppose that distillation costs something here. Why might it?
#
# *A teacher of a few minutes knows little, and its doubt is taught as well: twice, each time with the same
# weight as the truth. The paper trains far longer. What helps there need not help in our first minutes (as
# with mask grounding, lesson 05).*
#
# Two more comparisons, then. Five times as many samples, so that the teacher has something to say. And equal
# *minutes*: in the time of one step with both branches the main branch alone makes three.

# %%
LONGER = {
    "24,000 samples each": ("masksd_longer", "both", "plain"),
    "five minutes each": ("five_minutes", "cm_masksd", "cm_masksd plain"),
}
for title, (study, *variants) in LONGER.items():
    runs = measured(study).get("runs", [])
    both, plain = ({r["seed"]: r["oIoU"] for r in runs if r["variant"] == v} for v in variants)
    for seed in sorted(both.keys() & plain.keys()):
        change = both[seed] - plain[seed]
        print(f"{title}, seed {seed}: both {both[seed]:.1f}, plain {plain[seed]:.1f} ({change:+.1f} oIoU)")

# %% [markdown]
# *Even with five times the samples nothing is gained; at equal minutes much is lost. So "the teacher knows
# too little" is not shown: either 24,000 samples are still few, or this world leaves the branches nothing to
# teach. And the first pair is one seed of each, so a few tenths of a point say nothing by themselves.*
#
# And the neck? As the figure draws it (N1), it multiplies small numbers with small numbers: before training
# the sentence's share of what comes out is a tenth of the picture's, and minutes are too short to mend that.
# So in the mini world the neck is *ours* (N1+): it also hears the cosine of section 3, and sees two earlier
# blocks of the ViT. At full size it is N1 unless you ask.
#
# What kind of sentence gains, and what kind loses? *Both* minus *plain*, by what a sentence turns on:

# %%
if {"plain", "both"} <= ablation.keys():
    together = pairs("both", "plain")
    kinds = {kind: numbers["n"] for kind, numbers in together[0][0]["by_kind"].items()}
    figure, axes = viz.chart(
        "What distillation gives", "points of oIoU, both − plain", height=0.9 + 0.28 * len(kinds)
    )
    for row, kind in enumerate(kinds):
        change = [one["by_kind"][kind]["oIoU"] - other["by_kind"][kind]["oIoU"] for one, other in together]
        axes.scatter(change, [row - 0.24] * len(change), s=16, color=viz.FAINT, linewidth=0)
        axes.plot(np.mean(change), row, "s", color=viz.PREDICTION, markersize=6)
    axes.axvline(0, color=viz.INK, linewidth=0.8)
    axes.set_yticks(range(len(kinds)), [f"{kind} ({n})" for kind, n in kinds.items()])
    axes.set_ylim(len(kinds) - 0.4, -0.6)
    show(figure, alt="For each kind of sentence the change in oIoU: the mean, and every seed.")

# %% [markdown]
# *Pink: the mean; grey: single seeds. In brackets the number of sentences: where they are few, chance is
# large.*
#
# And K and α? Below is the oIoU with hidden patches alone (LMVSD). One run each, shorter ones, so read no
# more into them than the spread above allows. The top row hides nearly nothing; the right column leaves
# nothing to the lot; the bottom row is random masking. Its last cell hides *every* patch: that student sees
# nothing at all, and it costs no more than the cells beside it.

# %%
grid = {}  # (K, alpha) -> oIoU of its runs
for one in measured("masksd_grid").get("runs", []):
    grid.setdefault((one["options"]["top_patches"], one["options"]["masked_patches"]), []).append(one["oIoU"])
if grid:
    tops, alphas = (sorted(set(shares)) for shares in zip(*grid, strict=True))
    table = np.array([[np.mean(grid.get((top, alpha), np.nan)) for alpha in alphas] for top in tops])
    down, across = ([f"{100 * share:.0f} %" for share in shares] for shares in (tops, alphas))
    show(
        heat(table, down, across, "K: who may go", "α: share of these that goes", "oIoU, percent"),
        alt=f"oIoU from {np.nanmin(table):.0f} to {np.nanmax(table):.0f}.",
    )

# %% [markdown]
# | the paper | here |
# |---|---|
# | self-distillation helps | the mini world: the sentences above |
# | guided masking is better than random | *both, hidden by lot*, above; and the bars of section 5 |
# | the sentence finds patches that matter | sections 3 and 5: where things lie |
# | nearly no extra parameters | section 8: counted |
# | 74.89 mIoU on RefCOCO val | not checked: that takes a training at full size |
#
# Unknown wherever our numbers stand: the ViT and its resolution, K and α, D and its weights, the neck, how
# VMLSD is wired, what stands in for hidden tokens, the recipe.
#
# ## 8 · "Nearly parameter-free"
#
# What do the branches add? One stand-in vector for patches, one for words, and two small layers that let
# words through the shared neck and back. The abstract calls it negligible. Count.
#
# ### Exercise 4: a share of the parameters (easy, 10 minutes)
#
# A network's parameters are given by name and shape, such as `{"neck.out.weight": (256, 256)}`. Some of its
# parts are extra; a part is what stands before the first dot.


# %% exercise="extra_share"
def extra_share(shapes, extras):
    """{name: shape} of all parameters, and names of parts -> the parts' share of all numbers, percent."""
    # BEGIN SOLUTION
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    extra = sum(size for name, size in sizes.items() if name.split(".")[0] in extras)
    return 100 * extra / sum(sizes.values())
    # END SOLUTION


# %% tests="extra_share"
def cases():
    yield {"clip.weight": (4, 5), "neck.weight": (5, 5), "lmvsd.embedding": (5,)}, ("lmvsd",)
    yield {"clip.scale": (), "lmvsd.a": (3, 2), "lmvsd_old.a": (13,)}, ("lmvsd", "vmlsd")


hints = (
    "A parameter of shape (4, 5) holds 20 numbers. `math.prod` multiplies; of an empty shape it makes 1.",
    '`name.split(".")[0]` is the part. Is it `in extras`?',
    "Sum the sizes of the extra parts, divide by the sum of all sizes, times 100.",
)


def wrong_tensors(shapes, extras):
    """you counted tensors. A weight of 512 × 512 is more than a bias of 512: count their numbers."""
    return extra_share(dict.fromkeys(shapes, ()), extras)


def wrong_sides(shapes, extras):
    """you added the sides of each shape. The numbers in it are their product: (4, 5) holds 20."""
    return extra_share({name: (sum(shape),) for name, shape in shapes.items()}, extras)


def wrong_rest(shapes, extras):
    """you divided by the parameters of all *other* parts. A share is of the whole."""
    part = extra_share(shapes, extras) / 100
    return 100 * part / (1 - part)


def wrong_fraction(shapes, extras):
    """this is a fraction. In percent it is a hundred times as much."""
    return extra_share(shapes, extras) / 100


def wrong_prefix(shapes, extras):
    """you asked whether the name *begins* with the part's. So does the name of "lmvsd_old", which is another
    part. Cut at the first dot."""
    renamed = {}
    for name, shape in shapes.items():
        part = next((extra for extra in extras if name.startswith(extra)), name)
        renamed[f"{part}.{name}"] = shape
    return extra_share(renamed, extras)


# %% points=2
check(extra_share)

# %% [markdown]
# The mini, and full size (on the "meta" device, where tensors have shapes and no numbers):

# %% tags=["nbval-check-output"]
BRANCHES = ("lmvsd", "vmlsd", "coordination")
with torch.device("meta"):
    full = cm_masksd_b16()
for title, network in {"mini": untrained, "ViT-B/16": full}.items():
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    extra, total = sum(parts[name] for name in BRANCHES), sum(parts.values())
    print(f"{title}: {total:,} parameters, {extra:,} of them for training only: {extra / total:.2%}")
    print("  ", ", ".join(f"{name} {count:,}" for name, count in parts.items()))

# %% [markdown]
# When training is over the branches go. `strip` removes them, and not one bit of the answers changes: nothing
# of the main branch ever asked them.

# %% tags=["nbval-check-output"]
with torch.inference_mode():
    logits = model(batch.image, batch.tokens[:1], batch.token_mask[:1])
    model.strip()
    again = model(batch.image, batch.tokens[:1], batch.token_mask[:1])
print("the same logits, to the last bit:", torch.equal(logits, again))
print("left of the branches:", [key for key in model.state_dict() if key.split(".")[0] in BRANCHES])

# %% [markdown]
# **Think!** So distillation is free?
#
# *In use, yes. In training, no: one step runs both towers twice, and the decoder three times. In the same
# time the plain network sees more samples. A fair comparison says which it holds fixed, samples or minutes.*
#
# ## Summary
#
# - **Masked self-distillation:** one network answers with and without holes; what it says without them is the
#   lesson for what it says with them.
# - **The other side chooses:** of the top K by cosine a share α is hidden, in place, before positions are
#   added. Whether cosines find the thing has to be measured; it is not given.
# - **The gradient is stopped**, or agreeing becomes a goal by itself: teachers give in, and grow too sure.
# - At full size the branches are less than half a percent of the parameters. They cost training time, and
#   nothing in use.
#
# **Next:** lesson 08, evaluation: when is one number really larger than another?
