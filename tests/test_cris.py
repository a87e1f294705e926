"""CRIS: parity with the published network at full size, the rest on the mini. See also test_contract.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity import (
    REFERENCE,
    SENTENCES,
    check_published_names,
    mini_batch,
    parameters_of,
    published_state,
    randomise,
    reference_keys,
    reference_tensors,
    relative_error,
)
from reference import weights
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rislib.checkpoints import _CRIS_NAMES, fill, load_published, published_name
from rislib.encoders.clip import clip_vit_mini
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.methods.cris import CRIS, Projector, cris_mini, cris_r50, cris_r101
from rislib.methods.layers import coordinate_maps, dice_loss, sine_positions, sine_positions_2d
from rislib.nouns import Batch


@pytest.fixture(scope="module")
def mini(vocabulary) -> CRIS:
    return randomise(cris_mini(pretrained=False, vocabulary=vocabulary))


# --- the published network --------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    """CRIS R50 with the reference weights, and the reference tensors."""
    state = weights.state_dict(REFERENCE / "cris_r50.keys.json")
    model = load_published("cris_r50", {f"module.{k}": v for k, v in state.items()}, dropout=0.0)
    return model, reference_tensors("cris_r50")


def test_parity_of_the_forward_pass(published, two_threads):
    model, reference = published
    seen = {}
    neck, pooled = model.neck, model.neck.p5
    hooks = [
        neck.register_forward_hook(lambda *a: seen.update(neck_mean=a[2].mean((2, 3)))),
        pooled.register_forward_pre_hook(lambda *a: seen.update(v5_mean=a[1][0].mean((2, 3)))),
    ]
    with torch.no_grad():
        seen["logits"] = model(weights.image(416), reference["tokens"])
        text = model.clip.encode_text(reference["tokens"])
    for hook in hooks:
        hook.remove()
    seen |= {"words": text.words, "state": text.sentence}
    errors = {name: relative_error(value, reference[name]) for name, value in seen.items()}
    assert len(errors) == 5
    assert max(errors.values()) < 1e-4, errors


def test_parity_of_the_loss_and_of_every_gradient(published, two_threads):
    model, reference = published
    mask = np.random.default_rng([0, 777]).random((2, 1, 416, 416)) > 0.8
    tokens = reference["tokens"]
    batch = Batch(weights.image(416), tokens, tokens != 0, torch.from_numpy(mask).float())
    loss = model.train().losses(batch)["text_to_pixel"]
    assert loss.item() == pytest.approx(reference["train_loss"].item(), rel=1e-3)
    loss.backward()
    norms = {
        published_name(name, _CRIS_NAMES): p.grad.norm().item()
        for name, p in model.named_parameters()
        if p.grad is not None
    }
    expected = json.loads((REFERENCE / "cris_r50.grad_norms.json").read_text())
    assert norms.keys() == expected.keys()
    # Batch norm over a batch of two gives each channel +1 and -1: what little gradient comes through is
    # the rounding of float32. And a bias on attention keys changes no softmax.
    coarse = ("neck.txt_proj.", "attnpool.k_proj.bias", "in_proj_bias")
    for name, norm in norms.items():
        tolerance = 2e-2 if any(part in name for part in coarse) else 1e-3
        assert norm == pytest.approx(expected[name], rel=tolerance, abs=1e-6), name


@pytest.mark.parametrize(("build", "parameters"), [(cris_r50, 146_849_122), (cris_r101, 161_251_682)])
def test_parameter_counts_are_the_published_ones(build, parameters):
    with torch.device("meta"):
        assert parameters_of(build()) == parameters


@pytest.mark.parametrize(
    ("contrastive", "decoder_layers", "millions"),
    [
        (False, 0, 131.86),
        (True, 0, 134.22),
        (False, 1, 136.07),
        (True, 1, 138.43),
        (True, 2, 142.64),
        (True, 3, 146.85),
        (True, 4, 151.06),
    ],
)
def test_ablations_have_the_parameter_counts_of_the_papers_table(contrastive, decoder_layers, millions):
    with torch.device("meta"):
        model = cris_r50(contrastive=contrastive, decoder_layers=decoder_layers)
    assert round(parameters_of(model) / 1e6, 2) == millions


# --- loading ----------------------------------------------------------------------------------


def test_every_published_name_has_its_own_place():
    with torch.device("meta"):
        check_published_names(cris_r50(), _CRIS_NAMES, reference_keys("cris_r50"))


def test_removed_renamed_and_misshapen_entries_are_named(vocabulary):
    model = cris_mini(pretrained=False, vocabulary=vocabulary)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = published_state(model, _CRIS_NAMES)
    del state["neck.aggr.0.weight"]
    state["neck.f5_proj3.0.weight"] = state.pop("neck.f4_proj3.0.weight")
    state["proj.txt.bias"] = state["proj.txt.bias"][:-1]
    with pytest.raises(ValueError) as error:
        fill(model, state, _CRIS_NAMES)
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.strip().split(" is ")[0] for line in lines) == [
        "misshapen: proj.txt.bias",
        "missing: neck.aggr.0.weight",
        "missing: neck.f4_proj3.0.weight",
        "unexpected: neck.f5_proj3.0.weight",
    ]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed although the checkpoint was refused"


def test_a_fitting_state_dict_is_copied_whole(vocabulary):
    model = cris_mini(pretrained=False, vocabulary=vocabulary)
    state = published_state(model, _CRIS_NAMES)
    fill(model, state, _CRIS_NAMES)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[published_name(name, _CRIS_NAMES)].to(tensor.dtype)), name


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(ValueError, match="cris_r50, cris_r101"):
        load_published("cris_r18", {})


# --- the network ------------------------------------------------------------------------------


def test_a_second_question_costs_less_than_half(mini):
    """At the mini's own size, and with attention written out: the counter does not see it fused."""
    batch = mini_batch(mini, size=mini.preprocessing.size)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as picture:
            features = mini.encode_image(batch.image)
        with FlopCounterMode(display=False) as sentence:
            mini.segment(features, batch.tokens, batch.token_mask)
    first, second = picture.get_total_flops() + sentence.get_total_flops(), sentence.get_total_flops()
    assert second / first < 0.5


