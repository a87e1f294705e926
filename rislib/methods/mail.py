"""MaIL: a mask-image-language network (Li, Wang, Mei, Liu, 2021, arXiv 2111.10747).

No encoder is for the picture alone, and none for the sentence. Masks of whatever a segmenter found in the
picture, patches of the picture, and words are three lanes of tokens, and one transformer, ViLT, reads them
together. Then the masks are chosen that the sentence is about, and a decoder draws the answer.

In the order of the code, with masks M_1 ... M_N, picture I, words T, and the null mask M_0, which is 1
everywhere, so that there is always one to choose:

    v_I = C[class, Patches(I)] + places,  v_M = C[class, Tokens(M)] + places,  v_L = Words(T) + places
    z_L, z_I, z_M = ViLT(v_L + t_L, v_I + t_I, v_M + t_M)            trimodal embedding (t: types), encoder
    F_I = z_I and F_i = z_M as maps: of the picture, of mask i       without the class tokens
    a = softmax of how well F_i and F_I agree inside each mask       adaptive mask selection (AMS)
    F_M = sum over i of a_i m_i F_i                                  m_i: M_i, averaged over each patch
    logits = Conv(Up(Block( ... Up(Block(C[F_M, F_I, O])) ... )))    decoder; O: where each cell lies
             + k sum over i > 0 of a_i (2 M_i - 1)                   if asked for: "outlines", k is learned
    loss = mean over pixels of the binary cross entropy of logits and mask

Block is a convolution 3x3, BN and ReLU; Up doubles the size. After the encoder nobody asks the words again.
What Tokens(M) may be, and how a is made: see instances.py.

No code was ever released, and of the paper only figure, abstract and lists of results were at hand:

    stated    three lanes, each with positions and a type of its own; masks and picture cut into patches, with
              a linear layer; ViLT's weights; masks that a segmenter made before; AMS, of z_M, F_I and the raw
              masks; C[F_M, F_I, O]; five Blocks with Up
    recalled  Mask R-CNN as the segmenter
    inferred  everything else. ViLT-B/32; 416 px, stretched; 20 tokens; N = 16, in the order of their scores;
              tokens "A"; class tokens; masks' positions and type begin as the picture's; all of AMS, and its
              other forms; O, CMPC's eight numbers, or without; channels 512, 256, 128, 64, 32; the loss; one
              more that tells AMS which masks fit (IoU of 0.5 or more, M_0 if none), off
    ours      in training, masks are dropped and moved a little: segmenters are better where they learned;
              B's and C's details. Off unless asked for: Dice, for trainings of minutes; outlines: if
              a is right, it already draws the mask, so the loss on the mask also teaches a

Unknown, wherever our numbers stand: resolution, text length, N and segmenter, how masks become tokens, AMS
and what its rho is, what O is, the decoder's widths, loss and recipe. And ViLT has seen captions of pictures
that RefCOCO tests on. Mask grounding is not offered: a joint encoder has no map of the picture, but for raw
patches, that has not heard the words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders.bert import WordPieceTokenizer
from rislib.encoders.tokenizers import ClipTokenizer, mini_tokenizer
from rislib.encoders.vilt import MEAN, STD, ViltEncoder, vilt_b32, vilt_mini
from rislib.methods.instances import MaskLane, MaskSelection, fitting, selected, spoil
from rislib.methods.layers import dice_loss, expect_one_of, mask_head
from rislib.nouns import Batch, Method, Preprocessing, named_size


@dataclass(frozen=True)
class PictureFeatures:
    """What MaIL computes before it hears the sentence: tokens, M of them from masks; M_0 comes last."""

    image: Tensor  # (B, 1 + h*w, C), v_I + t_I
    grid: tuple[int, int]  # (h, w), of the patches
    masks: Tensor | None = None  # (B, M, C), v_M + t_M; None, as the next two, without a mask lane
    seen: Tensor | None = None  # (B, M) bool, False at the tokens of empty masks
    inside: Tensor | None = None  # (B, N + 1, h*w), m_i
    outlines: Tensor | None = None  # (B, N, H, W), M_i, if the network asks for them


@dataclass(frozen=True)
class Encoded:
    """What MaIL knows when all has been read, and before it makes a mask. The class tokens are left out."""

    words: Tensor  # (B, L, C), z_L
    image: Tensor  # (B, h*w, C), F_I
    masks: Tensor | None = None  # F_i: "A" (B, 1, h*w, C), "B" (B, N + 1, 1, C), "C" (B, N + 1, h*w, C)
    scores: Tensor | None = None  # (B, N + 1), s_i, -inf where a mask is empty


class MaIL(Method):
    """MaIL, over any ViLT.

    Args:
        vilt: the encoder.
        tokenizer: sentences -> tokens, as `vilt` was trained on them.
        size: side of the square input, pixels, a multiple of the patch's side.
        instances: N, so many masks of each picture are read, the first. 0: no mask lane, and no AMS.
        mask_tokens: "A", "B" or "C" (see instances.py).
        selection: "soft", "hard", "sigmoid", "mlp", or None (see instances.py).
        coordinates: False leaves O out.
        decoder_widths: channels of the decoder's blocks. Each of them doubles the map.
        decoder_kernel: size of its last convolution. With few channels, 1x1 finds its scale slowly.
        mask_drop: in training, each mask is forgotten so often.
        mask_jitter: in training, each mask is moved by up to so much of the picture's side, down and across.
        dice: weight of an additional Dice loss, ours.
        selection_loss: weight of the auxiliary loss of AMS.
        outlines: the chosen masks, at the input's size, are added to the logits (see above), ours.

    Raises:
        ValueError: a name is unknown, or a loss or outlines are asked of no selection.
    """

    parts: ClassVar = {
        "masks": ({"instances": 0}, {}),
        "selection": ({"selection": None}, {}),
        "coordinates": ({"coordinates": False}, {}),
    }
    reads_instances: ClassVar = True

    def __init__(
        self,
        vilt: ViltEncoder,
        tokenizer: WordPieceTokenizer | ClipTokenizer,
        *,
        size: int = 416,
        instances: int = 16,
        mask_tokens: Literal["A", "B", "C"] = "A",
        selection: Literal["soft", "hard", "sigmoid", "mlp"] | None = "soft",
        coordinates: bool = True,
        decoder_widths: Sequence[int] = (512, 256, 128, 64, 32),
        decoder_kernel: int = 1,
        mask_drop: float = 0.1,
        mask_jitter: float = 0.02,
        dice: float = 0.0,
        selection_loss: float = 0.0,
        outlines: bool = False,
    ) -> None:
        super().__init__()
        expect_one_of("mask_tokens", mask_tokens, "A", "B", "C")
        expect_one_of("selection", selection, "soft", "hard", "sigmoid", "mlp", None)
        if (selection_loss or outlines) and not (instances and selection):
            raise ValueError("outlines, or a loss of the selection, need masks and a selection among them")
        self.preprocessing = Preprocessing(size=size, resize="stretch", mean=MEAN, std=STD)
        self.tokenizer = tokenizer
        self.instances, self.mask_drop, self.mask_jitter = instances, mask_drop, mask_jitter
        self.dice, self.selection_loss = dice, selection_loss
        self.coordinates = coordinates
        self.vilt = vilt
        self.mask_lane = MaskLane(vilt, instances, mask_tokens) if instances else None
        self.selection = MaskSelection(vilt.width, selection) if instances else None
        stacked = vilt.width * (2 if instances else 1) + 8 * coordinates
        self.decoder = mask_head(stacked, decoder_widths, decoder_kernel, upsample_first=False)
        self.sharpness = nn.Parameter(torch.tensor([2.0])) if outlines else None  # k

    def encode_image(self, image: Tensor, instances: Tensor | None = None) -> PictureFeatures:
        """image (B, 3, H, W), its instance masks (B, any number, H, W), best first -> PictureFeatures.

        Embeddings alone: the encoder reads picture and words together, so that a second question costs as
        much as the first. In training, masks are dropped and moved by torch's generator, which
        `rislib.training.fit` seeds anew in each step.
        """
        patches = self.vilt.embed_image(image)
        h, w = (side // self.vilt.patch for side in image.shape[2:])
        if self.mask_lane is None:
            return PictureFeatures(patches, (h, w))
        null = torch.ones_like(image[:, :1])
        masks = null[:, :0] if instances is None else instances[:, : self.instances].to(image.dtype)
        if self.training:
            masks = spoil(masks, self.mask_drop, self.mask_jitter)
        masks = torch.cat([masks, null], dim=1)  # (B, N + 1, H, W)
        inside = F.avg_pool2d(masks, self.vilt.patch)  # (B, N + 1, h, w)
        outlines = None if self.sharpness is None else masks[:, :-1]
        return PictureFeatures(patches, (h, w), *self.mask_lane(masks, inside), inside.flatten(2), outlines)

    def segment(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """PictureFeatures and tokens (B, L) -> logits (B, 1, H, W)."""
        return self.decode(features, self.encode(features, tokens, token_mask))

    def encode(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Encoded:
        """All that is known when words, picture and masks have read each other."""
        lanes = [self.vilt.embed_text(tokens), features.image]
        seen = [token_mask.bool(), torch.ones_like(features.image[:, :, 0], dtype=torch.bool)]
        if self.mask_lane is not None:
            lanes.append(features.masks)
            seen.append(features.seen)
        z = self.vilt.encode(torch.cat(lanes, dim=1), torch.cat(seen, dim=1))
        words, image, *masks = z.split([lane.shape[1] for lane in lanes], dim=1)
        image = image[:, 1:]  # (B, h*w, C), without the class token
        if self.mask_lane is None:
            return Encoded(words, image)
        maps = self.mask_lane.maps(*masks, features.grid)
        return Encoded(words, image, maps, self.selection(image, maps, features.inside))

    def decode(self, features: PictureFeatures, encoded: Encoded) -> Tensor:
        """The rest of `segment`: the masks' share, and the decoder."""
        h, w = features.grid
        stack = [encoded.image]  # of (B, h*w, C) each
        if self.mask_lane is not None:
            weights = self.selection.weights(encoded.scores)  # (B, N + 1)
            stack = [selected(weights, features.inside, encoded.masks), *stack]
        if self.coordinates:
            stack.append(cell_coordinates(h, w).to(encoded.image).expand(len(encoded.image), -1, -1))
        stacked = torch.cat(stack, dim=2).transpose(1, 2)  # (B, C of all, h*w)
        logits = self.decoder(stacked.unflatten(2, (h, w)))  # (B, 1, H, W)
        if self.sharpness is not None:
            outlines = F.interpolate(features.outlines, size=logits.shape[2:], mode="area")  # as they are
            drawn = torch.einsum("bn,bnyx->byx", weights[:, :-1], 2 * outlines - 1)
            logits = logits + self.sharpness * drawn[:, None]
        return logits

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"segmentation": scalar}; if they have a weight, also "dice" and "selection"."""
        features = self.features(batch)
        encoded = self.encode(features, batch.tokens, batch.token_mask)
        logits = self.decode(features, encoded).float()
        target = F.interpolate(batch.mask, size=logits.shape[2:], mode="area").float()  # mostly as it is
        losses = {"segmentation": F.binary_cross_entropy_with_logits(logits, target)}
        if self.dice:
            losses["dice"] = self.dice * dice_loss(logits, target)
        if self.selection_loss:
            present = features.inside.any(dim=2)
            fits = fitting(batch, self.instances) & present[:, :-1]  # (B, N)
            fits = torch.cat([fits, ~fits.any(dim=1, keepdim=True)], dim=1)  # (B, N + 1)
            loss = F.binary_cross_entropy_with_logits(encoded.scores[present].float(), fits[present].float())
            losses["selection"] = self.selection_loss * loss
        return losses

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """ViLT's."""
        return self.vilt.parameters()


