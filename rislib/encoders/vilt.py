"""ViLT (Kim et al., ICML 2021, arXiv 2102.03334) as a referring segmentation network wants to see it.

One transformer reads words and patches of a picture together; there is no tower for either. `ViltEncoder`
holds transformers' network without its pooler and takes it apart where a method wants to come in: what
becomes of the words, what becomes of the patches, and the encoder, over any sequence of tokens.

All patches are there, row by row: transformers' own embedding shuffles them, which no map would survive.
Layer norms have transformers' eps, 1e-12. In the first ViLT's blocks it was 1e-6, which is hardly another.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ViltConfig, ViltModel

from rislib.encoders import from_transformers, load_weights, shipped

MEAN = STD = (0.5, 0.5, 0.5)  # of its pretraining, RGB in [0, 1]


class ViltEncoder(nn.Module):
    """One ViLT without pooler. Tokens are (B, N, width).

    Args:
        model: transformers' network.
    """

    def __init__(self, model: ViltModel) -> None:
        super().__init__()
        self.model = model
        self.model.pooler = None

    @property
    def width(self) -> int:
        """Width of the tokens."""
        return self.model.config.hidden_size

    @property
    def patch(self) -> int:
        """Side of a patch, pixels."""
        return self.model.config.patch_size

    @property
    def words(self) -> Tensor:
        """The embeddings of all words (V, width)."""
        return self.model.embeddings.text_embeddings.word_embeddings.weight

    @property
    def class_token(self) -> Tensor:
        """What the image lane begins with (width,), its place not yet added."""
        return self.model.embeddings.cls_token[0, 0]

    @property
    def positions(self) -> Tensor:
        """Of the class token and of a square of patches: (1 + n*n, width)."""
        return self.model.embeddings.position_embeddings[0]

    @property
    def types(self) -> Tensor:
        """What is added to all words, and to all patches: (2, width)."""
        return self.model.embeddings.token_type_embeddings.weight

    def embed_text(self, tokens: Tensor) -> Tensor:
        """tokens (B, L) int64 -> words with their places, normalised, and their type (B, L, width).

        Raises:
            ValueError: L is longer than the position table.
        """
        if tokens.shape[1] > (limit := self.model.config.max_position_embeddings):
            raise ValueError(f"{tokens.shape[1]} tokens, but this ViLT has positions for {limit}")
        return self.model.embeddings.text_embeddings(tokens) + self.types[0]

    def embed_image(self, image: Tensor) -> Tensor:
        """image (B, 3, H, W) -> class token and patches with their places and type (B, 1 + h*w, width).

        Raises:
            ValueError: H or W is no multiple of the patch's side.
        """
        (height, width), patch = image.shape[2:], self.patch
        if height % patch or width % patch:
            raise ValueError(f"picture of {height} x {width} pixels: both must be multiples of {patch}")
        patches = self.model.embeddings.patch_embeddings(image).flatten(2).transpose(1, 2)
        start = self.class_token.to(patches.dtype).expand(len(image), 1, -1)
        places = resize_positions(self.positions, (height // patch, width // patch))
        x = torch.cat([start, patches], dim=1) + places  # (B, 1 + h*w, width)
        return self.model.embeddings.dropout(x) + self.types[1]

    def encode(self, x: Tensor, seen: Tensor) -> Tensor:
        """All blocks and the last norm: x (B, N, width), seen (B, N), False where nobody looks -> like x."""
        mask = torch.zeros(seen.shape, dtype=x.dtype, device=x.device)
        mask = mask.masked_fill(~seen.bool(), torch.finfo(x.dtype).min)
        mask = mask[:, None, None]  # (B, 1, 1, N): the same for all heads and queries
        for layer in self.model.encoder.layer:
            (x,) = layer(x, mask)
        return self.model.layernorm(x)

    def forward(self, image: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """image (B, 3, H, W), tokens and token_mask (B, L) -> states (B, L, width), (B, 1 + h*w, width)."""
        return self.encode_pairs(self.embed_image(image), tokens, token_mask)

    def encode_pairs(self, patches: Tensor, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """The same from what `embed_image` returned: a picture can be asked again."""
        x = torch.cat([self.embed_text(tokens), patches], dim=1)
        x = self.encode(x, F.pad(token_mask.bool(), (0, patches.shape[1]), value=True))
        return x[:, : tokens.shape[1]], x[:, tokens.shape[1] :]


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions of a start and a square grid, (1 + n*n, C), bilinearly to (1 + h*w, C), as ViLT does it."""
    side = round((len(table) - 1) ** 0.5)
    if grid == (side, side):
        return table
    square = table[1:].T.reshape(1, -1, side, side)  # (1, C, n, n)
    resized = F.interpolate(square, size=grid, mode="bilinear", align_corners=True)
    return torch.cat([table[:1], resized[0].flatten(1).T])


# --- named sizes ------------------------------------------------------------------------------


def vilt_b32(pretrained: Literal["dandelin/vilt-b32-mlm"] | bool | None = None) -> ViltEncoder:
    """ViLT-B/32, 111.0 M parameters, width 768: random, or dandelin/vilt-b32-mlm from the Hugging Face hub.

    Raises:
        RuntimeError: the weights cannot be had; says what to do.
    """
    return ViltEncoder(from_transformers(ViltModel, "dandelin/vilt-b32-mlm", pretrained))


def vilt_mini(
    vocab_size: int,
    pretrained: bool = False,
    *,
    width: int = 128,
    layers: int = 6,
    heads: int = 4,
    context_length: int = 32,
) -> ViltEncoder:
    """A ViLT for 96 px pictures (12 x 12 patches) and few hundred words: random, or the shipped weights.

    Raises:
        FileNotFoundError: the shipped weights are asked for, but not here; says what to do.
    """
    config = ViltConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        max_position_embeddings=context_length,
        image_size=96,
        patch_size=8,
        hidden_act="quick_gelu",  # the shape and the activation of `clip_vit_mini`: it can begin with that
        initializer_range=width**-0.5,  # the 0.02 of large networks would hardly move small ones
    )
    encoder = ViltEncoder(ViltModel(config, add_pooling_layer=False))
    nn.init.normal_(encoder.model.embeddings.position_embeddings, std=0.3)  # as there; they were zeros
    if pretrained:
        load_weights(encoder, shipped("vilt"))
    return encoder
