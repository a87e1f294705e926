"""CLIP's towers and tokenizer: against open_clip where it has an answer, against naive loops where not."""

from __future__ import annotations

import json
import math
from functools import partial

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from rislib import encoders, pretraining
from rislib.encoders import clip as towers
from rislib.encoders.bert import bert_mini
from rislib.encoders.swin import swin_mini
from rislib.encoders.tokenizers import ClipTokenizer, build_vocabulary

SENTENCES = ["the RED cup,  left of 2 dogs!", "!@#$ what", "", "naïve café", "man's hat " * 12]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n".join(build_vocabulary(["the red cup left of 2 dogs", "naïve café"])))
    return path


@pytest.fixture(scope="module", params=["rn", "vit"])
def encoder(request):
    """A mini CLIP in eval mode, every parameter away from its initial zeros and ones."""
    torch.manual_seed(0)
    built = {"rn": towers.clip_rn_mini, "vit": towers.clip_vit_mini}[request.param](vocab_size=50)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn_like(p), alpha=0.03)
    return built.eval()


NATIVE_SIZE = 96  # the side in pixels at which no position table is resized


def tokens_of(*lengths: int, pad_to: int) -> torch.Tensor:
    """Sentences of random words with start 48 and end 49."""
    rows = [[48, *torch.randint(2, 48, (n - 2,)).tolist(), 49] + [0] * (pad_to - n) for n in lengths]
    return torch.tensor(rows)


# --- tokenizer --------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 8, 17, 77])
def test_ids_are_those_of_open_clip(length):
    tokens, _ = ClipTokenizer(length)(SENTENCES)
    assert torch.equal(tokens, open_clip.tokenize(SENTENCES, length))


def test_a_sentence_that_is_too_long_ends_in_the_end_token():
    tokenizer = ClipTokenizer(6)
    tokens, token_mask = tokenizer(["one two three four five six seven"])
    assert tokens[0, -1] == tokenizer.eot == 49407
    assert token_mask.all()
    assert tokenizer.decode(tokens[0]) == "one two three four"


def test_id_zero_is_masked_even_where_it_is_an_exclamation_mark():
    """CRIS masks by id; CLIP's id 0 is also a "!" with more punctuation behind it."""
    tokens, token_mask = ClipTokenizer(8)(["!@#", "dog!"])
    assert tokens[0].tolist().index(49407) > 1
    assert not token_mask[0, 1]
    assert token_mask[1].tolist() == [True] * 4 + [False] * 4


def test_a_compact_vocabulary_keeps_pieces_and_gives_the_end_the_largest_id(vocabulary):
    tokenizer = ClipTokenizer(17, vocabulary)
    tokens, token_mask = tokenizer(["the red cup", "2 purple dogs"])
    assert tokenizer.vocab_size == len(vocabulary.read_text().split()) + 4
    assert tokens.max() == tokenizer.eot == tokenizer.vocab_size - 1
    assert tokens[:, 0].tolist() == [tokenizer.sot] * 2
    assert (tokens == 1).sum() == 1  # purple
    assert torch.equal(token_mask.sum(1), torch.tensor([5, 5]))
    assert tokenizer.decode(tokens[0]) == "the red cup"
    assert tokenizer.decode(tokens[1]) == "2 <unknown> dogs"


@pytest.mark.parametrize("compact", [False, True])
def test_decode_undoes_tokenize(compact, vocabulary):
    tokenizer = ClipTokenizer(17, vocabulary if compact else None)
    for sentence in ["the red cup left of 2 dogs", "naïve café", ""]:
        assert tokenizer.decode(tokenizer([sentence])[0][0]) == sentence


def test_a_vocabulary_may_not_list_a_piece_twice(tmp_path):
    (tmp_path / "words.txt").write_text("cup</w>\ncup</w>\n")
    with pytest.raises(ValueError, match="more than once"):
        ClipTokenizer(17, tmp_path / "words.txt")


def test_trim_cuts_to_the_longest_sentence_and_changes_no_result(encoder, vocabulary):
    sentences = ["the red cup", "2 dogs left of the red cup"]
    full, _ = ClipTokenizer(32, vocabulary)(sentences)
    cut, cut_mask = ClipTokenizer(32, vocabulary, trim=True)(sentences)
    assert cut.shape == cut_mask.shape == (2, 9)
    assert torch.equal(full[:, :9], cut) and not full[:, 9:].any()
    with torch.no_grad():
        a, b = encoder.encode_text(full), encoder.encode_text(cut)
    torch.testing.assert_close(a.sentence, b.sentence, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a.words[:, :9], b.words, rtol=1e-5, atol=1e-5)


