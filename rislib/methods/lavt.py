"""LAVT: language-aware vision transformer (Yang et al., CVPR 2022, arXiv 2112.02244).

Words meet the picture early: after each of Swin's four stages every pixel reads the sentence, and what it
read goes back into the picture before the next stage. A plain decoder then needs no language any more.

In the order of the code, with word states L (BERT's last layer) and x_i, the map after the blocks of stage i:

    V = GELU(Conv(x_i))                                             pixel-word attention module, PWAM
    Q = InstanceNorm(Conv(x_i)),  K = Conv(L),  U = Conv(L)
    G = InstanceNorm(Conv(softmax(Q K^T / sqrt(C_i)) U))            each pixel's own summary of the words
    F_i = GELU(Conv(V * G))
    x_i+1 = blocks(downsample(x_i + S(F_i) * F_i)),  S = Tanh(Linear(ReLU(Linear)))         language gate
    Y_4 = LN(F_4),  Y_i = ConvBlocks(C[up(Y_i+1), LN(F_i)]),  logits = Conv(Y_1)            decoder
    loss = cross entropy of background and foreground at the input's size, weighted 0.9 and 1.1

PWAM's convolutions are 1x1. We give out one logit, foreground minus background: its sigmoid is the softmax of
the two, and its sign their arg max.

What is what, where there is a choice. The paper's text was not at hand; what its code (GPL) computes was:

    code      all of the above; 480 px without regard to the aspect ratio, 20 tokens; scores are divided by
              sqrt(C_i) with several heads, too; up() aligns corners; BERT's embeddings and last two layers
              never learn (`text_layers`), nor does BERT drop out in training, unlike in the repository's
              variant `lavt_one` (`text_dropout`); AdamW decays biases, too, but no parameter with "norm" or
              "relative_position_bias_table" in its name
    inferred  Dice (loss="dice"): the authors call it better than cross entropy and never released its code
    ours      the gate of stage 4, whose answer nothing reads, is frozen; what stands in PWAM's place with
              pwam=False; loss="cross_entropy+dice", for trainings of minutes; `places`, for a network too
              small to feel its borders; mask grounding, MagNet's, if asked for. What the mini owes to
              several heads and to places: 28.4 oIoU after 6,000 samples without them (seed 0), 33.4 with
              2, 4, 4, 8 heads, 35.1 with both
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders.bert import BertEncoder, WordPieceTokenizer, bert_base, bert_mini
from rislib.encoders.swin import MEAN, STD, SwinEncoder, swin_b, swin_mini
from rislib.encoders.tokenizers import ClipTokenizer, mini_tokenizer
from rislib.methods.grounding import MaskGrounding, read_and_ground
from rislib.methods.layers import Places, conv_block, dice_loss, language_gate
from rislib.nouns import Batch, Method, Preprocessing, Reading, named_size

LOSSES = ("cross_entropy", "dice", "cross_entropy+dice")
CLASS_WEIGHTS = (0.9, 1.1)  # background, foreground


@dataclass(frozen=True)
class PictureFeatures:
    """What LAVT computes before it hears the sentence: little, the first stage of four."""

    x: Tensor  # (B, H/4, W/4, C_1) after the first stage's blocks
    size: tuple[int, int]  # (H, W) of the input, and so of the logits


class LAVT(Method):
    """LAVT, over any Swin and any BERT.

    Args:
        swin, bert: the towers.
        tokenizer: sentences -> tokens, as `bert` was trained on them.
        size: side of the square input, pixels.
        heads: of the pixel-word attention, per stage.
        pwam: False lets all pixels read the same, the mean of the words, instead of attending to them.
        gate: False adds F_i to the picture as it is.
        places: tell the pixels where they lie, before they read.
        fusion_dropout: of V and F_i.
        decoder_width: channels of the decoder.
        loss: "cross_entropy", "dice" or "cross_entropy+dice".
        text_layers: so many first layers of `bert` learn, the others and the embeddings do not. None: all
            of it learns.
        text_dropout: whether `bert` drops out in training.
        mask_grounding: weight of that loss (see grounding.py); 0 leaves it and its head out.
        grounding: keyword arguments of `MaskGrounding`.

    Raises:
        ValueError: `loss` is unknown.
    """

    parts: ClassVar = {
        "pwam": ({"pwam": False}, {}),
        "gate": ({"gate": False}, {}),
        "places": ({"places": False}, {"places": True}),
        "mask_grounding": ({"mask_grounding": 0.0}, {"mask_grounding": 0.1}),  # half of all loss at first
    }

    def __init__(
        self,
        swin: SwinEncoder,
        bert: BertEncoder,
        tokenizer: WordPieceTokenizer | ClipTokenizer,
        *,
        size: int = 480,
        heads: tuple[int, int, int, int] = (1, 1, 1, 1),
        pwam: bool = True,
        gate: bool = True,
        places: bool = False,
        fusion_dropout: float = 0.0,
        decoder_width: int = 512,
        loss: Literal["cross_entropy", "dice", "cross_entropy+dice"] = "cross_entropy",
        text_layers: int | None = 10,
        text_dropout: bool = False,
        mask_grounding: float = 0.0,
        grounding: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if loss not in LOSSES:
            raise ValueError(f"loss is one of {', '.join(LOSSES)}, not {loss!r}")
        self.preprocessing = Preprocessing(size=size, resize="stretch", mean=MEAN, std=STD)
        self.tokenizer = tokenizer
        self.loss = loss
        self.text_dropout = text_dropout
        self.swin = swin
        self.bert = bert
        if text_layers is not None:
            self.bert.requires_grad_(False)
            self.bert.model.encoder.layer[:text_layers].requires_grad_(True)
        self.fusions = nn.ModuleList(
            PWAM(width, bert.width, n, fusion_dropout)
            if pwam
            else MeanFusion(width, bert.width, fusion_dropout)
            for width, n in zip(swin.widths, heads, strict=True)
        )
        self.places = nn.ModuleList(Places(width) for width in swin.widths) if places else None
        self.gates = nn.ModuleList(language_gate(width) for width in swin.widths) if gate else None
        if self.gates is not None:
            self.gates[-1].requires_grad_(False)  # published checkpoints hold it, but no stage follows it
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in swin.widths)
        self.decoder = PyramidDecoder(swin.widths, decoder_width)
        self.grounding = None
        if mask_grounding:
            words = bert.model.embeddings.word_embeddings.weight
            options = {"weight": mask_grounding, **(grounding or {})}
            self.grounding = MaskGrounding(tokenizer, words, swin.widths, **options)

    def train(self, mode: bool = True) -> LAVT:
        super().train(mode)
        if not self.text_dropout:
            self.bert.eval()  # no other part of BERT differs between training and use
        return self

    def encode_image(self, image: Tensor) -> PictureFeatures:
        """image (B, 3, H, W) of any size -> PictureFeatures.

        The cheap half: all that follows depends on the sentence, so that a second question about a
        picture costs nearly as much as the first.
        """
        return PictureFeatures(self.swin.stage(0, self.swin.embed(image)), (image.shape[2], image.shape[3]))

    def segment(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """PictureFeatures and tokens (B, L) -> logits (B, 1, H, W), foreground minus background."""
        return self.decode(self.read(features, tokens, token_mask).maps, features.size)

    def read(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Reading:
        """BERT's words, and Swin's maps after they have heard them, LN(F_1) to LN(F_4)."""
        states = self.bert(tokens, token_mask)  # (B, L, text_width)
        words, x, maps, tower = states.transpose(1, 2), features.x, [], []
        for i, (fuse, norm) in enumerate(zip(self.fusions, self.norms, strict=True)):
            if i > 0:
                x = self.swin.stage(i, self.swin.downsample(i - 1, x))  # (B, H / 4 / 2^i, W / 4 / 2^i, C_i)
            tower.append(x.permute(0, 3, 1, 2))
            fused = fuse(x if self.places is None else self.places[i](x), words, token_mask)
            maps.append(norm(fused).permute(0, 3, 1, 2))
            x = x + (fused if self.gates is None else self.gates[i](fused) * fused)
        return Reading(states, tuple(tower), tuple(maps))

    def decode(self, maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """LN(F_1) to LN(F_4) -> logits (B, 1, H, W), with `size` as H and W."""
        background, foreground = self.decoder(maps).split(1, dim=1)
        # Resizing is linear: the difference of two resized maps is the resized difference.
        return F.interpolate(foreground - background, size, mode="bilinear", align_corners=True)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"cross_entropy": scalar}, {"dice": scalar} or both, of pixels that count as object above 0.5.

        With a weight, also "mask_grounding".
        """
        features = self.features(batch)
        reading, grounding = read_and_ground(self, features, batch)
        logits = self.decode(reading.maps, features.size).float()
        target = (batch.mask > 0.5).float()
        functions = {"cross_entropy": weighted_cross_entropy, "dice": dice_loss}
        return {name: functions[name](logits, target) for name in self.loss.split("+")} | grounding

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Swin's and BERT's. The paper's recipe gives them the same rate as all others."""
        return [*self.swin.parameters(), *self.bert.parameters()]


