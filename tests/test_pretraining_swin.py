"""What is in the picture: labels, loss, measure, and the weights that stay."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_average_precision

from rislib import encoders
from rislib.data import make_batch
from rislib.data.refmini import Outfit, Scene, Thing, sample_scene
from rislib.data.refmini.scene import MODELS
from rislib.encoders.swin import swin_mini
from rislib.pretraining import Presence, Scenes, pretrain, swin
from rislib.pretraining.swin import INDEX, LABELS, average_precision, labelled, labels_of


def thing(name: str, scale: float = 1.0, colour: str | None = None, pattern: str = "plain", outfit=None):
    return Thing(name, 0.5, 0.9, scale, colour, pattern, outfit, 1, 0.5)


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    return Scenes(labelled, "test of presence", 70, progress=False)


@pytest.fixture
def model() -> Presence:
    torch.manual_seed(0)
    return Presence(swin_mini()).eval()


def test_labels_of_things_made_by_hand():
    assert labels_of(thing("dog", colour="brown", pattern="spotted")) == {
        *("dog", "brown", "brown dog", "spotted dog")
    }
    assert labels_of(thing("apple", scale=0.7, colour="red")) == {
        *("fruit", "apple", "red", "red apple", "small apple")
    }
    outfit = Outfit(shirt="white", pattern="striped", legs="blue", skirt=True, hat="red")
    assert labels_of(thing("girl", scale=1.3, outfit=outfit)) == {
        *("person", "girl", "big girl", "white shirt", "striped shirt", "blue skirt", "red hat")
    }


def test_a_scene_has_the_labels_of_its_things_and_no_others(monkeypatch, model):
    cars = (thing("car", colour="red"), thing("car", colour="blue"), thing("ball", colour="red"))
    monkeypatch.setattr(swin, "sample_scene", lambda seed: Scene("street", cars, seed))
    monkeypatch.setattr(swin, "with_few_things", lambda scene, rng: scene)
    pixels, (text,) = labelled("any")
    assert pixels.shape == (96, 96, 3)
    present, asked = model.tokenize([text, "dog"])
    expected = {"car", "ball", "red", "blue", "red car", "blue car", "red ball"}
    assert {label for label, i in INDEX.items() if present[0, i]} == expected
    assert present[1].nonzero().tolist() == [[INDEX["dog"]]]
    assert present.shape == asked.shape == (2, len(INDEX)) and asked.all()


def test_every_label_there_is_can_be_true_and_no_other():
    things = [
        thing(name, scale, colour, pattern)
        for name, model in MODELS.items()
        for scale in (0.7, 1.0, 1.3)
        for colour in model.colours or (None,)
        for pattern in model.patterns
    ]
    possible = {label for each in things for label in labels_of(each)}
    assert possible == INDEX.keys() - set(LABELS["clothes"])
    assert len(INDEX) == sum(map(len, LABELS.values()))  # no label is of two kinds
    met = {label for i in range(300) for each in sample_scene(f"{i}").things for label in labels_of(each)}
    assert met <= INDEX.keys()
    worn = {"shirt": 9 + 2, "trousers": 7, "skirt": 7, "hat": 9}  # colours, and patterns of shirts
    assert len(met & set(LABELS["clothes"])) == sum(worn.values())


def test_logits_and_losses_equal_a_naive_loop(model, scenes):
    batch = make_batch([scenes[i] for i in range(3)], model.preprocessing, model.tokenize)
    with torch.no_grad():
        answers, losses = model(batch.image), model.losses(batch)
        for row, image in enumerate(batch.image):
            x = model.encoder.embed(image[None])
            for i in range(4):
                x = model.encoder.stage(i, x if i == 0 else model.encoder.downsample(i - 1, x))
                if i in (2, 3):
                    cells = [model.cells[str(i)](cell) for cell in x[0].flatten(0, 1)]
                    expected = torch.stack(cells).exp().mean(dim=0).log()
                    torch.testing.assert_close(answers[f"local_{i}"][row], expected, rtol=1e-4, atol=1e-4)
            expected = model.whole(torch.stack(list(x[0].flatten(0, 1))).mean(dim=0))
            torch.testing.assert_close(answers["global"][row], expected, rtol=1e-4, atol=1e-4)
    for name, logits in answers.items():
        pairs = zip(logits.flatten(), batch.tokens.flatten(), strict=True)
        terms = [-F.logsigmoid(z if there else -z) for z, there in pairs]
        torch.testing.assert_close(losses[name], torch.stack(terms).mean())


def test_average_precision_agrees_with_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 4, generator=generator)
    present = torch.rand(50, 4, generator=generator) < torch.tensor([0.5, 0.1, 0.9, 0.0])
    found = average_precision(scores, present)
    for i in range(3):
        expected = binary_average_precision(scores[:, i], present[:, i].long())
        torch.testing.assert_close(found[i], expected)
    assert found[3].isnan()


def test_measure_of_chance_and_of_a_cheat(model, scenes):
    """70 scenes are two batches: both must count."""
    measured = model.measure(scenes)["mean_average_precision_percent"]
    present, _ = model.tokenize([sample.expression for sample in scenes.firsts()])
    names = present[:, [INDEX[label] for label in LABELS["name"]]].float().mean(dim=0)
    assert measured["guessing"]["name"] == pytest.approx(100 * names[names > 0].mean().item(), abs=0.01)
    assert all(value < 40 for value in measured["global"].values())

    rows = iter(present.float().split(64))
    model.forward = lambda image: {"global": next(rows)}
    measured = model.measure(scenes)["mean_average_precision_percent"]
    assert measured["global"] == dict.fromkeys(LABELS, 100.0)


def test_scenes_are_seeded_and_mostly_sparse(scenes):
    again = Scenes(labelled, "test of presence", 3, progress=False)
    assert (again.pixels == scenes.pixels[:3]).all() and again.texts == scenes.texts[:3]
    assert len(scenes) == len(scenes.by_reference()) == 70


def test_pretrain_leaves_weights_and_a_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoders, "_FOLDERS", (tmp_path,))
    measured = pretrain("swin", minutes=0.03, out="weights", scenes=70, test_scenes=70)
    on_disk = json.loads((tmp_path / "weights" / "swin.json").read_text())
    assert {"recipe", "curve", "commit", "machine", "command", "start", *measured} <= on_disk.keys()
    assert measured["mean_average_precision_percent"]["global"]["name"] > 0
    assert on_disk["samples_seen"] >= 32 and on_disk["curve"][0]["losses"].keys() == {
        *("global", "local_2", "local_3")
    }
    encoder = swin_mini(pretrained=True)  # from tmp_path
    assert on_disk["parameters"] == sum(p.numel() for p in encoder.parameters())
    trained = Presence(swin_mini())
    fresh = trained.encoder.state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in encoder.state_dict().items())
