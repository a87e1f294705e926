"""CM-MaskSD: cross-modality masked self-distillation (Wang et al., IEEE TMM 2024, arXiv 2305.11481).

CLIP's two towers, a neck, a decoder and a head make a mask. In training they make it twice more, with the
same weights: once without half of the patches that the sentence is most about, once without half of the words
that the picture is most about. Both must arrive at the mask made from everything; a network that can do so
without the obvious clues has learned how picture and words belong together.

In the order of the code, with patches P, words T, and E_v, E_t CLIP's towers:

    V, v = E_v(P)        W, w = E_t(T)                                 locally and globally, one shared space
    N(l, g) = LN(Linear(ReLU(Linear(l)) * ReLU(Linear(g))) + l)        neck, token by token
    M = Head(Decoder(N(V, w), W))                                      main branch: all there is at inference

    P' = Mask(P; cos(V, w))                                            LMVSD: the sentence chooses patches
    M_p = Head(Decoder(N(E_v(P'), w), W))
    T' = Mask(T; cos(W, v))                                            VMLSD: the picture chooses words
    M_w = Head(Decoder(V, Linear(N(E_t(T'), Linear(v)))))              wiring "V1", or
    M_w = Head(Decoder(N(V, w'), W')),  W', w' = E_t(T')               wiring "V2"

    Mask(X; c) = X, but for one embedding in place of alpha of the K tokens of largest c        see masking.py
    loss = BCE(M, mask) + D(M_p, sg(M)) + D(M_w, sg(M)),  D(a, b) = BCE(a, sigmoid(b))

Head: twice the size, convolution 3x3, BN, ReLU; again; convolution 1x1. BN learns what pictures are like from
the main branch alone, as only that is asked later; the other two are normalised by what they are themselves.

No code was ever released, and of the paper only overview figure, abstract and a summary were at hand:

    stated    CLIP's towers with their weights; three branches that share theirs; what goes into the neck and
              the decoder of each, and what chooses what; top K, then alpha % of them; masked at the
              embedding, in place; losses from M to M_p and M_w, which no true mask teaches; hardly any
              parameters beside (here 0.3 %)
    recalled  ViT-B
    inferred  everything else. ViT-B/16, all of it learning; 416 px letterboxed and 17 or 22 words, as CRIS;
              neck "N1" (all above) or "N2", CRIS's own over two blocks of the ViT and V (words do not fit in:
              "V2" only); CRIS's decoder, and half of its projector as head; that in V1, too, pixels ask and
              words answer, and its two Linear, which let words through the neck and back; cosines in the
              shared space, or tokens by lot (`guided=False`); K 25 % of the patches and 50 % of the words,
              alpha 50 %, by lot; a learned embedding for what is masked, or zeros; D, or the squared
              difference of probabilities; sg, which stops the gradient; all weights 1; never masked: the
              class token, start, end, padding; no VMLSD for sentences of one word: nothing would be left
    ours      K is rounded up and alpha's share of it down, to one at least (84 of 676 patches). Words go
              through the shared space into the neck, too. CLIP's position table stays as it is, and is
              resized in each pass. One pass of the decoder for all branches. Off unless asked for: neck
              "N1+", which hears how much each token is like the vector, and sees earlier blocks of the ViT
              (as CRIS's Connect); Dice, for trainings of minutes; mask grounding, which is MagNet's

Unknown, wherever our numbers stand: ViT and resolution, K and alpha, D and the weights, neck, VMLSD's wiring,
what stands in for masked tokens, the training recipe.
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
from rislib.methods import cris
from rislib.methods.grounding import MaskGrounding, read_and_ground
from rislib.methods.layers import Decoder, dice_loss, expect_one_of, mask_head, no_running_statistics
from rislib.methods.masking import Masking
from rislib.nouns import Batch, Method, Preprocessing, Reading, named_size


@dataclass(frozen=True)
class PictureFeatures:
    """All that CM-MaskSD computes before it hears the sentence."""

    patches: Tensor  # (B, h*w, width of the ViT), P: embedded, places not yet added
    dense: Tensor  # (B, C, h, w), V
    vector: Tensor  # (B, C), v
    levels: Tensor | None  # (B, 2, width of the ViT, h, w), earlier blocks, which N1+ and N2 read


class CMMaskSD(Method):
    """CM-MaskSD, over any CLIP whose image tower is a ViT. Its neck and decoder are as wide as CLIP's space.

    Args:
        clip: both towers.
        tokenizer: sentences -> tokens, as `clip` was trained on them.
        size: side of the square input, pixels, a multiple of the patch size.
        neck: "N1", "N1+" or "N2" (see above).
        blocks: the two blocks of the ViT that N1+ and N2 read beside V, counted from 1.
        decoder_layers, decoder_heads, decoder_ffn, dropout: of the decoder.
        head_widths: channels of the head's convolutions 3x3. Each of them follows a doubling of the map.
        head_kernel: size of the head's last convolution. With few channels, 1x1 finds its scale slowly.
        dice: weight of an additional Dice loss of the main branch, ours.
        mask_resize: how the mask comes down to the logits' stride: "nearest", or "area", ours.
        lmvsd, vmlsd: weights of the two losses; 0 leaves the branch and its parameters out.
        wiring: of VMLSD, "V1" or "V2" (see above).
        top_patches, top_words: K, as a share of the picture's patches, of the sentence's words.
        masked_patches, masked_words: alpha, a share of K.
        guided: False: which tokens are masked has nothing to do with the other modality; they are as many.
        replacement: what stands in for them, one "learned" embedding per modality or "zero".
        divergence: D, "bce" or "mse" (of probabilities).
        stop_gradient: False lets the teacher learn from its students.
        mask_grounding: weight of that loss (see grounding.py); 0 leaves it and its head out.
        grounding: keyword arguments of `MaskGrounding`; as in CRIS, the sentence is segmented clean.

    Raises:
        ValueError: `clip` has a ResNet as image tower; N2 with V1; a name is unknown; or mask grounding would
            hide words from VMLSD's teacher.
    """

    parts: ClassVar = {
        "lmvsd": ({"lmvsd": 0.0}, {}),
        "vmlsd": ({"vmlsd": 0.0}, {}),
        "mask_grounding": ({"mask_grounding": 0.0}, {"mask_grounding": 0.1}),  # as in CRIS
    }
    training_only: ClassVar = (*Method.training_only, "lmvsd", "vmlsd", "coordination")

    def __init__(
        self,
        clip: towers.ClipEncoder,
        tokenizer: ClipTokenizer,
        *,
        size: int = 416,
        neck: Literal["N1", "N1+", "N2"] = "N1",
        blocks: tuple[int, int] = (4, 8),
        decoder_layers: int = 3,
        decoder_heads: int = 8,
        decoder_ffn: int = 2048,
        dropout: float = 0.1,
        head_widths: Sequence[int] = (512, 256),
        head_kernel: int = 1,
        dice: float = 0.0,
        mask_resize: Literal["nearest", "area"] = "nearest",
        lmvsd: float = 1.0,
        vmlsd: float = 1.0,
        wiring: Literal["V1", "V2"] = "V1",
        top_patches: float = 0.25,
        masked_patches: float = 0.5,
        top_words: float = 0.5,
        masked_words: float = 0.5,
        guided: bool = True,
        replacement: Literal["learned", "zero"] = "learned",
        divergence: Literal["bce", "mse"] = "bce",
        stop_gradient: bool = True,
        mask_grounding: float = 0.0,
        grounding: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if clip.stage_widths:
            raise ValueError("CM-MaskSD masks patches: its CLIP needs a ViT as image tower, not a ResNet")
        expect_one_of("neck", neck, "N1", "N1+", "N2")
        expect_one_of("wiring", wiring, "V1", "V2")
        expect_one_of("replacement", replacement, "learned", "zero")
        expect_one_of("divergence", divergence, "bce", "mse")
        if (neck, wiring) == ("N2", "V1"):
            raise ValueError("wiring V1 sends words through the neck, but N2 fuses maps: use V2 with it")
        width, text_width, patch_width = clip.embed_dim, clip.text_width, clip.patch_width
        self.preprocessing = Preprocessing(size=size, resize="letterbox", mean=towers.MEAN, std=towers.STD)
        self.tokenizer = tokenizer
        self.blocks = () if neck == "N1" else blocks
        self.dice, self.mask_resize = dice, mask_resize
        self.weights = {"lmvsd": lmvsd, "vmlsd": vmlsd}
        self.divergence, self.stop_gradient = divergence, stop_gradient
        self.clip = clip
        self.clip.model.logit_scale.requires_grad_(False)  # only contrastive pretraining reads it
        if neck == "N2":
            self.neck = LevelNeck(patch_width, width)
        else:
            self.neck = Neck(width, patch_width if neck == "N1+" else None)
        self.decoder = Decoder(width, text_width, decoder_layers, decoder_heads, decoder_ffn, dropout)
        self.head = mask_head(width, head_widths, head_kernel, upsample_first=True)
        self.grounding = self.lmvsd = self.vmlsd = self.coordination = None
        how = {"guided": guided, "learned": replacement == "learned"}
        if lmvsd:
            self.lmvsd = Masking(patch_width, top_patches, masked_patches, **how)
        if vmlsd:
            self.vmlsd = Masking(text_width, top_words, masked_words, **how)
        if vmlsd and wiring == "V1":
            self.coordination = nn.ModuleDict(
                {"picture": nn.Linear(width, width), "words": nn.Linear(width, text_width)}
            )
        if mask_grounding:
            words = clip.model.token_embedding.weight
            options = {"weight": mask_grounding, "segmentation": "clean", "stage": -1, **(grounding or {})}
            self.grounding = MaskGrounding(tokenizer, words, (width,), **options)
            if vmlsd and self.grounding.segmentation != "clean":
                raise ValueError(
                    "VMLSD's teacher reads the whole sentence: grounding={'segmentation': 'clean'}"
                )

    # --- the main branch ----------------------------------------------------------------------

    def encode_image(self, image: Tensor) -> PictureFeatures:
        """image (B, 3, H, W), H and W multiples of the patch size -> PictureFeatures."""
        return self.encode_patches(self.clip.embed_patches(image), image.shape[2:])

    def encode_patches(self, patches: Tensor, image_size: tuple[int, int]) -> PictureFeatures:
        """The same from patch embeddings (B, h*w, width of the ViT), some of them masked perhaps."""
        seen = self.clip.encode_patches(patches, image_size, self.blocks)
        levels = torch.stack(seen.stages, dim=1) if seen.stages else None
        return PictureFeatures(patches, seen.dense, seen.vector, levels)

    def segment(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """PictureFeatures and tokens (B, L) -> logits (B, 1, 4h, 4w)."""
        reading = self.read(features, tokens, token_mask)
        x = self.neck(features, reading.sentence)  # (B, C, h, w)
        return self.head(self.decoder(x, reading.words, token_mask))

    def read(self, features: PictureFeatures, tokens: Tensor, token_mask: Tensor) -> Reading:
        """What CLIP says of the sentence, W and w; its map of the picture, V, has not heard it."""
        text = self.clip.encode_text(tokens)
        return Reading(text.words, (features.dense,), sentence=text.sentence)

    # --- training -----------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """{"segmentation": scalar, "lmvsd": scalar, "vmlsd": scalar}, as far as they have a weight.

        So, too, "dice" and "mask_grounding". Which tokens are masked comes from torch's generator, which
        `rislib.training.fit` seeds anew in each step.
        """
        picture = self.features(batch)
        reading, grounding = read_and_ground(self, picture, batch)
        # What the decoder gets in each branch: a map (B, C, h, w), and words (B, L, text_width).
        branches = {"segmentation": (self.neck(picture, reading.sentence), reading.words)}
        taught = {}  # whom: (B,) bool
        with no_running_statistics(self.neck):
            if self.lmvsd is not None:
                chosen = self.choose_patches(picture, reading)
                masked = self.encode_patches(self.lmvsd(picture.patches, chosen), batch.image.shape[2:])
                branches["lmvsd"] = self.neck(masked, reading.sentence), reading.words
                taught["lmvsd"] = chosen.any(dim=1)
            if self.vmlsd is not None:
                chosen = self.choose_words(picture, reading, batch)
                branches["vmlsd"] = self.without_words(chosen, picture, batch.tokens)
                taught["vmlsd"] = chosen.any(dim=1)
        # All branches at once, R of them: (R*B, C, h, w) and (R*B, L, text_width).
        maps, words = (torch.cat(inputs) for inputs in zip(*branches.values(), strict=True))
        x = self.decoder(maps, words, batch.token_mask.repeat(len(branches), 1))
        x, *students = x.chunk(len(branches))  # (B, C, h, w) each

        logits = self.head(x).float()  # (B, 1, 4h, 4w)
        target = F.interpolate(batch.mask, size=logits.shape[2:], mode=self.mask_resize).float()
        losses = {"segmentation": F.binary_cross_entropy_with_logits(logits, target)}
        if self.dice:
            losses["dice"] = self.dice * dice_loss(logits, target)
        teacher = logits.detach() if self.stop_gradient else logits
        with no_running_statistics(self.head):
            for (name, who), x in zip(taught.items(), students, strict=True):
                each = divergence(self.head(x).float(), teacher, self.divergence)  # (B,)
                losses[name] = self.weights[name] * (each * who).sum() / who.sum().clamp(min=1)
        return losses | grounding

    def choose_patches(self, picture: PictureFeatures, reading: Reading) -> Tensor:
        """LMVSD's choice: (B, h*w) bool, True where the patch is to be masked."""
        return self.lmvsd.choose(*rate_patches(picture, reading))

    def choose_words(self, picture: PictureFeatures, reading: Reading, batch: Batch) -> Tensor:
        """VMLSD's choice: (B, L) bool, True where the word is to be masked; never the only one there is."""
        return self.vmlsd.choose(*self.rate_words(picture, reading, batch))

    def rate_words(self, picture: PictureFeatures, reading: Reading, batch: Batch) -> tuple[Tensor, Tensor]:
        """How much each word is about the picture (B, L), and which may be masked (B, L) bool."""
        words = reading.words @ self.clip.model.text_projection  # (B, L, C)
        score = F.cosine_similarity(words, picture.vector[:, None], dim=2)  # (B, L)
        ends = (batch.tokens == self.tokenizer.sot) | (batch.tokens == self.tokenizer.eot)
        eligible = batch.token_mask.bool() & ~ends
        return score, eligible & (eligible.sum(dim=1, keepdim=True) > 1)

    def without_words(
        self, chosen: Tensor, picture: PictureFeatures, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """VMLSD's map and words for the decoder: chosen and tokens (B, L)."""
        embedded = self.clip.model.token_embedding(tokens)  # (B, L, text_width)
        text = self.clip.encode_words(self.vmlsd(embedded, chosen), tokens)
        if self.coordination is None:
            return self.neck(picture, text.sentence), text.words
        words = text.words @ self.clip.model.text_projection  # (B, L, C)
        words = self.neck.mix(words, self.coordination["picture"](picture.vector))
        return picture.dense, self.coordination["words"](words)

    def encoder_parameters(self) -> Iterable[nn.Parameter]:
        """CLIP's."""
        return self.clip.parameters()


def rate_patches(picture: PictureFeatures, reading: Reading) -> tuple[Tensor, Tensor]:
    """How much each patch is about the sentence (B, h*w), and which may be masked: all, (B, h*w) bool."""
    dense = picture.dense.flatten(2)  # (B, C, h*w)
    score = F.cosine_similarity(dense, reading.sentence[:, :, None], dim=1)  # (B, h*w)
    return score, torch.ones_like(score, dtype=torch.bool)


def divergence(student: Tensor, teacher: Tensor, kind: Literal["bce", "mse"] = "bce") -> Tensor:
    """How far the student is from the teacher: logits (B, 1, h, w) of both -> (B,), means over pixels."""
    target = teacher.sigmoid()
    if kind == "bce":
        each = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    else:
        each = (student.sigmoid() - target).square()
    return each.mean(dim=(1, 2, 3))


class Neck(nn.Module):
    """N1: multiplies one modality's vector into each token of the other.

    Args:
        width: of CLIP's space.
        patch_width: of the ViT, whose earlier blocks N1+ sees: l + Linear(LN(blocks)) stands in l's place,
            and before the last norm cos(l, g) is added, times a learned vector. None: N1.
    """

    def __init__(self, width: int, patch_width: int | None = None) -> None:
        super().__init__()
        self.local = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.vector = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.connect = self.alike = None
        if patch_width is not None:
            self.connect = nn.Sequential(nn.LayerNorm(2 * patch_width), nn.Linear(2 * patch_width, width))
            self.alike = nn.Parameter(2 * torch.randn(width))

    def forward(self, picture: PictureFeatures, sentence: Tensor) -> Tensor:
        """PictureFeatures, sentence (B, width) -> (B, width, h, w)."""
        earlier = None
        if self.connect is not None:
            levels = picture.levels.flatten(1, 2).flatten(2)  # (B, 2 * width of the ViT, h*w)
            earlier = self.connect(levels.transpose(1, 2))  # (B, h*w, width)
        x = self.mix(picture.dense.flatten(2).transpose(1, 2), sentence, earlier)  # (B, h*w, width)
        return x.transpose(1, 2).unflatten(2, picture.dense.shape[2:])

    def mix(self, local: Tensor, vector: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Patches or words (B, N, width), the other modality's vector (B, width) -> (B, N, width).

        `earlier` (B, N, width), of earlier blocks, is added to the former.
        """
        x = local if earlier is None else local + earlier
        x = self.out(self.local(x) * self.vector(vector)[:, None]) + x
        if self.alike is not None:
            x = x + F.cosine_similarity(local, vector[:, None], dim=2)[:, :, None] * self.alike
        return self.norm(x)


class LevelNeck(cris.Neck):
    """N2: CRIS's neck, over maps of one resolution: two blocks of a ViT, and V."""

    def __init__(self, patch_width: int, width: int) -> None:
        super().__init__((patch_width, patch_width, width), (width // 2, width, 2 * width), width)
        self.up = nn.Identity()

    def forward(self, picture: PictureFeatures, sentence: Tensor) -> Tensor:
        """PictureFeatures, sentence (B, width) -> (B, width, h, w).

        Raises:
            ValueError: a single sample in training mode (the sentence vector is batch-normalised).
        """
        early, late = picture.levels.unbind(dim=1)
        maps = cris.PictureFeatures(self.p3(early), self.p4(late), self.p5(picture.dense))
        return super().forward(maps, sentence)


# --- named sizes ------------------------------------------------------------------------------


@named_size
def cm_masksd_b16(
    pretrained: Literal["openai"] | bool | None = None, *, context_length: int = 17, **options
) -> CMMaskSD:
    """CM-MaskSD on CLIP ViT-B/16, 167.1 M parameters; 416 px.

    17 words for RefCOCO and RefCOCO+, 22 for G-Ref. `options` go to `CMMaskSD`.
    With pretrained="openai" the towers start from OpenAI's weights.
    """
    return CMMaskSD(towers.clip_vit_b16(pretrained), ClipTokenizer(context_length), **options)


@named_size
def cm_masksd_mini(pretrained: bool = True, *, vocabulary: str | Path | None = None, **options) -> CMMaskSD:
    """CM-MaskSD for RefMini on two CPU cores: pictures of any size seen at 96 px, at most 32 words.

    Args:
        pretrained: start from the towers that travel with the project.
        vocabulary: of the tokenizer, RefMini's unless given (then the towers cannot be pretrained).
        options: go to `CMMaskSD`.

    Raises:
        FileNotFoundError: the shipped weights or vocabulary are not here; says what to do.
    """
    tokenizer = mini_tokenizer(vocabulary)
    clip = towers.clip_vit_mini(tokenizer.vocab_size, pretrained)
    mini = {
        "size": 96,
        "neck": "N1+",
        "blocks": (2, 4),
        "decoder_layers": 2,
        "decoder_heads": 4,
        "decoder_ffn": 384,
        "dropout": 0.0,
        "head_widths": (96, 48),  # from 12 x 12 patches to logits at stride 2
        "head_kernel": 3,
        "dice": 0.25,
        "mask_resize": "area",
    }
    return CMMaskSD(clip, tokenizer, **(mini | options))
