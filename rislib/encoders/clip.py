"""CLIP (Radford et al., 2021, arXiv 2103.00020) as a referring segmentation network wants to see it.

`ClipEncoder` holds one open_clip network and takes out of it what its `forward` throws away: a map of image
features beside the global vector, a state for each word beside the sentence. It accepts any image size and
any text length, by resizing or cutting the position tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import open_clip
import torch
from open_clip.model import CLIP
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders import load_weights, not_loaded, shipped

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures, RGB in [0, 1]
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ImageFeatures:
    """What a CLIP image tower knows of B pictures. A part that was not asked for is None."""

    stages: tuple[Tensor, ...]  # a ResNet's layer2 to layer4, strides 8, 16, 32 (mini: half); blocks of a ViT
    dense: Tensor | None  # (B, embed_dim, h, w) in the space shared with text; stride 32, or a ViT's patch
    vector: Tensor | None  # (B, embed_dim) in the same space, not normalised


@dataclass(frozen=True)
class TextFeatures:
    """What a CLIP text tower knows of B sentences."""

    words: Tensor  # (B, L, text_width) after the final layer norm, not projected
    sentence: Tensor  # (B, embed_dim): the end token's state, projected, not normalised


class ClipEncoder(nn.Module):
    """One CLIP, both towers.

    Args:
        model: open_clip's network, with a ModifiedResNet or a VisionTransformer as image tower.
    """

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    @property
    def embed_dim(self) -> int:
        """Width of the space that images and sentences share."""
        return self.model.text_projection.shape[1]

    @property
    def text_width(self) -> int:
        """Width of the word states."""
        return self.model.ln_final.weight.shape[0]

    @property
    def stage_widths(self) -> tuple[int, ...]:
        """Channels of `ImageFeatures.stages`."""
        if not isinstance(self.model.visual, ModifiedResNet):
            return ()
        layers = (self.model.visual.layer2, self.model.visual.layer3, self.model.visual.layer4)
        return tuple(layer[-1].bn3.num_features for layer in layers)

    @property
    def patch_width(self) -> int:
        """ViT only. Width of the patch embeddings, and of `ImageFeatures.stages`."""
        return self.model.visual.conv1.out_channels

    # --- pictures ---------------------------------------------------------------------------

    def encode_image(self, image: Tensor, *, dense: bool = True, vector: bool = True) -> ImageFeatures:
        """image (B, 3, H, W), normalised with MEAN and STD -> ImageFeatures.

        A ResNet pools its last map once for `dense` and once for `vector`: ask for what you need.
        A ViT has both for the price of one.

        Raises:
            ValueError: H or W is no multiple of the tower's stride (32; mini: 16; a ViT's patch size).
        """
        visual = self.model.visual
        if not isinstance(visual, ModifiedResNet):
            return self.encode_patches(self.embed_patches(image), (image.shape[2], image.shape[3]))
        _check_size(image, stride=16 if isinstance(visual.avgpool, nn.Identity) else 32)
        layer2 = visual.layer2(visual.layer1(visual.stem(image)))  # (B, C, H/8, W/8)
        layer3 = visual.layer3(layer2)  # (B, 2C, H/16, W/16)
        layer4 = visual.layer4(layer3)  # (B, 4C, H/32, W/32)
        return ImageFeatures(
            stages=(layer2, layer3, layer4),
            dense=dense_attention_pool(visual.attnpool, layer4) if dense else None,
            vector=global_attention_pool(visual.attnpool, layer4) if vector else None,
        )

    def embed_patches(self, image: Tensor) -> Tensor:
        """ViT only. image (B, 3, H, W) -> patch embeddings (B, h*w, width), before positions are added."""
        conv = self.model.visual.conv1
        _check_size(image, stride=conv.stride[0])
        return conv(image).flatten(2).transpose(1, 2)

    def encode_patches(
        self, patches: Tensor, image_size: tuple[int, int], blocks: Sequence[int] = ()
    ) -> ImageFeatures:
        """ViT only. The rest of the image tower, from patch embeddings (B, h*w, width).

        Apart from `embed_patches`, so that a caller can replace some patches in between. `stages` are maps
        (B, width, h, w) after these `blocks`, counted from 1, ascending.
        """
        visual = self.model.visual
        h, w = (side // patch for side, patch in zip(image_size, visual.patch_size, strict=True))
        table = visual.positional_embedding
        table = torch.cat([table[:1], resize_positions(table[1:], (h, w))])  # (1 + h*w, width)
        start = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        x = torch.cat([start, patches], dim=1) + table.to(patches.dtype)  # (B, 1 + h*w, width)
        # of an empty list open_clip makes all blocks; 1 is the last alone, which nobody reads
        wanted = [number - 1 for number in blocks] or 1
        x, after = visual.transformer.forward_intermediates(visual.ln_pre(x), indices=wanted)
        x = visual.ln_post(x) @ visual.proj  # (B, 1 + h*w, embed_dim)

        def without_class(x: Tensor) -> Tensor:
            return x[:, 1:].transpose(1, 2).unflatten(2, (h, w))

        stages = tuple(without_class(y) for y, _ in zip(after, blocks, strict=False))  # (B, width, h, w)
        return ImageFeatures(stages, dense=without_class(x), vector=x[:, 0])

    # --- sentences --------------------------------------------------------------------------

    def encode_text(self, tokens: Tensor) -> TextFeatures:
        """tokens (B, L) int64, L up to the context length -> TextFeatures.

        Padding needs no mask: attention is causal, so that no real token ever sees it.

        Raises:
            ValueError: L is longer than the position table.
        """
        return self.encode_words(self.model.token_embedding(tokens), tokens)

    def encode_words(self, words: Tensor, tokens: Tensor) -> TextFeatures:
        """The rest of the text tower, from word embeddings (B, L, text_width) of `tokens` (B, L).

        Apart from the embedding, so that a caller can replace some words before.
        """
        model, length = self.model, tokens.shape[1]
        if length > model.context_length:
            raise ValueError(f"{length} tokens, but this CLIP has positions for {model.context_length}")
        x = words + model.positional_embedding[:length]
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x)  # (B, L, text_width)
        end = tokens.argmax(dim=1)  # the end token has the largest id
        return TextFeatures(
            words=x, sentence=x[torch.arange(len(x), device=x.device), end] @ model.text_projection
        )

    # --- both -------------------------------------------------------------------------------

    def forward(self, image: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What contrastive pretraining needs (Radford et al., figure 3).

        image (B, 3, H, W), tokens (B, L) -> normalised image vectors (B, embed_dim), normalised text vectors
        (B, embed_dim), and the scale (scalar) that multiplies their cosines.
        """
        image_vector = self.encode_image(image, dense=False).vector
        sentence = self.encode_text(tokens).sentence
        return F.normalize(image_vector, dim=-1), F.normalize(sentence, dim=-1), self.model.logit_scale.exp()


