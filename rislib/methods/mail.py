"""MaIL: a mask-image-language network (Li, Wang, Mei, Liu, 2021, arXiv 2111.10747).

No encoder is for the picture alone, and none for the sentence. Masks of whatever a segmenter found in the
picture, patches of the picture, and words are three lanes of tokens, and one transformer, ViLT, reads them
together. Then the masks are chosen that the sentence is about, and a decoder draws the answer.

In the order of the code, with masks M_1 ... M_N, picture I, words T, and the null mask M_0, which is 1
everywhere, so that there is always one to choose:

    v_I = C[class, Patches(I)] + places,  v_M = C[class, Tokens(M)] + places,  v_L = Words(T) + places
    z_L, z_I, z_M = ViLT(v_L + t_L, v_I + t_I, v_M + t_M)            trimodal embedding (t: types), encoder
    F_I = z_I and F_i = z_M as maps: of the picture, of mask i       without the class tokens
    m_i = M_i, averaged over each patch;  w_i = m_i / sum of m_i     adaptive mask selection (AMS)
    s_i = cos(W_p sum(w_i F_i), W_q sum(w_i F_I)) / 0.07
    a = softmax(s), of all masks that are not empty
    F_M = sum over i of a_i m_i F_i
    logits = Conv(Up(Block( ... Up(Block(C[F_M, F_I, O])) ... )))    decoder; O: where each cell lies
             + k sum over i > 0 of a_i (2 M_i - 1)                   if asked for: "outlines", k is learned
    loss = mean over pixels of the binary cross entropy of logits and mask

Block is a convolution 3x3, BN and ReLU; Up doubles the size. After the encoder nobody asks the words again.
What Tokens(M) may be, and what F_i is then:

    "A"    one stack of N channels, cut into patches: h*w tokens, and one map for all masks, F_i = F_1
    "B"    a token for each mask, of all its m_i, placed where the mask is on average; F_i is that token
    "C"    each mask cut into patches by itself: (N + 1) * h*w tokens, and a map for each mask

In B and C, where M_0 is one of them, masks have no order, and nobody looks at tokens of an empty one. In A,
where M_0 would be a bias, slots are channels: order counts, and empty slots are channels of zeros.

No code was ever released, and of the paper only figure, abstract and lists of results were at hand:

    stated    three lanes, each with positions and a type of its own; masks and picture cut into patches, with
              a linear layer; ViLT's weights; masks that a segmenter made before; AMS, of z_M, F_I and the raw
              masks; C[F_M, F_I, O]; five Blocks with Up
    recalled  Mask R-CNN as the segmenter
    inferred  everything else. ViLT-B/32; 416 px, stretched; 20 tokens; N = 16, in the order of their scores;
              A; class tokens; masks' positions and type begin as the picture's; all of AMS, and its other
              forms: "hard", in use the best mask alone; "sigmoid", gates a_i, and for M_0 the product of all
              1 - a_i; "mlp", of both sums in place of the cosine; None, always M_0, so that F_M is as it
              is. O, CMPC's eight numbers, or without; channels 512, 256, 128, 64, 32; the loss; one more that
              tells AMS which masks fit (IoU of 0.5 or more, M_0 if none), off
    ours      in training, masks are dropped and moved a little: segmenters are better where they learned;
              B's and C's details. Off unless asked for: Dice, for trainings of minutes; outlines, as
              an a that is right draws the mask already, and a mask that is wanted teaches a

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

from rislib.encoders import shipped_file
from rislib.encoders.bert import WordPieceTokenizer
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.encoders.vilt import MEAN, STD, ViltEncoder, resize_positions, vilt_b32, vilt_mini
from rislib.methods.layers import conv_block, dice_loss, upsample
from rislib.nouns import Batch, Method, Preprocessing, named_size

MASK_TOKENS = ("A", "B", "C")
SELECTIONS = ("soft", "hard", "sigmoid", "mlp", None)


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
        mask_tokens: "A", "B" or "C" (see above).
        selection: "soft", "hard", "sigmoid", "mlp", or None (see above).
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
        for name, choices in ((mask_tokens, MASK_TOKENS), (selection, SELECTIONS)):
            if name not in choices:
                raise ValueError(f"one of {', '.join(map(str, choices))} was expected, not {name!r}")
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
        self.decoder = mask_decoder(stacked, decoder_widths, decoder_kernel)
        self.sharpness = nn.Parameter(torch.tensor([2.0])) if outlines else None  # k

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return self.tokenizer(expressions)

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
        stack = [encoded.image]
        if self.mask_lane is not None:
            weights = self.selection.weights(encoded.scores)
            stack = [selected(weights, features.inside, encoded.masks), *stack]
        if self.coordinates:
            stack.append(cell_coordinates(h, w).to(encoded.image).expand(len(encoded.image), -1, -1))
        logits = self.decoder(torch.cat(stack, dim=2).transpose(1, 2).unflatten(2, (h, w)))
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


class MaskLane(nn.Module):
    """Masks become tokens.

    Args:
        vilt: whose positions and type the masks begin with.
        instances: N, channels of "A".
        mask_tokens: "A", "B" or "C".
    """

    def __init__(self, vilt: ViltEncoder, instances: int, mask_tokens: Literal["A", "B", "C"]) -> None:
        super().__init__()
        self.mask_tokens, self.instances = mask_tokens, instances
        if mask_tokens == "B":
            self.project = nn.Linear(len(vilt.positions) - 1, vilt.width)
        else:
            channels = instances if mask_tokens == "A" else 1
            self.project = nn.Conv2d(channels, vilt.width, vilt.patch, stride=vilt.patch)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        self.class_token = nn.Parameter(vilt.class_token.detach().clone())
        self.positions = nn.Parameter(vilt.positions.detach().clone())
        self.type_embedding = nn.Parameter(vilt.types[1].detach().clone())

    def forward(self, masks: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """masks (B, N + 1, H, W), m_i (B, N + 1, h, w), M_0 last -> tokens (B, M, C), seen (B, M) bool.

        M is 1, the class token, and "A" h*w, "B" N + 1, "C" (N + 1) * h*w. `seen` is False at the tokens of
        an empty mask, of which a stack has none.
        """
        places = resize_positions(self.positions, inside.shape[2:])
        present = inside.flatten(2).any(dim=2)  # (B, N + 1)
        if self.mask_tokens == "A":
            stack = F.pad(masks[:, :-1], (0, 0, 0, 0, 0, self.instances + 1 - masks.shape[1]))
            x = self.project(stack).flatten(2).transpose(1, 2) + places[1:]  # (B, h*w, C)
            seen = torch.ones_like(x[:, :, 0], dtype=torch.bool)
        elif self.mask_tokens == "B":
            side = round(self.project.in_features**0.5)
            shape = F.interpolate(inside, size=(side, side), mode="area").flatten(2)
            x = self.project(shape) + shares(inside.flatten(2)) @ places[1:]  # (B, N + 1, C)
            seen = present
        else:
            x = self.project(masks.flatten(0, 1)[:, None]).flatten(2).transpose(1, 2) + places[1:]
            x = x.unflatten(0, masks.shape[:2]).flatten(1, 2)  # (B, (N + 1) * h*w, C)
            seen = present.repeat_interleave(x.shape[1] // masks.shape[1], dim=1)
        start = (self.class_token + places[0]).to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([start, x], dim=1) + self.type_embedding, F.pad(seen, (1, 0), value=True)

    def maps(self, z: Tensor, grid: tuple[int, int]) -> Tensor:
        """z_M, what the encoder made of the tokens (B, M, C) -> F_i, shaped as in `Encoded`."""
        return z[:, 1:].unflatten(1, (-1, 1 if self.mask_tokens == "B" else grid[0] * grid[1]))


class MaskSelection(nn.Module):
    """AMS: how well each mask fits the sentence, which picture and masks have read.

    Args:
        width: of the tokens.
        kind: "soft", "hard", "sigmoid", "mlp", or None.
        hidden: width of what is compared, of the hidden layer in "mlp".
    """

    def __init__(self, width: int, kind: str | None, hidden: int = 256) -> None:
        super().__init__()
        self.kind = kind
        if kind == "mlp":
            self.score = nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        elif kind is not None:
            self.of_masks, self.of_image = nn.Linear(width, hidden), nn.Linear(width, hidden)

    def forward(self, image: Tensor, masks: Tensor, inside: Tensor) -> Tensor:
        """F_I (B, h*w, C), F_i (B, 1 or N + 1, h*w or 1, C), m_i (B, N + 1, h*w) -> s (B, N + 1), float32.

        Those of empty masks are -inf.
        """
        if self.kind is None:
            none = inside.new_full(inside.shape[:2], -torch.inf, dtype=torch.float32)
            return torch.cat([none[:, 1:], torch.zeros_like(none[:, :1])], dim=1)
        w = shares(inside)
        p = torch.einsum("bnk,bnkc->bnc", w, masks)
        q = torch.einsum("bnk,bkc->bnc", w, image)
        if self.kind == "mlp":
            scores = self.score(torch.cat([p, q], dim=2))[:, :, 0].float()
        else:
            scores = F.cosine_similarity(self.of_masks(p).float(), self.of_image(q).float(), dim=2) / 0.07
        return scores.masked_fill(~inside.any(dim=2), -torch.inf)

    def weights(self, scores: Tensor) -> Tensor:
        """s (B, N + 1) -> a (B, N + 1), 0 for empty masks; of no other mask, the null mask has all."""
        if self.kind == "sigmoid":
            gates = scores[:, :-1].sigmoid()
            return torch.cat([gates, (1 - gates).prod(dim=1, keepdim=True)], dim=1)
        if self.kind == "hard" and not self.training:
            return F.one_hot(scores.argmax(dim=1), scores.shape[1]).to(scores.dtype)
        return scores.softmax(dim=1)


def selected(weights: Tensor, inside: Tensor, masks: Tensor) -> Tensor:
    """F_M: a (B, N + 1), m_i (B, N + 1, h*w), F_i (B, 1 or N + 1, h*w or 1, C) -> (B, h*w, C)."""
    return torch.einsum("bnk,bnkc->bkc", weights[:, :, None] * inside, masks)


def shares(inside: Tensor) -> Tensor:
    """m_i (..., h*w) -> w_i (..., h*w), which sum to 1; all 0 for empty masks."""
    return inside / inside.sum(dim=-1, keepdim=True).clamp(min=1e-6)


def cell_coordinates(h: int, w: int) -> Tensor:
    """O: where the cells of an h x w map lie, row by row (h*w, 8), as CMPC says it.

    Left, top, right, bottom, centre across and down, all from -1 to 1; 1/w, 1/h.
    """
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    left, top, right, bottom = 2 * x / w - 1, 2 * y / h - 1, 2 * (x + 1) / w - 1, 2 * (y + 1) / h - 1
    centre = (left + right) / 2, (top + bottom) / 2
    size = torch.full((h, w), 1 / w), torch.full((h, w), 1 / h)
    return torch.stack([left, top, right, bottom, *centre, *size], dim=2).flatten(0, 1)


def spoil(masks: Tensor, drop: float, jitter: float) -> Tensor:
    """What a worse segmenter might have found: masks (B, N, H, W) -> the same, some empty, all moved.

    Args:
        drop: how likely each is to be emptied.
        jitter: each is moved by up to so much of the picture's side; at the border its last pixels repeat.
    """
    batch, count, height, width = masks.shape

    def moved(side: int) -> Tensor:
        offset = jitter * side * (2 * torch.rand(batch, count, 1, device=masks.device) - 1)
        places = torch.arange(side, device=masks.device) + offset.round().long()  # (B, N, side)
        return places.clamp(0, side - 1)

    masks = masks.gather(2, moved(height)[:, :, :, None].expand(masks.shape))
    masks = masks.gather(3, moved(width)[:, :, None, :].expand(masks.shape))
    kept = torch.rand(batch, count, 1, 1, device=masks.device) >= drop
    return masks * kept


def fitting(batch: Batch, count: int) -> Tensor:
    """Which of the first `count` instances are the thing that is meant: (B, N) bool, IoU of 0.5 or more."""
    truth = batch.mask > 0.5  # (B, 1, H, W)
    if batch.instances is None:
        return truth.new_zeros(len(truth), 0)
    instances = batch.instances[:, :count] > 0.5
    if batch.picture is not None:
        instances = instances[batch.picture]  # (B, N, H, W)
    both, either = (instances & truth).sum(dim=(2, 3)), (instances | truth).sum(dim=(2, 3))
    return (2 * both >= either) & (both > 0)


def mask_decoder(in_width: int, widths: Sequence[int], kernel: int) -> nn.Sequential:
    """(B, in_width, h, w) -> logits (B, 1, s*h, s*w), with s = 2 for each of `widths`."""
    pairs = zip((in_width, *widths), widths, strict=False)
    doublings = [layer for pair in pairs for layer in (conv_block(*pair, 3), upsample())]
    return nn.Sequential(*doublings, nn.Conv2d(widths[-1], 1, kernel, padding=kernel // 2))


# --- named sizes ------------------------------------------------------------------------------


@named_size
def mail_b32(
    pretrained: Literal["dandelin/vilt-b32-mlm"] | bool | None = None,
    *,
    vocab_file: str | Path | None = None,
    context_length: int = 20,
    **options,
) -> MaIL:
    """MaIL on ViLT-B/32, 132.9 M parameters; 416 px, 16 masks, 20 tokens.

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
    tokenizer = ClipTokenizer(32, vocabulary or shipped_file("vocab/refmini.txt"), trim=True)
    vilt = vilt_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "decoder_widths": (96, 64, 48),  # from 12 x 12 patches to the input's size
        "decoder_kernel": 3,
        "dice": 0.25,
    }
    return MaIL(vilt, tokenizer, **(mini | options))
