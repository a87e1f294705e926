"""MagNet: mask grounding for referring image segmentation (Chng et al., CVPR 2024, arXiv 2312.12198).

Picture and sentence are read side by side: after each of Swin's four stages BERT has gone on by a quarter of
its layers, every pixel has read the words, every word has read the pixels, and both go on with what they
read. The pixels also read in the large, on maps pooled to a few cells. Mask2Former's head makes the mask.

In the order of the code, with map x_i after the blocks of stage i, and words l_i after 3 i layers of BERT:

    G = LN(Linear(softmax(Q K^T / sqrt(C_i)) U)),  Q = LN(Linear(x)), K = Conv(l), U = Conv(l)
    F(x, l) = GELU(Conv(GELU(Conv(x)) * G))                               pixels read words (LAVT's PWAM)
    P_p = up(F(Conv(GELU(Conv(LN(Conv(pool_p(x_i)))))), l_i))             p x p cells, p = 1, 2, 3, 6
    Y_i = GELU(Linear(LN(Linear(C[P_1, P_2, P_3, P_6, F(x_i, l_i)]))))    cross-modal alignment module, CAM
    H = IN(Conv(softmax(Q K^T / sqrt(768)) U)),  Q = Conv(l), K = IN(Conv(x)), U = IN(Conv(x))
    T(l, x) = GELU(Conv(GELU(Linear(l)) * H))                             words read pixels
    x_i+1 = blocks(downsample(x_i + S(F_i) F_i)),  S = Tanh(Linear(GELU(Linear)))
    l_i+1 = layers(l_i + S(T_i) T_i),              S = Tanh(Linear(ReLU(Linear)))
    logits = Mask2Former(Y_1, Y_2, Y_3, Y_4)                              see mask2former.py
    loss = sum over the head's guesses of 5 BCE + 5 Dice

All convolutions are 1x1; LN normalises channels, IN each channel over all pixels or all words.

What is what, where there is a choice. Of the paper only the abstract was at hand, of its code (AGPL) what
it computes, and that it does not train:

    code      all of the above but the loss; 480 px without regard to the aspect ratio, 20 tokens; only F_i,
              not the pooled maps, goes back into the picture; logits are resized to 480 px, corners aligned
    inferred  the loss: Mask2Former's, with its weights; targets are the mask's mean over each pixel of the
              logits, all of them count alike (Mask2Former takes random points)
    ours      in the released code every real word reads the same mean over all pixels, as its mask for words
              is 0 at words and -10000 at padding: what a word then reads does not depend on the picture. We
              correct that, and IN over words leaves padding out. `released_text_mask=True` is for published
              weights: it brings the error back;
              gates="closed" begins with the second matrix of a gate at zero. In the released code both
              matrices of the text gates are, so that they never learn; the picture's are small and random
    unread    `unread`, gates and T of stage 4, the head's `classify`: published checkpoints hold them, but
              no mask depends on them. They are frozen. `unread.image_norms` is left over from LAVT;
              `unread.text_norms`, of T, and `unread.text_projection`, from words to the head's pixels,
              served losses that were not released
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders import shipped_file
from rislib.encoders.bert import BertEncoder, WordPieceTokenizer, bert_base, bert_mini
from rislib.encoders.swin import MEAN, STD, SwinEncoder, swin_b, swin_mini
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.methods.layers import dice_loss
from rislib.methods.mask2former import Mask2Former, Prediction
from rislib.nouns import Batch, Method, Preprocessing, named_size


class MagNet(Method):
    """MagNet's network, over any Swin and any BERT. Its mask grounding is not here yet.

    Args:
        swin, bert: the towers; the number of `bert`'s layers is a multiple of four.
        tokenizer: sentences -> tokens, as `bert` was trained on them.
        size: side of the square input, pixels.
        pyramid: sides of the pooled maps, in cells. () leaves them out.
        text_fusion: False leaves the words alone: they never see the picture.
        gates: how gates begin, "closed" (both towers at first compute what they were pretrained to) or
            "small" (nearly closed).
        released_text_mask: compute what the released code computes (see above).
        bce, dice: weights of the two losses.
        head: keyword arguments of `Mask2Former`, such as `decoder_layers`.

    Raises:
        ValueError: `bert` cannot be cut into four, or `gates` is unknown.
    """

    def __init__(
        self,
        swin: SwinEncoder,
        bert: BertEncoder,
        tokenizer: WordPieceTokenizer | ClipTokenizer,
        *,
        size: int = 480,
        pyramid: Sequence[int] = (1, 2, 3, 6),
        text_fusion: bool = True,
        gates: Literal["closed", "small"] = "closed",
        released_text_mask: bool = False,
        bce: float = 5.0,
        dice: float = 5.0,
        **head,
    ) -> None:
        super().__init__()
        if bert.depth % len(swin.widths):
            raise ValueError(f"{bert.depth} layers of BERT cannot be shared out to {len(swin.widths)} stages")
        if gates not in ("closed", "small"):
            raise ValueError(f"gates begin 'closed' or 'small', not {gates!r}")
        widths, text_width, closed = swin.widths, bert.width, gates == "closed"
        self.preprocessing = Preprocessing(size=size, resize="stretch", mean=MEAN, std=STD)
        self.tokenizer = tokenizer
        self.bce, self.dice = bce, dice
        self.swin = swin
        self.bert = bert
        self.cams = nn.ModuleList(CAM(width, text_width, pyramid) for width in widths)
        self.image_gates = nn.ModuleList(gate(width, nn.GELU(), closed) for width in widths)
        self.text_fusions = self.text_gates = None
        if text_fusion:
            self.text_fusions = nn.ModuleList(
                WordPixelAttention(text_width, width, released_mask=released_text_mask) for width in widths
            )
            self.text_gates = nn.ModuleList(gate(text_width, nn.ReLU(), closed) for _ in widths)
        self.head = Mask2Former(widths, **head)
        self.unread = nn.ModuleDict(
            {
                "image_norms": nn.ModuleList(nn.LayerNorm(width) for width in widths),
                "text_norms": nn.ModuleList(nn.LayerNorm(text_width) for _ in widths),
                "text_projection": nn.Linear(text_width, self.head.norm.normalized_shape[0]),
            }
        )
        for part in (self.unread, self.head.classify, self.image_gates[-1]):
            part.requires_grad_(False)
        if text_fusion:
            self.text_fusions[-1].requires_grad_(False)
            self.text_gates[-1].requires_grad_(False)

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer(expressions)

    def encode_image(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) of any size -> x_1, the map after Swin's first stage (B, H/4, W/4, C_1).

        The cheap part: all that follows depends on the sentence, so that a second question about a picture
        costs nearly as much as the first.
        """
        return self.swin.stage(0, self.swin.embed(image))

    def segment(self, features: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """x_1 (B, H/4, W/4, C_1) and tokens (B, L) -> logits (B, 1, H/4, W/4)."""
        return self.predict(features, tokens, token_mask).masks[-1]

    def predict(self, features: Tensor, tokens: Tensor, token_mask: Tensor) -> Prediction:
        """Like `segment`, with all that the head says: its ten guesses at the mask, and pixel vectors."""
        maps, _ = self.read(features, tokens, token_mask)
        return self.head(maps)

    def read(self, x: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[list[Tensor], Tensor]:
        """Both towers, side by side. x_1 (B, H/4, W/4, C_1) and tokens (B, L) -> Y_1 to Y_4, and words l_4.

        Y_i is (B, H / 4 / 2^(i-1), W / 4 / 2^(i-1), C_i); words are (B, L, text width).
        """
        words, maps, last = self.bert.embed(tokens), [], len(self.cams) - 1
        step = self.bert.depth // len(self.cams)
        for i, cam in enumerate(self.cams):
            if i > 0:
                x = self.swin.stage(i, self.swin.downsample(i - 1, x))
            words = self.bert.layers(words, token_mask, i * step, (i + 1) * step)
            mixed, fused = cam(x, words, token_mask)
            maps.append(mixed)
            if i < last and self.text_fusions is not None:
                read = self.text_fusions[i](words, x, token_mask)
                words = words + self.text_gates[i](read) * read
            if i < last:
                x = x + self.image_gates[i](fused) * fused
        return maps, words

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"mask_bce": scalar, "dice": scalar}, weighted, each the sum over all guesses of the head."""
        guesses = self.predict(self.features(batch), batch.tokens, batch.token_mask).masks
        target = F.interpolate(batch.mask, guesses[0].shape[2:], mode="area").float()
        guesses = [guess.float() for guess in guesses]
        return {
            "mask_bce": self.bce * sum(F.binary_cross_entropy_with_logits(g, target) for g in guesses),
            "dice": self.dice * sum(dice_loss(g, target) for g in guesses),
        }

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Swin's and BERT's."""
        return [*self.swin.parameters(), *self.bert.parameters()]


class Pointwise(nn.Linear):
    """A convolution 1x1 whose channels come last: a linear layer, its weight in the published shape.

    Args:
        dims: 1 or 2, of the convolution.
    """

    def __init__(self, in_width: int, out_width: int, *, dims: int = 1, bias: bool = True) -> None:
        super().__init__(in_width, out_width, bias=bias)
        self.weight = nn.Parameter(self.weight.detach()[(..., *[None] * dims)])

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_width) -> (..., out_width)"""
        return F.linear(x, self.weight.flatten(1), self.bias)


class PixelWordAttention(nn.Module):
    """Pixels read words: LAVT's PWAM, with layer norms where that has instance norms."""

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.visual = nn.Sequential(Pointwise(width, width), nn.GELU())
        self.query = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.key = Pointwise(text_width, width)
        self.value = Pointwise(text_width, width)
        self.read = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.fuse = nn.Sequential(Pointwise(width, width), nn.GELU())

    def forward(self, x: Tensor, words: Tensor, token_mask: Tensor) -> Tensor:
        """x (B, h, w, width), words (B, L, text_width), token_mask (B, L), True where to look -> F like x."""
        summary = F.scaled_dot_product_attention(
            self.query(x).flatten(1, 2),  # (B, h*w, width)
            self.key(words),
            self.value(words),
            attn_mask=token_mask.bool()[:, None],
        )
        return self.fuse(self.visual(x) * self.read(summary).unflatten(1, x.shape[1:3]))


