# %% [markdown]
# # 03 · Fusion
#
# **A picture is a map of numbers, a sentence is a list of numbers. Somewhere in the network they must meet.**
# How they meet is the question of this lesson. You build three ways, train each for some seconds on the same
# frozen features, and see which sentences each of them understands.
#
# After this lesson you can
#
# - say what a sentence vector holds and what word states hold;
# - write concatenation, product and cross attention in a few lines each, with padding treated rightly;
# - read an attention map, and say what it does *not* show.
#
# *Time: 75 minutes. You need: lesson 02 (dense features, the two towers of CLIP).*

# %% tags=["parameters"]
profile = "cpu"  # "ci" takes seconds, "cpu" minutes, "gpu" is the full-scale world

# %% tags=["imports"]
from dataclasses import dataclass, replace

import ipywidgets
import numpy as np
import torch
from IPython.display import display
from torch import Tensor, nn
from torch.nn import functional as F

# %% tags=["imports"]
from rislib.course import check, hint, show
from rislib.course.recorded import recorded
from rislib.data import to_tensor
from rislib.data.refmini.build import draw_picture, draw_pictures
from rislib.evaluation.metrics import Scores
from rislib.methods.cris import cris_mini
from rislib.methods.layers import conv_block, coordinate_maps, dice_loss, sine_positions_2d, upsample
from rislib.viz import FAINT, HAIRLINE, PREDICTION, TRUTH, chart, gallery, overlay

# %% [markdown]
# ## 1. What each side brings
#
# Here is a scene with four things, one of which is to be found. We come back to it often. The network sees
# it at 96 x 96 pixels; for our own eyes it is drawn larger.

# %%
scene = draw_picture("lesson 03/look/53", "val", "refmini", 96)
large = draw_picture("lesson 03/look/53", "val", "refmini", 384).painting
expression = "person to the left of the green kite"
wanted = next(i for i, said in scene.references.items() if expression in [e.text for e in said])
show(
    gallery([overlay(large.image, large.masks[wanted], TRUTH)], [f"“{expression}”"], width=4.5),
    alt=f"A man and a girl in the snow, a red and a green kite. The man is tinted: {expression}.",
)

# %% [markdown]
# The encoders are CLIP's two towers, pretrained and from now on *frozen*: nothing in this lesson changes
# them. `cris_mini` brings them along, with the tokenizer and the picture's preprocessing. (CRIS itself is the
# topic of the next lesson.)

# %%
cris = cris_mini().eval().requires_grad_(False)
image = to_tensor(scene.painting.image, cris.preprocessing)[None]
seen = cris.clip.encode_image(image, vector=False)
tokens, word_mask = cris.tokenize([expression])
text = cris.clip.encode_text(tokens)

# %% [markdown]
# The picture gives maps. We take two of them: a *fine* one with 12 x 12 cells, and a *coarse* one with 6 x 6
# cells, which lies in the space that pictures and sentences share.
#
# The sentence gives two things. The **word states** are one vector for each token. The **sentence vector** is
# one vector for all.

# %% tags=["nbval-check-output"]
fine, coarse = seen.stages[1], seen.dense
for name, x in [("fine", fine), ("coarse", coarse), ("words", text.words), ("sentence", text.sentence)]:
    print(f"{name:8}  {tuple(x.shape)}")

# %% [markdown]
# Where does the sentence vector come from? CLIP takes the state of the last token, the *end token*, and
# multiplies it with a matrix. That is all.

# %% tags=["nbval-check-output"]
end = text.words[:, -1] @ cris.clip.model.text_projection
print("sentence vector = projected state of the end token:", torch.allclose(end, text.sentence, atol=1e-4))

# %% [markdown]
# A word state is not just its word. CLIP's text tower is *causal*: a token sees itself and the tokens before
# it. So a state holds its word *and everything said so far*. We can see that: change one word, and look which
# states change.

# %% tags=["nbval-check-output"]
twins = ["person to the left of the green kite", "person to the left of the red kite"]
pair = cris.clip.encode_text(cris.tokenize(twins)[0]).words  # (2, L, 128)
changed = (pair[0] - pair[1]).abs().amax(dim=1) > 1e-3
names = ["start", *twins[0].split(), "end"]
print("  ".join(f"{name}*" if c else name for name, c in zip(names, changed, strict=True)))

# %% [markdown]
# The states with a star changed. *person* does not know which kite is meant. The end token knows all, but
# must squeeze it into one vector.
#
# **Think.** "person to the left of the green kite" names two things and two places. What might be lost when
# all of it has to fit into one vector?

# %% [markdown]
# ## 2. From two maps to one
#
# The coarse map knows *what* is there. The fine map knows better *where*. A feature pyramid (Lin et al.,
# 2017) brings them together, from the top down: enlarge the coarse map, bring the fine map to the same number
# of channels with a 1x1 convolution, add the two.
#
# ### Exercise 1: one step down the pyramid (easy, 5 minutes)
#
# Enlarge bilinearly, with `align_corners=False`. (The paper repeats each cell; a bilinear map has no steps.)


