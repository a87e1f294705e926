"""Mask grounding: what is hidden, that no answer leaks, its loss, and that it comes off without a trace."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from parity import SENTENCES, mini_batch, parameters_of, randomise
from safetensors.torch import load_file
from torch import Tensor

from rislib.checkpoints import from_pretrained, save_pretrained
from rislib.encoders.bert import WordPieceTokenizer
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.methods import BUILDERS, CLASSES, build, part_options
from rislib.methods.grounding import IGNORED, MaskGrounding, centre
from rislib.nouns import Batch, Method, Reading
from rislib.training import MINI
from rislib.training.order import seed_step
from rislib.training.recipe import parameter_groups

MINIS = [name for name, preset in BUILDERS if preset == "mini" and "mask_grounding" in CLASSES[name].parts]
OFTEN = {"ratio": 0.5, "at_least_one": True}


@pytest.fixture(params=MINIS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make(name: str, vocabulary: Path) -> Callable[..., Method]:
    """The mini with mask grounding, unless asked otherwise."""

    def make(mask_grounding: float = 1.0, **grounding) -> Method:
        options = {"mask_grounding": mask_grounding, "grounding": OFTEN | grounding}
        if name == "cm_masksd" and grounding.get("segmentation") == "masked":
            options["vmlsd"] = 0.0  # its teacher must read the whole sentence
        torch.manual_seed(0)
        return build(name, "mini", pretrained=False, vocabulary=vocabulary, **options)

    return make


@pytest.fixture(scope="module")
def head(vocabulary: Path) -> Callable[..., MaskGrounding]:
    """The head by itself, over words of 8 channels and one map of 6."""
    tokenizer = ClipTokenizer(32, vocabulary)
    words = torch.randn(tokenizer.vocab_size, 8, generator=torch.Generator().manual_seed(0))
    return partial(MaskGrounding, tokenizer, words, (6,), stage=0, heads=2)


@pytest.fixture(scope="module")
def many(vocabulary: Path) -> tuple[Tensor, Tensor]:
    """The four sentences, a thousand times: 14,000 words."""
    return ClipTokenizer(32, vocabulary, trim=True)(SENTENCES * 1000)


def is_word(grounding: MaskGrounding, tokens: Tensor) -> Tensor:
    return ~torch.isin(tokens, torch.tensor(sorted(grounding.tokenizer.special_ids)))


# --- what is hidden ---------------------------------------------------------------------------


def test_words_are_chosen_and_hidden_as_often_as_asked(head, many):
    torch.manual_seed(0)
    tokens, token_mask = many
    grounding = head(ratio=0.3, masked=0.6, random=0.25)
    hidden, answers = grounding.hide(tokens, token_mask)
    chosen, words = answers != IGNORED, is_word(grounding, tokens)
    assert torch.equal(answers[chosen], tokens[chosen])
    assert torch.equal(hidden[~chosen], tokens[~chosen])
    assert words.sum() == 14_000 and not (chosen & ~words).any()
    assert is_word(grounding, hidden[chosen & (hidden != grounding.tokenizer.mask_id)]).all()

    def near(count: Tensor, n: int, share: float) -> bool:  # within four standard deviations
        return abs(count.item() - n * share) < 4 * math.sqrt(n * share * (1 - share))

    n = chosen.sum().item()
    assert near(chosen.sum(), 14_000, 0.3)
    assert near((hidden[chosen] == grounding.tokenizer.mask_id).sum(), n, 0.6)
    # four ids are special and never put anywhere; one draw in the others is the word itself, which stays
    vocabulary = grounding.vocab_size
    replaced = 0.25 * (vocabulary - 5) / (vocabulary - 4)
    assert near((is_word(grounding, hidden) & (hidden != tokens) & chosen).sum(), n, replaced)
    for position in range(1, 8):  # wherever a word stands
        here = words[:, position]
        assert near(chosen[:, position].sum(), here.sum().item(), 0.3)


def test_chance_may_choose_nothing_and_need_not(head, many):
    torch.manual_seed(0)
    hidden, answers = head(ratio=0.0, masked=1.0).hide(*many)
    assert torch.equal(hidden, many[0]) and (answers == IGNORED).all()
    hidden, answers = head(ratio=0.0, masked=1.0, at_least_one=True).hide(*many)
    assert ((answers != IGNORED).sum(dim=1) == 1).all()
    assert len((answers[2::4] != IGNORED).int().argmax(dim=1).unique()) == 7  # any word of the long sentence
    _, answers = head(ratio=1.0).hide(*many)
    assert torch.equal(answers != IGNORED, is_word(head(), many[0]))
    nothing, _ = head(at_least_one=True).hide(*head().tokenizer(["", ""]))
    assert torch.equal(nothing, head().tokenizer(["", ""])[0])


def test_what_is_hidden_is_a_function_of_seed_and_step(head, many):
    grounding, seen = head(), []
    for seed, step in ((0, 5), (0, 5), (0, 6), (1, 5)):
        seed_step(seed, step, 0)
        seen.append(grounding.hide(*many)[0])
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[3])


def test_pieces_of_berts_own_vocabulary_are_hidden_by_its_mask(tmp_path):
    file = tmp_path / "vocab.txt"
    file.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nred\ncup\n")
    tokenizer = WordPieceTokenizer(file, context_length=6)
    grounding = MaskGrounding(tokenizer, torch.zeros(8, 8), (6,), stage=0, ratio=1.0, masked=1.0)
    hidden, answers = grounding.hide(*tokenizer(["the red cup"]))
    assert hidden.tolist() == [[2, 4, 4, 4, 3, 0]]
    assert answers.tolist() == [[IGNORED, 5, 6, 7, IGNORED, IGNORED]]


@pytest.mark.parametrize("options", [{"segmentation": "both"}, {"masked": 0.9, "random": 0.2}], ids=str)
def test_what_makes_no_sense_is_refused(head, options):
    with pytest.raises(ValueError, match=r"'both'|more than all"):
        head(**options)


# --- the loss ---------------------------------------------------------------------------------


def small_problem(head: MaskGrounding) -> tuple[Reading, Tensor, Tensor, Tensor]:
    """A reading of two sentences, answers, token_mask, mask."""
    generator = torch.Generator().manual_seed(0)
    reading = Reading(
        torch.randn(2, 5, 8, generator=generator, requires_grad=True),
        (torch.randn(2, 6, 3, 4, generator=generator, requires_grad=True),),
    )
    token_mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    answers = torch.full((2, 5), IGNORED)
    answers[0, 1], answers[0, 3], answers[1, 1] = 4, 2, 3
    mask = torch.zeros(2, 1, 6, 8)
    mask[0, :, 4:, :2] = 1
    return reading, answers, token_mask, mask


def test_loss_equals_a_naive_loop_in_value_and_gradient(head):
    grounding = randomise(head(weight=0.7))
    reading, answers, token_mask, mask = small_problem(grounding)
    loss = grounding.loss(reading, answers, token_mask, mask)
    loss.backward()
    with torch.no_grad():
        logits = grounding(reading, token_mask, mask)
    terms, slope = [], [0.0] * grounding.vocab_size  # of the last layer's bias
    for b in range(2):
        for position in range(5):
            if (answer := answers[b, position].item()) == IGNORED:
                continue
            exponentials = [math.exp(x) for x in logits[b, position].tolist()]
            shares = [x / sum(exponentials) for x in exponentials]
            terms.append(-math.log(shares[answer]))
            for word, share in enumerate(shares):
                slope[word] += share - (word == answer)
    assert len(terms) == 3
    assert loss.item() == pytest.approx(0.7 * sum(terms) / 3, rel=1e-5)
    assert grounding.guess[1].bias.grad.tolist() == pytest.approx([0.7 * x / 3 for x in slope], abs=1e-6)
    for name, parameter in grounding.named_parameters():
        assert parameter.grad.any(), name


def test_where_nothing_is_asked_loss_and_gradients_are_exactly_zero(head):
    grounding = randomise(head())
    reading, answers, token_mask, mask = small_problem(grounding)
    loss = grounding.loss(reading, torch.full_like(answers, IGNORED), token_mask, mask)
    loss.backward()
    assert loss.item() == 0
    for tensor in (*grounding.parameters(), reading.words, *reading.tower):
        assert tensor.grad.isfinite().all() and not tensor.grad.any()


def test_padding_is_not_looked_at_and_picture_and_place_are(head):
    grounding = randomise(head())
    reading, _, token_mask, mask = small_problem(grounding)
    with torch.no_grad():
        logits = grounding(reading, token_mask, mask)
        words = reading.words.clone()
        words[1, 3:] = 7.0
        padded = grounding(replace(reading, words=words), token_mask, mask)
        torch.testing.assert_close(padded[1, :3], logits[1, :3])
        elsewhere = grounding(reading, token_mask, mask.flip(2))
        mirrored = grounding(replace(reading, tower=(reading.tower[0].flip(3),)), token_mask, mask)
    assert (elsewhere[0] - logits[0]).abs().max() > 1e-3
    assert (mirrored - logits)[token_mask].abs().amax(dim=1).min() > 1e-3  # the cells, and where they are


def test_without_the_picture_words_are_all_it_sees(head):
    grounding = randomise(head(picture=False))
    assert {name.split(".")[0] for name, _ in grounding.named_parameters()} == {"layers", "guess"}
    reading, _, token_mask, mask = small_problem(grounding)
    blind = replace(reading, maps=())
    with torch.no_grad():
        assert torch.equal(grounding(reading, token_mask, mask), grounding(blind, token_mask, mask.flip(2)))


def test_centre_of_a_mask_equals_a_naive_mean():
    mask = (torch.rand(3, 1, 5, 9, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    mask[1] = 0  # empty
    mask[2, :, :, :] = 1
    found = centre(mask)
    pixels = [(x / 4 - 1, y / 2 - 1) for y in range(5) for x in range(9) if mask[0, 0, y, x]]
    assert found[0].tolist() == pytest.approx([sum(axis) / len(pixels) for axis in zip(*pixels, strict=True)])
    assert found[1].tolist() == [0, 0]
    assert found[2].tolist() == pytest.approx([0, 0], abs=1e-6)
    assert centre(0.1 * mask)[0].tolist() == pytest.approx(found[0].tolist())  # soft masks, too


# --- on every method --------------------------------------------------------------------------


def logits_and_losses(model: Method, batch: Batch) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Of the head, with the same seed each time; and where it was asked."""
    seen = {}
    hook = model.grounding.register_forward_hook(lambda *a: seen.update(logits=a[2]))
    torch.manual_seed(3)
    with torch.no_grad():
        losses = model.losses(batch)
    hook.remove()
    torch.manual_seed(3)
    _, answers = model.grounding.hide(batch.tokens, batch.token_mask)
    return seen["logits"], losses, answers != IGNORED