class WordPixelAttention(nn.Module):
    """Words read pixels.

    Args:
        released_mask: with the released code's error in the mask.
    """

    def __init__(self, width: int, image_width: int, *, released_mask: bool = False) -> None:
        super().__init__()
        self.released_mask = released_mask
        self.visual = nn.Sequential(nn.Linear(width, width), nn.GELU())
        self.query = Pointwise(width, width)
        self.key = Pointwise(image_width, width)
        self.value = Pointwise(image_width, width)
        self.read = Pointwise(width, width)
        self.fuse = nn.Sequential(Pointwise(width, width), nn.GELU())

    def forward(self, words: Tensor, x: Tensor, token_mask: Tensor) -> Tensor:
        """words (B, L, width), x (B, h, w, image_width), token_mask (B, L), True at words -> T like words."""
        mask, x = token_mask[:, :, None].to(words.dtype), x.flatten(1, 2)  # (B, L, 1), (B, h*w, image_width)
        query = self.query(words)
        if self.released_mask:
            query, mask = query * (mask - 1) * 10000, torch.ones_like(mask)
        every_pixel = torch.ones_like(x[:, :, :1])
        summary = F.scaled_dot_product_attention(
            query, instance_norm(self.key(x), every_pixel), instance_norm(self.value(x), every_pixel)
        )
        return self.fuse(self.visual(words) * instance_norm(self.read(summary), mask))


