"""What every method promises, proved for the mini of each. What only one of them does is in its own file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from parity import SENTENCES, mini_batch, randomise, relative_error
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.methods import BUILDERS, CLASSES, build
from rislib.nouns import Batch, Method


@dataclass(frozen=True)
class Terms:
    """What the contract leaves to each method."""

    losses: tuple[str, ...]  # their names, in order
    frozen: tuple[str, ...] = ()  # so begin the names of the parameters that never learn
    idle: tuple[str, ...] = ()  # so end the names of those that may, but change no result


TERMS = {
    "cris": Terms(
        losses=("text_to_pixel", "dice"),
        frozen=("clip.model.logit_scale",),  # only contrastive pretraining reads it
    ),
    "lavt": Terms(
        losses=("cross_entropy", "dice"),
        frozen=("gates.3.",),  # no stage follows the last gate
        # softmax takes away what all words have in common, instance norm what all pixels have
        idle=("key.bias", "query.0.bias", "read.0.bias"),
    ),
    "magnet": Terms(
        losses=("mask_bce", "dice", "pixel_to_pixel", "pixel_to_text", "mask_grounding"),
        # only published checkpoints need them: no mask depends on them
        frozen=("unread.", "image_gates.3.", "text_gates.3.", "text_fusions.3.", "head.classify."),
    ),
    "cm_masksd": Terms(
        losses=("segmentation", "dice", "lmvsd", "vmlsd"),
        frozen=("clip.model.logit_scale",),
    ),
    "mail": Terms(
        losses=("segmentation", "dice"),
        idle=("key.bias",),  # softmax takes it away
    ),
}

MINIS = [name for name, preset in BUILDERS if preset == "mini"]


@pytest.fixture(scope="module", params=MINIS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def make(name: str, vocabulary: Path) -> Callable[..., Method]:
    """Builds the mini, with the weights that it begins with when nothing is pretrained."""
    options = {}
    if "mask_grounding" in CLASSES[name].parts:
        options["grounding"] = {"at_least_one": True}  # in every batch, however small, a word is asked for
    return partial(build, name, "mini", pretrained=False, vocabulary=vocabulary, **options)


@pytest.fixture(scope="module")
def model(make) -> Method:
    """In eval mode, all weights away from zero. Tests leave it as it is."""
    return randomise(make())


def batch_with_instances(model: Method, size: int) -> Batch:
    """`mini_batch`; for a method that reads them with four masks of each picture, its quarters."""
    batch = mini_batch(model, size=size)
    if not model.reads_instances:
        return batch
    quarters = torch.eye(4).reshape(1, 4, 2, 2).expand(4, -1, -1, -1)
    return replace(batch, instances=F.interpolate(quarters, size=(size, size)))


# --- in use -----------------------------------------------------------------------------------


def test_there_is_one_map_of_logits_per_sentence(model):
    size = model.preprocessing.size
    tokens, token_mask = model.tokenize(SENTENCES[:2])
    assert (tokens.dtype, token_mask.dtype) == (torch.int64, torch.bool)
    assert tokens.shape == token_mask.shape
    for h, w in ((size, size), (64, 128)):
        with torch.no_grad():
            logits = model(torch.randn(2, 3, h, w), tokens, token_mask)
        stride = h // logits.shape[2]
        assert logits.shape == (2, 1, h // stride, w // stride)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


def test_logits_are_no_probabilities(model):
    tokens, token_mask = model.tokenize(SENTENCES[:2])
    larger = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in larger.parameters():
            parameter.mul_(2)  # by chance, those of small weights may all lie between 0 and 1
        logits = larger(torch.randn(2, 3, 64, 64), tokens, token_mask)
    assert logits.min() < 0 or logits.max() > 1


def test_a_batch_is_the_sum_of_its_samples(model):
    batch = mini_batch(model)
    image, tokens = batch.image.repeat(2, 1, 1, 1), torch.cat([batch.tokens.roll(1, 0), batch.tokens])
    with torch.no_grad():
        together = model(image, tokens)
        alone = torch.cat([model(image[i : i + 1], tokens[i : i + 1]) for i in range(8)])
    assert relative_error(together, alone) < 1e-4


def test_padding_changes_no_result(model):
    batch = mini_batch(model)
    padded = F.pad(batch.tokens, (0, 32 - batch.tokens.shape[1]))
    with torch.no_grad():
        a, b = model(batch.image, batch.tokens), model(batch.image, padded)
        unmasked = model(batch.image, padded, torch.ones_like(padded, dtype=torch.bool))
    assert relative_error(b, a) < 1e-4
    assert relative_error(unmasked, a) > 1e-3  # that the words are masked at all


def test_sentences_of_any_length_may_share_a_batch(model):
    """No word, one, some, and more than the network has places for: each has the answer that it has alone."""
    sentences = ["", "cup", "a dog left of the blue cup", "the red cup " * 20]
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model(image.expand(4, -1, -1, -1), *model.tokenize(sentences))
        alone = [model(image, *model.tokenize([sentence])) for sentence in sentences]
    for sentence, ours, expected in zip(sentences, together, alone, strict=True):
        assert relative_error(ours, expected[0]) < 1e-4, sentence


def test_one_picture_may_be_asked_twice(model):
    batch = mini_batch(model)
    with torch.no_grad():
        features = model.encode_image(batch.image)
        first = model.segment(features, batch.tokens, batch.token_mask)
        second = model.segment(features, batch.tokens.flip(0), batch.token_mask.flip(0))
        assert torch.equal(first, model(batch.image, batch.tokens, batch.token_mask))
        assert torch.equal(second, model(batch.image, batch.tokens.flip(0)))  # zeros are padding


def test_the_picture_matters_and_the_sentence_matters(model):
    batch = mini_batch(model)
    with torch.no_grad():
        answer = model(batch.image, batch.tokens)
        other_picture = model(batch.image.flip(0), batch.tokens)
        other_sentence = model(batch.image, batch.tokens.flip(0))
    assert relative_error(other_picture, answer) > 3e-3  # little, but random weights see little
    assert relative_error(other_sentence, answer) > 1e-2


def test_the_same_question_has_the_same_answer_and_changes_nothing(model):
    batch = mini_batch(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        first, second = (model(batch.image, batch.tokens, batch.token_mask) for _ in range(2))
    assert torch.equal(first, second)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_weights_survive_the_file(model, make, tmp_path):
    batch, path = mini_batch(model), tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    other = make().eval()
    with torch.no_grad():
        expected = model(batch.image, batch.tokens)
        assert not torch.equal(other(batch.image, batch.tokens), expected)
        other.load_state_dict(load_file(path))
        assert torch.equal(other(batch.image, batch.tokens), expected)


# --- in training ------------------------------------------------------------------------------


def test_the_losses_reach_every_parameter_but_those_of_the_terms(make, name):
    model, terms = randomise(make()).train(), TERMS[name]
    losses = model.losses(batch_with_instances(model, size=64))
    assert tuple(losses) == terms.losses
    for loss in losses.values():
        assert (loss.shape, loss.dtype) == ((), torch.float32)
        assert loss.isfinite()
    sum(losses.values()).backward()
    parameters = dict(model.named_parameters())
    frozen = {key for key, p in parameters.items() if not p.requires_grad}
    still = {key for key, p in parameters.items() if p.grad is None or not p.grad.any()}
    assert frozen == {key for key in parameters if key.startswith(terms.frozen)}
    assert {key for key in still - frozen if not key.endswith(terms.idle)} == set()


def losses_of(model: Method, batch: Batch) -> dict[str, Tensor]:
    """With the same chance each time."""
    torch.manual_seed(0)
    return model.losses(batch)


@torch.no_grad()
def test_samples_that_share_a_picture_have_the_losses_of_samples_with_its_copies(model):
    batch, picture = mini_batch(model, size=64), torch.tensor([0, 1, 1, 0])
    shared, copies, others = (
        losses_of(model, changed)
        for changed in (
            replace(batch, image=batch.image[:2], picture=picture),
            replace(batch, image=batch.image[picture]),
            replace(batch, image=batch.image[:2], picture=1 - picture),
        )
    )
    for key, loss in shared.items():
        torch.testing.assert_close(loss, copies[key])
        assert others[key].item() != pytest.approx(loss.item(), rel=1e-4)  # that it would show


def test_training_in_bfloat16_agrees_with_float32(make):
    model = randomise(make()).train().to(memory_format=torch.channels_last)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # chance differs between the two
    batch = mini_batch(model)
    exact = losses_of(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = losses_of(model, batch)
    sum(coarse.values()).backward()
    for key, loss in coarse.items():
        assert loss.dtype == torch.float32
        # eight bits, batch statistics of four samples, and borders that move
        assert loss.item() == pytest.approx(exact[key].item(), rel=0.1), key
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_it_learns_to_obey_the_sentence(make, name):
    """One picture, two sentences, two masks: only the text can tell them apart. The first loss is enough."""
    torch.manual_seed(0)
    model = make().train()
    tokens, token_mask = model.tokenize(["the left dog", "the red cup"])
    mask = torch.zeros(2, 1, 64, 64)
    mask[0, :, :, :32] = 1
    mask[1, :, 32:] = 1
    batch = Batch(torch.randn(1, 3, 64, 64).expand(2, -1, -1, -1), tokens, token_mask, mask)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(25):
        optimizer.zero_grad()
        model.losses(batch)[TERMS[name].losses[0]].backward()
        optimizer.step()
    with torch.no_grad():
        logits = F.interpolate(model(batch.image, tokens, token_mask), (64, 64), mode="bilinear")
    # a network that ignores the sentence stays above 0.34
    assert F.binary_cross_entropy_with_logits(logits, mask) < 0.1


def test_encoder_parameters_are_some_of_all(model):
    everything, encoder = {id(p) for p in model.parameters()}, [id(p) for p in model.encoder_parameters()]
    assert 0 < len(encoder) < len(everything)
    assert len(set(encoder)) == len(encoder)
    assert set(encoder) < everything
