"""Contrastive pretraining: its loss, its hard negatives, and what it leaves behind."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from rislib.data import make_batch
from rislib.encoders import load_weights, shipped_file
from rislib.encoders.clip import clip_rn_mini, clip_vit_mini
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.pretraining import Contrastive, Scenes, Student, pretrain
from rislib.pretraining.clip import captioned, retrieval_accuracy, set_lengths, unexplained


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(32, shipped_file("vocab/refmini.txt"), trim=True)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    draw = partial(captioned, bundles=2, captions=2, size=96)
    return Scenes(draw, "test of pretraining", 256, progress=False)


@pytest.fixture(params=[clip_rn_mini, clip_vit_mini], ids=["rn", "vit"])
def model(request, tokenizer: ClipTokenizer) -> Contrastive:
    torch.manual_seed(0)
    return Contrastive(request.param(tokenizer.vocab_size), tokenizer, 96).eval()


def test_tokens_are_captions_first_and_then_their_lies(model: Contrastive, tokenizer: ClipTokenizer):
    tokens, _ = model.tokenize(["red dog\tred cat\nleft car\tright car", "a\tb\nc\td"])
    expected, _ = tokenizer(["red dog", "left car", "a", "c", "red cat", "right car", "b", "d"])
    assert torch.equal(tokens, expected)


def test_similarities_equal_a_naive_loop(model: Contrastive, scenes: Scenes):
    """Cosines times the temperature; of the cells, the logarithm of the mean of their exponentials."""
    batch = make_batch([scenes[i] for i in range(0, 4, 2)], model.preprocessing, model.tokenize)
    with torch.no_grad():
        similarity = model(batch.image, batch.tokens)
        sentences = model.encoder.encode_text(batch.tokens).sentence
        scale = model.encoder.model.logit_scale.exp()
        for i, picture in enumerate(batch.image):
            seen = model.encoder.encode_image(picture[None])
            for j, sentence in enumerate(sentences):
                expected = scale * F.cosine_similarity(seen.vector[0], sentence, dim=0)
                torch.testing.assert_close(similarity["global"][i, j], expected, rtol=1e-3, atol=1e-4)
                cells = [F.cosine_similarity(c, sentence, dim=0) for c in seen.dense[0].flatten(1).T]
                expected = (scale * torch.stack(cells)).exp().mean().log()
                torch.testing.assert_close(similarity["local"][i, j], expected, rtol=1e-3, atol=1e-3)


def test_loss_equals_a_naive_loop(model: Contrastive, scenes: Scenes):
    """A picture looks for its captions among others and its own lies, a caption for its picture."""
    n, k = 5, 2
    batch = make_batch([scenes[i] for i in range(0, 2 * n, 2)], model.preprocessing, model.tokenize)
    similarity = torch.randn(n, 2 * n * k, generator=torch.Generator().manual_seed(3))
    similarities = {"global": similarity, "local": 2 * similarity}
    model.forward = lambda image, tokens: similarities
    losses = model.losses(batch)
    for name, rows in similarities.items():
        to_caption, to_picture = [], []
        for i in range(n):
            for c in range(k):
                column = i * k + c
                others = [rows[i, j * k + c] for j in range(n) if j != i]
                lies = [rows[i, n * k + i * k + lie] for lie in range(k)]
                candidates = torch.stack([rows[i, column], *others, *lies])
                to_caption.append(-candidates.log_softmax(0)[0])
                to_picture.append(-rows[:, column].log_softmax(0)[i])
        expected = torch.stack(to_caption).mean() / 4
        torch.testing.assert_close(losses[f"{name}_picture_to_caption"], expected)
        expected = torch.stack(to_picture).mean() / 4
        torch.testing.assert_close(losses[f"{name}_caption_to_picture"], expected)


def test_lengths_change_and_directions_do_not(model: Contrastive, scenes: Scenes):
    batch = make_batch([scenes[i] for i in range(8)], model.preprocessing, model.tokenize)
    with torch.no_grad():
        before = model(batch.image, batch.tokens)
        set_lengths(model, scenes)
        after = model(batch.image, batch.tokens)
        vector = model.encoder.encode_image(batch.image, dense=False).vector
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-3)
    assert vector.pow(2).mean().sqrt() == pytest.approx(0.5, rel=0.2)


def test_retrieval_accuracy_of_chance_and_of_a_cheat(model: Contrastive, scenes: Scenes):
    """An untrained network is near chance; one that knows which is which finds all."""
    chance = retrieval_accuracy(model, scenes, candidates=128)
    assert all(value < 6 for name, value in chance.items() if not name.endswith("truth"))
    assert all(35 < value < 65 for name, value in chance.items() if name.endswith("truth"))

    def knows_all(image, tokens):
        own = torch.eye(len(image)).repeat_interleave(2, dim=1)  # (B, 2B): two captions each
        return dict.fromkeys(("global", "local"), torch.cat([own, 0 * own], dim=1))

    model.forward = knows_all
    assert retrieval_accuracy(model, scenes, candidates=128) == dict.fromkeys(chance, 100.0)


def test_captioned_scenes_are_seeded_and_apart():
    draw = partial(captioned, bundles=2, captions=3, size=96)
    once, again, other = (Scenes(draw, seed, 3, progress=False) for seed in "aab")
    assert (once.pixels == again.pixels).all() and once.texts == again.texts
    assert (once.pixels != other.pixels).any()
    assert once.by_reference() == [[0, 1], [2, 3], [4, 5]]
    assert once[3].expression == once.texts[1][1] and once[3].image_id == 1
    pairs = [pair.split("\t") for pair in once[0].expression.split("\n")]
    assert len(pairs) == 3 and all(caption != lie for caption, lie in pairs)


def test_pretrain_leaves_weights_that_can_be_gone_on_from(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    measured = pretrain("clip-rn", minutes=0.05, out="weights", scenes=200, test_scenes=192)
    on_disk = json.loads((tmp_path / "weights" / "clip-rn.json").read_text())
    assert on_disk["retrieval_percent_of_192"] == measured["retrieval_percent_of_192"]
    assert {"recipe", "curve", "commit", "machine", "command", "samples_seen"} <= set(on_disk)
    encoder = clip_rn_mini(tokenizer.vocab_size)
    load_weights(encoder, tmp_path / "weights" / "clip-rn.safetensors")
    image, (tokens, _) = torch.randn(1, 3, 96, 96), tokenizer(["a dog"])
    vector, sentence, _ = encoder.eval()(image, tokens)
    assert F.cosine_similarity(vector, sentence).isfinite().all()
    pretrain(
        "clip-rn",
        minutes=0.02,
        out="more",
        scenes=200,
        test_scenes=192,
        start=tmp_path / "weights" / "clip-rn.safetensors",
    )
    again = json.loads((tmp_path / "more" / "clip-rn.json").read_text())
    assert again["start"] == on_disk


def test_what_is_left_unexplained_is_a_share_of_the_variance():
    truth = torch.randn(50, 3)
    assert unexplained(truth, truth) == 0
    torch.testing.assert_close(unexplained(truth.mean(dim=0).expand(50, -1), truth), torch.tensor(1.0))
    by_hand = sum(0.25 * x @ x for x in truth - truth.mean(dim=0))
    by_hand = by_hand / sum(x @ x for x in truth - truth.mean(dim=0))
    half = (truth + truth.mean(dim=0)) / 2
    torch.testing.assert_close(unexplained(half, truth), by_hand)


def test_a_student_takes_over_words_and_learns_the_teacher_s_map(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    teacher = clip_rn_mini(tokenizer.vocab_size)
    save_file(teacher.state_dict(), tmp_path / "clip-rn.safetensors")
    options = {"minutes": 0.05, "out": "weights", "scenes": 200, "test_scenes": 192}
    pretrain("clip-vit", teacher=tmp_path / "clip-rn.safetensors", **options)
    encoder = clip_vit_mini(tokenizer.vocab_size)
    load_weights(encoder, tmp_path / "weights" / "clip-vit.safetensors")
    tokens, _ = tokenizer(["a dog", "the red cat on the left"])
    with torch.no_grad():
        told, told_by_teacher = encoder.encode_text(tokens), teacher.encode_text(tokens)
    torch.testing.assert_close(told.words, told_by_teacher.words, rtol=1e-2, atol=1e-2)  # of half precision
    direction = F.cosine_similarity(told.sentence, told_by_teacher.sentence)  # `finish` sets the length
    torch.testing.assert_close(direction, torch.ones(2), rtol=0, atol=1e-3)
    assert json.loads((tmp_path / "weights" / "clip-vit.json").read_text())["teacher"] == "clip-rn"


def test_only_the_student_s_image_tower_learns_and_the_teacher_stays_in_eval_mode(tokenizer, scenes):
    teacher = clip_rn_mini(tokenizer.vocab_size)
    student = Student(Contrastive(clip_vit_mini(tokenizer.vocab_size), tokenizer, 96), teacher).train()
    assert not any(module.training for module in teacher.modules())
    batch = make_batch([scenes[i] for i in range(0, 8, 2)], student.preprocessing, student.tokenize)
    losses = student.losses(batch)
    sum(losses.values()).backward()
    learns = {name for name, p in student.named_parameters() if p.grad is not None}
    visual = {f"encoder.model.visual.{name}" for name, _ in student.encoder.model.visual.named_parameters()}
    assert learns == visual and {name for name, p in student.named_parameters() if p.requires_grad} == visual
    with torch.no_grad():
        told, seen = teacher.encode_image(batch.image), student.encoder.encode_image(batch.image)
    cells = seen.dense.unflatten(3, (6, 2)).unflatten(2, (6, 2)).mean(dim=(3, 5))  # (B, C, 6, 6)
    mean = told.dense.mean(dim=(0, 2, 3), keepdim=True)
    expected = (cells - told.dense).square().sum() / (told.dense - mean).square().sum()
    torch.testing.assert_close(losses["dense"], expected)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert", {"teacher": "clip-rn.safetensors"}, "bert cannot learn from a CLIP"),
        ("clip-rn", {"compile": True}, "only the blocks of clip-vit"),
    ],
)
def test_options_that_do_not_fit_the_tower_are_refused(name, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(name, minutes=0.01, out=tmp_path, **options)
