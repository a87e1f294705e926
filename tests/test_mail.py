"""MaIL: what becomes of masks, how some are selected, what happens without any, and how they reach it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import SENTENCES, mini_batch, parameters_of, randomise, relative_error
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from rislib import encoders
from rislib.data import make_batch
from rislib.data.batches import instances_to_tensor
from rislib.evaluation import CRIS_2022, evaluate
from rislib.methods import cris_mini, part_options
from rislib.methods.instances import MaskSelection, fitting, selected, spoil
from rislib.methods.mail import Encoded, MaIL, cell_coordinates, mail_b32, mail_mini
from rislib.nouns import Batch, Sample
from rislib.predict import Predictor
from rislib.training.order import seed_step

KINDS = ["A", "B", "C"]
FORMS = ["soft", "hard", "sigmoid", "mlp", None]
N = 5  # masks in `batch_of`


@pytest.fixture(scope="module")
def make(vocabulary: Path) -> Callable[..., MaIL]:
    return partial(mail_mini, pretrained=False, vocabulary=vocabulary)


@pytest.fixture(scope="module", params=KINDS)
def model(make, request: pytest.FixtureRequest) -> MaIL:
    """In eval mode, all weights away from zero. Tests leave it as it is."""
    return randomise(make(mask_tokens=request.param))


def masks_of(size: int = 64, seed: int = 0) -> Tensor:
    """(4, N, size, size): rectangles. Of the first picture one is empty, of the third picture all are."""
    masks = torch.zeros(4, N, size, size)
    rng = np.random.default_rng(seed)
    for b, n in np.ndindex(4, N):
        top, left = rng.integers(0, size // 2, 2)
        height, width = rng.integers(size // 8, size // 2, 2)
        masks[b, n, top : top + height, left : left + width] = 1
    masks[0, 2] = masks[2] = 0
    return masks


def batch_of(model: MaIL, size: int = 64) -> Batch:
    return replace(mini_batch(model, size=size), instances=masks_of(size))


def answer(model: MaIL, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(batch.image, batch.tokens, batch.token_mask, batch.instances)


@torch.no_grad()
def encoded_of(model: MaIL, batch: Batch) -> Encoded:
    return model.encode(model.features(batch), batch.tokens, batch.token_mask)


# --- three lanes ------------------------------------------------------------------------------


@torch.no_grad()
def test_the_encoder_reads_words_then_the_picture_then_masks(model, monkeypatch) -> None:
    batch, read = batch_of(model), []
    encode = model.vilt.encode
    monkeypatch.setattr(model.vilt, "encode", lambda x, seen: read.append((x, seen)) or encode(x, seen))
    answer(model, batch)
    (x, seen), kind = read[0], model.mask_lane.mask_tokens
    length = batch.tokens.shape[1]
    of_masks = {"A": 1 + 64, "B": 1 + N + 1, "C": 1 + (N + 1) * 64}[kind]
    assert x.shape == (4, length + 1 + 64 + of_masks, 128) and seen.shape == x.shape[:2]
    torch.testing.assert_close(x[:, :length], model.vilt.embed_text(batch.tokens))
    torch.testing.assert_close(x[:, length : length + 65], model.vilt.embed_image(batch.image))

    words, picture, masks = seen.split([length, 65, of_masks], dim=1)
    assert torch.equal(words, batch.tokens != 0) and picture.all()
    present = [[True] * (N + 1) for _ in range(4)]
    present[0][2] = False
    present[2][:N] = [False] * N
    each = {"A": 0, "B": 1, "C": 64}[kind]  # tokens of a mask
    expected = [[True] + [there for there in row for _ in range(each)] for row in present]
    assert masks.tolist() == (expected if each else [[True] * 65] * 4)


@torch.no_grad()
def test_mask_tokens_equal_a_naive_loop(model) -> None:
    """Patch by patch: flattened, multiplied, and where and of what kind it is."""
    batch, lane = batch_of(model), model.mask_lane
    features = model.features(batch)
    masks = torch.cat([batch.instances, torch.ones(4, 1, 64, 64)], dim=1)
    places = encoders.vilt.resize_positions(lane.positions, (8, 8))
    weight, bias, kind = lane.project.weight.flatten(1), lane.project.bias, lane.mask_tokens
    for b in range(4):
        tokens = [lane.class_token + places[0]]
        if kind == "B":
            for mask in masks[b]:
                cells = [mask[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() for i, j in np.ndindex(8, 8)]
                total = max(sum(cells), 1e-6)
                place = sum(cell / total * places[1 + k] for k, cell in enumerate(cells))
                shape = F.interpolate(torch.stack(cells).reshape(1, 1, 8, 8), (12, 12), mode="area")
                tokens.append(weight @ shape.flatten() + bias + place)
        else:
            stacks = (
                [torch.cat([masks[b, :N], torch.zeros(16 - N, 64, 64)])] if kind == "A" else masks[b, :, None]
            )
            for stack in stacks:
                for k, (i, j) in enumerate(np.ndindex(8, 8)):
                    patch = stack[:, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].flatten()
                    tokens.append(weight @ patch + bias + places[1 + k])
        expected = torch.stack(tokens) + lane.type_embedding
        torch.testing.assert_close(features.masks[b], expected, rtol=1e-4, atol=1e-4)


def test_masks_begin_where_the_picture_does(make) -> None:
    model = make()
    assert torch.equal(model.mask_lane.positions, model.vilt.positions)
    assert torch.equal(model.mask_lane.type_embedding, model.vilt.types[1])
    assert torch.equal(model.mask_lane.class_token, model.vilt.class_token)
    with torch.no_grad():
        model.mask_lane.positions.zero_()
    assert model.vilt.positions.any()  # a copy
    types = model.vilt.types[0], model.vilt.types[1]
    assert not torch.equal(*types)


# --- selection --------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["soft", "mlp"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_selection_equals_a_naive_loop(make, kind: str, form: str) -> None:
    model = randomise(make(mask_tokens=kind, selection=form))
    batch, select = batch_of(model), model.selection
    features, encoded = model.features(batch), encoded_of(model, batch)
    weights = select.weights(encoded.scores)
    chosen = selected(weights, features.inside, encoded.masks)
    masks = torch.cat([batch.instances, torch.ones(4, 1, 64, 64)], dim=1)
    for b in range(4):
        inside = [
            [
                masks[b, i, y : y + 8, x : x + 8].mean().item()
                for y in range(0, 64, 8)
                for x in range(0, 64, 8)
            ]
            for i in range(N + 1)
        ]
        of_mask = [
            [encoded.masks[b, 0 if kind == "A" else i, 0 if kind == "B" else k] for k in range(64)]
            for i in range(N + 1)
        ]
        scores = []
        for i in range(N + 1):
            if not sum(inside[i]):
                scores.append(-math.inf)
                continue
            p = sum(m * z for m, z in zip(inside[i], of_mask[i], strict=True)) / sum(inside[i])
            q = sum(m * z for m, z in zip(inside[i], encoded.image[b], strict=True)) / sum(inside[i])
            if form == "soft":
                a, c = select.of_masks(p), select.of_image(q)
                scores.append((a @ c / (a.norm() * c.norm()) / 0.07).item())
            else:
                scores.append(select.score(torch.cat([p, q])).item())
        torch.testing.assert_close(encoded.scores[b], torch.tensor(scores), rtol=1e-3, atol=1e-3)
        powers = [math.exp(s - max(scores)) for s in scores]
        share = [power / sum(powers) for power in powers]
        torch.testing.assert_close(weights[b], torch.tensor(share), rtol=1e-2, atol=1e-4)
        for k in range(0, 64, 7):
            expected = sum(share[i] * inside[i][k] * of_mask[i][k] for i in range(N + 1))
            torch.testing.assert_close(chosen[b, k], expected, rtol=1e-2, atol=1e-3)


def test_forms_of_weights() -> None:
    scores = torch.tensor([[2.0, -1.0, -math.inf, 0.5], [-math.inf] * 3 + [-4.0]])  # the null mask last
    weights = {form: MaskSelection(8, form).eval().weights(scores) for form in FORMS}
    assert weights["hard"].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    in_training = MaskSelection(8, "hard").train().weights(scores)
    assert torch.equal(in_training, weights["soft"]) and torch.equal(weights["soft"], scores.softmax(dim=1))
    first, second = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    expected = torch.tensor([[first, second, 0, (1 - first) * (1 - second)], [0, 0, 0, 1]])
    torch.testing.assert_close(weights["sigmoid"], expected)
    for form in FORMS:
        assert weights[form][1].tolist() == [0, 0, 0, 1]  # always something to choose


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_without_selection_the_null_mask_is_taken(make, kind: str) -> None:
    model = randomise(make(mask_tokens=kind, selection=None))
    assert not list(model.selection.parameters())
    batch = batch_of(model)
    features, encoded = model.features(batch), encoded_of(model, batch)
    weights = model.selection.weights(encoded.scores)
    assert weights.tolist() == [[0] * N + [1]] * 4
    as_it_is = encoded.masks[:, -1].expand(-1, 64, -1)
    torch.testing.assert_close(selected(weights, features.inside, encoded.masks), as_it_is)


def test_order_counts_in_a_stack_and_nowhere_else(model) -> None:
    batch, order = batch_of(model), torch.tensor([3, 0, 4, 1, 2])
    turned = replace(batch, instances=batch.instances[:, order])
    before, after = encoded_of(model, batch).scores, encoded_of(model, turned).scores
    changed = relative_error(answer(model, turned)[[0, 1, 3]], answer(model, batch)[[0, 1, 3]])
    there = before.isfinite()
    assert torch.equal(before[:, [*order, N]].isfinite(), after.isfinite())
    if model.mask_lane.mask_tokens == "A":
        assert changed > 1e-4
    else:
        assert changed < 1e-5
        torch.testing.assert_close(after, before[:, [*order, N]], rtol=1e-4, atol=1e-4)
    assert (before[there].std() > 1e-2) and not torch.allclose(after, before)  # that it would show


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_outlines_are_added_as_they_are_chosen(make, kind: str) -> None:
    model = randomise(make(mask_tokens=kind, outlines=True))
    model.sharpness.fill_(2.0)
    batch = batch_of(model, size=96)
    a = model.selection.weights(encoded_of(model, batch).scores)
    expected = torch.zeros(4, 1, 96, 96)
    for b, n in np.ndindex(4, N):
        expected[b, 0] += model.sharpness * a[b, n] * torch.where(batch.instances[b, n] > 0, 1, -1)
    with_outlines = answer(model, batch)
    model.sharpness.zero_()
    torch.testing.assert_close(with_outlines - answer(model, batch), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().amax(dim=(1, 2, 3)).gt(1e-2).tolist() == [True, True, False, True]


# --- robust against segmenters ----------------------------------------------------------------


def test_no_proposals_are_no_trouble(model) -> None:
    """None at all, an empty list, empty masks: one and the same answer, with the null mask."""
    batch = batch_of(model)
    empty = [None, torch.zeros(4, 0, 64, 64), torch.zeros(4, N, 64, 64), torch.zeros(4, 40, 64, 64)]
    answers = [answer(model, replace(batch, instances=instances)) for instances in empty]
    assert answers[0].isfinite().all()
    for other in answers[1:]:
        assert relative_error(other, answers[0]) < 1e-5
    encoded = encoded_of(model, replace(batch, instances=empty[2]))
    assert model.selection.weights(encoded.scores).tolist() == [[0] * N + [1]] * 4
    with_masks = answer(model, batch)
    assert relative_error(with_masks[2], answers[0][2]) < 1e-5  # the picture whose masks are all empty
    assert relative_error(with_masks[[0, 1, 3]], answers[0][[0, 1, 3]]) > 1e-4


def test_of_too_many_proposals_the_first_are_read(make) -> None:
    for kind in KINDS:
        model = randomise(make(mask_tokens=kind, instances=3))
        batch = batch_of(model)
        first = replace(batch, instances=batch.instances[:, :3])
        assert torch.equal(answer(model, batch), answer(model, first))
        assert not torch.equal(
            answer(model, replace(batch, instances=batch.instances[:, :2])), answer(model, batch)
        )


def test_duplicates_share_what_is_theirs(model) -> None:
    batch = batch_of(model)
    twice = replace(batch, instances=torch.cat([batch.instances, batch.instances], dim=1))
    scores = encoded_of(model, twice).scores
    assert answer(model, twice).isfinite().all()
    weights = model.selection.weights(scores)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    torch.testing.assert_close(weights[:, :N], weights[:, N : 2 * N])


def test_training_survives_all_of_that(model) -> None:
    """Gradients are finite where masks are empty, missing, or the same."""
    batch = batch_of(model)
    for instances in (None, batch.instances[:, :0], 0 * batch.instances, batch.instances.repeat(1, 4, 1, 1)):
        model.train().zero_grad()
        sum(model.losses(replace(batch, instances=instances)).values()).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    randomise(model).zero_grad()  # batch statistics as they were


def test_masks_are_dropped_and_moved_as_asked() -> None:
    masks = (torch.rand(40, 50, 32, 24, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    torch.manual_seed(0)
    assert torch.equal(spoil(masks, 0.0, 0.0), masks)
    assert not spoil(masks, 1.0, 0.5).any()
    kept = spoil(masks, 0.1, 0.0).flatten(2).any(dim=2)
    assert abs(kept.float().mean() - 0.9) < 4 * math.sqrt(0.09 / 2000)  # four standard deviations
    moved, offsets = spoil(masks, 0.0, 0.125), set()
    for b, n in np.ndindex(8, 10):
        fits = [
            (dy, dx)
            for dy in range(-4, 5)
            for dx in range(-3, 4)
            if torch.equal(moved[b, n, 4:-4, 3:-3], masks[b, n, 4 + dy : 28 + dy, 3 + dx : 21 + dx])
        ]
        assert len(fits) == 1
        offsets |= set(fits)
    assert {dy for dy, _ in offsets} == set(range(-4, 5)) and {dx for _, dx in offsets} == set(range(-3, 4))


def test_masks_are_spoilt_in_training_alone_by_seed_and_step(make) -> None:
    model = randomise(make(mask_drop=0.3, mask_jitter=0.1))
    batch = batch_of(model)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    exact = model.features(batch).inside
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(exact[:, :N], F.avg_pool2d(batch.instances, 8).flatten(2))
    model.train()
    seen = []
    for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5)):
        seed_step(seed, step, 0)
        seen.append(model.features(batch).inside)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])
    assert all(x[:, N].eq(1).all() for x in seen)  # the null mask never


# --- the decoder, losses, parts ---------------------------------------------------------------


def test_coordinates_are_cmpcs() -> None:
    coordinates = cell_coordinates(3, 5)
    assert coordinates.shape == (15, 8)
    for i, j in np.ndindex(3, 5):
        left, right = j / 5 * 2 - 1, (j + 1) / 5 * 2 - 1
        top, bottom = i / 3 * 2 - 1, (i + 1) / 3 * 2 - 1
        expected = [left, top, right, bottom, (left + right) / 2, (top + bottom) / 2, 1 / 5, 1 / 3]
        torch.testing.assert_close(coordinates[5 * i + j], torch.tensor(expected))


def test_padding_changes_no_answer_with_masks_either(model) -> None:
    batch = batch_of(model)
    padded = F.pad(batch.tokens, (0, 32 - batch.tokens.shape[1]))
    longer = replace(batch, tokens=padded, token_mask=padded != 0)
    assert relative_error(answer(model, longer), answer(model, batch)) < 1e-5
    unmasked = replace(longer, token_mask=torch.ones_like(longer.token_mask))
    assert relative_error(answer(model, unmasked), answer(model, batch)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_sum_reaches_every_parameter(make, kind: str, form: str | None) -> None:
    asked = {"selection_loss": 0.1, "outlines": True} if form else {}
    model = make(mask_tokens=kind, selection=form, mask_drop=0.0, **asked)
    losses = randomise(model).train().losses(batch_of(model))
    assert list(losses) == ["segmentation", "dice", *(["selection"] if form else [])]
    sum(losses.values()).backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()


@torch.no_grad()
def test_the_loss_is_pixel_by_pixel_at_the_inputs_size(make) -> None:
    model = randomise(make(dice=0.0))
    batch = batch_of(model)
    logits = answer(model, batch).double()
    assert logits.shape == batch.mask.shape
    p = 1 / (1 + (-logits).exp())
    expected = -(batch.mask * p.log() + (1 - batch.mask) * (1 - p).log()).mean()
    assert model.losses(batch)["segmentation"].item() == pytest.approx(expected.item(), rel=1e-4)


@torch.no_grad()
def test_the_loss_of_selection_equals_a_naive_loop(make) -> None:
    model = randomise(make(selection_loss=0.5))
    batch = batch_of(model)
    picture = torch.tensor([1, 1, 3, 0])
    mask = batch.instances[picture, 1:2].roll(3, dims=3)  # about half of it is the second mask
    mask[0] = batch.instances[1, 4]
    batch = replace(batch, picture=picture, mask=mask)
    scores = encoded_of(model, batch).scores.double()
    terms, fits = [], fitting(batch, 16)
    for b in range(4):
        good = []
        for n in range(N):
            ours, truth = batch.instances[picture[b], n].bool(), mask[b, 0].bool()
            either = (ours | truth).sum().item()
            good.append(either > 0 and (ours & truth).sum().item() / either >= 0.5)
        assert fits[b].tolist() == good
        for n, positive in enumerate([*good, not any(good)]):
            if scores[b, n] > -math.inf:
                probability = 1 / (1 + math.exp(-scores[b, n]))
                terms.append(-math.log(probability if positive else 1 - probability))
    assert fits.any() and not fits.all(dim=1).any() and len(terms) == 4 * (N + 1) - 1
    assert model.losses(batch)["selection"].item() == pytest.approx(0.5 * np.mean(terms), rel=1e-3)


def test_parts_come_off(make) -> None:
    batch = batch_of(make())
    assert part_options("mail", without=["masks", "selection", "coordinates"]) == {
        "instances": 0,
        "selection": None,
        "coordinates": False,
    }
    plain = randomise(make(instances=0, coordinates=False))
    assert {name.split(".")[0] for name in plain.state_dict()} == {"vilt", "decoder"}
    assert plain.decoder[0][0].in_channels == 128
    assert torch.equal(answer(plain, batch), answer(plain, replace(batch, instances=None)))
    whole = make()
    assert whole.decoder[0][0].in_channels == 2 * 128 + 8
    assert make(coordinates=False).decoder[0][0].in_channels == 2 * 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_tokens": "D"}, "mask_tokens is one of A, B, C, not 'D'"),
        ({"selection": "best"}, "selection is one of soft, .*, None, not 'best'"),
        ({"selection": None, "selection_loss": 0.1}, "need masks and a selection"),
        ({"instances": 0, "selection_loss": 0.1}, "need masks and a selection"),
        ({"instances": 0, "outlines": True}, "need masks and a selection"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_encoder_parameters_are_vilts(make) -> None:
    model = make()
    encoder = {id(p) for p in model.encoder_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in encoder}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("vilt.")}


def test_pretrained_without_weights_says_what_to_do(monkeypatch, tmp_path) -> None:
    vocabulary = encoders.shipped_file("vocab/refmini.txt")
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="python -m rislib pretrain vilt"):
        mail_mini(vocabulary=vocabulary)


# --- full size --------------------------------------------------------------------------------


def test_parameters_at_full_size() -> None:
    """The computed table of the paper's sheet, in millions, with its one decimal."""
    with torch.device("meta"):
        model = mail_b32()
    embeddings = model.vilt.model.embeddings
    parts = {
        "transformer": (model.vilt.model.encoder, 85.1),
        "image projection": (embeddings.patch_embeddings, 2.4),
        "mask projection": (model.mask_lane.project, 12.6),
        "text embeddings": (embeddings.text_embeddings, 23.5),
        "decoder": (model.decoder, 8.7),
    }
    for name, (part, millions) in parts.items():
        assert round(parameters_of(part) / 1e6, 1) == millions, name
    assert parameters_of(model) == 132_778_209  # 132.8


