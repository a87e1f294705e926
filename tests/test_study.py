"""Studies: every run leaves a record, once; and every table is made of records alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rislib.methods import build
from rislib.study import STUDIES, Study, Variant, run, run_study


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, world: Path) -> Study:
    """A study of one step a run, known as "small"."""
    study = Study(
        "Small",
        24,
        {
            "full": Variant("cris"),
            "half": Variant("cris", {"decoder_layers": 0, "mask_grounding": 0.1}, "full", share=0.5),
        },
        data=(str(world),),
        seeds=1,
    )
    monkeypatch.setitem(STUDIES, "small", study)
    return study


def test_every_run_is_recorded_and_none_is_done_twice(small: Study, world: Path, tmp_path: Path):
    file = run_study("small", tmp_path, processes=2, progress=False)
    first = {one["variant"]: one for one in json.loads(file.read_text())["runs"]}
    assert first.keys() == small.variants.keys()
    for one in first.values():
        assert (one["seed"], one["data"], one["samples_seen"]) == (0, str(world), 24)
        assert {"mIoU", "oIoU", "by_size", "command", "commit", "machine"} <= one.keys()
        assert sum(one["by_picture"]["expressions"]) == one["n"]
        assert one["curve"]["samples"] == [24] and len(one["curve"]["loss"]) == 1
    assert first["full"]["parameters"] > first["half"]["parameters"]
    assert "hidden_words" not in first["full"]
    assert first["half"]["hidden_words"]["colour"]["asked"] > 0

    run_study("small", tmp_path, seeds=[0, 1], variants=["full"], progress=False)
    runs = json.loads(file.read_text())["runs"]
    assert [(one["variant"], one["seed"]) for one in runs[2:]] == [("full", 1)]
    assert {one["variant"]: one for one in runs[:2]} == first


def test_a_run_of_another_study_is_taken_from_there(
    small: Study, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_study("small", tmp_path, variants=["full"], progress=False)
    twin = Study("Twin", 24, {"the same": Variant("cris")}, data=(str(world),), seeds=1)
    monkeypatch.setitem(STUDIES, "twin", twin)
    monkeypatch.setattr(run, "run_once", lambda *a: pytest.fail("trained again"))
    file = run_study("twin", tmp_path, progress=False)
    (one,) = json.loads(file.read_text())["runs"]
    (known,) = json.loads((tmp_path / "small.json").read_text())["runs"]
    assert one == {**known, "variant": "the same", "taken_from": "small"}


def test_a_close_look_is_recorded(small: Study, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    close = Study("Close", 24, {"cris": Variant("cris")}, data=(str(world),), seeds=1, closely=True)
    monkeypatch.setitem(STUDIES, "close", close)
    file = run_study("close", tmp_path, seeds=[0, 1], progress=False)
    one, other = json.loads(file.read_text())["runs"]
    assert "anatomy" not in other and "shuffled" in other
    assert one["anatomy"]["n"] == one["n"]
    assert {"oIoU", "mIoU"} <= one["shuffled"].keys()


def test_budgets_do_not_mix(small: Study, tmp_path: Path):
    (tmp_path / "small.json").write_text(json.dumps({"samples": 6000, "runs": []}))
    with pytest.raises(ValueError, match="6000 samples a run, not 24"):
        run_study("small", tmp_path, progress=False)


def test_unknown_names_are_refused(small: Study, tmp_path: Path):
    with pytest.raises(ValueError, match="no study 'large'; there are five_minutes"):
        run_study("large", tmp_path)
    with pytest.raises(ValueError, match=r"no variant \['quarter'\]; it has full, half"):
        run_study("small", tmp_path, variants=["quarter"])


def test_every_variant_can_be_built_and_is_compared_with_one_that_exists(vocabulary: Path):
    for study in STUDIES.values():
        for variant in study.variants.values():
            assert variant.against is None or variant.against in study.variants
            options = {**variant.options, "pretrained": False}
            build(variant.method, "mini", **options, vocabulary=vocabulary)


def test_a_run_that_fails_stops_no_other(small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = Study(
        "Broken",
        24,
        {"bad": Variant("cris", {"kernel": "none such"}), "good": Variant("cris")},
        data=small.data,
        seeds=1,
    )
    monkeypatch.setitem(STUDIES, "broken", broken)
    with pytest.raises(ExceptionGroup, match="1 of 2 runs of broken failed"):
        run_study("broken", tmp_path, progress=False)
    (kept,) = json.loads((tmp_path / "broken.json").read_text())["runs"]
    assert kept["variant"] == "good"


def test_what_another_process_kept_first_is_not_kept_again(
    small: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def other_process(cell: dict, folder: Path) -> dict:
        one = {**cell, "oIoU": 50.0}
        record = {"title": small.title, "samples": small.samples, "split": "val", "runs": [one]}
        (folder / "small.json").write_text(json.dumps(record))
        return {**one, "oIoU": 51.0}

    monkeypatch.setattr(run, "_twin", other_process)
    file = run_study("small", tmp_path, variants=["full"], progress=False)
    assert [one["oIoU"] for one in json.loads(file.read_text())["runs"]] == [50.0]