@pytest.mark.parametrize("segmentation", ["masked", "clean"])
def test_no_answer_leaks(make, segmentation):
    """Another word in the hidden places changes no bit of what the head says. It would show if it stayed."""
    for masked in (1.0, 0.0):
        model = randomise(make(segmentation=segmentation, masked=masked))
        batch = mini_batch(model, size=64)
        logits, losses, chosen = logits_and_losses(model, batch)
        other = torch.where(batch.tokens == 4, 5, 4)
        changed = replace(batch, tokens=torch.where(chosen, other, batch.tokens))
        assert (changed.tokens != batch.tokens).any(dim=1).all()
        after, losses_after, _ = logits_and_losses(model, changed)
        assert torch.equal(after, logits) == (masked == 1)
        first = next(iter(losses))
        heard = masked == 0 or segmentation == "clean"  # the mask is made from those words
        assert (losses[first] != losses_after[first]) == heard


def test_the_gradient_reaches_words_and_pixels_but_no_hidden_word(make, name):
    model = randomise(make(masked=1.0))
    batch = mini_batch(model, size=64)
    torch.manual_seed(3)
    model.losses(batch)["mask_grounding"].backward()
    clip = name in ("cris", "cm_masksd")
    table = model.clip.model.token_embedding if clip else model.bert.model.embeddings.word_embeddings
    image = model.clip.model.visual.conv1 if clip else model.swin.patch_embed.proj
    assert image.weight.grad.any()
    torch.manual_seed(3)
    hidden, _ = model.grounding.hide(batch.tokens, batch.token_mask)
    read = torch.zeros(len(table.weight), dtype=torch.bool)
    read[hidden[batch.token_mask]] = True
    assert torch.equal(table.weight.grad.any(dim=1) & ~read, torch.zeros_like(read))
    assert table.weight.grad[model.tokenizer.mask_id].any()


