"""CAL against naive loops, in value and gradient, and in its limit cases."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from rislib.methods.alignment import alignment_losses, draw_pixels

NAMES = ["pixel_to_pixel", "pixel_to_text"]


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """pixels (2, 4, 3, 5), words (2, 4, 4), token_mask, and a mask of the same size, in float64."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.double)
    words = torch.randn(2, 4, 4, generator=generator, dtype=torch.double)
    token_mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    mask = (torch.rand(2, 1, 3, 5, generator=generator) > 0.6).float()
    return pixels.float().requires_grad_(), words.float().requires_grad_(), token_mask, mask


def naive(
    pixels: Tensor, words: Tensor, token_mask: Tensor, mask: Tensor, text: str, tau: tuple
) -> list[Tensor]:
    """Pair by pair, as the docstring's formulas say."""

    def unit(x: Tensor) -> Tensor:
        return x / x.square().sum().sqrt()

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (unit(a) * unit(b)).sum()

    both = []
    for b in range(len(pixels)):
        places = [(y, x) for y in range(mask.shape[2]) for x in range(mask.shape[3])]
        inside = [pixels[b, :, y, x] for y, x in places if mask[b, 0, y, x] > 0.5]
        outside = [pixels[b, :, y, x] for y, x in places if mask[b, 0, y, x] == 0]
        real = [unit(words[b, i]) for i in range(words.shape[1]) if token_mask[b, i]]
        sentence = real[0] if text == "cls" else sum(real)

        def pair(a: Tensor, p: Tensor, t: float, outside: list[Tensor] = outside) -> Tensor:
            positive = (cosine(a, p) / t).exp()
            return -(positive / (positive + sum((cosine(a, n) / t).exp() for n in outside))).log()

        pixel = [pair(a, p, tau[0]) for i, a in enumerate(inside) for j, p in enumerate(inside) if i != j]
        said = [pair(sentence, p, tau[1]) for p in inside]
        both.append([sum(pixel) / len(pixel), sum(said) / len(said)])
    return [sum(column) / len(both) for column in zip(*both, strict=True)]


@pytest.mark.parametrize("text", ["mean", "cls"])
def test_losses_equal_a_naive_loop_in_value_and_gradient(text):
    pixels, words, token_mask, mask = problem()
    weights, tau = (0.5, 2.0), (0.2, 0.4)
    losses = alignment_losses(pixels, words, token_mask, mask, weights=weights, temperatures=tau, text=text)
    expected = naive(pixels.double(), words.double(), token_mask, mask, text, tau)
    assert list(losses) == NAMES
    for loss, weight, other in zip(losses.values(), weights, expected, strict=True):
        assert loss.item() == pytest.approx(weight * other.item(), rel=1e-5)
        for tensor in (pixels, words):
            ours, theirs = (
                torch.autograd.grad(x, tensor, retain_graph=True, allow_unused=True)[0]
                for x in (loss, weight * other)
            )
            if ours is None:  # words take no part in pixel_to_pixel
                assert theirs is None
            else:
                assert theirs.any()
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_mask_comes_down_to_the_pixels_and_its_border_is_neither():
    pixels, words, token_mask, mask = problem()
    fine = mask.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    losses = alignment_losses(pixels, words, token_mask, fine)
    same = alignment_losses(pixels, words, token_mask, mask)
    assert all(losses[name].item() == pytest.approx(same[name].item(), rel=1e-5) for name in NAMES)
    fine[0, :, :4, :4], mask[0, :, 0, 0] = 0, 0
    fine[0, 0, 0, :4] = 1  # a quarter of the first cell
    torch.manual_seed(0)
    pixels.data[0, :, 0, 0] = 100 * torch.randn(4)
    before = alignment_losses(pixels, words, token_mask, fine)
    pixels.data[0, :, 0, 0] *= -1
    after = alignment_losses(pixels, words, token_mask, fine)
    counted = alignment_losses(pixels, words, token_mask, mask)
    for name in NAMES:
        assert before[name].item() == pytest.approx(after[name].item(), rel=1e-5)
        assert counted[name].item() != pytest.approx(after[name].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("inside", "zero"),
    [
        (lambda mask: mask * 0, NAMES),  # an empty mask
        (lambda mask: mask * 0 + 1, NAMES),  # a full one
        (lambda mask: torch.eye(15)[7].reshape(1, 1, 3, 5).expand(2, -1, -1, -1), NAMES[:1]),  # one pixel
        (lambda mask: mask * 0 + 0.3, NAMES),  # nothing but border
    ],
    ids=["empty", "full", "one", "border"],
)
def test_limit_cases_are_exactly_zero_with_gradient_zero(inside, zero):
    pixels, words, token_mask, mask = problem()
    losses = alignment_losses(pixels, words, token_mask, inside(mask))
    assert [name for name in NAMES if losses[name].item() == 0] == zero
    sum(losses.values()).backward()
    for tensor in (pixels, words):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any() == (len(zero) == 1)


