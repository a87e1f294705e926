"""Which word is missing, does the caption fit: what is asked, the losses, the measure, and how it begins."""

from __future__ import annotations

import json
import math

import pytest
import torch
from parity import randomise, relative_error
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from rislib import encoders
from rislib.data import make_batch
from rislib.encoders.clip import MEAN, STD, clip_rn_mini, clip_vit_mini
from rislib.encoders.tokenizers import UNKNOWN, ClipTokenizer, hide_words
from rislib.encoders.vilt import vilt_mini
from rislib.nouns import Batch, Preprocessing
from rislib.pretraining import Scenes, TowersStudent, WordsAndMatches, pretrain, vilt


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(32, encoders.shipped_file("vocab/refmini.txt"), trim=True)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(WordsAndMatches.draw, "test of vilt", 70, progress=False)


@pytest.fixture
def model(tokenizer) -> WordsAndMatches:
    torch.manual_seed(0)
    return WordsAndMatches(vilt_mini(tokenizer.vocab_size, layers=2), tokenizer).eval()


@pytest.fixture
def batch(model, scenes) -> Batch:
    return make_batch(scenes.firsts()[:4], model.preprocessing, model.tokenize)


def test_a_caption_comes_with_its_lie(model, scenes, tokenizer) -> None:
    chosen = scenes.firsts()[:5]
    tokens, token_mask = model.tokenize([sample.expression for sample in chosen])
    for row, sample in enumerate(chosen):
        caption, lie = sample.expression.split("\t")
        assert caption != lie
        assert tokenizer.decode(tokens[row]) == caption and tokenizer.decode(tokens[5 + row]) == lie
    assert torch.equal(token_mask, tokens != 0) and not (tokens == UNKNOWN).any()
    assert scenes.pixels.shape == (70, 96, 96, 3)


# --- the losses -------------------------------------------------------------------------------


def test_losses_equal_a_naive_loop(model, batch, monkeypatch) -> None:
    """One picture and one text at a time: padding and neighbours change nothing."""
    randomise(model)
    captions, lies = batch.tokens.chunk(2)
    wrong = [lies[0], captions[0], captions[1], lies[3]]
    texts = torch.stack([*captions, *wrong])
    hidden, asked = texts.clone(), torch.zeros_like(texts, dtype=torch.bool)
    for row in range(8):
        hidden[row, 1], asked[row, 1] = UNKNOWN, True
    hidden[2, 2], asked[2, 2] = UNKNOWN, True
    given = []
    monkeypatch.setattr(torch, "rand", lambda *size, **options: torch.tensor([[0.1], [0.9], [0.6], [0.3]]))
    monkeypatch.setattr(vilt, "hide_words", lambda tokens, *_: given.append(tokens) or (hidden, asked))
    with torch.no_grad():
        losses = model.losses(batch)
    assert torch.equal(given[0], texts)

    words, fits = [], {"global_match": [], "local_match": []}
    for row in range(8):
        length = int((texts[row] != 0).sum())
        tokens = hidden[row : row + 1, :length]
        with torch.no_grad():
            states, picture = model.encoder(batch.image[row % 4 :][:1], tokens, tokens != 0)
            cells = model.cells(picture[0, 1:]).flatten().double()
            answers = {
                "global_match": model.whole(states[0, 0]).item(),
                "local_match": math.log(cells.exp().mean().item()),
            }
            for name, logit in answers.items():
                probability = 1 / (1 + math.exp(-logit))
                fits[name].append(-math.log(probability if row < 4 else 1 - probability))
            for column in range(length):
                if asked[row, column] and row < 4:
                    x = model.head.transform(states[0, column])
                    scores = model.encoder.words @ x + model.head.bias
                    words.append(-scores.log_softmax(0)[texts[row, column]].item())
    assert len(words) == 5
    assert losses["masked_words"].item() == pytest.approx(sum(words) / 5, rel=1e-3)
    for name, terms in fits.items():
        assert losses[name].item() == pytest.approx(sum(terms) / 8, rel=1e-3), name


def test_half_of_the_wrong_captions_are_lies_and_all_have_holes(model, batch, monkeypatch) -> None:
    captions, lies = batch.tokens.chunk(2)
    others, seen = captions.roll(1, 0), []
    monkeypatch.setattr(
        vilt,
        "hide_words",
        lambda *options: seen.append((options[0], hide_words(*options)[0])) or hide_words(*options),
    )
    torch.manual_seed(0)
    with torch.no_grad():
        monkeypatch.setattr(
            model, "forward", lambda image, tokens, mask: (torch.zeros(8, tokens.shape[1], 128), {})
        )
        for _ in range(100):
            model.losses(batch)
    lied = 0
    for texts, _ in seen:
        assert torch.equal(texts[:4], captions)
        for row in range(4):
            assert torch.equal(texts[4 + row], lies[row]) != torch.equal(texts[4 + row], others[row])
            lied += torch.equal(texts[4 + row], lies[row])
    assert abs(lied - 200) < 4 * math.sqrt(100)  # four standard deviations
    holes = torch.stack([hidden != texts for texts, hidden in seen]).float()  # (100, 8, L)
    per_word = holes.sum(dim=(0, 2)) / (torch.cat([captions, lies]) != 0).sum(dim=1).sub(2) / 100
    assert (per_word > 0.05).all()


