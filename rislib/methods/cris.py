"""CRIS: CLIP-driven referring image segmentation (Wang et al., CVPR 2022, arXiv 2111.15174).

A picture and a sentence go through CLIP's two towers. A neck multiplies the sentence into the picture's maps
and fuses their three resolutions; a transformer decoder lets every pixel read the words; at last each pixel
is compared with the sentence itself, so that pixels of the object lie near its text and all others do not.

In the order of the code, with sentence s, words W, and image maps v3, v4, v5 at strides 8, 16, 32:

    v5 = ReLU(AttentionPool(c5) + Connect(c5))                             dense attention pool (section 3.1)
    f5 = ReLU(BN(P5(v5) * T(s)))                                           the sentence selects channels
    f4 = C4[P4(v4), up(f5)]      f3 = C3[avg(P3(v3)), f4]                   fusion down to stride 16
    F  = Conv(C[Q3(f3), Q4(f4), up(Q5(f5)); x, y])                         with coordinate maps
    F  = F + SelfAttention(F);  F = F + CrossAttention(F, W);  F = F + FFN(F)      n times (section 3.2)
    z_v = Conv(up4(F)),  z_t = Linear(s),  logit_i = z_t . z_v,i           text-to-pixel (section 3.3)
    loss = mean over pixels of: -log sigmoid(logit_i) on the object, -log(1 - sigmoid(logit_i)) elsewhere

That loss is binary cross entropy on the logits, without a temperature and without normalised vectors.
Strides are those of a full-size ResNet; the mini tower's are half of them.

What is what, where paper and published code (MIT licence) leave a choice:

    stated    f5, f4, f3, F, three decoder layers of width 512, the text-to-pixel loss; 416 px, 17 or 22 words
    code      Connect; z_t as a 3x3 kernel and a bias per sentence (kernel="conv3x3", the default, which also
              gives the paper's parameter counts) where the paper writes an inner product
              (kernel="inner_product"); layer norms after both attentions, inside the FFN and at the end;
              masks resized to stride 4 by nearest neighbour; words of id 0 are not attended to
    inferred  the classifier of the "no contrastive learning" ablation: one 1x1 convolution (its parameter
              count fits the paper's table)
    ours      logit_scale, which nothing uses, is frozen; Connect and the position tables learn at the full
              rate, everything else of CLIP at the encoders' (in the code, Connect counts as encoder). Off
              unless asked for: the Dice loss, for trainings of minutes; mask grounding, which is MagNet's
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders import clip as towers
from rislib.encoders.tokenizers import ClipTokenizer, mini_tokenizer
from rislib.methods.grounding import MaskGrounding, read_and_ground
from rislib.methods.layers import Decoder, conv_block, coordinate_maps, dice_loss, upsample
from rislib.nouns import Batch, Method, Preprocessing, Reading, named_size


@dataclass(frozen=True)
class PictureFeatures:
    """All that CRIS computes before it hears the sentence: P3(v3), P4(v4) and P5(v5) of the neck."""

    p3: Tensor  # (B, widths[0], H/16, W/16)
    p4: Tensor  # (B, widths[1], H/16, W/16)
    p5: Tensor  # (B, widths[2], H/32, W/32)


class CRIS(Method):
    """CRIS, over any CLIP whose image tower is a ResNet.

    Args:
        clip: both towers.
        tokenizer: sentences -> tokens, as `clip` was trained on them.
        size: side of the square input, pixels, a multiple of the last stride (32; mini: 16).
        neck_widths: channels of the neck at strides 8, 16 and 32. The middle one is also the decoder's width.
        decoder_layers: 0 leaves the decoder out (the paper's ablation "Dec.").
        decoder_heads, decoder_ffn, dropout: of each decoder layer.
        projector_width: channels of the projector at stride 8; half of them remain at stride 4.
        kernel: how a sentence meets a pixel, "conv3x3" or "inner_product" (see above).
        contrastive: False puts a classifier that never sees the sentence in its place (ablation "Con.").
        dice: weight of an additional Dice loss, ours: it spares short trainings the time in which cross
            entropy on few pixels answers "nothing".
        mask_resize: how the mask comes down to the logits' stride: "nearest", or "area", ours, which keeps
            the edge where a map has few cells.
        mask_grounding: weight of that loss; 0 leaves it and its head out.
        grounding: keyword arguments of `MaskGrounding`. Unless they say otherwise the sentence is segmented
            clean, as no map of the picture hears it and only the text tower runs twice, and P is p5, the
            map that comes out of the space shared with text.

    Raises:
        ValueError: `clip` has a ViT as image tower, or `kernel` is unknown.
    """

    parts: ClassVar = {
        "decoder": ({"decoder_layers": 0}, {}),
        "contrastive": ({"contrastive": False}, {}),
        "mask_grounding": ({"mask_grounding": 0.0}, {"mask_grounding": 0.1}),  # half of all loss at first
    }

    def __init__(
        self,
        clip: towers.ClipEncoder,
        tokenizer: ClipTokenizer,
        *,
        size: int = 416,
        neck_widths: tuple[int, int, int] = (256, 512, 1024),
        decoder_layers: int = 3,
        decoder_heads: int = 8,
        decoder_ffn: int = 2048,
        dropout: float = 0.1,
        projector_width: int = 512,
        kernel: Literal["conv3x3", "inner_product"] = "conv3x3",
        contrastive: bool = True,
        dice: float = 0.0,
        mask_resize: Literal["nearest", "area"] = "nearest",
        mask_grounding: float = 0.0,
        grounding: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not clip.stage_widths:
            raise ValueError("CRIS fuses maps of three resolutions: its CLIP needs a ResNet as image tower")
        c3, c4, c5 = clip.stage_widths
        width = neck_widths[1]
        self.preprocessing = Preprocessing(size=size, resize="letterbox", mean=towers.MEAN, std=towers.STD)
        self.tokenizer = tokenizer
        self.clip = clip
        self.clip.model.logit_scale.requires_grad_(False)
        self.connect = nn.Sequential(
            nn.Conv2d(c5, clip.embed_dim, 1, bias=False), nn.BatchNorm2d(clip.embed_dim)
        )
        self.neck = Neck((c3, c4, clip.embed_dim), neck_widths, sentence_width=clip.embed_dim)
        self.decoder = (
            Decoder(width, clip.text_width, decoder_layers, decoder_heads, decoder_ffn, dropout)
            if decoder_layers
            else None
        )
        self.projector = Projector(
            width, projector_width, sentence_width=clip.embed_dim, kernel=kernel if contrastive else None
        )
        self.contrastive = contrastive
        self.dice = dice
        self.mask_resize = mask_resize
        self.grounding = None
        if mask_grounding:
            words = clip.model.token_embedding.weight
            options = {"weight": mask_grounding, "segmentation": "clean", "stage": -1, **(grounding or {})}
            self.grounding = MaskGrounding(tokenizer, words, neck_widths, **options)

    def encode_image(self, image: Tensor) -> PictureFeatures:
        """image (B, 3, H, W), H and W multiples of the last stride -> PictureFeatures."""
        seen = self.clip.encode_image(image, vector=False)
        v3, v4, c5 = seen.stages
        v5 = F.relu(seen.dense + self.connect(c5))  # (B, embed_dim, H/32, W/32)
        return self.neck.project(v3, v4, v5)

    def segment(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """PictureFeatures and tokens (B, L) -> logits (B, 1, H/4, W/4). Raises as `decode`."""
        return self.decode(features, self.read(features, tokens, token_mask), token_mask)

    def read(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Reading:
        """What CLIP says of the sentence; the maps have not heard it."""
        text = self.clip.encode_text(tokens)
        return Reading(text.words, (features.p3, features.p4, features.p5), sentence=text.sentence)

    def decode(self, features: PictureFeatures, reading: Reading, token_mask: Tensor) -> Tensor:
        """The rest of `segment`.

        Raises:
            ValueError: a single sample in training mode (the sentence vector is batch-normalised).
        """
        shared = isinstance(self.neck.sentence[1], nn.SyncBatchNorm)  # with the samples of other GPUs
        if self.training and len(token_mask) == 1 and not shared:
            raise ValueError(
                "CRIS normalises sentences over the batch: train it with 2 samples or more at a time "
                "(drop the last, smaller batch), or call eval() first"
            )
        x = self.neck(features, reading.sentence)  # (B, width, H/16, W/16)
        if self.decoder is not None:
            x = self.decoder(x, reading.words, token_mask)
        return self.projector(x, reading.sentence)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"text_to_pixel": scalar} or, not contrastive, {"cross_entropy": scalar}.

        If they have a weight, also "dice" and "mask_grounding".
        """
        features = self.features(batch)
        reading, grounding = read_and_ground(self, features, batch)
        logits = self.decode(features, reading, batch.token_mask).float()
        target = F.interpolate(batch.mask, size=logits.shape[2:], mode=self.mask_resize).float()
        name = "text_to_pixel" if self.contrastive else "cross_entropy"
        losses = {name: F.binary_cross_entropy_with_logits(logits, target)}
        if self.dice:
            losses["dice"] = self.dice * dice_loss(logits, target)
        return losses | grounding

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """CLIP's, but for its position tables."""
        return [p for name, p in self.clip.named_parameters() if "positional_embedding" not in name]


class Neck(nn.Module):
    """Multiplies the sentence into the image maps and fuses these at stride 16.

    Args:
        in_widths: channels of v3, v4, v5.
        widths: channels of the projected maps.
    """

    def __init__(self, in_widths: Sequence[int], widths: tuple[int, int, int], sentence_width: int) -> None:
        super().__init__()
        (in3, in4, in5), (w3, w4, w5) = in_widths, widths
        self.p3 = conv_block(in3, w3, 3)
        self.p4 = conv_block(in4, w4, 3)
        self.p5 = conv_block(in5, w5, 1)
        self.sentence = nn.Sequential(
            nn.Linear(sentence_width, w5, bias=False), nn.BatchNorm1d(w5), nn.ReLU(inplace=True)
        )
        self.norm = nn.Sequential(nn.BatchNorm2d(w5), nn.ReLU(inplace=True))
        self.fuse4 = conv_block(w4 + w5, w4, 1)
        self.fuse3 = conv_block(w3 + w4, w4, 1)
        self.q3 = conv_block(w4, w4, 3)
        self.q4 = conv_block(w4, w4, 3)
        self.q5 = conv_block(w5, w4, 3)
        self.aggregate = conv_block(3 * w4, w4, 1)
        self.coordinates = nn.Sequential(conv_block(w4 + 2, w4, 3), conv_block(w4, w4, 3))
        self.up = upsample()

    def project(self, v3: Tensor, v4: Tensor, v5: Tensor) -> PictureFeatures:
        """The half that does not depend on the sentence."""
        return PictureFeatures(p3=F.avg_pool2d(self.p3(v3), 2), p4=self.p4(v4), p5=self.p5(v5))

    def forward(self, features: PictureFeatures, sentence: Tensor) -> Tensor:
        """PictureFeatures, sentence (B, sentence_width) -> (B, widths[1], H/16, W/16)."""
        f5 = self.norm(features.p5 * self.sentence(sentence)[:, :, None, None])  # (B, w5, H/32, W/32)
        f4 = self.fuse4(torch.cat([features.p4, self.up(f5)], dim=1))  # (B, w4, H/16, W/16)
        f3 = self.fuse3(torch.cat([features.p3, f4], dim=1))  # (B, w4, H/16, W/16)
        x = self.aggregate(torch.cat([self.q3(f3), self.q4(f4), self.up(self.q5(f5))], dim=1))
        return self.coordinates(torch.cat([x, coordinate_maps(x)], dim=1))


class Projector(nn.Module):
    """Compares every pixel, at stride 4, with the sentence.

    Args:
        kernel: "conv3x3", "inner_product", or None for a classifier that does not see the sentence.
    """

    def __init__(self, in_width: int, width: int, sentence_width: int, kernel: str | None) -> None:
        super().__init__()
        out_width = width // 2
        numbers = {"conv3x3": out_width * 9 + 1, "inner_product": out_width, None: 0}  # that a sentence gives
        if kernel not in numbers:
            raise ValueError(f"kernel must be 'conv3x3' or 'inner_product', got {kernel!r}")
        self.kernel = kernel
        self.pixels = nn.Sequential(
            upsample(),
            conv_block(in_width, width, 3),
            upsample(),
            conv_block(width, out_width, 3),
            nn.Conv2d(out_width, out_width, 1),
        )
        if kernel is None:
            self.classifier = nn.Conv2d(out_width, 1, 1)
        else:
            self.sentence = nn.Linear(sentence_width, numbers[kernel])

    def forward(self, x: Tensor, sentence: Tensor) -> Tensor:
        """x (B, in_width, h, w), sentence (B, sentence_width) -> logits (B, 1, 4h, 4w)."""
        pixels = self.pixels(x)  # (B, C, 4h, 4w)
        if self.kernel is None:
            return self.classifier(pixels)
        text = self.sentence(sentence)  # (B, 9 * C + 1) or (B, C)
        if self.kernel == "inner_product":
            return torch.einsum("bc,bchw->bhw", text, pixels)[:, None]
        batch, channels = pixels.shape[:2]
        # one group per sample, so that each meets its own kernel
        logits = F.conv2d(
            pixels.flatten(0, 1)[None],  # (1, B*C, 4h, 4w)
            weight=text[:, :-1].reshape(batch, channels, 3, 3),
            bias=text[:, -1],
            padding=1,
            groups=batch,
        )  # (1, B, 4h, 4w)
        return logits.transpose(0, 1)


# --- named sizes ------------------------------------------------------------------------------


@named_size
def cris_r50(
    pretrained: Literal["openai"] | bool | None = None, *, context_length: int = 17, **options
) -> CRIS:
    """CRIS on CLIP RN50, 146.8 M parameters, 416 px. 17 words for RefCOCO and RefCOCO+, 22 for G-Ref.

    `options` go to `CRIS`. With pretrained="openai" the towers start from OpenAI's weights.
    """
    return CRIS(towers.clip_rn50(pretrained), ClipTokenizer(context_length), **options)


@named_size
def cris_r101(
    pretrained: Literal["openai"] | bool | None = None, *, context_length: int = 17, **options
) -> CRIS:
    """CRIS on CLIP RN101, 161.3 M parameters; otherwise like `cris_r50`."""
    return CRIS(towers.clip_rn101(pretrained), ClipTokenizer(context_length), **options)


@named_size
def cris_mini(pretrained: bool = True, *, vocabulary: str | Path | None = None, **options) -> CRIS:
    """CRIS for RefMini on two CPU cores: pictures of any size seen at 96 px, at most 32 words.

    Args:
        pretrained: start from the towers that travel with the project.
        vocabulary: of the tokenizer, RefMini's unless given (then the towers cannot be pretrained).
        options: go to `CRIS`.

    Raises:
        FileNotFoundError: the shipped weights or vocabulary are not here; says what to do.
    """
    tokenizer = mini_tokenizer(vocabulary)
    clip = towers.clip_rn_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "neck_widths": (48, 96, 192),
        "decoder_layers": 2,
        "decoder_heads": 3,
        "decoder_ffn": 384,
        "dropout": 0.0,
        "projector_width": 48,
        "dice": 0.25,
        "mask_resize": "area",
    }
    return CRIS(clip, tokenizer, **(mini | options))