@pytest.mark.parametrize("kind", KINDS)
def test_full_size_counts_tokens_as_the_sheet_does(kind: str) -> None:
    with torch.device("meta"):
        model = mail_b32(mask_tokens=kind).eval()
        features = model.encode_image(torch.zeros(1, 3, 416, 416), torch.zeros(1, 16, 416, 416))
    assert features.image.shape == (1, 170, 768)
    assert features.masks.shape[1] == {"A": 170, "B": 18, "C": 1 + 17 * 169}[kind]


def test_full_size_learns_on_a_cpu() -> None:
    torch.manual_seed(0)
    model = mail_b32().train()
    masks = (torch.rand(1, 16, 13, 13) > 0.7).float().repeat_interleave(32, 2).repeat_interleave(32, 3)
    tokens = torch.randint(1000, 30_000, (1, 20))
    batch = Batch(torch.randn(1, 3, 416, 416), tokens, tokens != 0, masks[:, :1], instances=masks)
    features = model.features(batch)
    logits = model.segment(features, tokens, tokens != 0)
    assert logits.shape == (1, 1, 416, 416)
    F.binary_cross_entropy_with_logits(logits, batch.mask).backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set() and all(p.grad.isfinite().all() for p in model.parameters())


# --- how masks reach it -----------------------------------------------------------------------


