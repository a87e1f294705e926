"""Which word is missing: tokens for hidden words, masking, loss, measure, and the weights that stay."""

from __future__ import annotations

import json
import math

import pytest
import torch

from rislib import encoders
from rislib.encoders.bert import WordPieceTokenizer, bert_mini
from rislib.encoders.tokenizers import UNKNOWN, ClipTokenizer, hide_words
from rislib.pretraining import MaskedWords, Scenes, bert, pretrain
from rislib.pretraining.bert import spoken
from rislib.training import fit


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(32, encoders.shipped_file("vocab/refmini.txt"), trim=True)


@pytest.fixture
def model(tokenizer) -> MaskedWords:
    torch.manual_seed(0)
    return MaskedWords(bert_mini(tokenizer.vocab_size, dropout=0.0), tokenizer).eval()


# --- hidden words in tokenizers -----------------------------------------------------------------


def test_a_hidden_word_of_a_compact_vocabulary_is_one_that_cannot_be_read(tokenizer):
    tokens, _ = tokenizer(["red zebra"])
    assert tokenizer.mask_id == UNKNOWN == 1 and UNKNOWN in tokens[0]
    assert tokenizer.special_ids == {0, 1, tokenizer.sot, tokenizer.eot}


def test_no_text_contains_the_hidden_word_of_clip():
    """Its piece is the byte 0xFF, which UTF-8 has no use for; every other byte can be had."""
    tokenizer = ClipTokenizer(77)
    assert tokenizer.special_ids == {0, tokenizer.mask_id, 49406, 49407}
    assert tokenizer.decode([tokenizer.mask_id]) == b"\xff".decode(errors="replace")
    tokens, _ = tokenizer([chr(code) * 2 for code in (*range(0x20, 0x3000), 0xFFFD, 0x10FFFF)])
    assert tokenizer.mask_id not in tokens


