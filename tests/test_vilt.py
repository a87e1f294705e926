"""ViLT: that it is transformers' own, taken apart; its places at other sizes; what is not looked at."""

from __future__ import annotations

import pytest
import torch
from parity import parameters_of, randomise, relative_error

from rislib import encoders
from rislib.encoders.vilt import ViltEncoder, resize_positions, vilt_b32, vilt_mini


@pytest.fixture(scope="module")
def encoder() -> ViltEncoder:
    """All weights away from zero. Tests leave it as it is."""
    return randomise(vilt_mini(50))


@pytest.fixture(scope="module")
def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 7 and 4 tokens."""
    tokens = torch.tensor([[48, 5, 6, 7, 8, 9, 49], [48, 9, 3, 49, 0, 0, 0]])
    return tokens, tokens != 0


def picture(height: int, width: int) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(96, 96), (64, 128)], ids=str)
@torch.no_grad()
def test_it_is_transformers_vilt(encoder, sentences, size, monkeypatch) -> None:
    """At its native size, and at another. transformers draws all patches by lot: here, in order."""
    monkeypatch.setattr(torch, "multinomial", lambda weights, count, **options: torch.arange(count))
    tokens, token_mask = sentences
    expected = encoder.model(
        input_ids=tokens,
        attention_mask=token_mask.long(),
        pixel_values=picture(*size),
        pixel_mask=torch.ones(2, *size, dtype=torch.long),
    ).last_hidden_state
    words, patches = encoder(picture(*size), tokens, token_mask)
    assert words.shape == (2, 7, 128) and patches.shape == (2, 1 + size[0] * size[1] // 64, 128)
    assert relative_error(torch.cat([words, patches], dim=1), expected) < 1e-6


@torch.no_grad()
def test_patches_that_transformers_shuffles_tell_the_words_the_same(encoder, sentences) -> None:
    """Its forward as it is: who reads all patches does not hear in which order they come."""
    tokens, token_mask = sentences
    outputs = [
        encoder.model(input_ids=tokens, attention_mask=token_mask.long(), pixel_values=picture(96, 96))
        for _ in range(2)
    ]
    first, second = (output.last_hidden_state for output in outputs)
    words, patches = encoder(picture(96, 96), tokens, token_mask)
    assert relative_error(words[token_mask], first[:, :7][token_mask]) < 1e-5
    assert relative_error(patches, first[:, 7:]) > 0.1 < relative_error(second[:, 7:], first[:, 7:])


@torch.no_grad()
def test_nobody_looks_at_what_is_not_there(encoder, sentences) -> None:
    tokens, token_mask = sentences
    words, patches = encoder(picture(96, 96), tokens, token_mask)
    alone, patches_alone = encoder(picture(96, 96)[1:], tokens[1:, :4], token_mask[1:, :4])
    assert relative_error(words[1:, :4], alone) < 1e-5
    assert relative_error(patches[1:], patches_alone) < 1e-5
    _, unmasked = encoder(picture(96, 96)[1:], tokens[1:], torch.ones(1, 7, dtype=torch.bool))
    assert relative_error(unmasked, patches_alone) > 1e-4


def test_positions_meet_at_the_corners() -> None:
    table = torch.randn(1 + 16, 8)
    assert resize_positions(table, (4, 4)) is table
    resized = resize_positions(table, (7, 10))
    start, square = resized[0], resized[1:].unflatten(0, (7, 10))
    assert torch.equal(start, table[0])
    torch.testing.assert_close(square[::2, ::3], table[1:].unflatten(0, (4, 4)))  # every cell is there again
    torch.testing.assert_close(square[1::2, 0], (square[:-1:2, 0] + square[2::2, 0]) / 2)


def test_full_size_without_files() -> None:
    with torch.device("meta"):
        encoder = vilt_b32()
    assert (encoder.width, encoder.patch, len(encoder.model.encoder.layer)) == (768, 32, 12)
    assert parameters_of(encoder) == 111_004_416
    assert (encoder.words.shape, encoder.positions.shape) == ((30522, 768), (145, 768))


def test_what_does_not_fit_is_refused(encoder, monkeypatch, tmp_path) -> None:
    with pytest.raises(ValueError, match="multiples of 8"):
        encoder.embed_image(torch.zeros(1, 3, 96, 100))
    with pytest.raises(ValueError, match="33 tokens, but this ViLT has positions for 32"):
        encoder.embed_text(torch.ones(1, 33, dtype=torch.int64))
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="python -m rislib pretrain vilt"):
        vilt_mini(50, pretrained=True)
    with pytest.raises(RuntimeError, match="transformers could not load"):
        vilt_b32(str(tmp_path / "nowhere"))
