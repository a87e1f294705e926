"""Instance masks, as MaIL reads them and chooses among them (Li et al., 2021, arXiv 2111.10747).

A segmenter found N things before anybody asked for one. Their masks become a lane of tokens, which an encoder
reads beside picture and words; and when it has read, the masks are chosen that the sentence is about. Behind
them comes the null mask M_0, which is 1 everywhere, so that there is always one to choose.

In the order of the code, with masks M_1 ... M_N:

    m_i = M_i, averaged over each patch;  w_i = m_i / sum of m_i
    v_M + t_M = C[class, Tokens(M)] + places + type                  what the encoder gets
    F_i = z_M as a map of mask i, without the class token            what it has made of that
    s_i = cos(W_p sum(w_i F_i), W_q sum(w_i F_I)) / 0.07             adaptive mask selection (AMS)
    a = softmax(s), of all masks that are not empty
    F_M = sum over i of a_i m_i F_i

What Tokens(M) may be, and what F_i is then:

    "A"    one stack of N channels, cut into patches: h*w tokens, and one map for all masks, F_i = F_1
    "B"    a token for each mask, of all its m_i, placed where the mask is on average; F_i is that token
    "C"    each mask cut into patches by itself: (N + 1) * h*w tokens, and a map for each mask

In B and C, where M_0 is one of them, masks have no order, and nobody looks at tokens of an empty one. In A,
where M_0 would be a bias, slots are channels: order counts, and empty slots are channels of zeros.

How a is made of s:

    "soft"       as above
    "hard"       so in training; in use, the best mask alone
    "sigmoid"    gates a_i = sigmoid(s_i), and for M_0 the product of all 1 - a_i
    "mlp"        as above, with s_i an MLP of both sums in place of the cosine
    None         always M_0, so that F_M is as it is

The paper is silent about most of this. What is stated and what is inferred: see mail.py.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.encoders.vilt import ViltEncoder, resize_positions
from rislib.nouns import Batch


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
        """z_M, what the encoder made of the tokens (B, M, C) -> F_i.

        "A" (B, 1, h*w, C), "B" (B, N + 1, 1, C), "C" (B, N + 1, h*w, C).
        """
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