def sample(image_id: int, seed: int, count: int | None) -> Sample:
    rng = np.random.default_rng(seed)
    pixels = Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    masks = np.zeros((count or 1, 80, 100), dtype=bool)
    for n, mask in enumerate(masks):
        mask[10 * n : 10 * n + 30, 5 * seed : 5 * seed + 40] = True
    instances = None if count is None else masks[: count or 0]
    return Sample(pixels, SENTENCES[seed % 4], masks[0], image_id, 2, 3, 4, "val", "cup", instances=instances)


def test_instances_belong_to_pictures(make) -> None:
    model = make()
    samples = [sample(1, 1, 2), sample(7, 2, 3), sample(1, 1, 2), sample(9, 3, 0)]
    shared = make_batch(samples, model.preprocessing, model.tokenize, share_pictures=True)
    copies = make_batch(samples, model.preprocessing, model.tokenize)
    assert shared.image.shape[0] == shared.instances.shape[0] == 3
    assert shared.picture.tolist() == [0, 1, 0, 2] and shared.instances.shape == (3, 3, 96, 96)
    assert torch.equal(shared.instances[shared.picture], copies.instances)
    for row, member in enumerate(samples):
        expected = instances_to_tensor(member.instances, model.preprocessing)
        assert torch.equal(copies.instances[row, : len(expected)], expected)
        assert not copies.instances[row, len(expected) :].any()
    there = shared.instances.flatten(2).any(dim=2)
    assert there.tolist() == [[True, True, False], [True] * 3, [False] * 3]
    lacking = [sample(1, 1, 2), sample(7, 2, None)]
    assert make_batch(lacking, model.preprocessing, model.tokenize).instances is None


