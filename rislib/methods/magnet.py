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
         + mask grounding: hidden words are guessed from l_4, x_3 and M   see grounding.py
         + CAL: the head's pixel vectors and l_4 find each other          see alignment.py

All convolutions are 1x1; LN normalises channels, IN each channel over all pixels or all words.

What is what, where there is a choice. Only the paper's abstract was at hand. Its code (AGPL) shows what
is computed, but contains no training:

    code      all of the above but the loss; 480 px without regard to the aspect ratio, 20 tokens; only F_i,
              not the pooled maps, goes back into the picture; logits are resized to 480 px, corners aligned
    inferred  the masks' loss: Mask2Former's, with its weights; targets are the mask's mean over each pixel of
              the logits, all of them count alike (Mask2Former takes random points). The weights of the
              other losses
    ours      in the released code every real word reads the same mean over all pixels, as its mask for words
              is 0 at words and -10000 at padding: what a word then reads does not depend on the picture. We
              correct that, and IN over words leaves padding out. `released_text_mask=True` is for published
              weights: it brings the error back.
              gates="closed" begins with the second matrix of a gate at zero. In the released code both
              matrices of the text gates are, so that they never learn; the picture's are small and random.
              `fusion_heads` and `places`: the mini needs them, as LAVT's does
    unread    `unread`, gates and T of stage 4, the head's `classify`: published checkpoints hold them, but
              no mask depends on them. They are frozen. `unread.image_norms` is left over from LAVT,
              `unread.text_norms` are of T. `text_projection`, from words to the head's pixels, is CAL's alone
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders.bert import BertEncoder, WordPieceTokenizer, bert_base, bert_mini
from rislib.encoders.swin import MEAN, STD, SwinEncoder, swin_b, swin_mini
from rislib.encoders.tokenizers import ClipTokenizer, mini_tokenizer
from rislib.methods.alignment import alignment_losses
from rislib.methods.grounding import MaskGrounding, read_and_ground
from rislib.methods.layers import (
    PixelWordAttention,
    Places,
    Pointwise,
    WordPixelAttention,
    dice_loss,
    language_gate,
)
from rislib.methods.mask2former import Mask2Former, Prediction
from rislib.nouns import Batch, Method, Preprocessing, Reading, named_size


