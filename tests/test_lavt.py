"""LAVT and the towers it stands on: parity at full size, the rest on the mini. See also test_contract.py."""

from __future__ import annotations

import gzip
import json
import os
import re
from argparse import Namespace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from parity import (
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
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from rislib import checkpoints
from rislib.checkpoints import (
    _LAVT_NAMES,
    CheckpointError,
    fill,
    load_published,
    load_published_file,
    published_name,
)
from rislib.encoders.bert import WordPieceTokenizer, bert_mini
from rislib.encoders.swin import SwinEncoder, shifted_window_mask, swin_mini
from rislib.methods.lavt import (
    LAVT,
    PWAM,
    MeanFusion,
    PictureFeatures,
    lavt,
    lavt_mini,
    weighted_cross_entropy,
)
from rislib.methods.layers import language_gate
from rislib.nouns import Batch

REAL = Path(os.environ.get("RISLIB_REAL_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
VOCABULARY = REAL / "vocab" / "bert-base-uncased-vocab.txt"
EXPRESSIONS = REAL / "expressions" / "val_test.jsonl.gz"


@pytest.fixture
def build(vocabulary):
    """The mini with random weights."""
    return partial(lavt_mini, pretrained=False, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def mini(vocabulary) -> LAVT:
    return randomise(lavt_mini(pretrained=False, vocabulary=vocabulary))


# --- the published network --------------------------------------------------------------------


@pytest.fixture
def published() -> LAVT:
    """The full size with the reference's weights."""
    return load_published(
        "lavt",
        {
            part: {f"module.{name}": weights.tensor(name, tuple(shape)) for name, shape in keys.items()}
            for part, keys in reference_keys("lavt").items()
        },
    )


def errors_of_a_pass(model: LAVT) -> dict[str, float]:
    """Word states, features of all stages, both classes' logits and the loss, of one pass at 480 px."""
    reference, seen, means = reference_tensors("lavt"), {}, []
    model.bert.register_forward_hook(lambda *a: seen.update(bert_hidden=a[2][:, :, ::8]))
    model.decoder.register_forward_hook(lambda *a: seen.update(classes=a[2]))
    decode = model.decode
    model.decode = lambda *a: seen.setdefault("logits", decode(*a))
    for norm in model.norms:
        norm.register_forward_hook(lambda *a: means.append(a[2].mean((1, 2))))
    mask = np.random.default_rng([0, 777]).random((2, 480, 480)) > 0.8
    batch = Batch(
        weights.image(480).to(model.decoder.classify.weight.dtype),
        reference["input_ids"],
        reference["attention_mask"].bool(),
        torch.from_numpy(mask)[:, None].float(),
    )
    with torch.no_grad():
        loss = model.losses(batch)["cross_entropy"]

    background, foreground = reference["logits_avgpool4"].split(1, dim=1)
    classes = F.interpolate(seen["classes"], (480, 480), mode="bilinear", align_corners=True)
    return {
        "bert_hidden": relative_error(seen["bert_hidden"], reference["bert_hidden"]),
        "feature_means": relative_error(torch.cat(means, dim=1), reference["feature_means"]),
        "both classes": relative_error(F.avg_pool2d(classes, 4), reference["logits_avgpool4"]),
        "difference": relative_error(F.avg_pool2d(seen["logits"], 4), foreground - background),
        "loss": abs(loss.item() / reference["loss"].item() - 1),
    }


def test_parity_with_the_published_network(published, two_threads):
    """In float32 and to the last bits, on two threads, as the reference was computed.

    BERT's states agree bit for bit (and the features to 1e-7, the logits to 1e-6), or else this machine's
    kernels round otherwise, and what the next test says of float32 holds here.
    """
    errors = errors_of_a_pass(published)
    if errors["bert_hidden"] > 0:
        pytest.skip(f"this machine does not round as the reference's did: {errors}")
    assert all(error < 1e-5 for error in errors.values()), errors


def test_parity_in_float64(published):
    """On any machine, up to the rounding of the reference itself, which is float32.

    The word states of a BERT with random weights are so alike that G differs between pixels by 1e-4 of its
    mean, and instance norm takes the mean away: float32's rounding is 1e-3 of what is left. In float64 we
    do not add to it: 1.7e-4 in the features, 3.9e-4 in both classes' logits, 4.5e-4 in their difference are
    the reference's alone. (float32 that rounds elsewhere: 2.4e-4, 4.6e-4, 5.2e-4.) The limits lie just above.
    """
    errors = errors_of_a_pass(published.double())
    limits = {
        "bert_hidden": 1e-6,
        "feature_means": 1.9e-4,
        "both classes": 4.3e-4,
        "difference": 4.9e-4,
        "loss": 1e-4,
    }
    assert all(errors[name] < limit for name, limit in limits.items()), errors


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        model = lavt()
    layers = model.swin.layers
    assert parameters_of(model) - parameters_of(model.bert) == 118_847_866
    assert parameters_of(model.bert) == 108_891_648
    assert parameters_of(model.bert.model.embeddings) == 23_837_184
    assert parameters_of(model.decoder) == 20_651_010
    assert parameters_of(model.swin.patch_embed) == 6_528
    assert [parameters_of(layer.blocks) for layer in layers] == [400_776, 1_587_984, 56_895_264, 25_226_304]
    assert [parameters_of(layer.downsample) for layer in layers] == [0, 132_096, 526_336, 2_101_248]
    assert [parameters_of(fusion) for fusion in model.fusions] == [262_912, 656_896, 1_838_080, 5_773_312]
    assert [parameters_of(gate) for gate in model.gates] == [32_768, 131_072, 524_288, 2_097_152]
    assert [parameters_of(norm) for norm in model.norms] == [256, 512, 1_024, 2_048]


def test_the_published_defaults():
    with torch.device("meta"):
        model = lavt()
    assert (model.preprocessing.size, model.preprocessing.resize) == (480, "stretch")
    assert model.tokenizer.context_length == 20
    assert model.loss == "cross_entropy"
    rates = [getattr(b.drop_path1, "drop_prob", 0.0) for layer in model.swin.layers for b in layer.blocks]
    assert rates == pytest.approx(np.linspace(0, 0.3, 24), abs=1e-6)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    prefixes = ("bert.model.embeddings.", "bert.model.encoder.layer.10.", "bert.model.encoder.layer.11.")
    assert frozen == {
        name
        for name, _ in model.named_parameters()
        if name.startswith(prefixes) or name in ("gates.3.0.weight", "gates.3.2.weight")
    }


# --- loading ----------------------------------------------------------------------------------


def published_file(model: LAVT) -> dict:
    """What the authors' script saves: two state dicts, with tables that we compute, and much besides."""
    state = published_state(model, _LAVT_NAMES)
    name = "backbone.layers.{}.blocks.{}.attn.relative_position_index"
    blocks = [(i, j) for i in range(4) for j in range(2)]
    bert = {k.removeprefix("bert_model."): v for k, v in state.items() if k.startswith("bert_model.")}
    return {
        "model": {k: v for k, v in state.items() if not k.startswith("bert_model.")}
        | {name.format(i, j): model.swin.layers[i].blocks[j].attn.relative_position_index for i, j in blocks},
        "bert_model": bert | {"embeddings.position_ids": torch.arange(32)[None]},
        "optimizer": {"state": {0: {"step": 1, "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 5e-5}]},
        "lr_scheduler": {"last_epoch": 3},
        "epoch": 39,
        "args": Namespace(swin_type="base", lr=5e-5),
    }


@pytest.fixture
def mini_published(monkeypatch, build):
    """The mini's builder under the published name."""
    monkeypatch.setitem(checkpoints._PUBLISHED, "lavt", (build, _LAVT_NAMES))
    return build


def test_magnet_has_its_place_too():
    """Its names are tested with it; here, that the table is reached, with the released code's mask."""
    with torch.device("meta"), pytest.raises(CheckpointError) as error:
        load_published("magnet", {"model": {}})
    missing = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(missing) == sorted(f"missing: {key}" for key in reference_keys("magnet"))


def test_every_published_name_has_its_own_place():
    keys = reference_keys("lavt")
    keys = keys["model"] | {f"bert_model.{k}": v for k, v in keys["bert_model"].items()}
    with torch.device("meta"):
        check_published_names(lavt(), _LAVT_NAMES, keys)


def test_removed_renamed_and_misshapen_entries_are_named(build):
    model = build()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = published_state(model, _LAVT_NAMES)
    del state["backbone.layers.1.downsample.reduction.weight"]
    state["backbone.norm4.weight"] = state.pop("backbone.norm3.weight")
    state["classifier.conv1_1.bias"] = state["classifier.conv1_1.bias"][:-1]
    index = "backbone.layers.0.blocks.0.attn.relative_position_index"
    state[index] = model.swin.layers[0].blocks[0].attn.relative_position_index + 1
    with pytest.raises(CheckpointError) as error:
        fill(model, state, _LAVT_NAMES)
    lines = str(error.value).splitlines()[1:]
    assert sorted(line.strip().split(" is ")[0] for line in lines) == [
        f"different: {index}",
        "misshapen: classifier.conv1_1.bias",
        "missing: backbone.layers.1.downsample.reduction.weight",
        "missing: backbone.norm3.weight",
        "unexpected: backbone.norm4.weight",
    ]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} changed although the checkpoint was refused"


@pytest.mark.parametrize("layout", ["lavt", "lavt_one", "flat", "data parallel"])
def test_all_published_layouts_are_read_whole(layout, mini_published):
    checkpoint = published_file(mini_published())
    bert = checkpoint["bert_model"]
    expected = checkpoint["model"] | {f"bert_model.{k}": v for k, v in bert.items()}
    if layout == "lavt_one":
        checkpoint["model"] |= {f"text_encoder.{k}": v for k, v in checkpoint.pop("bert_model").items()}
    elif layout == "flat":
        checkpoint = expected
    elif layout == "data parallel":
        checkpoint = {
            part: {f"module.{k}": v for k, v in checkpoint[part].items()} for part in ("model", "bert_model")
        }
    model = load_published("lavt", checkpoint)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[published_name(name, _LAVT_NAMES)].to(tensor.dtype)), name


def test_a_missing_bert_is_named(mini_published):
    checkpoint = published_file(mini_published())
    del checkpoint["bert_model"]
    with pytest.raises(CheckpointError, match=r"missing: bert_model\.embeddings\.word_embeddings\.weight"):
        load_published("lavt", checkpoint)


def test_a_state_dict_holds_tensors():
    with pytest.raises(CheckpointError, match="epoch is a int"):
        load_published("lavt", {"epoch": 39})
    with pytest.raises(CheckpointError, match="Namespace instead of a state dict"):
        load_published("lavt", {"model": Namespace()})


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_are_read(suffix, mini_published, tmp_path):
    checkpoint, path = published_file(mini_published()), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(checkpoint, path)
    else:
        bert = {f"bert_model.{k}": v for k, v in checkpoint["bert_model"].items()}
        save_file({k: v.clone() for k, v in (checkpoint["model"] | bert).items()}, path)
    model = load_published_file("lavt", path)
    assert torch.equal(model.decoder.classify.weight, checkpoint["model"]["classifier.conv1_1.weight"])


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_of_a_file_is_run(tmp_path):
    torch.save({"model": {}, "args": Trap(tmp_path / "trapped")}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="run any code"):
        load_published_file("lavt", tmp_path / "weights.pth")
    assert not (tmp_path / "trapped").exists()


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load_published_file("lavt", tmp_path / "nowhere.pth")
    torch.save({"model": {"w": torch.zeros(10_000)}}, tmp_path / "whole.pth")
    files = {
        "empty.pth": b"",
        "page.pth": b"<html>404</html>",
        "page.safetensors": b"<html>404</html>",
        "half.pth": (tmp_path / "whole.pth").read_bytes()[:20_000],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            load_published_file("lavt", tmp_path / name)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="list instead of a state dict"):
        load_published_file("lavt", tmp_path / "list.pth")


# --- the network ------------------------------------------------------------------------------


def test_without_pwam_padding_changes_no_result_either(build):
    model = randomise(build(pwam=False))
    batch = mini_batch(model)
    padded = F.pad(batch.tokens, (0, 32 - batch.tokens.shape[1]))
    with torch.no_grad():
        a, b = model(batch.image, batch.tokens), model(batch.image, padded)
        unmasked = model(batch.image, padded, torch.ones_like(padded, dtype=torch.bool))
    assert relative_error(b, a) < 1e-4
    assert relative_error(unmasked, a) > 1e-3  # that the words are masked at all


def test_what_comes_before_the_sentence_is_the_first_of_four_stages(mini):
    with torch.no_grad():
        features = mini.encode_image(torch.randn(4, 3, 96, 96))
    assert isinstance(features, PictureFeatures)
    assert features.x.shape == (4, 24, 24, 32)


@pytest.mark.parametrize("size", [(64, 64), (96, 192), (77, 130)])
def test_the_mini_answers_at_the_pictures_size_whatever_it_is(mini, size):
    tokens, token_mask = mini.tokenize(SENTENCES[:2])
    with torch.no_grad():
        assert mini(torch.randn(2, 3, *size), tokens, token_mask).shape == (2, 1, *size)


def test_the_full_size_network_answers_at_the_pictures_size():
    with torch.device("meta"):
        model, tokens = lavt().eval(), torch.ones(2, 20, dtype=torch.int64)
        with torch.no_grad():
            assert model(torch.zeros(2, 3, 480, 333), tokens, tokens != 0).shape == (2, 1, 480, 333)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"loss": "cross_entropy"}, ["cross_entropy"]),
        ({"loss": "dice"}, ["dice"]),
        ({"pwam": False}, ["cross_entropy", "dice"]),
        ({"gate": False}, ["cross_entropy", "dice"]),
        ({"pwam": False, "gate": False}, ["cross_entropy", "dice"]),
        ({"heads": (1, 2, 4, 8), "fusion_dropout": 0.1, "decoder_width": 32}, ["cross_entropy", "dice"]),
        ({"text_dropout": True}, ["cross_entropy", "dice"]),
        ({"text_layers": 2}, ["cross_entropy", "dice"]),
    ],
    ids=str,
)
def test_every_ablation_trains_all_of_its_parameters(options, parts, build):
    model = randomise(build(**options)).train()
    losses = model.losses(mini_batch(model, size=64))
    assert list(losses) == parts
    sum(losses.values()).backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    expected = {"gates.3.0.weight", "gates.3.2.weight"} if options.get("gate", True) else set()
    if "text_layers" in options:
        bert = ("bert.model.embeddings.", "bert.model.encoder.layer.2.", "bert.model.encoder.layer.3.")
        expected |= {name for name, _ in model.named_parameters() if name.startswith(bert)}
    assert frozen == expected
    # a bias on keys or on queries that are instance-normalised changes no result
    without_effect = ("query.0.bias", "key.bias", "read.0.bias")
    assert {name for name in still - frozen if not name.endswith(without_effect)} == set()


def test_bert_drops_out_only_if_asked(build):
    for text_dropout in (False, True):
        model = build(text_dropout=text_dropout).train()
        assert model.training
        assert model.swin.training
        assert model.bert.training == text_dropout
        assert model.bert.model.encoder.layer[0].output.dropout.training == text_dropout
        assert not model.eval().bert.training


def test_encoder_parameters_are_the_towers(mini):
    encoder = {id(p) for p in mini.encoder_parameters()}
    names = {name for name, p in mini.named_parameters() if id(p) in encoder}
    assert names == {name for name, _ in mini.named_parameters() if name.startswith(("swin.", "bert."))}


def test_an_unknown_loss_is_refused(build):
    with pytest.raises(ValueError, match="focal"):
        build(loss="focal")


# --- its parts, against other ways to say the same --------------------------------------------


@pytest.mark.parametrize("heads", [1, 4])
def test_pwam_equals_a_naive_loop(heads):
    torch.manual_seed(0)
    pwam = PWAM(width=8, text_width=6, heads=heads).eval()
    x, words = torch.randn(2, 3, 4, 8), torch.randn(2, 6, 5)
    token_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()

    def conv(layer: nn.Conv1d, y: Tensor) -> Tensor:  # (N, C) -> (N, C')
        return y @ layer.weight[:, :, 0].T + layer.bias

    def instance_norm(y: Tensor) -> Tensor:  # over the first axis
        return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()

    with torch.no_grad():
        fused = pwam(x, words, token_mask)
        for b in range(2):
            pixels, real = x[b].reshape(12, 8), words[b].T[token_mask[b]]
            q, k, v = instance_norm(conv(pwam.query[0], pixels)), conv(pwam.key, real), conv(pwam.value, real)
            summary = torch.zeros(12, 8)
            for h in range(heads):
                part = slice(h * 8 // heads, (h + 1) * 8 // heads)
                summary[:, part] = (q[:, part] @ k[:, part].T / 8**0.5).softmax(1) @ v[:, part]
            summary = instance_norm(conv(pwam.read[0], summary))
            expected = F.gelu(conv(pwam.fuse[0], F.gelu(conv(pwam.visual[0], pixels)) * summary))
            torch.testing.assert_close(fused[b].reshape(12, 8), expected)


def test_without_pwam_all_pixels_read_the_mean_of_the_words():
    torch.manual_seed(0)
    fusion = MeanFusion(width=8, text_width=6).eval()
    x, words = torch.randn(1, 1, 1, 8).expand(2, 3, 4, 8), torch.randn(2, 6, 5)
    token_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    with torch.no_grad():
        fused = fusion(x, words, token_mask)
        alone = fusion(x, words[:, :, :2].mean(2, keepdim=True), torch.ones(2, 1))
    assert (fused == fused[:, :1, :1]).all()
    torch.testing.assert_close(fused[1], alone[1])
    assert relative_error(fused[0], alone[0]) > 1e-2


def test_the_gate_lets_through_between_minus_one_and_one():
    gate = language_gate(16)
    with torch.no_grad():
        x = torch.randn(5, 16)
        torch.testing.assert_close(gate(x), ((x @ gate[0].weight.T).relu() @ gate[2].weight.T).tanh())
        assert gate(torch.randn(5, 16)).abs().max() < 0.1  # nearly closed at first
        gate[0].weight.mul_(1e3)
        gate[2].weight.mul_(1e3)
        wide = gate(torch.randn(5, 16))
    assert wide.min() < -0.9
    assert wide.max() > 0.9


def test_weighted_cross_entropy_is_torchs_of_two_classes():
    torch.manual_seed(0)
    classes, target = 3 * torch.randn(2, 2, 5, 7), torch.rand(2, 5, 7) > 0.5
    ours = weighted_cross_entropy(classes[:, 1:] - classes[:, :1], target[:, None].float())
    torch.testing.assert_close(ours, F.cross_entropy(classes, target.long(), weight=torch.tensor([0.9, 1.1])))


def test_a_pixel_counts_as_object_above_one_half(mini):
    batch = mini_batch(mini, size=64)
    soft = Batch(batch.image, batch.tokens, batch.token_mask, 0.4 + 0.2 * batch.mask)
    with torch.no_grad():
        assert mini.losses(soft) == mini.losses(batch)


# --- Swin -------------------------------------------------------------------------------------


def run_stages(swin: SwinEncoder, image: Tensor) -> Tensor:
    x = swin.stage(0, swin.embed(image))
    for i in (1, 2, 3):
        x = swin.stage(i, swin.downsample(i - 1, x))
    return x


def test_where_nothing_is_padded_stages_are_timms():
    """128 px make maps of 32, 16, 8 and 4: whole windows of 4, and one map that is a single window."""
    whole = SwinTransformer(
        128, embed_dim=32, num_heads=(1, 2, 4, 8), depths=(2, 2, 2, 2), window_size=4, always_partition=True
    )
    randomise(whole)
    whole.norm = nn.Identity()
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        expected = whole.forward_features(image)
        torch.testing.assert_close(run_stages(SwinEncoder(whole).eval(), image), expected)


def test_a_shifted_window_sees_only_what_lies_together():
    """Against the coordinates that the rolled positions come from, with padding in one axis."""
    h, w, n = 6, 8, 4
    mask = shifted_window_mask(h, w, n)  # (4, 16, 16): 8 x 8 after padding
    assert mask.shape == (4, 16, 16)
    for window, a, b in np.ndindex(4, 16, 16):
        apart = 0
        for axis in (0, 1):
            corner = (window // 2, window % 2)[axis] * n
            before = [(corner + (i // n, i % n)[axis] + n // 2) % 8 for i in (a, b)]
            apart = max(apart, abs(before[0] - before[1]))
        assert mask[window, a, b] == (0 if apart < n else -torch.inf)


def test_what_is_padded_is_cut_off_again_and_a_shift_is_undone():
    """With nothing but one position's own value to see, a block's attention must return each to its place."""
    swin = randomise(swin_mini(depths=(2, 1, 1, 1)))
    for block in swin.layers[0].blocks:
        block.attn.qkv.weight.data[:64] = 0
        block.attn.qkv.bias.data[:64] = 0  # no queries, no keys:
        table = block.attn.relative_position_bias_table.data
        table.fill_(-1e4)
        table[len(table) // 2] = 0  # attention to oneself alone
    x = torch.randn(1, 7, 9, 32)
    with torch.no_grad():
        together = swin.stage(0, x)
        alone = torch.stack([swin.stage(0, x[:, i : i + 1, j : j + 1]) for i in range(7) for j in range(9)])
    torch.testing.assert_close(together, alone.reshape(7, 9, 32)[None])


def test_swin_takes_any_size_and_halves_it_upwards():
    swin = randomise(swin_mini())
    assert swin.widths == (32, 64, 128, 256)
    with torch.no_grad():
        x = swin.embed(torch.randn(1, 3, 98, 61))
        assert x.shape == (1, 25, 16, 32)
        assert swin.downsample(0, x).shape == (1, 13, 8, 64)
        assert run_stages(swin, torch.randn(1, 3, 98, 61)).shape == (1, 4, 2, 256)


def test_weights_that_cannot_be_had_say_what_to_do(monkeypatch):
    import timm
    from transformers import BertModel, BertTokenizer

    from rislib.encoders.bert import bert_base
    from rislib.encoders.swin import swin_b

    def fail(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    monkeypatch.setattr(BertModel, "from_pretrained", fail)
    monkeypatch.setattr(BertTokenizer, "from_pretrained", fail)
    with pytest.raises(RuntimeError, match="pretrained=None"):
        swin_b("imagenet22k")
    with pytest.raises(RuntimeError, match="pretrained=None"):
        bert_base("bert-base-uncased")
    with pytest.raises(FileNotFoundError, match="vocab_file"):
        WordPieceTokenizer()(["the red cup"])


# --- BERT -------------------------------------------------------------------------------------


def test_bert_layer_by_layer_is_transformers_bert():
    bert = randomise(bert_mini(100))
    tokens, token_mask = torch.randint(1, 100, (2, 7)), torch.ones(2, 7, dtype=torch.bool)
    token_mask[1, 4:] = False
    with torch.no_grad():
        whole = bert(tokens, token_mask)
        expected = bert.model(tokens, attention_mask=token_mask.long()).last_hidden_state
        x = bert.embed(tokens)
        for start in range(4):
            x = bert.layers(x, token_mask, start, start + 1)
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(x, expected)
    assert (bert.width, bert.depth) == (128, 4)
    with pytest.raises(ValueError, match="33 tokens"):
        bert.embed(torch.ones(1, 33, dtype=torch.int64))


def naive_word_pieces(sentence: str, pieces: set[str]) -> list[str]:
    """Devlin et al.'s greedy rule for lower-case ASCII: always the longest piece, from left to right."""
    found = []
    for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]", sentence.lower()):
        start, parts = 0, []
        while start < len(word):
            ends = range(len(word), start, -1)
            options = ("##" * (start > 0) + word[start:end] for end in ends)
            piece = next((option for option in options if option in pieces), None)
            if piece is None:
                parts = ["[UNK]"]
                break
            parts.append(piece)
            start += len(piece.removeprefix("##"))
        found += parts
    return found


@pytest.mark.skipif(not VOCABULARY.exists(), reason="BERT's real vocabulary is not here")
def test_real_sentences_are_cut_as_bert_cuts_them():
    lines = VOCABULARY.read_text(encoding="utf-8").splitlines()
    ids, tokenizer = {piece: i for i, piece in enumerate(lines)}, WordPieceTokenizer(VOCABULARY)
    assert tokenizer.vocab_size == 30_522
    with gzip.open(EXPRESSIONS, "rt") as file:
        references = [json.loads(line) for line in islice(file, 0, None, 20)]
    sentences = [s["sent"] for reference in references for s in reference["sentences"] if s["sent"].isascii()]
    tokens, _ = tokenizer(sentences)
    cut = 0
    for sentence, row in zip(sentences, tokens.tolist(), strict=True):
        whole = ["[CLS]", *naive_word_pieces(sentence, ids.keys()), "[SEP]"]
        cut += len(whole) > 20
        expected = [ids[piece] for piece in whole][:20]
        assert row == expected + [0] * (20 - len(expected)), sentence
    assert len(sentences) > 2_000
    assert cut > 10  # that some are too long


@pytest.fixture
def pieces(tmp_path):
    """A vocabulary of a few word pieces."""
    path = tmp_path / "vocab.txt"
    path.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "cup", "##s", "'"])
    )
    return path


def test_word_pieces(pieces):
    tokenizer = WordPieceTokenizer(pieces, context_length=6)
    tokens, token_mask = tokenizer(["The red CUPS", "dog", "the the the the the the"])
    assert tokens.tolist() == [[2, 5, 6, 7, 8, 3], [2, 1, 3, 0, 0, 0], [2, 5, 5, 5, 5, 5]]
    assert torch.equal(token_mask, tokens != 0)
    assert tokenizer.vocab_size == 10
    assert tokenizer.decode(tokens[0]) == "the red cups"
    assert tokenizer([])[0].shape == (0, 6)
    trimmed, _ = WordPieceTokenizer(pieces, trim=True)(["the cup", "red"])
    assert trimmed.tolist() == [[2, 5, 7, 3], [2, 6, 3, 0]]
    with pytest.raises(ValueError, match="context_length"):
        WordPieceTokenizer(pieces, context_length=1)