def dense_attention_pool(pool: AttentionPool2d, x: Tensor) -> Tensor:
    """CLIP's attention pool as a layer from map to map: (B, C, h, w) -> (B, embed_dim, h, w).

    No mean token is prepended and its row of the position table is dropped; every position attends to
    every other (CRIS, published code). Positions are resized to h x w.
    """
    h, w = x.shape[2:]
    tokens = x.flatten(2).transpose(1, 2)  # (B, h*w, C)
    tokens = tokens + resize_positions(pool.positional_embedding[1:], (h, w)).to(x.dtype)
    return _attend(pool, tokens, tokens).transpose(1, 2).unflatten(2, (h, w))


def global_attention_pool(pool: AttentionPool2d, x: Tensor) -> Tensor:
    """CLIP's attention pool as CLIP uses it, for any grid: (B, C, h, w) -> (B, embed_dim)."""
    tokens = x.flatten(2).transpose(1, 2)  # (B, h*w, C)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    table = pool.positional_embedding
    table = torch.cat([table[:1], resize_positions(table[1:], (x.shape[2], x.shape[3]))])
    tokens = tokens + table.to(x.dtype)  # (B, 1 + h*w, C)
    return _attend(pool, tokens[:, :1], tokens)[:, 0]


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table of a square grid, (n*n, C), bicubically resized to (h*w, C)."""
    side = round(table.shape[0] ** 0.5)
    if grid == (side, side):
        return table
    square = table.T.reshape(1, -1, side, side)  # (1, C, n, n)
    return F.interpolate(square, size=grid, mode="bicubic", align_corners=False)[0].flatten(1).T


def _attend(pool: AttentionPool2d, query: Tensor, tokens: Tensor) -> Tensor:
    """Multi-head attention with the pool's weights: (B, Q, C), (B, N, C) -> (B, Q, embed_dim)."""

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)  # (B, heads, N, C / heads)

    q, k, v = heads(pool.q_proj(query)), heads(pool.k_proj(tokens)), heads(pool.v_proj(tokens))
    x = F.scaled_dot_product_attention(q, k, v)  # (B, heads, Q, C / heads)
    return pool.c_proj(x.transpose(1, 2).flatten(2))


