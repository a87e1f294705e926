"""Hiding tokens that matter: the masking of CM-MaskSD (Wang et al., IEEE TMM 2024, arXiv 2305.11481).

A token's score says how much it is about the other modality. What scores high is what a network would lean
on, so that is what is hidden. Not all of it, and not always the same: among the highest, chance decides.

In the order of the code, with tokens x_1 ... x_N, a score c_i of each, E, those that may be hidden, and two
shares, K and alpha:

    B = the k of E with the largest c_i;  k = K |E|, rounded up
    H = n of B, drawn at random;  n = alpha k, rounded down, but one at least
    x_i = m  for all i in H;  m: one embedding, learned, or zeros

K = 1 leaves everything to the lot, alpha = 1 nothing. A hidden token keeps its place: positions are added
afterwards. m has a gradient; the choice has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SLACK = 1e-4  # 10 % of 30 are 3, also in floating point


class Masking(nn.Module):
    """Chooses tokens and puts one embedding in their place.

    Args:
        width: of the tokens.
        top: K, as a share of those that may be chosen.
        share: alpha, of K.
        guided: False chooses as many, whatever their score.
        learned: False puts zeros in their place.
    """

    def __init__(self, width: int, top: float, share: float, *, guided: bool, learned: bool) -> None:
        super().__init__()
        self.top, self.share, self.guided = top, share, guided
        self.embedding = nn.Parameter(0.02 * torch.randn(width)) if learned else None

    @torch.no_grad()
    def choose(self, score: Tensor, eligible: Tensor) -> Tensor:
        """score (B, N), eligible (B, N) bool -> (B, N) bool, alpha, by lot, of the K that score highest."""
        candidates = self.best(score if self.guided else torch.rand_like(score), eligible)
        k = candidates.sum(dim=1)  # (B,)
        count = (self.share * k + SLACK).floor().clamp(min=1).minimum(k)
        lot = torch.rand(score.shape, device=score.device)
        return ranks(lot, candidates) < count[:, None]

    def best(self, score: Tensor, eligible: Tensor) -> Tensor:
        """The K that score highest: (B, N) bool."""
        k = (self.top * eligible.sum(dim=1) - SLACK).ceil()  # (B,)
        return ranks(-score.float(), eligible) < k[:, None]

    def forward(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """tokens (B, N, width), chosen (B, N) bool -> the same tokens, others where they are chosen."""
        if self.embedding is None:
            return tokens.masked_fill(chosen[:, :, None], 0)
        return torch.where(chosen[:, :, None], self.embedding.to(tokens.dtype), tokens)


def ranks(values: Tensor, among: Tensor) -> Tensor:
    """0 for the smallest of a row, 1 for the next, ...: values (B, N), among (B, N) bool, the others last."""
    return values.masked_fill(~among, torch.inf).argsort(dim=1).argsort(dim=1)