# %% exercise="top_down"
def top_down(coarse, fine, weight):
    """One step of a feature pyramid.

    coarse (B, D, h, w), fine (B, C, 2h, 2w), weight (D, C, 1, 1) of the 1x1 convolution
    -> (B, D, 2h, 2w)
    """
    # BEGIN SOLUTION
    enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return enlarged + F.conv2d(fine, weight)
    # END SOLUTION


# %% tests="top_down"
def cases():
    def random(*shape):  # float64: the messages show the same digits on every machine
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    yield random(1, 3, 2, 3), random(1, 5, 4, 6), random(3, 5, 1, 1)
    yield random(2, 4, 3, 3), random(2, 2, 6, 6), random(4, 2, 1, 1)


hints = (
    "Three steps: enlarge `coarse`, convolve `fine`, add. Both must have the shape (B, D, 2h, 2w) by then.",
    '`F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)` and `F.conv2d(x, weight)`.',
    "`enlarged + F.conv2d(fine, weight)`, where `enlarged` is the interpolated `coarse`.",
)


def wrong_size(coarse, fine, weight):
    """you made the fine map small instead of the coarse map large. Then its fine places are lost."""
    return coarse + F.avg_pool2d(F.conv2d(fine, weight), 2)


def wrong_cat(coarse, fine, weight):
    """you concatenated. A feature pyramid adds, so that the number of channels stays D."""
    enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    return torch.cat([enlarged, F.conv2d(fine, weight)], dim=1)


def wrong_corners(coarse, fine, weight):
    """you enlarged with align_corners=True. That moves the cells: they are areas, not points at the edge."""
    enlarged = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=True)
    return enlarged + F.conv2d(fine, weight)


def wrong_nearest(coarse, fine, weight):
    """you repeated each cell (mode "nearest", which is the default). This exercise asks for "bilinear"."""
    return F.interpolate(coarse, scale_factor=2) + F.conv2d(fine, weight)


def wrong_no_sum(coarse, fine, weight):
    """this is the fine map alone. The coarse one, which knows what is there, must be added."""
    return F.conv2d(fine, weight)


# %% points=2
check(top_down)

# %% [markdown]
# ### Exercise 2: where am I? (easy, 5 minutes)
#
# A convolution does the same at every place. So it can hardly know what *left* is. (A little leaks in: from
# the zeros around the border, and here from CLIP's position table.) The cure is simple (CoordConv, Liu et
# al., 2018; CRIS does it too): two more channels that say where each cell lies. The first grows from -1
# at the left edge to 1 at the right, the second from -1 at the top to 1 at the bottom.


# %% exercise="coordinates"
def coordinates(h, w):
    """Where the cells of an h x w map lie -> (2, h, w): first x, then y, both from -1 to 1."""
    # BEGIN SOLUTION
    x = torch.linspace(-1, 1, w).expand(h, w)
    y = torch.linspace(-1, 1, h)[:, None].expand(h, w)
    return torch.stack([x, y])
    # END SOLUTION


# %% tests="coordinates"
def cases():
    yield 2, 3
    yield 4, 4
    yield 5, 2


hints = (
    "x is the same in every row, y the same in every column.",
    "`torch.linspace(-1, 1, w)` are the x of one row; `.expand(h, w)` repeats it in every row.",
    "For y, make a column first: `torch.linspace(-1, 1, h)[:, None]`. Then `torch.stack([x, y])`.",
)


def wrong_y_first(h, w):
    """x and y are exchanged. The first channel grows from left to right."""
    return coordinates(h, w).flip(0)


def wrong_transposed(h, w):
    """height and width are exchanged. A map has h rows of w cells: (2, h, w)."""
    return coordinates(w, h)


def wrong_from_zero(h, w):
    """these run from 0 to 1. From -1 to 1, the middle is 0, and left and right differ in sign."""
    return (coordinates(h, w) + 1) / 2