def test_it_adds_one_loss_and_one_module(make):
    with_it, without = make(), make(0.0)
    batch = mini_batch(with_it, size=64)
    names = list(with_it.eval().losses(batch))
    assert names == [*without.eval().losses(batch), "mask_grounding"]
    modules = {name for name, _ in with_it.named_children()} - {name for name, _ in without.named_children()}
    assert modules == {"grounding"}
    assert without.grounding is None
    before, after = without.inference_state(), with_it.inference_state()  # the same weights
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_weight_counts_as_much_as_asked_for(make):
    losses = []
    for weight in (1.0, 0.25):
        model = make(weight).eval()
        torch.manual_seed(0)
        losses.append(model.losses(mini_batch(model, size=64))["mask_grounding"])
    torch.testing.assert_close(losses[1], 0.25 * losses[0])


def test_the_loss_reaches_every_parameter_of_the_head_which_learn_at_the_full_rate(make):
    model = randomise(make()).train()
    model.losses(mini_batch(model, size=64))["mask_grounding"].backward()
    still = {name for name, p in model.grounding.named_parameters() if p.grad is None or not p.grad.any()}
    assert still == set()
    rates = {name: g["lr"] for g in parameter_groups(model, MINI) for name, _ in g["params"]}
    assert {rate for name, rate in rates.items() if name.startswith("grounding.")} == {MINI.learning_rate}