def instance_norm(x: Tensor, mask: Tensor) -> Tensor:
    """Each channel of x (B, N, C) to mean 0 and variance 1 over those of N where mask (B, N, 1) is 1."""
    count = mask.sum(dim=1, keepdim=True)
    x = x - (x * mask).sum(dim=1, keepdim=True) / count
    variance = (x.square() * mask).sum(dim=1, keepdim=True) / count
    return x * torch.rsqrt(variance + 1e-5)


class CAM(nn.Module):
    """The picture's side of the cross-modal alignment module: pixels read words, finely and in the large."""

    def __init__(self, width: int, text_width: int, pyramid: Sequence[int]) -> None:
        super().__init__()
        self.fusion = PixelWordAttention(width, text_width)
        self.pyramids = nn.ModuleList(
            nn.Sequential(
                Pool(cells),
                Pointwise(width, 4 * width, dims=2, bias=False),
                nn.LayerNorm(4 * width, eps=1e-6),
                Pointwise(4 * width, width, dims=2, bias=False),
                nn.GELU(),
                Pointwise(width, width // 4, dims=2, bias=False),
            )
            for cells in pyramid
        )
        self.fusions = nn.ModuleList(PixelWordAttention(width // 4, text_width) for _ in pyramid)
        self.mixer = nn.Sequential(
            nn.Linear(width + len(pyramid) * (width // 4), width),
            nn.LayerNorm(width),
            nn.Linear(width, width),
            nn.GELU(),
        )

    def forward(self, x: Tensor, words: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, h, w, width), words (B, L, text_width), token_mask (B, L) -> Y and F, both like x."""
        parts = []
        for pool, fuse in zip(self.pyramids, self.fusions, strict=True):
            part = fuse(pool(x), words, token_mask).permute(0, 3, 1, 2)  # (B, width/4, cells, cells)
            part = F.interpolate(part, x.shape[1:3], mode="bilinear", align_corners=True)
            parts.append(part.permute(0, 2, 3, 1))
        fused = self.fusion(x, words, token_mask)
        return self.mixer(torch.cat([*parts, fused], dim=3)), fused


class Pool(nn.AdaptiveAvgPool2d):
    """The means of cells x cells areas: (B, h, w, C) -> (B, cells, cells, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def gate(width: int, activation: nn.Module, closed: bool) -> nn.Sequential:
    """How much of what was read goes on: (..., width) -> (..., width) in [-1, 1], at first 0 if `closed`."""
    first, second = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
    nn.init.trunc_normal_(first.weight, std=0.02)
    nn.init.trunc_normal_(second.weight, std=0.02)
    if closed:
        nn.init.zeros_(second.weight)  # it alone: were both zero, neither would have a gradient
    return nn.Sequential(first, activation, second, nn.Tanh())


# --- named sizes ------------------------------------------------------------------------------


@named_size
def magnet(
    pretrained: bool | None = None,
    *,
    vocab_file: str | Path | None = None,
    drop_path: float = 0.3,
    **options,
) -> MagNet:
    """MagNet on Swin-B and BERT-base, 297.0 M parameters, 480 px, 20 tokens.

    Args:
        pretrained: start from Swin-B of ImageNet-22k and bert-base-uncased, from the Hugging Face hub.
        vocab_file: bert-base-uncased's vocab.txt; without it, the first sentence asks the hub for it.
        drop_path: of Swin, in training.
        options: go to `MagNet`.
    """
    swin = swin_b(pretrained, drop_path=drop_path)
    return MagNet(swin, bert_base(pretrained), WordPieceTokenizer(vocab_file), **options)


@named_size
def magnet_mini(pretrained: bool = True, *, vocabulary: str | Path | None = None, **options) -> MagNet:
    """MagNet for RefMini on two CPU cores: pictures of any size seen at 96 px, at most 32 words.

    Args:
        pretrained: start from the towers that travel with the project.
        vocabulary: of the tokenizer, RefMini's unless given (then the towers cannot be pretrained).
        options: go to `MagNet`.

    Raises:
        FileNotFoundError: the shipped weights or vocabulary are not here; says what to do.
    """
    tokenizer = ClipTokenizer(32, vocabulary or shipped_file("vocab/refmini.txt"), trim=True)
    swin, bert = swin_mini(pretrained), bert_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "pyramid": (1, 2, 3),
        "width": 64,
        "heads": 4,
        "encoder_layers": 2,
        "encoder_ffn": 128,
        "decoder_layers": 3,
        "decoder_ffn": 128,
    }
    return MagNet(swin, bert, tokenizer, **(mini | options))
