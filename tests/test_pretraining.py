"""Contrastive pretraining: its loss, its hard negatives, and what it leaves behind."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from rislib.data import make_batch
from rislib.encoders import shipped_file
from rislib.encoders.clip import clip_rn_mini, clip_vit_mini, load_weights
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.pretraining import CaptionedScenes, Contrastive, _set_lengths, pretrain, retrieval_accuracy


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(32, shipped_file("vocab/refmini.txt"), trim=True)


@pytest.fixture(scope="module")
def scenes() -> CaptionedScenes:
    return CaptionedScenes("test of pretraining", 256, captions=2, size=96, progress=False)


@pytest.fixture(params=[(clip_rn_mini, 96), (clip_vit_mini, 128)], ids=["rn", "vit"])
def model(request, tokenizer: ClipTokenizer) -> Contrastive:
    torch.manual_seed(0)
    builder, size = request.param
    return Contrastive(builder(tokenizer.vocab_size), tokenizer, size).eval()


def test_mirrored_words(model: Contrastive, tokenizer: ClipTokenizer):
    """In a mirror, left is right, also inside "leftmost"; nothing else changes, and twice is once."""
    sentences = ["leftmost dog", "the cup on the right", "red ball"]
    tokens, _ = tokenizer(sentences)
    mirrored = model.mirrored[tokens]
    expected, _ = tokenizer(["rightmost dog", "the cup on the left", "red ball"])
    assert torch.equal(mirrored, expected)
    assert torch.equal(model.mirrored[mirrored], tokens)


def test_loss_equals_a_naive_loop(model: Contrastive, scenes: CaptionedScenes):
    """Every picture that has a side is there twice; -log softmax of the own pair, in rows and in columns."""
    batch = make_batch([scenes[i] for i in range(0, 20, 2)], model.preprocessing, model.tokenize)
    pairs = list(zip(batch.image, batch.tokens, strict=True))
    for image, tokens in pairs[:]:
        exchanged = model.mirrored[tokens]
        if not torch.equal(exchanged, tokens):
            pairs.append((image.flip(-1), exchanged))
    assert len(pairs) > len(batch.image)
    with torch.no_grad():
        losses = model.losses(batch)
        rows = model(torch.stack([p for p, _ in pairs]), torch.stack([t for _, t in pairs]))
    own = range(len(pairs))
    picture_to_caption = -sum(rows[i].log_softmax(0)[i] for i in own) / len(pairs) / 2
    caption_to_picture = -sum(rows[:, i].log_softmax(0)[i] for i in own) / len(pairs) / 2
    torch.testing.assert_close(losses["picture_to_caption"], picture_to_caption)
    torch.testing.assert_close(losses["caption_to_picture"], caption_to_picture)


def test_lengths_change_and_directions_do_not(model: Contrastive, scenes: CaptionedScenes):
    batch = make_batch([scenes[i] for i in range(8)], model.preprocessing, model.tokenize)
    with torch.no_grad():
        before = model(batch.image, batch.tokens)
        _set_lengths(model, scenes)
        after = model(batch.image, batch.tokens)
        vector = model.encoder.encode_image(batch.image, dense=False).vector
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert vector.pow(2).mean().sqrt() == pytest.approx(0.5, rel=0.2)


def test_retrieval_accuracy_of_chance_and_of_a_cheat(model: Contrastive, scenes: CaptionedScenes):
    """An untrained network is near chance; one that knows which is which finds all."""
    chance = retrieval_accuracy(model, scenes, candidates=128)
    assert all(value < 6 for value in chance.values())
    model.forward = lambda image, tokens: torch.eye(len(image))
    assert retrieval_accuracy(model, scenes, candidates=128) == dict.fromkeys(chance, 100.0)


def test_captioned_scenes_are_seeded_and_apart():
    once, again = (CaptionedScenes("a", 3, captions=2, size=64, progress=False) for _ in range(2))
    other = CaptionedScenes("b", 3, captions=2, size=64, progress=False)
    assert (once.pixels == again.pixels).all() and once.captions == again.captions
    assert (once.pixels != other.pixels).any()
    assert once.by_reference() == [[0, 1], [2, 3], [4, 5]]
    assert once[3].expression == once.captions[1][1] and once[3].image_id == 1


def test_pretrain_leaves_weights_that_can_be_gone_on_from(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    record = pretrain("clip-rn", minutes=0.05, out="weights", scenes=200, test_scenes=192)
    on_disk = json.loads((tmp_path / "weights" / "clip-rn.json").read_text())
    assert on_disk["retrieval_percent_of_192"] == record["retrieval_percent_of_192"]
    assert {"recipe", "curve", "commit", "machine", "command", "samples_seen"} <= set(on_disk)
    encoder = clip_rn_mini(tokenizer.vocab_size)
    load_weights(encoder, tmp_path / "weights" / "clip-rn.safetensors")
    image, (tokens, _) = torch.randn(1, 3, 96, 96), tokenizer(["a dog"])
    vector, sentence, _ = encoder.eval()(image, tokens)
    assert F.cosine_similarity(vector, sentence).isfinite().all()
    again = pretrain(
        "clip-rn",
        minutes=0.02,
        out="more",
        scenes=200,
        test_scenes=192,
        start=tmp_path / "weights" / "clip-rn.safetensors",
    )
    assert again["start"]["samples_seen"] == record["samples_seen"]