class PWAM(nn.Module):
    """Pixel-word attention: each pixel gathers the words that matter to it and is multiplied with them.

    Padding is masked in the softmax, and so need not be multiplied by zero as in the published code. The
    order of operations is that code's: nearly equal summaries, less their mean, are sensitive to rounding.
    """

    def __init__(self, width: int, text_width: int, heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.visual = nn.Sequential(nn.Conv1d(width, width, 1), nn.GELU(), nn.Dropout(dropout))
        self.query = nn.Sequential(nn.Conv1d(width, width, 1), nn.InstanceNorm1d(width))
        self.key = nn.Conv1d(text_width, width, 1)
        self.value = nn.Conv1d(text_width, width, 1)
        self.read = nn.Sequential(nn.Conv1d(width, width, 1), nn.InstanceNorm1d(width))
        self.fuse = nn.Sequential(nn.Conv1d(width, width, 1), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, words: Tensor, token_mask: Tensor) -> Tensor:
        """x (B, h, w, width), words (B, text_width, L), token_mask (B, L), True where to look -> F like x."""
        h, w, width = x.shape[1:]
        x = x.flatten(1, 2).transpose(1, 2)  # (B, width, h*w)
        q, k, v = (
            y.unflatten(1, (self.heads, -1))  # (B, heads, width / heads, h*w or L)
            for y in (self.query(x), self.key(words), self.value(words))
        )
        scores = q.transpose(2, 3) @ k * width**-0.5  # (B, heads, h*w, L)
        scores = scores.masked_fill(~token_mask.bool()[:, None, None], -torch.inf)
        summary = scores.softmax(dim=3) @ v.transpose(2, 3)  # (B, heads, h*w, width / heads)
        summary = self.read(summary.transpose(1, 2).flatten(2).transpose(1, 2))  # (B, width, h*w)
        fused = self.fuse(self.visual(x) * summary)
        return fused.transpose(1, 2).unflatten(1, (h, w))


class MeanFusion(nn.Module):
    """PWAM without its attention (ours, for comparison): every pixel meets the mean of the words.

    Without instance norms, too: they subtract whatever all pixels have in common, here everything.
    """

    def __init__(self, width: int, text_width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.visual = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))
        self.value = nn.Linear(text_width, width)
        self.read = nn.Linear(width, width)
        self.fuse = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout))

    def forward(self, x: Tensor, words: Tensor, token_mask: Tensor) -> Tensor:
        """x (B, h, w, width), words (B, text_width, L), token_mask (B, L), True where to look -> F like x."""
        mask = token_mask.to(words.dtype)[:, :, None]  # (B, L, 1)
        mean = (words @ mask)[:, :, 0] / mask.sum(dim=1)  # (B, text_width)
        summary = self.read(self.value(mean))  # (B, width)
        return self.fuse(self.visual(x) * summary[:, None, None])


