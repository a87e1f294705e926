"""Mask grounding (Chng et al., CVPR 2024, arXiv 2312.12198, MagNet): guess the hidden word from the picture.

Some words of the sentence are hidden. A small transformer sees the other words, the picture, and where the
mask lies, and must say which words those were: only who knows how words, picture and mask belong together
can. It is attached to any method (`mask_grounding=1.0`), trains its towers, and is thrown away afterwards.

In the order of the code, with sentence T, picture I and mask M:

    T', y = Hide(T)                         each word is chosen with probability p; of the chosen ones
                                            a share q becomes [MASK], a share n any other word
    O = LanguageEncoder(T'),  P = ImageEncoder(I)                   the method's own: `Method.read`
    E = LN(Linear(P))                                               as wide as the words
    C = MLP(centre of M) + mean of E inside M                       the mask encoder, coordinates in [-1, 1]
    z = Transformer(C[O + C, E + MLP(places of E)])                 the predictor
    loss = cross entropy of Linear(LN(z)) and y, mean over the chosen words of the batch

No part may know the answer. O is computed from T', never from T. P is a trap: where words and pixels meet in
the towers (LAVT, MagNet), a map behind one that has read T holds the hidden word. There are two ways out:

    segmentation="masked"   the towers read T' alone, and the mask is made from it as well: the loss comes
                            nearly for free, but a sentence with a hole in it may fit more than one thing
    segmentation="clean"    the mask is made from T, and the towers read T' once more for this loss. Where the
                            picture's maps hear no sentence (CRIS) only the text tower runs twice

What is what. Of the paper only the abstract was at hand, and no code that trains was published:

    stated    the loss and its three inputs, P and C in one row with O; training only
    code      Hide, as the code does that the authors point to (ovr-cnn): words are chosen independently, not
              by their kind, nor whole words of several pieces; p 0.15, q 0.9, n 0. Their own values are not
              known. Also from there: the predictor is as wide as the word states, its FFN no wider
    inferred  from memory of the paper, C comes from the mask's centre. Two layers (there six); the last
              Linear begins as the word embeddings (there, it is them); P is Swin's third map; one pass or two
    ours      C joins each word, and holds what lies inside the mask. As a separate token, which words must
              first learn to find, it taught nothing in the mini world: after 9,600 samples colours were
              guessed at chance, 14 %. Joined to each word, 35 % after 4,800, 12 with another picture.
              `pooled=False` leaves the centre alone. Places of the map go through the MLP of the centre, so
              that "there" is the same for both; layer norms come first; an empty mask's centre is the middle;
              `at_least_one`, for short sentences that need not be segmented with the hole in them;
              `picture=False`, the control that sees words alone
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders.bert import WordPieceTokenizer
from rislib.encoders.tokenizers import PAD, ClipTokenizer, hide_words
from rislib.methods.layers import coordinate_maps
from rislib.nouns import Batch, Method, Reading

IGNORED = -100  # instead of an answer, where nothing is asked


class MaskGrounding(nn.Module):
    """The head that guesses hidden words. `read_and_ground` puts it to work in a method's losses.

    Args:
        tokenizer: the method's: its `mask_id` is [MASK], its `special_ids` are never hidden.
        words: the text tower's embeddings of all words to choose from (V, text_width), copied. Everything in
            here is as wide as they are.
        widths: channels of the picture's maps.
        weight: of the loss.
        segmentation: "masked" or "clean" (see above).
        ratio, masked, random: p, q and n above; 1 - q - n of the chosen words stay, and are asked for.
        at_least_one: choose one word where chance chose none.
        stage: which of the maps is P; -2 is Swin's third, at stride 16.
        pooled: False leaves what lies inside the mask out of C.
        layers, heads: of the transformer.
        picture: False leaves out P and C.

    Raises:
        ValueError: `segmentation` is unknown, or `masked` and `random` are more than all.
    """

    def __init__(
        self,
        tokenizer: ClipTokenizer | WordPieceTokenizer,
        words: Tensor,
        widths: tuple[int, ...],
        *,
        weight: float = 1.0,
        segmentation: Literal["masked", "clean"] = "masked",
        ratio: float = 0.15,
        masked: float = 0.9,
        random: float = 0.0,
        at_least_one: bool = False,
        stage: int = -2,
        pooled: bool = True,
        layers: int = 2,
        heads: int = 8,
        picture: bool = True,
    ) -> None:
        super().__init__()
        if segmentation not in ("masked", "clean"):
            raise ValueError(f"segmentation reads the 'masked' or the 'clean' sentence, not {segmentation!r}")
        if masked + random > 1:
            raise ValueError(f"{masked} of the chosen words masked and {random} replaced are more than all")
        vocab_size, text_width = words.shape
        self.tokenizer, self.vocab_size = tokenizer, vocab_size
        self.weight, self.segmentation = weight, segmentation
        self.ratio, self.masked, self.random, self.at_least_one = ratio, masked, random, at_least_one
        self.stage, self.pooled, self.picture = stage, pooled, picture
        if picture:
            self.project = nn.Sequential(nn.Linear(widths[stage], text_width), nn.LayerNorm(text_width))
            self.place = nn.Sequential(nn.Linear(2, text_width), nn.ReLU(), nn.Linear(text_width, text_width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                text_width, heads, text_width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.guess = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, vocab_size))
        self.guess[1].weight.data.copy_(words)

    def hide(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """tokens, token_mask (B, L) -> the sentence with holes (B, L), answers (B, L), mostly IGNORED.

        Chance comes from torch's generator, which `rislib.training.fit` seeds anew in each step.
        """
        hidden, chosen = hide_words(
            tokens.masked_fill(~token_mask.bool(), PAD),
            self.tokenizer,
            self.vocab_size,
            ratio=self.ratio,
            masked=self.masked,
            random=self.random,
            at_least_one=self.at_least_one,
        )
        return hidden, tokens.masked_fill(~chosen, IGNORED)

    def forward(self, reading: Reading, token_mask: Tensor, mask: Tensor) -> Tensor:
        """A reading of sentences with holes, token_mask (B, L), mask (B, 1, H, W) -> logits (B, L, words)."""
        row, absent = [reading.words], ~token_mask.bool()
        if self.picture:
            x = reading.tower[self.stage]
            cells = self.project(x.flatten(2).transpose(1, 2))  # (B, h*w, width)
            where = self.place(centre(mask))[:, None]  # (B, 1, width)
            if self.pooled:
                covered = F.interpolate(mask, x.shape[2:], mode="area").flatten(2)  # (B, 1, h*w)
                where = where + covered @ cells / covered.sum(dim=2, keepdim=True).clamp(min=1e-6)
            places = coordinate_maps(x[:1]).flatten(2).transpose(1, 2)  # (1, h*w, 2)
            row = [reading.words + where, cells + self.place(places)]
            absent = F.pad(absent, (0, cells.shape[1]))
        z = torch.cat(row, dim=1)  # (B, L + h*w, width)
        for layer in self.layers:
            z = layer(z, src_key_padding_mask=absent)
        return self.guess(z[:, : token_mask.shape[1]])

    def loss(self, reading: Reading, answers: Tensor, token_mask: Tensor, mask: Tensor) -> Tensor:
        """As `forward`, with answers (B, L) -> weighted scalar; exactly 0 where nothing is asked."""
        logits = self(reading, token_mask, mask).float()
        total = F.cross_entropy(
            logits.flatten(0, 1), answers.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return self.weight * total / (answers != IGNORED).sum().clamp(min=1)


def centre(mask: Tensor) -> Tensor:
    """Where the mask (B, 1, H, W) lies: (B, 2), x and y from -1 to 1; the middle, if it is empty."""
    share = mask / mask.sum(dim=(2, 3), keepdim=True).clamp(min=1e-6)
    return (coordinate_maps(mask) * share).sum(dim=(2, 3))


def read_and_ground(network: Method, features: Any, batch: Batch) -> tuple[Reading, dict[str, Tensor]]:
    """What `network` makes its mask from in training, and {"mask_grounding": loss}, or {} without that."""
    grounding: MaskGrounding | None = network.grounding
    if grounding is None:
        return network.read(features, batch.tokens, batch.token_mask), {}
    hidden, answers = grounding.hide(batch.tokens, batch.token_mask)
    reading = network.read(features, hidden, batch.token_mask)
    loss = grounding.loss(reading, answers, batch.token_mask, batch.mask)
    if grounding.segmentation == "clean":
        reading = network.read(features, batch.tokens, batch.token_mask)
    return reading, {"mask_grounding": loss}