def _check_size(image: Tensor, *, stride: int) -> None:
    height, width = image.shape[2:]
    if height % stride or width % stride:
        raise ValueError(f"picture of {height} x {width} pixels: both must be multiples of {stride}")


# --- named sizes ------------------------------------------------------------------------------


def clip_rn50(pretrained: Literal["openai"] | bool | None = None) -> ClipEncoder:
    """CLIP RN50, 102 M parameters: random, or OpenAI's weights (downloaded once by open_clip)."""
    return _full_size("RN50-quickgelu", pretrained)


def clip_rn101(pretrained: Literal["openai"] | bool | None = None) -> ClipEncoder:
    """CLIP RN101, 120 M parameters: random, or OpenAI's weights (downloaded once by open_clip)."""
    return _full_size("RN101-quickgelu", pretrained)


def clip_vit_b16(pretrained: Literal["openai"] | bool | None = None) -> ClipEncoder:
    """CLIP ViT-B/16, 150 M parameters: random, or OpenAI's weights (downloaded once by open_clip)."""
    return _full_size("ViT-B-16-quickgelu", pretrained)


def clip_rn_mini(vocab_size: int, pretrained: bool = False) -> ClipEncoder:
    """A ResNet CLIP for 96 px pictures and up to 32 tokens: random, or the shipped weights.

    Its stem does not pool, so that all strides are half of a full-size ResNet's: the things in small
    pictures would otherwise share a cell of the last map.

    Raises:
        FileNotFoundError: the shipped weights are asked for, but not here; says what to do.
    """
    vision = {"layers": (1, 1, 2, 2), "width": 16, "image_size": 192, "head_width": 32}  # 192 / 32 = 96 / 16
    encoder = _mini(vision, vocab_size)
    encoder.model.visual.avgpool = nn.Identity()
    # A head of the pool can look at a place before it knows any content.
    nn.init.normal_(encoder.model.visual.attnpool.positional_embedding, std=0.5)
    if pretrained:
        load_weights(encoder, shipped("clip-rn"))
    return encoder


def clip_vit_mini(vocab_size: int, pretrained: bool = False) -> ClipEncoder:
    """A ViT CLIP for 96 px pictures (12 x 12 patches) and up to 32 tokens: random, or the shipped weights.

    Raises:
        FileNotFoundError: the shipped weights are asked for, but not here; says what to do.
    """
    vision = {"layers": 6, "width": 128, "patch_size": 8, "image_size": 96, "head_width": 32}
    encoder = _mini(vision, vocab_size)
    nn.init.normal_(encoder.model.visual.positional_embedding, std=0.3)  # places are heard as soon as colours
    if pretrained:
        load_weights(encoder, shipped("clip-vit"))
    return encoder


def _full_size(name: str, pretrained: str | bool | None) -> ClipEncoder:
    if not pretrained:
        return ClipEncoder(CLIP(**open_clip.get_model_config(name)))
    pretrained = "openai" if pretrained is True else pretrained
    try:
        return ClipEncoder(open_clip.create_model(name, pretrained=pretrained))
    except RuntimeError as error:
        raise not_loaded(f"{name} of {pretrained}", "open_clip", error) from error


def _mini(vision: dict, vocab_size: int) -> ClipEncoder:
    text = {"context_length": 32, "vocab_size": vocab_size, "width": 128, "heads": 4, "layers": 4}
    model = CLIP(embed_dim=256, vision_cfg=vision, text_cfg=text, quick_gelu=True)
    # open_clip begins with smaller ones: its positions are too small to be learnt in minutes.
    nn.init.normal_(model.token_embedding.weight, std=0.5)
    nn.init.normal_(model.positional_embedding, std=0.1)
    return ClipEncoder(model)