def cell_coordinates(h: int, w: int) -> Tensor:
    """O: where the cells of an h x w map lie, row by row (h*w, 8), as CMPC says it.

    Left, top, right, bottom, centre across and down, all from -1 to 1; 1/w, 1/h.
    """
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    left, top, right, bottom = 2 * x / w - 1, 2 * y / h - 1, 2 * (x + 1) / w - 1, 2 * (y + 1) / h - 1
    centre = (left + right) / 2, (top + bottom) / 2
    size = torch.full((h, w), 1 / w), torch.full((h, w), 1 / h)
    return torch.stack([left, top, right, bottom, *centre, *size], dim=2).flatten(0, 1)


# --- named sizes ------------------------------------------------------------------------------


@named_size
def mail_b32(
    pretrained: Literal["dandelin/vilt-b32-mlm"] | bool | None = None,
    *,
    vocab_file: str | Path | None = None,
    context_length: int = 20,
    **options,
) -> MaIL:
    """MaIL on ViLT-B/32, 132.8 M parameters; 416 px, 16 masks, 20 tokens.

    Args:
        pretrained: start from ViLT's weights, from the Hugging Face hub.
        vocab_file: bert-base-uncased's vocab.txt; without it, the first sentence asks the hub for it.
        context_length: of the tokenizer, up to 40.
        options: go to `MaIL`.
    """
    tokenizer = WordPieceTokenizer(vocab_file, context_length=context_length)
    return MaIL(vilt_b32(pretrained), tokenizer, **options)


@named_size
def mail_mini(pretrained: bool = True, *, vocabulary: str | Path | None = None, **options) -> MaIL:
    """MaIL for RefMini on two CPU cores: pictures of any size seen at 96 px, at most 32 words.

    Args:
        pretrained: start from the ViLT that travels with the project.
        vocabulary: of the tokenizer, RefMini's unless given (then ViLT cannot be pretrained).
        options: go to `MaIL`.

    Raises:
        FileNotFoundError: the shipped weights or vocabulary are not here; says what to do.
    """
    tokenizer = mini_tokenizer(vocabulary)
    vilt = vilt_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "decoder_widths": (96, 64, 48),  # from 12 x 12 patches to the input's size
        "decoder_kernel": 3,
        "dice": 0.25,
    }
    return MaIL(vilt, tokenizer, **(mini | options))