class PyramidDecoder(nn.Module):
    """Joins four maps from the coarsest to the finest, and classifies pixels at the finest.

    Args:
        widths: channels of the maps, finest first.
        width: channels of what it computes.
    """

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        first, second, third, last = widths
        self.join3 = nn.Sequential(conv_block(last + third, width, 3), conv_block(width, width, 3))
        self.join2 = nn.Sequential(conv_block(width + second, width, 3), conv_block(width, width, 3))
        self.join1 = nn.Sequential(conv_block(width + first, width, 3), conv_block(width, width, 3))
        self.classify = nn.Conv2d(width, 2, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """maps (B, widths[i], h / 2^i, w / 2^i) -> logits of background and foreground (B, 2, h, w)."""
        first, second, third, y = maps
        for join, finer in ((self.join3, third), (self.join2, second), (self.join1, first)):
            y = F.interpolate(y, finer.shape[2:], mode="bilinear", align_corners=True)
            y = join(torch.cat([y, finer], dim=1))
        return self.classify(y)


def weighted_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of two classes of CLASS_WEIGHTS, from the difference of their logits.

    logits (B, 1, H, W), foreground minus background, target 0 or 1 of the same shape -> scalar, divided by
    the sum of the pixels' weights.
    """
    background, foreground = CLASS_WEIGHTS
    weight = background + (foreground - background) * target
    return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum") / weight.sum()


# --- named sizes ------------------------------------------------------------------------------


@named_size
def lavt(
    pretrained: bool | None = None,
    *,
    vocab_file: str | Path | None = None,
    drop_path: float = 0.3,
    **options,
) -> LAVT:
    """LAVT on Swin-B and BERT-base, 227.7 M parameters, 480 px, 20 tokens.

    Args:
        pretrained: start from Swin-B of ImageNet-22k and bert-base-uncased, from the Hugging Face hub.
        vocab_file: bert-base-uncased's vocab.txt; without it, the first sentence asks the hub for it.
        drop_path: of Swin, in training.
        options: go to `LAVT`.
    """
    swin = swin_b(pretrained, drop_path=drop_path)
    return LAVT(swin, bert_base(pretrained), WordPieceTokenizer(vocab_file), **options)


@named_size
def lavt_mini(pretrained: bool = True, *, vocabulary: str | Path | None = None, **options) -> LAVT:
    """LAVT for RefMini on two CPU cores: pictures of any size seen at 96 px, at most 32 words.

    Args:
        pretrained: start from the towers that travel with the project.
        vocabulary: of the tokenizer, RefMini's unless given (then the towers cannot be pretrained).
        options: go to `LAVT`.

    Raises:
        FileNotFoundError: the shipped weights or vocabulary are not here; says what to do.
    """
    tokenizer = mini_tokenizer(vocabulary)
    swin, bert = swin_mini(pretrained), bert_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "heads": (4, 8, 8, 8),
        "places": True,
        "decoder_width": 64,
        "text_layers": None,
        "loss": "cross_entropy+dice",
    }
    return LAVT(swin, bert, tokenizer, **(mini | options))
