"""CM-MaskSD: what is masked, what the losses are and whom they teach, that it comes off without a trace."""

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
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.checkpoints import from_pretrained, save_pretrained
from rislib.encoders.clip import clip_rn_mini
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.methods import part_options
from rislib.methods.cm_masksd import CMMaskSD, LevelNeck, cm_masksd_b16, cm_masksd_mini, divergence
from rislib.methods.layers import no_running_statistics
from rislib.methods.masking import Masking
from rislib.nouns import Batch
from rislib.training.order import seed_step

PLAIN = {"lmvsd": 0.0, "vmlsd": 0.0}
WIRINGS = [{"neck": "N1"}, {"neck": "N1+"}, {"neck": "N1+", "wiring": "V2"}, {"neck": "N2", "wiring": "V2"}]


@pytest.fixture(scope="module")
def make(vocabulary: Path) -> Callable[..., CMMaskSD]:
    return partial(cm_masksd_mini, pretrained=False, vocabulary=vocabulary)


def losses_of(model: CMMaskSD, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return model.losses(batch)


def masked_in(model: CMMaskSD, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    """Which patches and words the losses mask: {"lmvsd": (B, N), "vmlsd": (B, L)}."""
    seen = {}
    hooks = [
        getattr(model, name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: args[1]})
        )
        for name in ("lmvsd", "vmlsd")
    ]
    losses_of(model, batch, seed)
    for hook in hooks:
        hook.remove()
    return seen


def still_of(model: nn.Module) -> set[str]:
    """Parameters that may learn and have no gradient."""
    return {
        name
        for name, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }


# --- what is masked ---------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_some_of_the_highest_scores_are_chosen(top: float, share: float) -> None:
    torch.manual_seed(0)
    score, eligible = torch.randn(50, 30), torch.rand(50, 30) < 0.7
    eligible[0], eligible[1, :] = True, False
    eligible[2, 1:] = False
    masking = Masking(8, top, share, guided=True, learned=True)
    draws = torch.stack([masking.choose(score, eligible) for _ in range(200)])  # (200, 50, 30)
    for b in range(50):
        allowed = [i for i in range(30) if eligible[b, i]]
        k = math.ceil(round(top * len(allowed), 6))
        best = sorted(allowed, key=lambda i: -score[b, i].item())[:k]
        count = min(k, max(1, math.floor(round(share * k, 6))))
        assert (draws[:, b].sum(dim=1) == count).all()
        assert {i for i in range(30) if draws[:, b, i].any()} == set(best)  # each of them at times, no other


def test_with_all_at_the_top_chance_alone_decides() -> None:
    masking, eligible = Masking(8, 1.0, 0.5, guided=True, learned=True), torch.ones(1, 20, dtype=torch.bool)
    chosen = []
    for score in (torch.arange(20.0)[None], -torch.arange(20.0)[None]):
        torch.manual_seed(0)
        chosen.append(torch.stack([masking.choose(score, eligible) for _ in range(400)]))
    assert torch.equal(*chosen)
    often = chosen[0].float().mean(dim=(0, 1))
    assert (often - 0.5).abs().max() < 4 * math.sqrt(0.25 / 400)  # four standard deviations


def test_unguided_masks_as_many_of_any_score() -> None:
    torch.manual_seed(0)
    score, eligible = torch.arange(20.0)[None], torch.arange(20)[None] < 16
    guided, by_lot = (Masking(8, 0.25, 0.5, guided=g, learned=True) for g in (True, False))
    draws = torch.stack([by_lot.choose(score, eligible) for _ in range(200)])
    assert (draws.sum(dim=2) == guided.choose(score, eligible).sum()).all()
    assert torch.equal(draws.any(dim=0), eligible)


def test_masked_tokens_and_no_others_are_replaced() -> None:
    x = torch.randn(2, 5, 8)
    chosen = torch.tensor([[0, 1, 0, 0, 1], [0, 0, 0, 0, 0]]).bool()
    for learned in (True, False):
        masking = Masking(8, 0.5, 0.5, guided=True, learned=learned)
        assert len(list(masking.parameters())) == learned
        stand_in = masking.embedding if learned else torch.zeros(8)
        with torch.no_grad():
            y = masking(x, chosen)
        for b, i in np.ndindex(2, 5):
            assert torch.equal(y[b, i], stand_in if chosen[b, i] else x[b, i])