@pytest.mark.parametrize("size", [(64, 64), (96, 192), (48, 80)])
def test_the_mini_answers_at_stride_2_for_any_multiple_of_16(mini, size):
    tokens, token_mask = mini.tokenize(SENTENCES[:2])
    with torch.no_grad():
        assert mini(torch.randn(2, 3, *size), tokens, token_mask).shape == (2, 1, size[0] // 2, size[1] // 2)


@pytest.mark.parametrize("build", [cris_r50, cris_r101])
def test_full_size_networks_answer_at_stride_4_for_any_multiple_of_32(build):
    with torch.device("meta"):
        model = build().eval()
        tokens = torch.ones(2, 17, dtype=torch.int64)
        with torch.no_grad():
            assert model(torch.zeros(2, 3, 96, 160), tokens, tokens != 0).shape == (2, 1, 24, 40)
            with pytest.raises(ValueError, match="multiples of 32"):
                model(torch.zeros(2, 3, 48, 80), tokens, tokens != 0)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"kernel": "inner_product"}, ["text_to_pixel", "dice"]),
        ({"contrastive": False}, ["cross_entropy", "dice"]),
        ({"decoder_layers": 0}, ["text_to_pixel", "dice"]),
        ({"dice": 0.0}, ["text_to_pixel"]),
        ({"contrastive": False, "decoder_layers": 0, "dice": 0.0}, ["cross_entropy"]),
        (
            {"decoder_layers": 1, "decoder_heads": 4, "neck_widths": (32, 64, 128), "projector_width": 32},
            ["text_to_pixel", "dice"],
        ),
    ],
    ids=str,
)
def test_every_ablation_trains_all_of_its_parameters(options, parts, vocabulary):
    model = randomise(cris_mini(pretrained=False, vocabulary=vocabulary, **options)).train()
    losses = model.losses(mini_batch(model, size=64))
    assert list(losses) == parts
    sum(losses.values()).backward()
    still = {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    assert still == set()
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["clip.model.logit_scale"]


def test_only_the_mini_adds_a_dice_loss_unasked(mini):
    with torch.device("meta"):
        assert cris_r50().dice == 0
    assert mini.dice == 0.25


def test_the_dice_loss_counts_as_much_as_asked_for(mini, monkeypatch):
    batch = mini_batch(mini, size=64)
    with torch.no_grad():
        logits = mini(batch.image, batch.tokens, batch.token_mask)
        whole = dice_loss(logits, F.interpolate(batch.mask, size=(32, 32)))
        for weight in (1.0, 0.25):
            monkeypatch.setattr(mini, "dice", weight)
            torch.testing.assert_close(mini.losses(batch)["dice"], weight * whole)


def test_encoder_parameters_are_the_towers_without_their_position_tables(mini):
    encoder = {id(p) for p in mini.encoder_parameters()}
    names = {name for name, p in mini.named_parameters() if id(p) in encoder}
    assert all(name.startswith("clip.") for name in names)
    left_out = {name for name, _ in mini.named_parameters() if name.startswith("clip.")} - names
    assert left_out == {"clip.model.positional_embedding", "clip.model.visual.attnpool.positional_embedding"}


def test_a_single_sample_cannot_be_trained_on(mini):
    batch = mini_batch(mini)
    try:
        with pytest.raises(ValueError, match="2 samples or more"):
            mini.train()(batch.image[:1], batch.tokens[:1])
    finally:
        mini.eval()


def test_a_vit_has_no_pyramid(vocabulary):
    tokenizer = ClipTokenizer(32, vocabulary)
    with pytest.raises(ValueError, match="ResNet"):
        CRIS(clip_vit_mini(tokenizer.vocab_size), tokenizer)


def test_an_unknown_kernel_is_refused(vocabulary):
    with pytest.raises(ValueError, match="conv5x5"):
        cris_mini(pretrained=False, vocabulary=vocabulary, kernel="conv5x5")


# --- its parts, against naive loops -----------------------------------------------------------


@pytest.mark.parametrize("resize", ["nearest", "area"])
def test_text_to_pixel_loss_equals_a_naive_loop(mini, monkeypatch, resize):
    """At half the size, "nearest" takes the first pixel of each block of four, "area" their mean."""
    monkeypatch.setattr(mini, "mask_resize", resize)
    mask = (torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    batch = replace(mini_batch(mini, size=64), mask=mask)  # pixel by pixel, so that the resizing matters
    with torch.no_grad():
        loss = mini.losses(batch)["text_to_pixel"].item()
        logits = mini(batch.image, batch.tokens, batch.token_mask).double()
    terms = []
    for b, y, x in np.ndindex(4, 32, 32):
        p = 1 / (1 + math.exp(-logits[b, 0, y, x].item()))
        block = batch.mask[b, 0, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
        target = block[0, 0].item() if resize == "nearest" else block.mean().item()
        terms.append(-target * math.log(p) - (1 - target) * math.log(1 - p))
    assert loss == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_dice_loss_equals_a_naive_count():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 1, 3, 4), (torch.rand(2, 1, 3, 4) > 0.5).float()
    each = []
    for b in range(2):
        p = [1 / (1 + math.exp(-x)) for x in logits[b].flatten().tolist()]
        t = target[b].flatten().tolist()
        both = sum(x * y for x, y in zip(p, t, strict=True))
        each.append(1 - (2 * both + 1) / (sum(p) + sum(t) + 1))
    assert dice_loss(logits, target).item() == pytest.approx(sum(each) / 2, rel=1e-5)
    assert dice_loss(torch.full((1, 1, 8, 8), -50.0), torch.zeros(1, 1, 8, 8)).item() == pytest.approx(
        0, abs=1e-6
    )


@pytest.mark.parametrize("kernel", ["conv3x3", "inner_product"])
def test_each_sentence_meets_its_own_pixels(kernel):
    torch.manual_seed(0)
    projector = Projector(in_width=8, width=8, sentence_width=5, kernel=kernel).eval()
    x, sentence = torch.randn(3, 8, 4, 4), torch.randn(3, 5)
    with torch.no_grad():
        logits = projector(x, sentence)  # (3, 1, 16, 16)
        pixels, text = projector.pixels(x), projector.sentence(sentence)
        for b in range(3):
            if kernel == "inner_product":
                expected = sum(text[b, c] * pixels[b, c] for c in range(4))
            else:
                expected = F.conv2d(pixels[b : b + 1], text[b, :36].reshape(1, 4, 3, 3), padding=1)[0, 0]
                expected = expected + text[b, 36]
            torch.testing.assert_close(logits[b, 0], expected)


def test_sine_positions_equal_a_naive_loop():
    table = sine_positions(7, 6)
    for position, channel in np.ndindex(7, 6):
        angle = position / 10000 ** (channel // 2 * 2 / 6)
        expected = math.cos(angle) if channel % 2 else math.sin(angle)
        assert table[position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_positions_of_a_map_are_those_of_x_then_those_of_y():
    table = sine_positions_2d(3, 5, 8).reshape(3, 5, 8)
    torch.testing.assert_close(table[2, 4], torch.cat([sine_positions(5, 4)[4], sine_positions(3, 4)[2]]))


def test_coordinate_maps_run_from_minus_one_to_one():
    maps = coordinate_maps(torch.zeros(2, 9, 3, 5))
    assert maps.shape == (2, 2, 3, 5)
    assert maps[1, 0, 2].tolist() == [-1, -0.5, 0, 0.5, 1]
    assert maps[1, 1, :, 2].tolist() == [-1, 0, 1]
