"""The command line, in the forms that README and other programs use, on a network trained for seconds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from shared import rislib
from typer.testing import CliRunner

from rislib.cli import app, main
from rislib.data import open_split
from rislib.data.refmini import paint, sample_scene
from rislib.predict import Predictor
from rislib.runs import load_method, read_log, read_record


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "cris"
    rislib("train", "cris", "--data", world, "--preset", "mini", "--samples", 72, "--seed", 3, "--out", out)
    return out


def test_data_check_counts_and_finds_faults(world: Path, tmp_path: Path):
    train = next(line for line in rislib("data", "check", world).splitlines() if "train" in line)
    assert "60" in train.split()
    copy = tmp_path / "broken"
    size = ("--train", 6, "--val", 3)
    rislib("data", "build", "refmini", "--flavour", "refmini+", "--seed", 5, "--out", copy, *size)
    picture = next((copy / "images" / "refmini+").glob("*.png"))
    picture.unlink()
    assert picture.name in rislib("data", "check", copy, code=1)


def test_a_run_says_how_it_was_made(run: Path, world: Path):
    record = json.loads((run / "run.json").read_text())
    assert record["method"] == "cris" and record["data"] == str(world) and record["seed"] == 3
    assert record["budget"] == {"minutes": None, "samples": 72, "epochs": None}
    assert record["samples_seen"] == 72 and record["processes"] == 1
    assert {"command", "commit", "machine", "recipe", "parameters"} <= set(record)
    assert (run / "learning_curve.png").stat().st_size > 1000


def test_a_number_of_samples_is_exactly_reproducible(run: Path, world: Path, tmp_path: Path):
    rislib("train", "cris", "--data", world, "--samples", 72, "--seed", 3, "--out", tmp_path / "again")
    first, again = load_file(run / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_evaluate_writes_the_promised_keys(run: Path, world: Path, tmp_path: Path):
    file = tmp_path / "numbers.json"
    table = rislib("evaluate", run, "--data", world, "--split", "val", "--json", file)
    numbers = json.loads(file.read_text())
    assert "cris_2022" in table
    precisions = {"P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"}
    assert {"oIoU", "mIoU", "n", "protocol", "interval", "by_kind"} | precisions <= set(numbers)
    assert numbers["n"] == len(open_split(world, "val")) and numbers["protocol"] == "cris_2022"
    assert sum(kind["n"] for kind in numbers["by_kind"].values()) == numbers["n"]
    assert numbers["interval"][0] <= numbers["oIoU"] <= numbers["interval"][1]

    rislib("evaluate", run, "--data", world, "--protocol", "lavt_2022", "--shuffle-text", "--json", file)
    other = json.loads(file.read_text())
    assert other["protocol"] == "lavt_2022" and other["shuffle_text"] is True


def test_blind_and_from_scratch_runs(world: Path, tmp_path: Path):
    blind, scratch = tmp_path / "blind", tmp_path / "scratch"
    rislib("train", "cris", "--data", world, "--samples", 32, "--blind", "--out", blind)
    rislib("train", "cris", "--data", world, "--samples", 32, "--from-scratch", "--out", scratch)
    assert json.loads((scratch / "run.json").read_text())["options"] == {"pretrained": False}
    assert json.loads((blind / "run.json").read_text())["blind"] is True
    rislib("evaluate", blind, "--data", world)
    shuffle = ["evaluate", str(blind), "--data", str(world), "--shuffle-text"]
    with pytest.raises(ValueError, match="trained blind"):
        CliRunner().invoke(app, shuffle, catch_exceptions=False)


def test_a_run_is_resumed_only_as_what_it_was(run: Path, world: Path):
    again = ("train", "cris", "--data", world, "--samples", 72, "--seed", 3, "--out", run, "--resume")
    before = load_file(run / "model.safetensors")
    rislib(*again)
    after = load_file(run / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="blind was False, and is True now"):
        CliRunner().invoke(app, [*map(str, again), "--blind"], catch_exceptions=False)
    assert json.loads((run / "run.json").read_text())["blind"] is False


def test_parts_are_added_and_left_out_by_name(world: Path, tmp_path: Path, capsys):
    train = ("train", "cris", "--data", world, "--samples", 48, "--out", tmp_path / "run")
    rislib(*train, "--with", "mask_grounding", "--without", "decoder, contrastive")
    record = read_record(tmp_path / "run")
    expected = {"pretrained": True, "decoder_layers": 0, "contrastive": False, "mask_grounding": 0.1}
    assert record["options"] == expected
    assert "mask_grounding" in read_log(tmp_path / "run")[0]["losses"]

    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert not [name for name in weights if "grounding" in name or name.startswith("decoder.")]
    used, trained = load_method(tmp_path / "run"), load_method(tmp_path / "run", heads=True)
    assert used.grounding is None and trained.grounding is not None
    assert not used.training and not trained.training
    for state in (used.state_dict(), trained.inference_state()):
        assert state.keys() == weights.keys()
        assert all(torch.equal(state[name], weights[name]) for name in weights)
    image, (tokens, token_mask) = torch.rand(1, 3, 96, 96), used.tokenize(["the red car"])
    assert torch.equal(used(image, tokens, token_mask), trained(image, tokens, token_mask))

    before = (tmp_path / "run" / "run.json").read_text()
    with pytest.raises(ValueError, match=r"options was .*'mask_grounding': 0\.1"):
        CliRunner().invoke(app, [*map(str, train), "--resume"], catch_exceptions=False)
    assert (tmp_path / "run" / "run.json").read_text() == before
    with pytest.raises(ValueError, match="cris has no part 'cam'; it has decoder, contrastive"):
        CliRunner().invoke(app, [*map(str, train), "--without", "cam"], catch_exceptions=False)


def test_segment_writes_a_picture(run: Path, tmp_path: Path):
    picture = tmp_path / "scene.png"
    paint(sample_scene("cli"), 200).image.save(picture)
    answer = tmp_path / "answer.png"
    assert "pixels" in rislib("segment", picture, "the red car on the left", "--run", run, "--out", answer)
    assert Image.open(answer).size == (400, 400)  # small pictures are shown larger


def test_mistakes_are_one_line(run: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["rislib", "evaluate", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        f"error: {tmp_path} is not a run: it has no run.json. `python -m rislib train` makes one."
    ]


def test_mistakes_are_explained(run: Path, tmp_path: Path):
    assert "either --minutes or --samples" in rislib("train", "cris", "--out", tmp_path / "r", code=2)
    with pytest.raises(FileNotFoundError, match="not a run"):
        CliRunner().invoke(app, ["evaluate", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(ValueError, match="no protocol"):
        CliRunner().invoke(app, ["evaluate", str(run), "--protocol", "best"], catch_exceptions=False)


def test_predictor_answers_several_expressions_about_one_picture(run: Path):
    picture = paint(sample_scene("predict"), 160).image.resize((200, 120))
    predictor = Predictor.from_run(run)
    with pytest.raises(RuntimeError, match="picture first"):
        predictor.segment("the dog")
    predictor.set_image(picture)
    with pytest.raises(ValueError, match="empty"):
        predictor.segment("  ")
    dog, car = predictor.segment("the small dog"), predictor.segment("a red car on the right")
    assert dog.mask.shape == dog.probability.shape == (120, 200) and dog.mask.dtype == bool
    assert np.array_equal(dog.mask, dog.probability > np.float32(0.35))
    assert not np.array_equal(dog.probability, car.probability)
    again = predictor.segment("the small dog")  # nothing of the expression in between is left
    assert np.array_equal(dog.probability, again.probability)
    if dog.box is not None:
        left, top, width, height = dog.box
        assert dog.mask[top : top + height, left : left + width].sum() == dog.mask.sum()


def test_predictor_equals_evaluation(run: Path, world: Path):
    """One way from logits to masks: what the Predictor shows is what `evaluate` counts."""
    from rislib.evaluation import CRIS_2022, evaluate

    samples = open_split(world, "testA")
    hesitant = Predictor.from_run(run)  # after seconds of training it is sure of nothing
    hesitant.set_image(samples[0].image)
    threshold = float(np.median(hesitant.segment(samples[0].expression).probability))
    protocol = replace(CRIS_2022, threshold=threshold)
    predictor, scores = Predictor.from_run(run, protocol=protocol), protocol.scores()
    for sample in samples:
        predictor.set_image(sample.image)
        scores.add(predictor.segment(sample.expression).mask, sample.mask, image_id=sample.image_id)
    report = evaluate(predictor.method, samples, protocol, batch_size=5, progress=False)
    assert report.scores.summary()["oIoU"] > 0.2
    assert report.scores.summary()["oIoU"] == pytest.approx(scores.summary()["oIoU"], abs=0.02)


def test_a_report_is_made_anew_by_one_command(tmp_path: Path):
    results = Path(__file__).parents[1] / "results"
    page = tmp_path / "page.md"
    page.write_text("<!-- table: published -->\n<!-- /table -->\n")
    shutil.copy(results / "parameters.json", tmp_path)
    assert rislib("study", "report", page, "--results", tmp_path).startswith("page.md: published\n")
    assert "| CRIS (R101) | mIoU | 70.47 |" in page.read_text()
    assert (tmp_path / "figures" / "differences.png").exists()