class MagNet(Method):
    """MagNet, over any Swin and any BERT.

    Args:
        swin, bert: the towers; the number of `bert`'s layers is a multiple of four.
        tokenizer: sentences -> tokens, as `bert` was trained on them.
        size: side of the square input, pixels.
        fusion_heads: of the attention between words and pixels, per stage.
        places: tell the pixels where they lie, before they read.
        pyramid: sides of the pooled maps, in cells. () leaves them out.
        text_fusion: False leaves the words alone: they never see the picture.
        gates: how gates begin, "closed" (both towers at first compute what they were pretrained to) or
            "small" (nearly closed).
        released_text_mask: compute what the released code computes (see above).
        bce, dice: weights of the two losses of masks.
        mask_grounding: weight of that loss; 0 leaves it and its head out.
        grounding: keyword arguments of `MaskGrounding`.
        cal: weight of the cross-modal alignment loss; 0 leaves it out.
        alignment: keyword arguments of `alignment_losses`.
        head: keyword arguments of `Mask2Former`, such as `decoder_layers`.

    Raises:
        ValueError: `bert` cannot be cut into four, or `gates` is unknown.
    """

    parts: ClassVar = {
        "mask_grounding": ({"mask_grounding": 0.0}, {}),
        "cam": ({"pyramid": ()}, {}),
        "cal": ({"cal": 0.0}, {}),
        "text_fusion": ({"text_fusion": False}, {}),
        "places": ({"places": False}, {"places": True}),
    }

    def __init__(
        self,
        swin: SwinEncoder,
        bert: BertEncoder,
        tokenizer: WordPieceTokenizer | ClipTokenizer,
        *,
        size: int = 480,
        fusion_heads: Sequence[int] = (1, 1, 1, 1),
        places: bool = False,
        pyramid: Sequence[int] = (1, 2, 3, 6),
        text_fusion: bool = True,
        gates: Literal["closed", "small"] = "closed",
        released_text_mask: bool = False,
        bce: float = 5.0,
        dice: float = 5.0,
        mask_grounding: float = 1.0,
        grounding: Mapping[str, Any] | None = None,
        cal: float = 0.5,
        alignment: Mapping[str, Any] | None = None,
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
        self.cal, self.alignment = cal, dict(alignment or {})
        self.swin = swin
        self.bert = bert
        self.cams = nn.ModuleList(
            CAM(width, text_width, pyramid, heads) for width, heads in zip(widths, fusion_heads, strict=True)
        )
        self.places = nn.ModuleList(Places(width) for width in widths) if places else None
        self.image_gates = nn.ModuleList(language_gate(width, nn.GELU, closed=closed) for width in widths)
        self.text_fusions = self.text_gates = None
        if text_fusion:
            self.text_fusions = nn.ModuleList(
                WordPixelAttention(text_width, width, heads, released_mask=released_text_mask)
                for width, heads in zip(widths, fusion_heads, strict=True)
            )
            self.text_gates = nn.ModuleList(language_gate(text_width, closed=closed) for _ in widths)
        self.head = Mask2Former(widths, **head)
        self.unread = nn.ModuleDict(
            {
                "image_norms": nn.ModuleList(nn.LayerNorm(width) for width in widths),
                "text_norms": nn.ModuleList(nn.LayerNorm(text_width) for _ in widths),
            }
        )
        self.text_projection = nn.Linear(text_width, self.head.norm.normalized_shape[0])
        self.text_projection.requires_grad_(bool(cal))
        for part in (self.unread, self.head.classify, self.image_gates[-1]):
            part.requires_grad_(False)
        if text_fusion:
            self.text_fusions[-1].requires_grad_(False)
            self.text_gates[-1].requires_grad_(False)
        self.grounding = None
        if mask_grounding:
            words = bert.model.embeddings.word_embeddings.weight
            options = {"weight": mask_grounding, **(grounding or {})}
            self.grounding = MaskGrounding(tokenizer, words, widths, **options)

    def encode_image(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) of any size -> x_1, the map after Swin's first stage (B, H/4, W/4, C_1).

        The cheap part: all that follows depends on the sentence, so that a second question about a picture
        costs nearly as much as the first.
        """
        return self.swin.stage(0, self.swin.embed(image))

    def segment(self, features: Tensor, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """x_1 (B, H/4, W/4, C_1) and tokens (B, L) -> logits (B, 1, H/4, W/4)."""
        return self.decode(self.read(features, tokens, token_mask)).masks[-1]

    def decode(self, reading: Reading) -> Prediction:
        """All that the head says: its ten guesses at the mask, and pixel vectors."""
        return self.head([y.permute(0, 2, 3, 1) for y in reading.maps])

    def read(self, features: Tensor, tokens: Tensor, token_mask: Tensor) -> Reading:
        """Both towers, side by side. x_1 (B, H/4, W/4, C_1) and tokens (B, L) -> words l_4, maps Y_1 to Y_4.

        Y_i is (B, C_i, H / 4 / 2^(i-1), W / 4 / 2^(i-1)).
        """
        x, words, maps, tower = features, self.bert.embed(tokens), [], []
        last = len(self.cams) - 1
        step = self.bert.depth // len(self.cams)
        for i, cam in enumerate(self.cams):
            if i > 0:
                x = self.swin.stage(i, self.swin.downsample(i - 1, x))
            tower.append(x.permute(0, 3, 1, 2))
            words = self.bert.layers(words, token_mask, i * step, (i + 1) * step)
            mixed, fused = cam(x if self.places is None else self.places[i](x), words, token_mask)
            maps.append(mixed.permute(0, 3, 1, 2))
            if i < last and self.text_fusions is not None:
                read = self.text_fusions[i](words, x, token_mask)
                words = words + self.text_gates[i](read) * read
            if i < last:
                x = x + self.image_gates[i](fused) * fused
        return Reading(words, tuple(tower), tuple(maps))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"mask_bce": scalar, "dice": scalar}, weighted, each the sum over all guesses of the head.

        If they have a weight, also "pixel_to_pixel" and "pixel_to_text" of CAL, and "mask_grounding".
        """
        reading, grounding = read_and_ground(self, self.features(batch), batch)
        prediction = self.decode(reading)
        guesses = [guess.float() for guess in prediction.masks]
        target = F.interpolate(batch.mask, guesses[0].shape[2:], mode="area").float()
        losses = {
            "mask_bce": self.bce * sum(F.binary_cross_entropy_with_logits(g, target) for g in guesses),
            "dice": self.dice * sum(dice_loss(g, target) for g in guesses),
        }
        if self.cal:
            words = self.text_projection(reading.words)
            cal = alignment_losses(prediction.pixels, words, batch.token_mask, batch.mask, **self.alignment)
            losses |= {name: self.cal * loss for name, loss in cal.items()}
        return losses | grounding

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """Swin's and BERT's."""
        return [*self.swin.parameters(), *self.bert.parameters()]


class CAM(nn.Module):
    """The picture's side of the cross-modal alignment module: pixels read words, finely and in the large."""

    def __init__(self, width: int, text_width: int, pyramid: Sequence[int], heads: int) -> None:
        super().__init__()
        self.fusion = PixelWordAttention(width, text_width, heads)
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
        self.fusions = nn.ModuleList(PixelWordAttention(width // 4, text_width, heads) for _ in pyramid)
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


# --- named sizes ------------------------------------------------------------------------------


@named_size
def magnet(
    pretrained: bool | None = None,
    *,
    vocab_file: str | Path | None = None,
    drop_path: float = 0.3,
    **options,
) -> MagNet:
    """MagNet on Swin-B and BERT-base, 297.0 M parameters and the head of mask grounding; 480 px, 20 tokens.

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
    tokenizer = mini_tokenizer(vocabulary)
    swin, bert = swin_mini(pretrained), bert_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "fusion_heads": (4, 8, 8, 8),
        "places": True,
        "pyramid": (1, 2, 3),
        "width": 64,
        "heads": 4,
        "points": 1,  # with two, reading points costs 40 % of a training step
        "encoder_layers": 1,
        "encoder_ffn": 128,
        "decoder_layers": 3,
        "decoder_ffn": 128,
    }
    return MagNet(swin, bert, tokenizer, **(mini | options))