def wrong_pixels(h, w):
    """these are counts of cells. Then the same place would have other numbers on a larger map."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([x, y]).float()


# %% points=2
check(coordinates)

# %% [markdown]
# In the lesson we use the library's `coordinate_maps`. This is what it adds to a map of 12 x 12 cells:

# %%
maps = coordinate_maps(torch.zeros(1, 1, 12, 12))[0]  # (2, 12, 12)
captions = ["x: -1 at the left, 1 at the right", "y: -1 at the top, 1 below"]
show(
    gallery(maps, captions, width=6, limits=(-1, 1)),
    alt="Two maps of 12 by 12 cells: x grows from -1 left to 1 right, y from -1 at the top to 1 below.",
)

# %% [markdown]
# ## 3. Three ways to meet
#
# Now we have one map `x` with D channels, and the text. Each way is a small module that takes
# `(x, sentence, words, word_mask)` and gives back a map of the same shape. We begin with a control.
#
# **Blind** does not listen at all. What it can reach is what one can guess without the sentence.

# %%
D = 64  # channels of every head


class Blind(nn.Module):
    def forward(self, x, sentence, words, word_mask):
        return x


# %% [markdown]
# **Concatenation.** Write the sentence vector behind the channels of every cell; mix with a 1x1 convolution.


# %%
class Concatenation(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(D + 256, D, 1)

    def forward(self, x, sentence, words, word_mask):
        everywhere = sentence[:, :, None, None].expand(-1, -1, *x.shape[2:])  # (B, 256, h, w)
        return self.mix(torch.cat([x, everywhere], dim=1))


# %% [markdown]
# ### Exercise 3: concatenate without concatenating (medium, 10 minutes)
#
# What does that 1x1 convolution really do with the sentence? Its matrix has C columns for the picture and
# S columns for the sentence. Split it there. Then compute the same result without ever making the sentence a
# map.


# %% exercise="mix"
def mix(x, sentence, weight):
    """A 1x1 convolution without bias over the channels [x, sentence], the sentence at every cell.

    x (B, C, h, w), sentence (B, S), weight (D, C + S) -> (B, D, h, w)
    """
    # BEGIN SOLUTION
    channels = x.shape[1]
    picture = torch.einsum("dc,bchw->bdhw", weight[:, :channels], x)
    shift = sentence @ weight[:, channels:].T  # (B, D)
    return picture + shift[:, :, None, None]
    # END SOLUTION


# %% tests="mix"
def cases():
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    for b, c, s, d in [(2, 3, 2, 4), (1, 2, 4, 5), (3, 4, 4, 3)]:
        yield random(b, c, 2, 3), random(b, s), random(d, c + s)


hints = (
    "A matrix times a long vector is a sum: left columns times upper part, right columns times lower part.",
    "The sentence's part is the same for every cell: `sentence @ weight[:, C:].T` has the shape (B, D).",
    '`torch.einsum("dc,bchw->bdhw", weight[:, :C], x)` plus the sentence\'s part as `[:, :, None, None]`.',
)


def wrong_order(x, sentence, weight):
    """you took the columns in the wrong order. The channels of x come first, those of the sentence last."""
    size = sentence.shape[1]
    return mix(x, sentence, torch.cat([weight[:, size:], weight[:, :size]], dim=1))


def wrong_deaf(x, sentence, weight):
    """this is the picture's part alone: the sentence has been left out."""
    return mix(x, 0 * sentence, weight)


def wrong_product(x, sentence, weight):
    """you multiplied the two parts. In a matrix product the parts of a row are added."""
    channels = x.shape[1]
    picture = torch.einsum("dc,bchw->bdhw", weight[:, :channels], x)
    return picture * (sentence @ weight[:, channels:].T)[:, :, None, None]


# %% points=3
check(mix)

# %% [markdown]
# So concatenation is an *addition*: the sentence shifts all cells by the same vector. A cell with a dog and a
# cell with snow are shifted alike. Only what comes later (a ReLU, more convolutions) can make a difference of
# it. We can see this in the module above:

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
layer, cells = Concatenation(), torch.randn(1, D, 12, 12)
other = torch.randn_like(text.sentence)
shift = layer(cells, other, None, None) - layer(cells, text.sentence, None, None)  # (1, D, 12, 12)
print("another sentence shifts all cells alike:", bool((shift - shift[:, :, :1, :1]).abs().max() < 1e-4))

# %% [markdown]
# **Product.** Turn the sentence into D factors, one for each channel; multiply. If channel 7 says
# "something red", then the factor of channel 7 says how much this matters now. So the sentence *selects
# channels*. A cell with nothing in channel 7 gets nothing, whatever the factor: here the sentence and the
# cell really meet.


# %%
class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Linear(256, D)

    def forward(self, x, sentence, words, word_mask):
        return x * self.factors(sentence)[:, :, None, None]


# %% [markdown]
# Both have treated every cell alike: one sentence vector for all. **Cross attention** lets each cell choose
# which words it reads. Every cell asks a question, the *query*. Every word has a *key*, which says what it
# can answer, and a *value*, the answer. The better the key fits the query, the more of the value the cell
# takes:
#
# $$\text{read}_i = \sum_j a_{ij}\, v_j, \qquad
#   a_{ij} = \frac{\exp(q_i \cdot k_j / \sqrt{D})}{\sum_{j'} \exp(q_i \cdot k_{j'} / \sqrt{D})}$$
#
# In words: cell *i* compares its query with all keys, makes shares of the results (a softmax: the shares of
# one cell sum to 1), and takes that mixture of the values. The root of D keeps the softmax soft: without it,
# long vectors would make it a choice of one.

# %% [markdown]
# ### Exercise 4: masked cross attention (medium, 15 minutes)
#
# Sentences in a batch differ in length. The shorter ones are filled up with padding, and padding has states,
# too: random-looking vectors that no one meant. No cell may read them. So a padded word gets the score
# minus infinity *before* the softmax, and `exp` makes a share of 0 from it.