def test_sentence_and_picture_choose_by_their_cosines(make) -> None:
    """All of K masked, the choice equals a naive loop."""
    model = randomise(make(masked_patches=1.0, masked_words=1.0))
    batch = mini_batch(model, size=64)
    masked = masked_in(model, batch)
    with torch.no_grad():
        picture = model.encode_image(batch.image)
        text = model.clip.encode_text(batch.tokens)
    for b, sentence in enumerate(SENTENCES):
        cosines = [
            F.cosine_similarity(text.sentence[b], picture.dense[b, :, i // 8, i % 8], dim=0)
            for i in range(64)
        ]
        best = sorted(range(64), key=lambda i: -cosines[i])[:16]
        assert masked["lmvsd"][b].nonzero().flatten().tolist() == sorted(best)
        words = range(1, 1 + len(sentence.split()))  # the start token is 0
        projected = text.words[b] @ model.clip.model.text_projection
        cosines = {i: F.cosine_similarity(picture.vector[b], projected[i], dim=0) for i in words}
        best = sorted(words, key=lambda i: -cosines[i])[: math.ceil(len(words) / 2)]
        assert masked["vmlsd"][b].nonzero().flatten().tolist() == (sorted(best) if len(words) > 1 else [])


def test_start_end_padding_and_only_words_are_never_masked(make) -> None:
    model = make(top_words=1.0, masked_words=1.0)
    sentences = ["", "cup", "the red cup", "the red cup " * 20]
    tokens, token_mask = model.tokenize(sentences)
    batch = replace(mini_batch(model, size=32), tokens=tokens, token_mask=token_mask)
    masked = masked_in(model, batch)["vmlsd"]
    special = torch.tensor([0, model.tokenizer.sot, model.tokenizer.eot])
    assert torch.equal(masked[2:], ~torch.isin(tokens[2:], special))
    assert masked.sum(dim=1).tolist() == [0, 0, 3, 30]


def test_the_class_token_is_never_masked_and_places_stay(make) -> None:
    """All patches masked: what the tower then sees is the class token, and positions of one embedding."""
    model = randomise(make(top_patches=1.0, masked_patches=1.0, vmlsd=0.0))
    batch, seen = mini_batch(model, size=96), []
    hook = model.clip.model.visual.ln_pre.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    losses_of(model, batch)
    hook.remove()
    visual = model.clip.model.visual
    expected = torch.cat([visual.class_embedding[None], model.lmvsd.embedding.expand(144, -1)])
    expected = expected + visual.positional_embedding
    assert torch.equal(seen[1], expected.expand(4, -1, -1)) and not torch.equal(seen[0], seen[1])


def test_masked_words_change_only_later_ones(make) -> None:
    """CLIP's text attention is causal; the end token hears of every masked word."""
    model = randomise(make())
    tokens, _ = model.tokenize(["a dog left of the blue cup"])
    chosen = torch.arange(tokens.shape[1])[None] == 4
    with torch.no_grad():
        whole = model.clip.encode_text(tokens)
        masked = model.clip.encode_words(
            model.vmlsd(model.clip.model.token_embedding(tokens), chosen), tokens
        )
    changed = (whole.words != masked.words).any(dim=2)[0]
    assert changed.tolist() == [False] * 4 + [True] * (tokens.shape[1] - 4)
    assert not torch.equal(whole.sentence, masked.sentence)


def test_what_is_masked_is_a_function_of_seed_and_step(make) -> None:
    model = randomise(make())
    batch = mini_batch(model, size=64)
    seen = []
    for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5)):
        seed_step(seed, step, 0)
        seen.append(masked_in(model, batch, seed=torch.initial_seed())["lmvsd"])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])