def test_nothing_of_it_runs_in_use(make):
    model = make().eval()
    batch = mini_batch(model, size=64)
    ran = []
    for module in model.grounding.modules():
        module.register_forward_hook(lambda *a: ran.append(a[0]))
    torch.manual_seed(7)
    state = torch.get_rng_state()
    with torch.no_grad():
        model(batch.image, batch.tokens, batch.token_mask)
    assert not ran and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("segmentation", ["masked", "clean"])
def test_some_steps_lower_the_loss(make, segmentation):
    """Hidden are always the same words, of four sentences that a picture each could tell."""
    model = make(segmentation=segmentation, masked=1.0).train()
    batch = mini_batch(model, size=64)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(8):
        torch.manual_seed(0)
        losses = model.losses(batch)
        history.append(losses["mask_grounding"].item())
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    assert history[2] < history[0]
    assert history[-1] < 0.6 * history[0]


def test_bfloat16_agrees_with_float32(make):
    model = randomise(make())
    batch, losses = mini_batch(model, size=64), []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses.append(model.losses(batch)["mask_grounding"])
    assert losses[1].dtype == torch.float32
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=0.03)  # eight bits


# --- without a trace --------------------------------------------------------------------------


def test_no_trace_in_an_exported_network(make, tmp_path):
    trained, without = randomise(make()), make(0.0).strip()
    save_pretrained(trained, tmp_path)
    options = json.loads((tmp_path / "config.json").read_text())["options"]
    assert options == {"vocabulary": "vocabulary.txt"}
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == without.state_dict().keys()

    again = from_pretrained(tmp_path)
    assert again.grounding is None
    assert parameters_of(again) == parameters_of(without)
    assert again.state_dict().keys() == without.state_dict().keys()
    batch = mini_batch(trained, size=64)
    with torch.no_grad():
        expected = trained(batch.image, batch.tokens, batch.token_mask)
        assert torch.equal(again(batch.image, batch.tokens, batch.token_mask), expected)
        assert "mask_grounding" not in again.losses(batch)
    save_pretrained(again, tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


def test_strip_takes_it_off_in_place(make):
    model = randomise(make())
    batch, before = mini_batch(model, size=64), model.inference_state()
    with torch.no_grad():
        expected = model(batch.image, batch.tokens)
        assert model.strip() is model
        assert torch.equal(model(batch.image, batch.tokens), expected)
    assert model.state_dict().keys() == before.keys()


# --- parts by name ----------------------------------------------------------------------------


def test_every_part_can_be_left_out_and_added_by_name(name, vocabulary):
    parts = list(build(name, "mini", pretrained=False, vocabulary=vocabulary).parts)
    assert "mask_grounding" in parts
    for part in parts:
        models = [
            build(
                name, "mini", pretrained=False, vocabulary=vocabulary, **part_options(name, **{how: [part]})
            )
            for how in ("add", "without")
        ]
        losses = [list(model.eval().losses(mini_batch(model, size=64))) for model in models]
        # each part shows: in the losses, or in the parameters
        assert losses[0] != losses[1] or parameters_of(models[0]) != parameters_of(models[1]), part


def test_parts_are_put_together():
    assert part_options("magnet", without=["mask_grounding", "cam", "cal"]) == {
        "mask_grounding": 0.0,
        "pyramid": (),
        "cal": 0.0,
    }
    assert part_options("cris", add=["mask_grounding"], without=["decoder"]) == {
        "decoder_layers": 0,
        "mask_grounding": 0.1,
    }
    assert part_options("magnet") == part_options("magnet", add=["cal", "cam"]) == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magnet", "without": ["cams"]}, "'cams'; it has mask_grounding, cam, cal, text_fusion"),
        (
            {"method": "lavt", "add": ["cal"]},
            "lavt has no part 'cal'; it has pwam, gate, places, mask_grounding",
        ),
        ({"method": "gres"}, "'gres'; there are cris, lavt, magnet"),
        ({"method": "cris", "add": ["decoder"], "without": ["decoder"]}, "not both"),
    ],
    ids=str,
)
def test_unknown_parts_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        part_options(**arguments)