# %% exercise="read_words"
def read_words(queries, keys, values, word_mask):
    """What each cell reads from the words, by scaled dot-product attention.

    queries (B, N, D) of N cells; keys and values (B, L, D) of L words;
    word_mask (B, L) bool, True at words, False at padding -> (B, N, D)
    """
    # BEGIN SOLUTION
    scores = queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5  # (B, N, L)
    scores = scores.masked_fill(~word_mask[:, None], -torch.inf)
    return scores.softmax(dim=2) @ values
    # END SOLUTION


# %% tests="read_words"
def cases():
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    for lengths in [(2, 4), (3, 1), (5, 5)]:
        word_mask = torch.arange(5) < torch.tensor(lengths)[:, None]  # (2, 5)
        yield 2 * random(2, 3, 4), random(2, 5, 4), random(2, 5, 4), word_mask


hints = (
    "First the scores (B, N, L) of every cell with every word; then the mask; then the softmax; then values.",
    "`scores.masked_fill(where, -torch.inf)`, where `where` is True at padding: `~word_mask[:, None]`.",
    "`scores = queries @ keys.transpose(1, 2) / D ** 0.5`, mask, `scores.softmax(dim=2) @ values`.",
)


def wrong_no_mask(queries, keys, values, word_mask):
    """the padding is read, too. Look at word_mask: a cell may only read where it is True."""
    return read_words(queries, keys, values, torch.ones_like(word_mask))


def wrong_inverted(queries, keys, values, word_mask):
    """the mask is the wrong way round: your cells read only the padding. True means: this is a word."""
    return read_words(queries, keys, values, ~word_mask)


def wrong_after(queries, keys, values, word_mask):
    """you set the shares of the padding to 0 after the softmax. What remains no longer sums to 1."""
    shares = (queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5).softmax(dim=2)
    return (shares * word_mask[:, None]) @ values


def wrong_zero(queries, keys, values, word_mask):
    """you gave the padding the score 0. But exp(0) is 1, a good share. It takes minus infinity."""
    scores = queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5
    return (scores * word_mask[:, None]).softmax(dim=2) @ values


def wrong_no_scale(queries, keys, values, word_mask):
    """the scores are not divided by the root of D, the length of queries and keys."""
    return read_words(queries * queries.shape[2] ** 0.5, keys, values, word_mask)


def wrong_axis(queries, keys, values, word_mask):
    """your softmax runs over the cells. Each cell shares its attention among the words: the last axis.
    (Over the cells, a padded word is a column of minus infinities, and the softmax of that is nan.)"""
    scores = queries @ keys.transpose(1, 2) / queries.shape[2] ** 0.5
    return scores.masked_fill(~word_mask[:, None], -torch.inf).softmax(dim=1) @ values


# %% points=4
check(read_words)

# %% [markdown]
# PyTorch has all of this, with several *heads* (each with its own queries, keys and values):
# `nn.MultiheadAttention`. Its `key_padding_mask` is True where *nobody* may look: just the opposite of ours.
#
# A query may also say where its cell lies. As CRIS does, we add sines and cosines of many wavelengths to the
# queries. Then a cell can ask "I am on the left: does this sentence care?" What it has read is added to what
# it has seen.


# %%
class CrossAttention(nn.Module):
    def __init__(self, places=True):
        super().__init__()
        self.norm = nn.LayerNorm(D)
        self.attention = nn.MultiheadAttention(D, 4, kdim=128, vdim=128, batch_first=True)
        self.places = places

    def forward(self, x, sentence, words, word_mask):
        queries = self.norm(x.flatten(2).transpose(1, 2))  # (B, h*w, D)
        if self.places:
            queries = queries + sine_positions_2d(*x.shape[2:], D)
        read, self.shares = self.attention(queries, words, words, key_padding_mask=~word_mask)
        return x + read.transpose(1, 2).unflatten(2, x.shape[2:])


# %% [markdown]
# `shares` (B, h*w, L) are the shares of the words, averaged over the heads. We keep them for later.
#
# Does the padding matter? Take a short sentence alone, and again beside a long one, which makes three tokens
# of padding necessary. With the mask, the result must be the same.

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
layer, cells = CrossAttention().eval(), torch.randn(1, D, 12, 12)
alone, mask_alone = cris.tokenize(["red kite"])
beside, mask_beside = (x[:1] for x in cris.tokenize(["red kite", "kite at the left side"]))
results = []
for ids, m in [(alone, mask_alone), (beside, mask_beside), (beside, torch.ones_like(mask_beside))]:
    results.append(layer(cells, None, cris.clip.encode_text(ids).words, m))
print(f"{alone.shape[1]} tokens alone, {beside.shape[1]} beside the long one")
print("with the mask the same:   ", torch.allclose(results[0], results[1], atol=1e-4))
print("without the mask the same:", torch.allclose(results[0], results[2], atol=1e-4))

# %% [markdown]
# **One after the other.** Nothing forbids both: the sentence first selects channels, then each cell reads the
# words. CRIS does it in this order, and LAVT multiplies what a cell has read into the cell.


# %%
class ProductThenAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.product, self.attention = Product(), CrossAttention()

    def forward(self, x, sentence, words, word_mask):
        x = self.product(x, sentence, words, word_mask)
        return self.attention(x, sentence, words, word_mask)


