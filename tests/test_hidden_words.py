"""`hidden_words`: what is asked, what counts as right, and that the picture is the one it should be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rislib.data import open_split
from rislib.data.refmini import COLOURS
from rislib.encoders import shipped_file
from rislib.evaluation import hidden_words
from rislib.evaluation.words import _stranger
from rislib.methods import build
from rislib.nouns import Method

KINDS = {"colour": COLOURS, "place": ("left", "right")}


@pytest.fixture
def network() -> Method:
    torch.manual_seed(0)
    options = {"pretrained": False, "vocabulary": shipped_file("vocab/refmini.txt"), "mask_grounding": 0.1}
    return build("cris", "mini", **options)


def test_every_word_of_every_sentence_is_asked_once(network: Method, world: Path):
    samples = open_split(world, "val")
    words = [word for sample in samples for word in re.findall(r"\w+", sample.expression)]
    red = network.tokenize(["red"])[0][0, 1]
    network.grounding.guess[1].bias.data[red] = 1e3  # whatever it is asked, it says "red"
    found = hidden_words(network, samples, KINDS, batch_size=7)
    for kind, members in KINDS.items():
        counts = [words.count(word) for word in members]
        assert found[kind]["asked"] == sum(counts) > 0
        assert found[kind]["most_frequent"] == max(counts) / sum(counts)
    assert found["place"]["right"] == 0
    assert found["colour"]["right"] == words.count("red") / found["colour"]["asked"] > 0


def test_only_the_asked_word_is_hidden_and_the_picture_is_the_samples(network: Method, world: Path):
    samples, seen = open_split(world, "val"), []

    def read(features: Tensor, tokens: Tensor, token_mask: Tensor):
        seen.append((features.p5, tokens))
        return type(network).read(network, features, tokens, token_mask)

    encode = network.encode_image
    network.read, network.encode_image = read, lambda image: seen.append(image) or encode(image)
    with_colours = [s for s in samples if sum(s.expression.split().count(c) for c in COLOURS) == 1]
    hidden_words(network, with_colours, KINDS | {"place": ()})
    images, (maps, tokens) = seen
    assert len(tokens) == len(with_colours) == len(images)
    assert ((tokens == network.tokenizer.mask_id).sum(dim=1) == 1).all()
    with torch.inference_mode():
        own = encode(images).p5
    torch.testing.assert_close(maps, own)

    seen.clear()
    hidden_words(network, with_colours, KINDS | {"place": ()}, other_picture=True)
    others = seen[1][0]
    assert all(not torch.equal(other, mine) for other, mine in zip(others, own, strict=True))


def test_what_cannot_be_asked_is_refused(network: Method, world: Path):
    samples = open_split(world, "val")
    with pytest.raises(ValueError, match="'red car' is more than one token"):
        hidden_words(network, samples, {"colour": ["red car"]})
    without = build("cris", "mini", pretrained=False, vocabulary=shipped_file("vocab/refmini.txt"))
    with pytest.raises(ValueError, match="no mask grounding head"):
        hidden_words(without, samples, KINDS)


def test_another_picture_is_another(network: Method, world: Path):
    samples = open_split(world, "val")
    one = samples.by_image()[0]
    same = [samples[i] for i in one]
    assert all(_stranger(row, same) is None for row in range(len(same)))
    found = hidden_words(network, same, KINDS, other_picture=True)  # all of one picture: nothing can be asked
    assert all(numbers["asked"] == 0 for numbers in found.values())
    stranger = next(sample for sample in samples if sample.image_id != same[0].image_id)
    assert [_stranger(row, [*same, stranger]) for row in range(len(same))] == [len(same)] * len(same)
