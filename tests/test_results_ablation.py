"""results/cris_ablation.py, with a budget of one step."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "results" / "cris_ablation.py"


@pytest.fixture(scope="module")
def ablate():
    return runpy.run_path(str(SCRIPT))["ablate"]


def test_it_writes_every_run_and_goes_on_where_it_stopped(ablate, world: Path, tmp_path: Path):
    out = tmp_path / "ablation.json"
    settings = {"data": str(world), "samples": 24, "variants": ("full", "no_decoder")}
    ablate(out, **settings, seeds=(0,))
    first = json.loads(out.read_text())
    assert [(run["variant"], run["seed"]) for run in first["runs"]] == [("full", 0), ("no_decoder", 0)]
    for run in first["runs"]:
        assert run["samples_seen"] == 24
        assert run["protocol"] == "cris_2022"
        assert {"mIoU", "oIoU", "command", "commit", "machine"} <= run.keys()
    assert first["runs"][0]["parameters"] > first["runs"][1]["parameters"]

    ablate(out, **{**settings, "variants": ("full",)}, seeds=(0, 1))
    second = json.loads(out.read_text())
    assert second["runs"][:2] == first["runs"]
    assert [(run["variant"], run["seed"]) for run in second["runs"][2:]] == [("full", 1)]


def test_it_refuses_to_mix_budgets(ablate, tmp_path: Path):
    out = tmp_path / "ablation.json"
    out.write_text(json.dumps({"data": "refmini", "samples": 6000, "split": "val", "runs": []}))
    with pytest.raises(ValueError, match="samples = 6000, not 24"):
        ablate(out, samples=24)


def test_every_variant_can_be_built(vocabulary: Path):
    script = runpy.run_path(str(SCRIPT))
    for options in script["VARIANTS"].values():
        script["cris_mini"](**{**options, "pretrained": False}, vocabulary=vocabulary)