# %% [markdown]
# ## 4. A fair race
#
# All of them get the same head around them: pyramid step and coordinates before, a small decoder behind. It
# ends at 24 x 24 cells, of four pixels a side.


# %%
class Head(nn.Module):
    def __init__(self, fusion):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(256, D, 1), nn.Conv2d(256, D, 1)
        self.places, self.up = conv_block(D + 2, D, 3), upsample()
        self.fusion = fusion
        self.wake = nn.Sequential(nn.BatchNorm2d(D), nn.ReLU())
        self.decode = nn.Sequential(conv_block(D, D, 3), upsample(), conv_block(D, D // 2, 3))
        self.mask = nn.Conv2d(D // 2, 1, 1)

    def forward(self, fine, coarse, sentence, words, word_mask):
        x = self.up(self.coarse(coarse)) + self.fine(fine)  # (B, D, 12, 12)
        x = self.places(torch.cat([x, coordinate_maps(x)], dim=1))
        x = self.wake(self.fusion(x, sentence, words, word_mask))
        return self.mask(self.decode(x))  # logits (B, 1, 24, 24)


# %% [markdown]
# The towers are frozen. So they look at every picture **once**, and all heads train on what they saw. That is
# why a head takes seconds here, where CRIS takes minutes.


# %%
@dataclass
class Data:
    """Frozen features of P pictures and N sentences about them."""

    fine: Tensor  # (P, 256, 12, 12)
    coarse: Tensor  # (P, 256, 6, 6)
    picture: Tensor  # (N,) which picture each sentence is about
    sentence: Tensor  # (N, 256)
    words: Tensor  # (N, L, 128)
    word_mask: Tensor  # (N, L)
    masks: Tensor  # (N, 1, 96, 96) bool
    kinds: list[str]  # what each sentence turns on: a colour, a location, ...


# %%
def encode(pictures):
    """Pictures with references -> Data."""
    images = torch.stack([to_tensor(p.painting.image, cris.preprocessing) for p in pictures])
    parts = [cris.clip.encode_image(part, vector=False) for part in images.split(64)]
    said = [(i, thing, e) for i, p in enumerate(pictures) for thing, es in p.references.items() for e in es]
    tokens, word_mask = cris.tokenize([e.text for _, _, e in said])
    text = cris.clip.encode_text(tokens)
    masks = torch.stack([torch.from_numpy(pictures[i].painting.masks[thing]) for i, thing, _ in said])
    return Data(
        *(torch.cat(maps) for maps in zip(*((part.stages[1], part.dense) for part in parts), strict=True)),
        *(torch.tensor([i for i, _, _ in said]), text.sentence, text.words, word_mask, masks[:, None]),
        kinds=[e.kind for _, _, e in said],
    )


# %% [markdown]
# Training and held-out scenes are drawn now, with different seeds. So no head has seen a held-out picture.

# %%
references = {"ci": (30, 15), "cpu": (3000, 600), "gpu": (12000, 600)}[profile]
known, held_out = (
    encode(list(draw_pictures(f"lesson 03/{split}", split, "refmini", 96, n)))
    for split, n in zip(["train", "val"], references, strict=True)
)
for name, data in [("training", known), ("held out", held_out)]:
    print(f"{name}: {len(data.fine)} pictures, {len(data.masks)} sentences")

# %% [markdown]
# The training loop is short. The loss is binary cross entropy, which judges each cell, plus Dice, which
# judges how well whole masks overlap. The target is the mask at 24 x 24. Every head sees the same
# sentences in the same order: the order depends on the seed alone.


# %%
def train(fusion, samples, seed, batch=32):
    torch.manual_seed(seed)
    head, steps = Head(fusion()), samples // batch
    optimiser = torch.optim.AdamW(head.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=2e-3, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(known.masks), (batch,), generator=order)
        logits, target = ask(head, known, rows), F.avg_pool2d(known.masks[rows].float(), 4)
        loss = F.binary_cross_entropy_with_logits(logits, target) + dice_loss(logits, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return head.eval()


# %% [markdown]
# Two helpers: `ask` gives a head its inputs, `measure` counts what the head gets right on the held-out
# sentences, at the full 96 x 96 pixels.


# %%
def ask(head, data, rows):
    """The head's logits (B, 1, 24, 24) for these sentences."""
    i = data.picture[rows]
    return head(data.fine[i], data.coarse[i], data.sentence[rows], data.words[rows], data.word_mask[rows])


@torch.no_grad()
def measure(head, data):
    scores = Scores()
    for rows in torch.arange(len(data.masks)).split(128):
        found = F.interpolate(ask(head, data, rows), scale_factor=4, mode="bilinear") > 0
        for row, mask in zip(rows.tolist(), found.numpy(), strict=True):
            truth, i = data.masks[row].numpy(), int(data.picture[row])
            scores.add(mask, truth, image_id=i, kind=data.kinds[row])
    return scores


# %% [markdown]
# Now the race: six heads (attention runs with and without places in its queries), the same number of samples,
# several seeds. In profile `cpu` this takes some minutes. (Profile `gpu` only trains longer. The
# comparison at full scale is CRIS's own; see the end.)

# %%
contestants = {
    "blind": Blind,
    "concatenation": Concatenation,
    "product": Product,
    "attention, no places": lambda: CrossAttention(places=False),
    "cross attention": CrossAttention,
    "product, attention": ProductThenAttention,
}
seeds, samples = {"ci": (1, 128), "cpu": (3, 4800), "gpu": (3, 25600)}[profile]
heads = {name: [train(way, samples, seed) for seed in range(seeds)] for name, way in contestants.items()}
results = {name: [measure(head, held_out) for head in trained] for name, trained in heads.items()}

# %%
print(f"{samples} training samples, {seeds} seed(s), {len(held_out.masks)} held-out sentences\n")
print(f"{'':20}  parameters   oIoU   lowest  highest")
for name, scores in results.items():
    found = [s.overall_iou() for s in scores]
    own = sum(p.numel() for p in heads[name][0].fusion.parameters())
    print(f"{name:20}  {own:10,}  {np.mean(found):5.1f}  {min(found):7.1f}  {max(found):7.1f}")
if profile == "ci":
    print("\nIn profile ci the heads have learnt nothing yet: these numbers mean nothing.")

# %% [markdown]
# How to read it: a difference counts only if it is larger than the spread between the seeds. The heads differ
# in their number of parameters, too; that is part of what each way costs.
#
# **Think.** What can *blind* know about the right answer? What is the best that it can do?
#
# **Try.** LAVT multiplies: write `x * read` for `x + read` in `CrossAttention`, and race again.
#
# ## 5. Which sentences profit?
#
# Every sentence of RefMini knows its kind: what it turns on. One dot is one seed, the bar is their
# mean. Read it row by row; the number of held-out sentences stands in brackets.


# %%
def of_kind(name, kind):
    """oIoU on one kind of expression: one number for each seed."""
    return [scores.by_kind()[kind].overall_iou() for scores in results[name]]


kinds = sorted(set(held_out.kinds), key=held_out.kinds.count)
colours = dict(zip(contestants, [FAINT, "#f2a900", TRUTH, "#3aa76d", "#6c5ce7", PREDICTION], strict=True))

# %%
x = "oIoU on held-out sentences of this kind, percent"
figure, axes = chart("Each kind, each way, each seed", x, width=8, height=7.5)
for row in range(0, len(kinds), 2):
    axes.axhspan(row - 0.5, row + 0.5, color=HAIRLINE, alpha=0.4, linewidth=0)
for k, (name, colour) in enumerate(colours.items()):
    for row, kind in enumerate(kinds):
        found, y = of_kind(name, kind), row + 0.35 - 0.14 * k
        axes.plot(found, [y] * len(found), "o", color=colour, ms=5, alpha=0.5, mew=0)
        axes.plot(np.mean(found), y, "|", color=colour, ms=9, mew=2.5, label=name if row == 0 else None)
axes.set_ylim(-0.5, len(kinds) - 0.5)
axes.set_yticks(range(len(kinds)), [f"{kind} ({held_out.kinds.count(kind)})" for kind in kinds])
axes.grid(axis="x", color=HAIRLINE)
figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9, handletextpad=0)
show(figure, alt="oIoU for each kind of expression and each way of fusion, one dot per seed.")

# %% [markdown]
# Now the question of this lesson in numbers: what does reading single words buy, compared with one sentence
# vector? For each kind, cross attention minus product, as the mean over the seeds and from the worst pair of
# seeds to the best. If the worst is still above 0, the seeds agree.

# %%
print("cross attention - product    mean   worst    best  sentences")
for kind in reversed(kinds):
    a, b = of_kind("cross attention", kind), of_kind("product", kind)
    mean, worst, best = np.mean(a) - np.mean(b), min(a) - max(b), max(a) - min(b)
    ahead = "attention ahead" if worst > 0 else "product ahead" if best < 0 else ""
    print(f"{kind:25}  {mean:+6.1f}  {worst:+6.1f}  {best:+6.1f}  {held_out.kinds.count(kind):9}  {ahead}")

# %% [markdown]
# **Think.** In the picture, compare cross attention with and without places. At which kinds do places in the
# query matter, although every head has coordinate channels?
#
# Two warnings. Seeds tell how far *training* scatters; they say nothing about another draw of pictures. For a
# kind with 50 sentences that scatter is large. And all of this holds for small heads, trained for seconds, on
# these features.
#
# ## 6. Where does the attention go?
#
# Cross attention has a gift: one can look at it. For each cell it has shares of the words. Take one word, and
# its shares over all cells are a map.
#
# ### Exercise 5: the map of one word (easy, 5 minutes)


# %% exercise="word_map"
def word_map(shares, word, grid, size):
    """One word's attention shares as a map over the picture.

    shares (h*w, L) of the cells, row by row; word: which of the L; grid: (h, w)
    -> (size, size), enlarged bilinearly (align_corners=False)
    """
    # BEGIN SOLUTION
    cells = shares[:, word].reshape(1, 1, *grid)
    return F.interpolate(cells, (size, size), mode="bilinear", align_corners=False)[0, 0]
    # END SOLUTION


# %% tests="word_map"
def cases():
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).softmax(dim=1)

    generator = torch.Generator().manual_seed(0)
    yield random(6, 6), 1, (2, 3), 6
    yield random(12, 4), 3, (4, 3), 12


hints = (
    "The shares of one word are a column: one number for each cell.",
    "Cells come row by row, so `.reshape(h, w)` puts them back; `F.interpolate` wants (1, 1, h, w).",
    '`F.interpolate(cells, (size, size), mode="bilinear", align_corners=False)[0, 0]`',
)


def wrong_columns_first(shares, word, grid, size):
    """you filled the map column by column. The cells come row by row: reshape to (h, w)."""
    h, w = grid
    cells = shares[:, word].reshape(w, h).T[None, None]
    return F.interpolate(cells, (size, size), mode="bilinear", align_corners=False)[0, 0]


def wrong_stretched(shares, word, grid, size):
    """you stretched the map to 0 ... 1. Then the numbers are no shares any more. Return them as they are."""
    found = word_map(shares, word, grid, size)
    return (found - found.min()) / (found.max() - found.min())


def wrong_over_cells(shares, word, grid, size):
    """you made the map sum to 1 over the cells. But shares sum to 1 over the *words* of one cell."""
    return word_map(shares / shares.sum(dim=0), word, grid, size)


def wrong_word(shares, word, grid, size):
    """this is the word before. The first token, number 0, is the start token; it counts."""
    return word_map(shares, word - 1, grid, size)


# %% points=1
check(word_map)

# %% [markdown]
# We ask the cross attention head of the first seed about our scene. `inspect` gives its answer and the maps
# of all tokens, both as large as the picture for our eyes.

# %%
head = heads["cross attention"][0]


@torch.no_grad()
def inspect(sentence):
    """The head's answer (384, 384) bool and the maps of the sentence's L tokens (L, 384, 384)."""
    ids, real = cris.tokenize([sentence])
    states = cris.clip.encode_text(ids)
    logits = head(fine, coarse, states.sentence, states.words, real)  # (1, 1, 24, 24)
    answer = F.interpolate(logits, (384, 384), mode="bilinear")[0, 0] > 0
    shares = head.fusion.shares[0].T.reshape(1, -1, 12, 12)
    return answer.numpy(), F.interpolate(shares, (384, 384), mode="bilinear")[0].numpy()


# %%
answer, maps = inspect(expression)
show(
    gallery([overlay(large.image, answer, truth=large.masks[wanted])], [f"“{expression}”"], width=4.5),
    alt=f"What the head answers to {expression!r}, tinted; the truth is outlined.",
)

# %% [markdown]
# The tint is the answer, the blue line the truth. Do not expect much: this is a head of seconds, and a
# relation between two things is one of the hardest kinds.
#
# And these are the maps. The picture shines through where the cells read a token, and is dark where they do
# not. Each panel has its own scale; the numbers are the token's mean share over all cells, and its highest.


# %%
def tokens_of(sentence):
    """The names of a sentence's tokens."""
    ids = cris.tokenize([sentence])[0][0].tolist()
    return ["start", *(cris.tokenizer.pieces[i].removesuffix("</w>") for i in ids[1:-1]), "end"]


def spotlight(strength):
    """The picture where strength (384, 384) is highest, grey and dark where it is 0."""
    light, picture = strength[..., None] / strength.max(), np.asarray(large.image) / 255
    grey = 0.25 * picture.mean(axis=2, keepdims=True) + 0.75 * np.array([0.36, 0.39, 0.45])
    return light * picture + (1 - light) * grey


def share_of(token, strength):
    return f"{token}\n{strength.mean():.0%}, at most {strength.max():.0%}"


# %%
captions = [share_of(*part) for part in zip(tokens_of(expression), maps, strict=True)]
show(
    gallery([spotlight(strength) for strength in maps], captions, columns=5),
    alt="Ten panels, one per token: the scene shines through where cells read that token.",
)

# %% [markdown]
# Read such maps with care.
#
# - The shares of one cell sum to 1 over the *words*. So a map says which cells read this word. It does not
#   say where the thing is that the word names.
# - A state holds more than its word (section 1). A cell that reads *kite* reads "person to the left of the
#   green kite".
# - The start token's state is the same in every sentence. A cell that has nothing to ask can rest there. Who
#   reads it in these maps, the things or the ground?
#
# **Think.** Who reads *left*: the things on the left, or those on the right? What could they need it for?
#
# Choose a token, or write a sentence of your own. The answer stands on the left, the map on the right.


# %%
def draw(sentence, token):
    """The head's answer, and the map of one of the sentence's tokens, by its number."""
    answer, maps = inspect(sentence)
    captions = [f"“{sentence}”", share_of(tokens_of(sentence)[token], maps[token])]
    return gallery([overlay(large.image, answer), spotlight(maps[token])], captions, width=6.4)


def choices(sentence):
    return [(name, number) for number, name in enumerate(tokens_of(sentence))]


# %%
sentence = ipywidgets.Text(value=expression, continuous_update=False)
token = ipywidgets.ToggleButtons(options=choices(expression), value=4)
shown = show(draw(expression, 4), alt=f"The answer to {expression!r}, and the map of one token.")


# %%
def again(change):
    if change.owner is sentence:
        token.options = choices(sentence.value)  # chooses the first of them
    alt = f"The answer to {sentence.value!r}, and the map of one token."
    shown.update(draw(sentence.value, token.value), alt=alt)


sentence.observe(again, "value")
token.observe(again, "value")
display(sentence, token)

# %% [markdown]
# ## 7. Much attention, much importance?
#
# A large share does not prove that a word matters. To know, we must *intervene*: take tokens away from a
# trained head, by the mask that exercise 4 taught, and measure again.

# %%
end_only = torch.zeros_like(held_out.word_mask)
end_only[torch.arange(len(end_only)), held_out.word_mask.sum(dim=1) - 1] = True
start_only = torch.zeros_like(held_out.word_mask)
start_only[:, 0] = True
without_end = held_out.word_mask & ~end_only
words_only = without_end & ~start_only

# %%
print(f"{'the head may read':22}  oIoU, mean over the seeds")
for name, mask in [
    ("everything", held_out.word_mask),
    ("all but the end token", without_end),
    ("the words alone", words_only),
    ("the end token alone", end_only),
]:
    data = replace(held_out, word_mask=mask)
    found = [measure(head, data).overall_iou() for head in heads["cross attention"]]
    print(f"{name:22}  {np.mean(found):.1f}")

# %% [markdown]
# Compare with where the attention went: the mean share of the start token, of all words together, and of the
# end token.

# %%
rows = torch.arange(len(held_out.masks))[:200]
with torch.no_grad():
    ask(head, held_out, rows)
    shares = head.fusion.shares.mean(dim=1)  # (n, L), mean over the cells
for name, mask in [("start token", start_only), ("words", words_only), ("end token", end_only)]:
    print(f"{name:12} {(shares * mask[rows]).sum(dim=1).mean():.0%}")

# %% [markdown]
# Do the two agree? **Think:** a head that was never trained without its end token is asked for something new
# here. So what exactly does a fall prove, and what not?

# %% [markdown]
# ## 8. What the paper claims, what we measured
#
# CRIS (Wang et al., 2022) is the paper behind this lesson. Its *neck*, which joins the picture's maps,
# multiplies the sentence vector into them, and its *decoder* then reads the words by cross attention.
#
# | | claim | where |
# |---|---|---|
# | CRIS on RefCOCO val, product alone (no decoder, no contrast) | 62.66 mIoU | the paper's ablation |
# | one decoder layer adds to that | 3.65 mIoU (RefCOCO+: 4.56) | the same table |
# | the whole CRIS, with three decoder layers; with four | 69.52; 69.18 mIoU | the same table |

# %% [markdown]
# So the paper finds that reading words helps, on top of a product. But its decoder layer is more than cross
# attention: it begins with *self attention*, in which cells compare themselves with each other, and it ends
# with two more layers on every cell. The table does not take these apart.
#
# LAVT (Yang et al., 2022) combines both in one step: what a cell has read is multiplied into the cell. We
# could not retrieve its ablations, so we quote none.
#
# What did we measure? Our towers stay frozen, our heads are tiny, and a decoder layer of ours is the cross
# attention alone:

# %%
together, product, attention = (
    np.mean([s.overall_iou() for s in results[name]])
    for name in ("product, attention", "product", "cross attention")
)
print(f"attention after the product adds  {together - product:+.1f} oIoU to the product alone")
print(f"                             and  {together - attention:+.1f} oIoU to attention alone")
print(f"CRIS, all of it trained for five minutes: {recorded('cris_mini/val')['oIoU']:.1f} oIoU (RefMini val)")

# %% [markdown]
# By our rule the first gain counts if the lowest run of both lies above the highest of the product, and the
# second if it lies above the highest of attention alone. Look at the table of section 4: the first does, the
# second does not.
#
# The last line is not the same test: other held-out pictures, all parameters learning, more samples, and
# CRIS's own threshold. It only shows how much room is left above frozen features and a head of seconds.
# What we cannot replicate here is the paper's size of the gain: that needs RefCOCO, full-size towers and a
# GPU. Lesson 09 says how.

# %% [markdown]
# ## Summary
#
# - **Concatenation** adds: the sentence shifts all cells alike. **Product** selects channels. **Cross
#   attention** lets every cell read the words that it needs. Each is a few lines.
# - Padding must never be read: minus infinity before the softmax.
# - Coordinates tell a convolution where it is; a pyramid step joins what and where.
# - Attention maps show what was read, not what mattered. For that, intervene.
# - A difference counts if it exceeds the spread of the seeds. Say how many sentences stand behind it.
#
# **Next:** lesson 04 puts product, cross attention and a last comparison of every pixel with the sentence
# together, and trains them with the towers: CRIS.