# --- the losses -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bce", "mse"])
@pytest.mark.parametrize("wiring", ["V1", "V2"])
@pytest.mark.parametrize("plus", ["", "+"])
@torch.no_grad()
def test_losses_equal_a_naive_loop_over_samples(make, plus: str, wiring: str, kind: str) -> None:
    """In eval mode: batch norm would tie the samples together."""
    options = {"neck": f"N1{plus}", "wiring": wiring, "divergence": kind, "lmvsd": 0.7, "vmlsd": 0.4}
    model = randomise(make(**options, dice=0.0))
    batch = mini_batch(model, size=32)
    losses, masked = losses_of(model, batch), masked_in(model, batch)
    clip, neck = model.clip, model.neck

    def mixed(local: Tensor, vector: Tensor, levels: Tensor | None = None) -> Tensor:
        rows = []
        for i, token in enumerate(local):
            x = token if levels is None or not plus else token + neck.connect(levels[i])
            row = neck.out(neck.local(x) * neck.vector(vector)) + x
            if plus:
                row = row + token @ vector / token.norm() / vector.norm() * neck.alike
            rows.append(neck.norm(row))
        return torch.stack(rows)

    def logits(local: Tensor, words: Tensor) -> Tensor:
        """(16, C), (L, text_width) -> a flat map."""
        x = local.T.reshape(1, -1, 4, 4)
        every = torch.ones(1, len(words), dtype=torch.bool)
        return model.head(model.decoder(x, words[None], every)).flatten().double()

    def picture_of(patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = clip.encode_patches(patches[None], (32, 32), (2, 4))
        levels = torch.cat([stage[0].flatten(1).T for stage in seen.stages], dim=1)
        return seen.dense[0].flatten(1).T, seen.vector[0], levels

    terms = {"segmentation": [], "lmvsd": [], "vmlsd": []}
    for b in range(4):
        tokens = batch.tokens[b][batch.token_mask[b]]  # no padding, so that it need not be masked
        embedded, patches = clip.model.token_embedding(tokens), clip.embed_patches(batch.image[b : b + 1])[0]
        text = clip.encode_words(embedded[None], tokens[None])
        local, vector, levels = picture_of(patches)
        main = logits(mixed(local, text.sentence[0], levels), text.words[0])
        truth = F.interpolate(batch.mask[b : b + 1], (16, 16), mode="area").flatten()
        students = {}

        for i in range(16):
            if masked["lmvsd"][b, i]:
                patches[i] = model.lmvsd.embedding
        holes, _, holes_levels = picture_of(patches)
        students["lmvsd"] = logits(mixed(holes, text.sentence[0], holes_levels), text.words[0])

        for i in range(len(tokens)):
            if masked["vmlsd"][b, i]:
                embedded[i] = model.vmlsd.embedding
        text = clip.encode_words(embedded[None], tokens[None])
        if wiring == "V2":
            students["vmlsd"] = logits(mixed(local, text.sentence[0], levels), text.words[0])
        else:
            into, back = model.coordination["picture"], model.coordination["words"]
            words = mixed(text.words[0] @ clip.model.text_projection, into(vector))
            students["vmlsd"] = logits(local, back(words))
        if len(tokens) == 3:  # start, one word, end
            del students["vmlsd"]

        p = 1 / (1 + (-main).exp())
        terms["segmentation"] += (-truth * p.log() - (1 - truth) * (1 - p).log()).tolist()
        for name, student in students.items():
            q = 1 / (1 + (-student).exp())
            each = -p * q.log() - (1 - p) * (1 - q).log() if kind == "bce" else (p - q) ** 2
            terms[name] += each.tolist()
    assert len(terms["vmlsd"]) == 3 * 16 * 16
    weights = {"segmentation": 1.0, "lmvsd": 0.7, "vmlsd": 0.4}
    for name, each in terms.items():
        assert losses[name].item() == pytest.approx(weights[name] * sum(each) / len(each), rel=1e-3), name


@pytest.mark.parametrize("kind", ["bce", "mse"])
def test_the_student_that_is_its_teacher_has_nothing_to_learn(kind: str) -> None:
    logits = torch.linspace(-3, 3, 16).reshape(1, 1, 4, 4).requires_grad_()
    loss = divergence(logits, logits.detach(), kind)
    loss.backward()
    assert logits.grad.abs().max() < 1e-7
    further = [divergence(logits.detach() + d, logits.detach(), kind).item() for d in (-2, -1, 0, 1, 2)]
    assert min(further) == further[2] and further[0] > further[1] and further[4] > further[3]


@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("part", ["lmvsd", "vmlsd"])
def test_the_teacher_hears_of_its_students_only_if_it_is_to(make, part: str, stop_gradient: bool) -> None:
    model = randomise(make(stop_gradient=stop_gradient)).train()
    seen = []
    hook = model.head.register_forward_hook(lambda m, args, out: seen.append(out))
    losses = losses_of(model, mini_batch(model, size=32))
    hook.remove()
    assert len(seen) == 3
    reached = torch.autograd.grad(losses[part], seen, allow_unused=True)
    assert [grad is not None for grad in reached] == [not stop_gradient, part == "lmvsd", part == "vmlsd"]
    taught = torch.autograd.grad(
        losses_of(model, mini_batch(model, size=32))["segmentation"], model.head[-1].bias
    )
    assert taught[0].abs() > 0


@pytest.mark.parametrize("options", [*WIRINGS, {"replacement": "zero"}, {"guided": False}, PLAIN], ids=str)
def test_the_sum_reaches_every_parameter(make, options: dict) -> None:
    model = randomise(make(**options)).train()
    losses = losses_of(model, mini_batch(model, size=32))
    distilled = [] if options == PLAIN else ["lmvsd", "vmlsd"]
    assert list(losses) == ["segmentation", "dice", *distilled]
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert still_of(model) == set()


def test_a_sentence_of_one_word_has_no_vmlsd(make) -> None:
    model = randomise(make()).train()
    batch = mini_batch(model, size=32)
    tokens, token_mask = model.tokenize(["cup", "dog", "", "cup"])
    losses = losses_of(model, replace(batch, tokens=tokens, token_mask=token_mask))
    assert losses["vmlsd"].item() == 0 and losses["lmvsd"].item() > 0
    losses["vmlsd"].backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_weights_count_as_much_as_asked_for(make) -> None:
    models = [randomise(make(lmvsd=w, vmlsd=2 * w)) for w in (0.5, 1.0)]
    with torch.no_grad():
        half, whole = (losses_of(model, mini_batch(model, size=32)) for model in models)
    for name in ("lmvsd", "vmlsd"):
        torch.testing.assert_close(whole[name], 2 * half[name])


@pytest.mark.parametrize("options", WIRINGS, ids=str)
def test_running_statistics_are_those_of_a_training_without_branches(make, options: dict) -> None:
    """The decoder's batch is another, and so is the order of its sums: not bit for bit."""
    after = []
    for part in (options, options | PLAIN):
        torch.manual_seed(0)
        model = make(**part)
        model.load_state_dict({**model.state_dict(), **randomise(make(**options | PLAIN)).state_dict()})
        losses_of(model.train(), mini_batch(model, size=32))
        after.append(
            {key: x for key, x in model.state_dict().items() if "running" in key or "tracked" in key}
        )
    assert len(after[0]) == (6 + 3 * 13 if options["neck"] == "N2" else 6)
    for key, tensor in after[1].items():
        torch.testing.assert_close(after[0][key], tensor)
        assert "tracked" not in key or tensor == 1


def test_batch_norm_remembers_again_afterwards() -> None:
    norm, x = nn.BatchNorm1d(3), torch.randn(8, 3)
    with torch.no_grad():
        with pytest.raises(RuntimeError), no_running_statistics(nn.Sequential(norm)):
            y = norm(x)
            raise RuntimeError
        assert not norm.running_mean.any()
        assert torch.equal(norm(x), y)  # normalised as ever
        assert norm.running_mean.any()


# --- parts, sizes, and without a trace --------------------------------------------------------


def test_a_weight_of_zero_leaves_a_branch_out_with_its_parameters(make) -> None:
    whole, plain = make(), make(**PLAIN)
    extra = {name.split(".")[0] for name, _ in whole.named_parameters()}
    extra -= {name.split(".")[0] for name, _ in plain.named_parameters()}
    assert extra == {"lmvsd", "vmlsd", "coordination"}
    assert make(vmlsd=0.0).coordination is None and make(wiring="V2").coordination is None
    assert plain.state_dict().keys() == whole.inference_state().keys()
    options = part_options("cm_masksd", without=["lmvsd", "vmlsd"])
    assert options == PLAIN


@pytest.mark.parametrize("options", WIRINGS, ids=str)
@torch.no_grad()
def test_no_branch_in_use_and_none_in_what_is_kept(make, options: dict, tmp_path: Path) -> None:
    model = randomise(make(lmvsd=0.5, **options))
    batch, ran = mini_batch(model, size=32), []
    for name, module in model.named_modules():
        if name.startswith(("lmvsd", "vmlsd", "coordination")):
            module.register_forward_hook(lambda m, args, out: ran.append(m))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    expected = model(batch.image, batch.tokens, batch.token_mask)
    assert not ran and torch.equal(torch.get_rng_state(), state)

    save_pretrained(model, tmp_path)
    again = from_pretrained(tmp_path)
    plain = make(**options, **PLAIN).eval()
    plain.load_state_dict(model.inference_state())
    assert again.state_dict().keys() == model.inference_state().keys()
    assert parameters_of(again) == parameters_of(plain) < parameters_of(model)
    for other in (again, plain, model.strip()):
        assert torch.equal(other(batch.image, batch.tokens, batch.token_mask), expected)
        assert list(other.losses(batch)) == ["segmentation", "dice"]


def test_parameters_at_full_size() -> None:
    """The computed table of the paper's sheet, whose image tower holds positions for 26 x 26 patches."""
    with torch.device("meta"):
        model = cm_masksd_b16()
    millions = {name: parameters_of(part) / 1e6 for name, part in model.named_children()}
    image = parameters_of(model.clip.model.visual)
    more_positions = (26 * 26 - 14 * 14) * 768
    assert round((image + more_positions) / 1e6, 1) == 86.6
    assert round(millions["clip"] - image / 1e6, 1) == 63.4
    assert {name: round(millions[name], 2) for name in ("neck", "decoder", "head")} == {
        "neck": 0.79,
        "decoder": 12.63,
        "head": 3.54,
    }
    extra = sum(millions[name] for name in ("lmvsd", "vmlsd", "coordination"))
    assert round(extra, 2) == 0.53
    assert parameters_of(model) == 167_108_610
    assert round(parameters_of(model) / 1e6 + more_positions / 1e6, 1) == 167.5
    assert extra / sum(millions.values()) < 0.005
    assert parameters_of(model.strip()) == 167_108_610 - 526_592


@pytest.mark.parametrize("options", WIRINGS, ids=str)
def test_full_size_networks_answer_at_stride_4(options: dict) -> None:
    with torch.device("meta"):
        model = cm_masksd_b16(**options).eval()
        tokens = torch.ones(2, 17, dtype=torch.int64)
        with torch.no_grad():
            assert model(torch.zeros(2, 3, 96, 160), tokens, tokens != 0).shape == (2, 1, 24, 40)
            with pytest.raises(ValueError, match="multiples of 16"):
                model(torch.zeros(2, 3, 90, 160), tokens, tokens != 0)


def test_full_size_masks_84_patches_of_676() -> None:
    score = torch.randn(2, 676)
    with torch.device("meta"):
        masking = cm_masksd_b16(vmlsd=0.0).lmvsd
    assert masking.choose(score, score.isfinite()).sum(dim=1).tolist() == [84, 84]


@pytest.mark.parametrize("neck", ["N1+", "N2"])
@torch.no_grad()
def test_necks_of_levels_read_each_of_them(make, neck: str) -> None:
    model = randomise(make(neck=neck, wiring="V2"))
    assert isinstance(model.neck, LevelNeck) == (neck == "N2")
    batch = mini_batch(model, size=32)
    picture, text = model.encode_image(batch.image), model.clip.encode_text(batch.tokens)
    visual, after = model.clip.model.visual, []
    hooks = [
        block.register_forward_hook(lambda m, args, out: after.append(out))
        for block in visual.transformer.resblocks
    ]
    model.encode_image(batch.image)
    for hook in hooks:
        hook.remove()
    for level, block in enumerate((2, 4)):
        torch.testing.assert_close(
            picture.levels[:, level].flatten(2), after[block - 1][:, 1:].transpose(1, 2)
        )
    x = model.neck(picture, text.sentence)
    for level in range(2):
        levels = picture.levels.clone()
        levels[:, level] = 0
        assert relative_error(model.neck(replace(picture, levels=levels), text.sentence), x) > 1e-3
    assert relative_error(model.neck(replace(picture, dense=0 * picture.dense), text.sentence), x) > 1e-3
    assert relative_error(model.neck(picture, text.sentence.flip(0)), x) > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neck": "N2"}, "N2 fuses maps: use V2"),
        ({"neck": "N3"}, r"neck is one of N1, N1\+, N2, not 'N3'"),
        ({"wiring": "V3"}, "'V3'"),
        ({"replacement": "noise"}, "'noise'"),
        ({"divergence": "kl"}, "'kl'"),
        ({"mask_grounding": 0.1, "grounding": {"segmentation": "masked"}}, "reads the whole sentence"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(make, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_a_resnet_has_no_patches(vocabulary: Path) -> None:
    tokenizer = ClipTokenizer(32, vocabulary)
    with pytest.raises(ValueError, match="needs a ViT"):
        CMMaskSD(clip_rn_mini(tokenizer.vocab_size), tokenizer)


def test_encoder_parameters_are_clips(make) -> None:
    model = make()
    encoder = {id(p) for p in model.encoder_parameters()}
    names = {name for name, p in model.named_parameters() if id(p) in encoder}
    assert names == {name for name, _ in model.named_parameters() if name.startswith("clip.")}
