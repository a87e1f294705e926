"""MagNet: parity with the published network at full size, the rest on the mini. See also test_contract.py."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from parity import (
    REFERENCE,
    SENTENCES,
    check_published_names,
    mini_batch,
    parameters_of,
    randomise,
    reference_keys,
    reference_tensors,
    relative_error,
)
from reference import weights
from torch import Tensor
from torch.nn import functional as F

from rislib.checkpoints import _MAGNET_NAMES, load_published
from rislib.encoders.bert import bert_mini
from rislib.encoders.swin import swin_mini
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.methods.alignment import alignment_losses
from rislib.methods.layers import WordPixelAttention, dice_loss, instance_norm
from rislib.methods.magnet import MagNet, magnet, magnet_mini
from rislib.methods.mask2former import background, read_points


@pytest.fixture(scope="module")
def mini(vocabulary) -> MagNet:
    return randomise(magnet_mini(pretrained=False, vocabulary=vocabulary))


# --- the published network --------------------------------------------------------------------


def test_parity_of_the_forward_pass(two_threads):
    """With the error of the released code in it."""
    model = load_published("magnet", weights.state_dict(REFERENCE / "magnet.keys.json"))
    reference = reference_tensors("magnet")
    tokens, token_mask = reference.pop("input_ids"), reference.pop("attention_mask")
    with torch.no_grad():
        reading = model.eval().read(model.encode_image(weights.image(480)), tokens, token_mask)
        prediction = model.decode(reading)
    seen = {f"s{i + 1}_mean": y.mean((2, 3)) for i, y in enumerate(reading.maps)}
    seen |= {"pred_masks": prediction.masks[-1], "pred_logits": prediction.classes}
    assert len(prediction.masks) == 10
    assert seen.keys() == reference.keys()
    errors = {name: relative_error(value, reference[name]) for name, value in seen.items()}
    # The head decides at zero where to look: a pixel at the border may fall to the other side
    limits = {name: 1e-3 if name.startswith("pred_") else 1e-4 for name in errors}
    assert all(errors[name] < limits[name] for name in errors), errors


def test_every_published_name_has_its_own_place():
    with torch.device("meta"):
        check_published_names(magnet(mask_grounding=0), _MAGNET_NAMES, reference_keys("magnet"))


def test_parameter_count_is_the_published_one():
    with torch.device("meta"):
        model = magnet()
    assert parameters_of(model.head) == 17_997_314
    assert parameters_of(model) > 300_000_000  # in training, with mask grounding
    assert parameters_of(model.strip()) == 296_984_954


def test_the_full_size_answers_at_stride_4_for_any_size():
    with torch.device("meta"), torch.no_grad():
        tokens = torch.ones(2, 20, dtype=torch.int64)
        assert magnet().eval()(torch.zeros(2, 3, 448, 332), tokens).shape == (2, 1, 112, 83)


# --- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (44, 76)])
def test_the_mini_answers_at_stride_4_for_any_size(mini, size):
    tokens, token_mask = mini.tokenize(SENTENCES[:2])
    with torch.no_grad():
        assert mini(torch.randn(2, 3, *size), tokens, token_mask).shape == (2, 1, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize(
    "options",
    [
        {"pyramid": ()},
        {"pyramid": (1, 2, 3, 6)},
        {"text_fusion": False},
        {"decoder_layers": 0},
        {"encoder_layers": 2, "decoder_layers": 1, "points": 4, "width": 32},
        {"released_text_mask": True},
        {"mask_grounding": 0.0},
        {"cal": 0.0},
        {"alignment": {"text": "cls", "samples": 16}},
        {"mask_grounding": 0.0, "cal": 0.0, "pyramid": (), "text_fusion": False},
    ],
    ids=str,
)
def test_every_ablation_trains_all_of_its_parameters(options, vocabulary):
    grounding = {"grounding": {"at_least_one": True}}
    model = randomise(magnet_mini(pretrained=False, vocabulary=vocabulary, **grounding, **options)).train()
    losses = model.losses(mini_batch(model, size=64))
    cal = ["pixel_to_pixel", "pixel_to_text"] if options.get("cal", 1.0) else []
    assert list(losses) == [
        "mask_bce",
        "dice",
        *cal,
        *(["mask_grounding"] if options.get("mask_grounding", 1.0) else []),
    ]
    sum(losses.values()).backward()
    learn = {name for name, p in model.named_parameters() if p.requires_grad}
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    if options.get("decoder_layers") == 0:  # nothing asks where the query stands, nor at which level it looks
        learn -= {"head.position", "head.levels"}
    assert not learn & still
    frozen = {name.rpartition(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    unread = ("unread.", "image_gates.3.", "text_gates.3.", "text_fusions.3.", "head.classify")
    unread += () if cal else ("text_projection",)
    assert all(name.startswith(unread) for name in frozen)


def test_the_mini_is_small():
    with torch.device("meta"):
        assert parameters_of(magnet_mini(pretrained=False)) < 8e6


def test_closed_gates_leave_both_towers_alone_and_open_by_themselves(vocabulary):
    model = magnet_mini(pretrained=False, vocabulary=vocabulary).eval()
    batch = mini_batch(model, size=64)
    reading = model.read(model.encode_image(batch.image), batch.tokens, batch.token_mask)
    torch.testing.assert_close(reading.words, model.bert(batch.tokens, batch.token_mask))
    sum(model.losses(batch).values()).backward()
    for gates in (model.image_gates, model.text_gates):
        assert all(gate[2].weight.grad.any() for gate in gates[:3])


def test_small_gates_let_words_see_the_picture(vocabulary):
    model = magnet_mini(pretrained=False, vocabulary=vocabulary, gates="small").eval()
    batch = mini_batch(model, size=64)
    with torch.no_grad():
        words, others = (
            model.read(model.encode_image(image), batch.tokens, batch.token_mask).words
            for image in (batch.image, batch.image.flip(0))
        )
        # at an initialisation as small as this the difference is small, but no rounding
        assert relative_error(others, words) > 1e-5


def test_released_mask_hides_the_picture_from_words_and_ours_does_not():
    torch.manual_seed(0)
    words, mask = torch.randn(2, 6, 32), torch.ones(2, 6, dtype=torch.bool)
    pictures = torch.randn(2, 5, 7, 16), torch.randn(2, 5, 7, 16)
    change = {}
    for released in (False, True):
        attention = randomise(WordPixelAttention(32, 16, released_mask=released))
        with torch.no_grad():
            change[released] = relative_error(*(attention(words, x, mask) for x in pictures))
    assert change[True] < 1e-4
    assert change[False] > 0.1


def test_encoder_parameters_are_the_towers(mini):
    encoder = {id(p) for p in mini.encoder_parameters()}
    names = {name for name, p in mini.named_parameters() if id(p) in encoder}
    assert names == {name for name, _ in mini.named_parameters() if name.startswith(("swin.", "bert."))}


@pytest.mark.parametrize("options", [{"gates": "open"}, {"depth": 6}], ids=str)
def test_what_cannot_be_built_is_refused(options, vocabulary):
    tokenizer = ClipTokenizer(32, vocabulary)
    bert = bert_mini(tokenizer.vocab_size, layers=options.pop("depth", 4))
    with pytest.raises(ValueError, match=r"'open'|6 layers"):
        MagNet(swin_mini(), bert, tokenizer, **options)


# --- its parts, against naive loops -----------------------------------------------------------


def test_losses_equal_a_naive_loop_over_all_guesses(vocabulary):
    mini = randomise(magnet_mini(pretrained=False, vocabulary=vocabulary, mask_grounding=0.0))
    batch = mini_batch(mini, size=64)
    with torch.no_grad():
        losses = mini.losses(batch)
        reading = mini.read(mini.encode_image(batch.image), batch.tokens, batch.token_mask)
        guesses = mini.decode(reading).masks
    assert len(guesses) == 4
    bce, dice = 0.0, 0.0
    for guess in guesses:
        terms, target = [], torch.zeros_like(guess)
        for b, y, x in np.ndindex(4, 16, 16):
            p = 1 / (1 + math.exp(-guess[b, 0, y, x].item()))
            t = batch.mask[b, 0, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].mean().item()
            target[b, 0, y, x] = t
            terms.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
        bce += sum(terms) / len(terms)
        dice += dice_loss(guess, target).item()
    assert losses["mask_bce"].item() == pytest.approx(5 * bce, rel=1e-3)
    assert losses["dice"].item() == pytest.approx(5 * dice, rel=1e-3)


@pytest.mark.parametrize("text", ["mean", "cls"])
def test_alignment_is_of_the_heads_pixels_and_the_projected_words(vocabulary, text):
    """Of as many pixels as there are, so that none is left to chance."""
    options = {"alignment": {"samples": 256, "text": text}, "cal": 0.3, "mask_grounding": 0.0}
    mini = randomise(magnet_mini(pretrained=False, vocabulary=vocabulary, **options))
    batch = mini_batch(mini, size=64)
    with torch.no_grad():
        losses = mini.losses(batch)
        reading = mini.read(mini.encode_image(batch.image), batch.tokens, batch.token_mask)
        pixels = mini.decode(reading).pixels
        words = reading.words @ mini.text_projection.weight.T + mini.text_projection.bias
        mask = batch.mask[:, :, 2::4, 2::4]  # its squares are 16 pixels wide: four of the map's
        expected = alignment_losses(pixels, words, batch.token_mask, mask, samples=256, text=text)
    for name in ("pixel_to_pixel", "pixel_to_text"):
        assert losses[name].item() == pytest.approx(0.3 * expected[name].item(), rel=1e-4)


def points_and_maps() -> tuple[list[Tensor], Tensor, Tensor]:
    """Two maps, two heads; some points lie outside, some so far that they see nothing."""
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, h, w, 2, 3, generator=generator, dtype=torch.double) for h, w in ((3, 5), (4, 2))]
    points = torch.randn(2, 7, 2, 2, 4, 2, generator=generator, dtype=torch.double) * 3 + 1
    return maps, points, torch.rand(2, 7, 2, 2, 4, generator=generator, dtype=torch.double)


def test_reading_points_equals_a_naive_loop():
    maps, points, shares = points_and_maps()
    expected = torch.zeros(2, 7, 2, 3, dtype=torch.double)
    for b, q, head, level, k in np.ndindex(2, 7, 2, 2, 4):
        h, w = maps[level].shape[1:3]
        x, y = points[b, q, head, level, k].tolist()
        for row in range(h):
            for column in range(w):
                nearness = max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row))
                value = maps[level][b, row, column, head]
                expected[b, q, head] += shares[b, q, head, level, k] * nearness * value
    torch.testing.assert_close(read_points(maps, points, shares), expected.flatten(2))


def test_reading_points_has_the_gradients_of_grid_sample():
    maps, points, shares = points_and_maps()

    def sampled(maps, points, shares):
        answer = torch.zeros(2, 7, 2, 3, dtype=torch.double)
        for head, level in np.ndindex(2, 2):
            h, w = maps[level].shape[1:3]
            grid = (points[:, :, head, level] + 0.5) / torch.tensor([w, h]) * 2 - 1
            values = maps[level][:, :, :, head].permute(0, 3, 1, 2)
            values = F.grid_sample(values, grid, align_corners=False)  # (2, 3, 7, 4)
            answer[:, :, head] += torch.einsum("bcqk,bqk->bqc", values, shares[:, :, head, level])
        return answer.flatten(2)

    inputs = [x.requires_grad_() for x in (*maps, points, shares)]
    direction = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    ours, theirs = (
        torch.autograd.grad((read(maps, points, shares) * direction).sum(), inputs)
        for read in (read_points, sampled)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert other.any()
        torch.testing.assert_close(mine, other)


def test_a_query_that_sees_no_object_looks_everywhere():
    mask = torch.full((3, 1, 4, 4), -1.0)
    mask[0, 0, :2, :2] = 1  # one quarter
    mask[1] = 1
    blocked = background(mask, (2, 2))
    assert blocked.shape == (3, 1, 4)
    assert blocked[:, 0].tolist() == [[False, True, True, True], [False] * 4, [False] * 4]


def test_instance_norm_sees_only_what_the_mask_leaves():
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    everything = F.instance_norm(x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(instance_norm(x, torch.ones(2, 6, 1)), everything)
    first = torch.arange(6).expand(2, -1)[..., None] < 4
    torch.testing.assert_close(
        instance_norm(x, first.float())[:, :4], F.instance_norm(x[:, :4].transpose(1, 2)).transpose(1, 2)
    )