def test_word_pieces_hide_as_bert_does(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cup", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = WordPieceTokenizer(tmp_path / "vocab.txt")
    assert tokenizer.mask_id == 6
    assert tokenizer.special_ids == {0, 1, 2, 3, 6}


def test_what_is_special_in_bert_base_is_known_without_its_vocabulary(tmp_path, monkeypatch):
    """Its file has [PAD] first, 99 unused pieces, and then the other four."""
    pieces = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    from_file = WordPieceTokenizer(tmp_path / "vocab.txt")
    monkeypatch.setattr(WordPieceTokenizer, "bert", None)
    without = WordPieceTokenizer()
    found = without.mask_id, without.special_ids
    monkeypatch.undo()
    assert found == (from_file.mask_id, from_file.special_ids)


# --- masking ------------------------------------------------------------------------------------


def test_masking_asks_for_15_percent_and_changes_them_80_10_10(tokenizer):
    """Frequencies over 150,000 words, within four standard deviations."""
    row, _ = tokenizer(["the red dog left of a blue car"])
    tokens = torch.cat([row, torch.zeros(1, 3, dtype=torch.int64)], dim=1).repeat(150_000 // 8, 1)
    torch.manual_seed(0)
    masked, asked = hide_words(tokens, tokenizer, tokenizer.vocab_size)
    words = 8 * len(tokens)

    def share(count: torch.Tensor, of: int, expected: float) -> bool:
        return abs(count.item() / of - expected) < 4 * math.sqrt(expected * (1 - expected) / of)

    assert share(asked.sum(), words, 0.15)
    n = int(asked.sum())
    hidden, kept = masked[asked] == tokenizer.mask_id, masked[asked] == tokens[asked]
    same_by_chance = 0.1 / (tokenizer.vocab_size - 4)
    assert share(hidden.sum(), n, 0.8)
    assert share(kept.sum(), n, 0.1 + same_by_chance)
    others = masked[asked][~hidden & ~kept]
    assert set(others.tolist()) == set(range(tokenizer.vocab_size)) - tokenizer.special_ids
    assert torch.equal(masked[~asked], tokens[~asked])
    per_word = asked[:, 1:9].sum(dim=0)
    assert all(share(count, len(tokens), 0.15) for count in per_word)


def test_special_tokens_are_never_asked_for(tokenizer):
    tokens, _ = tokenizer(["red zebra", "a dog and a car"])
    _, asked = hide_words(tokens, tokenizer, tokenizer.vocab_size, ratio=1.0)
    special = torch.tensor([[int(i) in tokenizer.special_ids for i in row] for row in tokens])
    assert torch.equal(asked, ~special)
    assert not asked[0, 2]  # the zebra: a word that could not be read has no answer


def test_masking_is_a_function_of_the_seed(tokenizer):
    tokens, _ = tokenizer(["the red dog left of a blue car"] * 50)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(hide_words(tokens, tokenizer, tokenizer.vocab_size))
    assert all(torch.equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert not torch.equal(draws[0][0], draws[2][0])


# --- learning -----------------------------------------------------------------------------------


def test_loss_equals_a_naive_loop(model, monkeypatch):
    """One sentence and one word at a time: padding and neighbours change nothing."""
    sentences = ["red dog", "the woman with a blue hat next to the car"]
    tokens, token_mask = model.tokenize(["\n".join(sentences)])
    masked, asked = tokens.clone(), torch.zeros_like(token_mask)
    for row, column in ((0, 1), (0, 2), (1, 5), (1, 10)):
        masked[row, column], asked[row, column] = UNKNOWN, True
    monkeypatch.setattr(bert, "hide_words", lambda *_: (masked, asked))
    terms = []
    with torch.no_grad():
        loss = model.losses(_Tokens(tokens, token_mask))["masked_words"]
        for row, column in asked.nonzero().tolist():
            length = int(token_mask[row].sum())
            states = model.encoder(masked[row : row + 1, :length], token_mask[row : row + 1, :length])
            x = model.head.transform(states[0, column])
            table = model.encoder.model.embeddings.word_embeddings.weight
            scores = torch.stack([x @ word + b for word, b in zip(table, model.head.bias, strict=True)])
            terms.append(-scores.log_softmax(0)[tokens[row, column]])
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_a_batch_that_asks_for_nothing_costs_nothing(model, monkeypatch):
    tokens, token_mask = model.tokenize(["red dog"])
    monkeypatch.setattr(bert, "hide_words", lambda tokens, *_: (tokens, torch.zeros_like(token_mask)))
    loss = model.losses(_Tokens(tokens, token_mask))["masked_words"]
    assert loss == 0 and loss.requires_grad


class _Tokens:
    """What `losses` reads of a batch."""

    def __init__(self, tokens, token_mask):
        self.tokens, self.token_mask = tokens, token_mask


def test_sentences_are_refminis_and_seeded(tokenizer):
    once, again, other = (Scenes(spoken, seed, 3, progress=False) for seed in "aab")
    assert once.texts == again.texts != other.texts
    for sample in once:
        sentences = sample.expression.split("\n")
        assert len(sentences) > 8
        assert UNKNOWN not in tokenizer(sentences)[0]
    assert once.pixels.shape == (3, 1, 1, 3)


def test_measure_of_chance_and_of_a_cheat(model, monkeypatch):
    samples = Scenes(spoken, "test of words", 20, progress=False)
    chance = model.measure(samples)["hidden_words"]
    assert chance["asked"] > 200
    assert chance["percent_right"] < 10  # about a hundred words
    assert chance["perplexity"] > chance["unigram_perplexity"] > 20
    assert 5 < chance["unigram_percent_right"] < 30

    answers: list[torch.Tensor] = []  # what was asked for, before it is hidden

    def mask_and_tell(tokens, *args, **options):
        masked, asked = hide_words(tokens, *args, **options)
        assert (masked[asked] == UNKNOWN).all()
        answers.append(tokens[asked])
        return masked, asked

    monkeypatch.setattr(bert, "hide_words", mask_and_tell)
    model.forward = lambda *_: 50 * torch.eye(model.tokenizer.vocab_size)[answers[-1]]
    knows = model.measure(samples)["hidden_words"]
    assert knows["percent_right"] == 100 and knows["perplexity"] == 1
    assert knows["asked"] == chance["asked"] == sum(map(len, answers))


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(tokenizer, tmp_path):
    samples = Scenes(spoken, "test of words", 12, progress=False)

    def train(folder: str, stop_at: int | None = None, resume: bool = False) -> MaskedWords:
        torch.manual_seed(0)
        learner = MaskedWords(bert_mini(tokenizer.vocab_size, layers=1), tokenizer)
        steps, losses = iter(range(100)), learner.losses

        def interrupted(batch):
            if next(steps) == stop_at:
                raise KeyboardInterrupt
            return losses(batch)

        learner.losses = interrupted
        options = {"seed": 3, "samples_budget": 32, "log_every": 1, "checkpoint_every": 0, "progress": False}
        fit(learner, samples, learner.recipe, out=tmp_path / folder, resume=resume, **options)
        return learner

    whole = train("whole")
    with pytest.raises(KeyboardInterrupt):
        train("broken", stop_at=2)
    resumed = train("broken", resume=True)
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


def test_pretrain_leaves_weights_and_a_record(tmp_path, monkeypatch, tokenizer):
    vocabulary = tmp_path / "vocab" / "refmini.txt"
    vocabulary.parent.mkdir()
    vocabulary.write_text(encoders.shipped_file("vocab/refmini.txt").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    options = {"minutes": 0.03, "out": "weights", "scenes": 30, "test_scenes": 20}
    measured = pretrain("bert", **options)
    on_disk = json.loads((tmp_path / "weights" / "bert.json").read_text())
    assert {"recipe", "curve", "commit", "machine", "command", "start"} <= on_disk.keys()
    assert on_disk["hidden_words"] == measured["hidden_words"]
    encoder = bert_mini(tokenizer.vocab_size, pretrained=True)  # from tmp_path
    assert on_disk["parameters"] == sum(p.numel() for p in encoder.parameters())
    tokens, token_mask = tokenizer(["the red dog"])
    assert encoder.eval()(tokens, token_mask).isfinite().all()

    assert pretrain("bert", resume=True, **options) == measured  # its minutes are over: what is there stays
    again = json.loads((tmp_path / "weights" / "bert.json").read_text())
    assert again["samples_seen"] == on_disk["samples_seen"] > 0