# --- towers -----------------------------------------------------------------------------------


def test_vectors_are_those_of_open_clip(encoder):
    torch.manual_seed(1)
    size = NATIVE_SIZE  # open_clip knows no other
    image, tokens = torch.randn(2, 3, size, size), tokens_of(5, 12, pad_to=32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_image(image).vector, encoder.model.encode_image(image))
        torch.testing.assert_close(encoder.encode_text(tokens).sentence, encoder.model.encode_text(tokens))
        a, b, scale = encoder(image, tokens)
        torch.testing.assert_close(a, encoder.model.encode_image(image, normalize=True))
        torch.testing.assert_close(b, encoder.model.encode_text(tokens, normalize=True))
        torch.testing.assert_close(scale, encoder.model.logit_scale.exp())


def test_vit_patches_are_the_projected_last_block():
    torch.manual_seed(0)
    encoder, image = towers.clip_vit_mini(50).eval(), torch.randn(1, 3, 96, 96)
    visual = encoder.model.visual
    with torch.no_grad():
        last = visual.forward_intermediates(image, output_fmt="NLC")["image_intermediates"][-1]
        expected = visual.ln_post(last) @ visual.proj  # (1, 144, 256), row by row
        dense = encoder.encode_image(image).dense
    assert dense.shape == (1, 256, 12, 12)
    torch.testing.assert_close(dense[0, :, 2, 5], expected[0, 2 * 12 + 5])