def test_a_sample_with_nothing_to_compare_leaves_the_others_theirs():
    pixels, words, token_mask, mask = problem()
    alone = alignment_losses(pixels[:1], words[:1], token_mask[:1], mask[:1])
    mask[1] = 0
    both = alignment_losses(pixels, words, token_mask, mask)
    for name in NAMES:  # a mean over samples
        assert both[name].item() == pytest.approx(alone[name].item() / 2, rel=1e-5)


def test_perfect_vectors_have_hardly_a_loss_and_the_worst_a_large_one():
    mask = torch.zeros(1, 1, 2, 4)
    mask[..., :2] = 1
    object_, rest = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([-1.0, 0.0, 0.0])
    pixels = torch.where(mask[:, 0, None] > 0, object_[:, None, None], rest[:, None, None])
    token_mask = torch.ones(1, 2).bool()
    for words, name, limit in ((object_, "good", 1e-6), (rest, "bad", 20.0)):
        losses = alignment_losses(pixels, words.expand(1, 2, 3), token_mask, mask, temperatures=(0.1, 0.1))
        assert losses["pixel_to_pixel"].item() < 1e-6
        if name == "good":
            assert losses["pixel_to_text"].item() < limit
        else:  # four pixels outside agree with the text: 2 / 0.1 + log 4
            assert losses["pixel_to_text"].item() == pytest.approx(limit + math.log(4), rel=1e-5)


def test_sharp_temperatures_and_vanishing_vectors_stay_finite():
    pixels, words, token_mask, mask = problem()
    pixels.data[0, :, 0] = 0
    losses = alignment_losses(1e4 * pixels, words, token_mask, mask, temperatures=(0.001, 0.001))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert pixels.grad.isfinite().all() and words.grad.isfinite().all()


def test_autocast_changes_nothing():
    arguments = problem()
    exact = alignment_losses(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert alignment_losses(*arguments) == exact
        pixels, words, *others = arguments
        coarse = alignment_losses(pixels.bfloat16(), words.bfloat16(), *others)
    assert all(loss.dtype == torch.float32 for loss in coarse.values())


def test_pixels_are_drawn_by_lot_and_the_lot_by_the_seed():
    vectors = torch.arange(30.0).reshape(1, 30, 1).expand(2, -1, -1)
    where = torch.zeros(2, 30, dtype=torch.bool)
    where[0, 10:20] = where[1, :3] = True
    draw = partial(draw_pixels, vectors, where, 4)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        drawn, real = draw()
        assert drawn.shape == (2, 4, 1)
        assert real.tolist() == [[True] * 4, [True] * 3 + [False]]
        chosen = drawn[0, :, 0].tolist()
        assert len(set(chosen)) == 4 and set(chosen) <= set(range(10, 20))
        assert set(drawn[1, :3, 0].tolist()) == {0, 1, 2}
        seen |= set(chosen)
    assert seen == set(range(10, 20))

    arguments, losses = problem(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(alignment_losses(*arguments, samples=2)["pixel_to_text"].item())
    assert losses[0] == losses[1] != losses[2]


def test_an_unknown_sentence_vector_is_refused():
    with pytest.raises(ValueError, match="'eos'"):
        alignment_losses(*problem(), text="eos")