@torch.no_grad()
def test_samples_that_share_a_picture_share_its_masks(make) -> None:
    model = randomise(make())
    batch, picture = batch_of(model), torch.tensor([0, 1, 1, 0])
    shared = replace(batch, image=batch.image[:2], instances=batch.instances[:2], picture=picture)
    copies = replace(batch, image=batch.image[picture], instances=batch.instances[picture])
    others = replace(copies, instances=batch.instances[1 - picture])
    losses = [model.losses(each)["segmentation"].item() for each in (shared, copies, others)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[2] != pytest.approx(losses[1], rel=1e-5)


def test_evaluation_and_predictor_pass_masks_on(make, monkeypatch) -> None:
    """And only to those that read them."""
    member = sample(1, 1, 3)
    expected = instances_to_tensor(member.instances, make().preprocessing)[None]
    for model in (make(), cris_mini(pretrained=False)):
        seen, encode = [], model.encode_image
        monkeypatch.setattr(
            model, "encode_image", lambda *inputs, e=encode, s=seen: s.append(inputs) or e(*inputs)
        )
        evaluate(model, [member], CRIS_2022, progress=False)
        predictor = Predictor(model)
        predictor.set_image(member.image, member.instances)
        predictor.set_image(member.image)
        if model.reads_instances:
            assert [inputs[1] is not None for inputs in seen] == [True, True, False]
            assert torch.equal(seen[0][1], expected) and torch.equal(seen[1][1], expected)
            predictor.segment("the red cup")
        else:
            assert [len(inputs) for inputs in seen] == [1, 1, 1]