def test_dense_attention_pool_equals_a_naive_loop():
    torch.manual_seed(0)
    pool = towers.clip_rn_mini(50).model.visual.attnpool
    channels = pool.q_proj.in_features
    x = torch.randn(1, channels, 6, 6)  # the pool's own grid
    width = channels // pool.num_heads
    with torch.no_grad():
        out = towers.dense_attention_pool(pool, x)
        tokens = [x[0, :, i // 6, i % 6] + pool.positional_embedding[1 + i] for i in range(36)]
        for i in (0, 16, 35):
            heads = []
            for head in range(pool.num_heads):
                part = slice(head * width, (head + 1) * width)
                query = pool.q_proj(tokens[i])[part]
                scores = [query @ pool.k_proj(t)[part] / math.sqrt(width) for t in tokens]
                shares = torch.stack(scores).softmax(0)
                heads.append(sum(s * pool.v_proj(t)[part] for s, t in zip(shares, tokens, strict=True)))
            expected = pool.c_proj(torch.cat(heads))
            torch.testing.assert_close(out[0, :, i // 6, i % 6], expected, rtol=1e-4, atol=1e-5)


def test_resized_positions_keep_rows_rows_and_columns_columns():
    row_number = torch.arange(4.0).repeat_interleave(4)[:, None]  # (16, 1)
    resized = towers.resize_positions(row_number, (6, 3)).reshape(6, 3)
    assert (resized.diff(dim=0) > 0).all()
    torch.testing.assert_close(resized, resized[:, :1].expand(6, 3))
    assert torch.equal(towers.resize_positions(row_number, (4, 4)), row_number)


def strides_of(encoder: towers.ClipEncoder, size: tuple[int, int]) -> list[tuple[float, float]]:
    """(down, across) of each stage, then of the dense map, measured on two pictures of `size`."""
    device = encoder.model.text_projection.device
    with torch.no_grad():
        seen = encoder.encode_image(torch.zeros(2, 3, *size, device=device))
    widths = (*encoder.stage_widths, encoder.embed_dim)
    maps = (*seen.stages, seen.dense)
    assert [tuple(x.shape[:2]) for x in maps] == [(2, width) for width in widths]
    assert seen.vector.shape == (2, encoder.embed_dim)
    return [(size[0] / x.shape[2], size[1] / x.shape[3]) for x in maps]


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (48, 80)])
def test_any_size_that_is_a_multiple_of_the_stride(encoder, size):
    strides = (4, 8, 16, 16) if encoder.stage_widths else (8,)
    assert strides_of(encoder, size) == [(s, s) for s in strides]


@pytest.mark.parametrize("build", [towers.clip_rn50, towers.clip_rn101])
def test_only_the_mini_halves_its_strides(build):
    with torch.device("meta"):
        encoder = build().eval()
        assert strides_of(encoder, (96, 160)) == [(s, s) for s in (8, 16, 32, 32)]
        with pytest.raises(ValueError, match="multiples of 32"):
            strides_of(encoder, (48, 80))


@pytest.mark.parametrize("size", [(100, 128), (128, 100)])
def test_other_sizes_are_refused(encoder, size):
    with pytest.raises(ValueError, match=r"multiples of (16|8)"):
        encoder.encode_image(torch.zeros(1, 3, *size))


def test_more_words_than_positions_are_refused(encoder):
    with pytest.raises(ValueError, match="33 tokens"):
        encoder.encode_text(torch.zeros(1, 33, dtype=torch.int64))


def test_no_word_state_depends_on_what_follows(encoder):
    torch.manual_seed(2)
    tokens = tokens_of(12, pad_to=12)
    changed = tokens.clone()
    changed[0, 6:11] = 3
    with torch.no_grad():
        a, b = encoder.encode_text(tokens), encoder.encode_text(changed)
    torch.testing.assert_close(a.words[:, :6], b.words[:, :6])
    assert not torch.allclose(a.sentence, b.sentence, atol=1e-3)


def test_the_contrastive_loss_reaches_every_parameter(encoder):
    torch.manual_seed(3)
    size = NATIVE_SIZE
    images, sentences, scale = encoder(torch.randn(4, 3, size, size), tokens_of(5, 6, 7, 8, pad_to=9))
    F.cross_entropy(scale * images @ sentences.T, torch.arange(4)).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    encoder.zero_grad()
    assert without == []


@pytest.mark.parametrize(
    ("build", "parameters"),
    [
        (towers.clip_rn50, 102_007_137),
        (towers.clip_rn101, 119_688_033),
        (towers.clip_vit_b16, 149_620_737),
    ],
)
def test_full_size_towers_have_the_published_parameter_counts(build, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in build().parameters()) == parameters


# --- weights ----------------------------------------------------------------------------------


def test_weights_survive_the_file(tmp_path):
    torch.manual_seed(0)
    saved, loaded = towers.clip_rn_mini(50), towers.clip_rn_mini(50)
    save_file(saved.state_dict(), tmp_path / "w.safetensors")
    encoders.load_weights(loaded, tmp_path / "w.safetensors")
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_weights_of_another_tower_are_refused_by_name(tmp_path):
    save_file(towers.clip_vit_mini(50).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(RuntimeError, match=r"model\.visual\.layer1"):
        encoders.load_weights(towers.clip_rn_mini(50), tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("clip-rn", towers.clip_rn_mini),
        ("clip-vit", towers.clip_vit_mini),
        ("swin", lambda _, pretrained: swin_mini(pretrained)),
        ("bert", bert_mini),
    ],
)
def test_shipped_weights_fit_the_towers_and_the_vocabulary_of_today(name, build):
    tokenizer = ClipTokenizer(32, encoders.shipped_file("vocab/refmini.txt"))
    encoder = build(tokenizer.vocab_size, pretrained=True)
    note = json.loads(encoders.shipped(name).with_suffix(".json").read_text())
    assert note["parameters"] == sum(p.numel() for p in encoder.parameters())
    assert all(tensor.isfinite().all() for tensor in encoder.state_dict().values())


def test_shipped_weights_are_found_or_the_message_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path / "data", tmp_path / "shipped"))
    with pytest.raises(FileNotFoundError, match="python -m rislib pretrain clip-rn"):
        encoders.shipped("clip-rn")
    wheel = tmp_path / "shipped" / "weights" / "clip-rn.safetensors"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    assert encoders.shipped("clip-rn") == wheel


def test_no_message_names_a_command_that_does_not_exist(tmp_path, monkeypatch):
    assert set(encoders.PRETRAINED) == set(pretraining.BUILDERS)
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="nobody has not been pretrained yet") as error:
        encoders.shipped("nobody")
    assert "python -m" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("clip-rn", partial(towers.clip_rn_mini, 50)),
        ("clip-vit", partial(towers.clip_vit_mini, 50)),
        ("swin", swin_mini),
        ("bert", partial(bert_mini, 50)),
    ],
)
def test_each_mini_finds_its_own_weights(name, build, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    with pytest.raises(FileNotFoundError, match="pretrained=False"):
        build(pretrained=True)
    (tmp_path / "weights").mkdir()
    saved = build().state_dict()
    save_file(saved, tmp_path / "weights" / f"{name}.safetensors")
    for key, tensor in build(pretrained=True).state_dict().items():
        assert torch.equal(tensor, saved[key]), key


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(open_clip, "create_model", refuse)
    with pytest.raises(RuntimeError, match="pretrained=None"):
        towers.clip_rn50("openai")
