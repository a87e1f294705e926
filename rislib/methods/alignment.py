"""CAL, the cross-modal alignment loss of MagNet (Chng et al., CVPR 2024, arXiv 2312.12198).

The object's pixels shall lie near each other and near the sentence, and far from all other pixels: two
contrastive losses on the vectors from which the mask is made. Nothing of it runs when the network is used.

In the order of the code, with a vector e per pixel, a vector w per word, all scaled to length 1:

    I, O      some of the pixels inside the mask, and some of those outside, drawn by lot
    t = mean of w_1 ... w_L, of length 1 again                                      the sentence
    l(a, p) = -log( exp(a.p / tau) / (exp(a.p / tau) + sum over n in O of exp(a.n / tau)) )        InfoNCE
            = softplus( log sum over n in O of exp(a.n / tau)  -  a.p / tau )
    pixel_to_pixel = mean over all i, j in I, i != j, of l(e_i, e_j)            (P2P, temperature tau_1)
    pixel_to_text  = mean over all i in I of l(t, e_i)                          (P2T, temperature tau_2)

The mean over all pairs is the supervised contrastive loss (Khosla et al., 2020, arXiv 2004.11362, equation 2)
but for the denominator: there the sum also runs over the other positives, which therefore push each other
away. Here each pair stands against the negatives alone. Written with softplus nothing overflows, and an
empty O gives exactly 0. Anchors are pixels of the object only: those outside belong to many things.

What is what. Neither the paper's text nor code that trains was at hand:

    stated    that there is such a loss
    code      what it compares: the pixel vectors of the head, and words through a linear layer of their width
    inferred  from memory of the paper, the two parts, InfoNCE with positives inside and negatives outside the
              mask. Negatives are those of the same picture (the alternative: of the whole batch); all
              weights, temperatures and numbers; t is the mean of all real tokens (text="cls": the first)
    ours      as many pixels are drawn outside as inside, however small the object; cells at its border, which
              the mask covers by half or less, are neither; samples with nothing to compare count 0
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

FAR = -1e4  # a similarity whose exponential is 0, without the nan that -inf has in a gradient


def alignment_losses(
    pixels: Tensor,
    words: Tensor,
    token_mask: Tensor,
    mask: Tensor,
    *,
    weights: tuple[float, float] = (1.0, 1.0),
    temperatures: tuple[float, float] = (0.1, 0.1),
    samples: int = 64,
    text: Literal["mean", "cls"] = "mean",
) -> dict[str, Tensor]:
    """pixels (B, C, h, w), words (B, L, C), token_mask (B, L), mask (B, 1, H, W) -> two weighted scalars.

    Args:
        weights, temperatures: of pixel_to_pixel, of pixel_to_text.
        samples: so many pixels at most inside, and so many outside.
        text: which vector speaks for the sentence.

    Raises:
        ValueError: `text` is unknown.
    """
    if text not in ("mean", "cls"):
        raise ValueError(f"the sentence is the 'mean' of its words or 'cls', not {text!r}")
    with torch.autocast(pixels.device.type, enabled=False):  # eight bits do not tell neighbours apart
        covered = F.interpolate(mask.float(), pixels.shape[2:], mode="area").flatten(1)  # (B, h*w)
        vectors = F.normalize(pixels.float().flatten(2).transpose(1, 2), dim=2)  # (B, h*w, C)
        inside, is_inside = draw_pixels(vectors, covered > 0.5, samples)  # (B, n, C), (B, n)
        outside, is_outside = draw_pixels(vectors, covered == 0, samples)
        pairs = is_inside[:, :, None] & is_inside[:, None]  # (B, n, n)
        pairs = pairs & ~torch.eye(inside.shape[1], dtype=torch.bool, device=pairs.device)
        sentence = sentence_vector(words.float(), token_mask, text)[:, None]  # (B, 1, C)
        return {
            "pixel_to_pixel": weights[0]
            * info_nce(inside, inside, outside, pairs, is_outside, temperatures[0]),
            "pixel_to_text": weights[1]
            * info_nce(sentence, inside, outside, is_inside[:, None], is_outside, temperatures[1]),
        }


def info_nce(
    anchors: Tensor,
    positives: Tensor,
    negatives: Tensor,
    pairs: Tensor,
    is_negative: Tensor,
    temperature: float,
) -> Tensor:
    """The mean of l(a, p) over a sample's pairs, and then over samples: scalar.

    Args:
        anchors, positives, negatives: (B, A, C), (B, P, C), (B, N, C), of length 1.
        pairs: (B, A, P) bool, which anchor belongs to which positive.
        is_negative: (B, N) bool, False where `negatives` is only filled up.
    """
    pull = anchors @ positives.mT / temperature  # (B, A, P)
    push = (anchors @ negatives.mT / temperature).masked_fill(~is_negative[:, None], FAR)  # (B, A, N)
    each = F.softplus(push.logsumexp(dim=2, keepdim=True) - pull) * pairs
    return (each.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()


def draw_pixels(vectors: Tensor, where: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` at most of the vectors (B, N, C) where (B, N) is True -> (B, n, C), and which are (B, n)."""
    lot = torch.rand(where.shape, device=where.device).masked_fill(~where, -1)
    drawn, index = lot.topk(min(count, lot.shape[1]), dim=1)
    return vectors.gather(1, index[:, :, None].expand(-1, -1, vectors.shape[2])), drawn >= 0


def sentence_vector(words: Tensor, token_mask: Tensor, text: str) -> Tensor:
    """words (B, L, C) -> (B, C), of length 1."""
    if text == "cls":
        return F.normalize(words[:, 0], dim=1)
    words = F.normalize(words, dim=2) * token_mask[:, :, None]
    return F.normalize(words.sum(dim=1), dim=1)