def test_everything_learns_but_rows_that_nobody_reads(model, batch) -> None:
    torch.manual_seed(0)
    sum(randomise(model).train().losses(batch).values()).backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()} == set()


def test_a_batch_that_asks_for_nothing_costs_nothing(model, batch, monkeypatch) -> None:
    monkeypatch.setattr(vilt, "hide_words", lambda x, *_: (x, torch.zeros_like(x, dtype=torch.bool)))
    assert model.losses(batch)["masked_words"].item() == 0


# --- the measure ------------------------------------------------------------------------------


def test_measure_of_chance_and_of_a_cheat(model, scenes, monkeypatch) -> None:
    chance = model.measure(scenes)
    assert chance["hidden_words"]["asked"] > 50
    assert chance["hidden_words"]["percent_right"] < 20
    assert all(30 < percent < 70 for percent in chance["match_percent_right"].values())
    assert set(chance["match_percent_right"]) == {*("global_lie", "global_other", "local_lie", "local_other")}

    firsts = scenes.firsts()
    pictures = make_batch(firsts, model.preprocessing, model.tokenize)
    own = {image.sum().item(): row for row, image in enumerate(pictures.image)}
    answers = []

    def hide_and_tell(tokens, *args, **options):
        hidden, asked = hide_words(tokens, *args, **options)
        answers.append(tokens[asked])
        return hidden, asked

    def forward(image, tokens, token_mask):
        """Knows each picture's caption by heart; finds it local, and never global."""
        rows = [own[one.sum().item()] for one in image] * (len(tokens) // len(image))
        known = [
            model.tokenizer.decode(t) == firsts[r].expression.split("\t")[0]
            for r, t in zip(rows, tokens, strict=True)
        ]
        fits = torch.tensor(known).float() - 0.5
        foreign = len(tokens) == len(image) and rows != sorted(rows)
        model.blind = foreign
        return torch.zeros(*tokens.shape, 128), {"global": -abs(fits), "local": fits}

    monkeypatch.setattr(vilt, "hide_words", hide_and_tell)
    monkeypatch.setattr(model, "forward", forward)
    eye = torch.eye(model.tokenizer.vocab_size)
    monkeypatch.setattr(model, "guess", lambda states: eye[answers[-1]].roll(int(model.blind), 1))
    knows = model.measure(scenes)
    assert knows["hidden_words"] == {
        "asked": sum(map(len, answers)),
        "percent_right": 100.0,
        "percent_right_before_another_picture": 0.0,
    }
    assert knows["match_percent_right"] == {
        "global_lie": 50.0,
        "global_other": 50.0,
        "local_lie": 100.0,
        "local_other": 100.0,
    }


# --- how it begins, and what stays ------------------------------------------------------------


@torch.no_grad()
def test_it_begins_as_the_vit_of_clip(tokenizer, batch, tmp_path) -> None:
    """Without words, and without the norm that it has no place for, it says what that tower says."""
    torch.manual_seed(0)
    tower = randomise(clip_vit_mini(tokenizer.vocab_size))
    save_file(tower.state_dict(), tmp_path / "clip-vit.safetensors")
    learner = WordsAndMatches(vilt_mini(tokenizer.vocab_size), tokenizer).eval()
    types, words = learner.encoder.types.clone(), learner.encoder.words.clone()
    learner.begin(tmp_path / "clip-vit.safetensors")
    assert torch.equal(learner.encoder.types, types) and torch.equal(learner.encoder.words, words)

    visual, seen = tower.model.visual, []
    visual.ln_pre = nn.Identity()
    visual.ln_post.register_forward_hook(lambda module, args, out: seen.append(out))
    pixels = 0.5 + 0.5 * batch.image  # in [0, 1]
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    tower.encode_image((pixels - mean) / std)
    patches = learner.encoder.embed_image(batch.image) - types[1]
    ours = learner.encoder.encode(patches, torch.ones(patches.shape[:2], dtype=torch.bool))
    assert relative_error(ours, seen[0]) < 1e-5


def test_it_goes_on_as_an_earlier_one(model, tokenizer, tmp_path) -> None:
    save_file(model.encoder.state_dict(), tmp_path / "vilt.safetensors")
    other = WordsAndMatches(vilt_mini(tokenizer.vocab_size, layers=2), tokenizer)
    assert not torch.equal(other.encoder.words, model.encoder.words)
    other.begin(tmp_path / "vilt.safetensors")
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(other.encoder.state_dict()[name], tensor)


def test_it_learns_what_fits(tokenizer, scenes) -> None:
    """Four pictures by heart: their captions fit, their lies do not."""
    torch.manual_seed(0)
    learner = WordsAndMatches(vilt_mini(tokenizer.vocab_size, layers=2), tokenizer).train()
    batch = make_batch(scenes.firsts()[:4], learner.preprocessing, learner.tokenize)
    optimiser = torch.optim.Adam(learner.parameters(), lr=1e-3)
    fits = torch.arange(8) < 4
    for _ in range(60):
        _, logits = learner(batch.image, batch.tokens, batch.token_mask)
        loss = sum(F.binary_cross_entropy_with_logits(x, fits.float()) for x in logits.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    for name, x in logits.items():
        assert torch.equal(x > 0, fits), name


def test_pretrain_leaves_weights_and_a_record(tmp_path, monkeypatch, tokenizer) -> None:
    vocabulary = tmp_path / "vocab" / "refmini.txt"
    vocabulary.parent.mkdir()
    vocabulary.write_text(encoders.shipped_file("vocab/refmini.txt").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    measured = pretrain("vilt", minutes=0.03, out="weights", scenes=40, test_scenes=20)
    on_disk = json.loads((tmp_path / "weights" / "vilt.json").read_text())
    assert {"recipe", "curve", "commit", "machine", "command", "start"} <= on_disk.keys()
    assert on_disk["hidden_words"] == measured["hidden_words"]
    encoder = vilt_mini(tokenizer.vocab_size, pretrained=True).eval()  # from tmp_path
    assert on_disk["parameters"] == sum(p.numel() for p in encoder.parameters())
    tokens, token_mask = tokenizer(["the red dog"])
    words, patches = encoder(torch.zeros(1, 3, 96, 96), tokens, token_mask)
    assert words.isfinite().all() and patches.isfinite().all()


# --- with a teacher ---------------------------------------------------------------------------


@pytest.fixture
def student(model, tokenizer) -> TowersStudent:
    torch.manual_seed(1)
    return TowersStudent(model, randomise(clip_vit_mini(tokenizer.vocab_size))).eval()


@torch.no_grad()
def test_the_teacher_sees_the_same_picture_and_hears_the_caption(student, scenes) -> None:
    """Asked in its own way, one cell at a time."""
    samples = scenes.firsts()[:3]
    batch = make_batch(samples, student.preprocessing, student.tokenize)
    truth = student.truth(batch.image, batch.tokens)
    captions = [sample.expression.split("\t")[0] for sample in samples]
    own = make_batch(samples, Preprocessing(96, "stretch", MEAN, STD), student.tokenize)
    seen = student.teacher.encode_image(own.image).dense  # (3, C, 12, 12)
    said = student.teacher.encode_text(student.tokenizer(captions)[0]).sentence
    torch.testing.assert_close(truth["sentence"], said)
    for b in range(3):
        cosines = torch.stack(
            [F.cosine_similarity(seen[b, :, i // 12, i % 12], said[b], dim=0) for i in range(144)]
        )
        likeness = student.teacher.model.logit_scale.exp() * (cosines - cosines.mean())
        torch.testing.assert_close(truth["likeness"][b, :, 0], likeness, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(truth["cells"][b, 17], seen[b, :, 1, 5], rtol=1e-4, atol=1e-5)


def test_who_answers_as_the_teacher_has_nothing_to_learn(student, scenes, monkeypatch) -> None:
    batch = make_batch(scenes.firsts()[:6], student.preprocessing, student.tokenize)
    truth = student.truth(batch.image, batch.tokens)
    assert all(loss > 0.5 for loss in student.losses(batch).values())
    monkeypatch.setattr(student, "forward", lambda *_: truth)
    assert all(loss == 0 for loss in student.losses(batch).values())
    monkeypatch.setattr(student, "forward", lambda image, tokens, mask: student.truth(image, tokens))
    assert student.measure(scenes) == {
        "percent_unexplained": {"cells": 0.0, "sentence": 0.0, "likeness": 0.0},
        "percent_same_cell": 100.0,
    }


def test_only_the_student_learns(student, scenes) -> None:
    student.train()
    assert not any(module.training for module in student.teacher.modules())
    sum(
        student.losses(make_batch(scenes.firsts()[:4], student.preprocessing, student.tokenize)).values()
    ).backward()
    assert all(p.grad is None for p in student.teacher.parameters())
    still = {name for name, p in student.encoder.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()
    assert student.inference_state().keys() == student.encoder.state_dict().keys()


def test_a_teacher_without_patches_is_refused(model, tokenizer) -> None:
    with pytest.raises(ValueError, match="clip-vit"):
        TowersStudent(model, clip_rn_mini(tokenizer.vocab_size))
