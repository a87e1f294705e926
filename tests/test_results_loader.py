"""results/loader.py, with a few samples: its stages are functions that must still be called so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rislib.data import cached, open_split

SCRIPT = Path(__file__).parents[1] / "results" / "loader.py"


def test_it_measures_speed_stages_and_memory(world: Path, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("loader", SCRIPT)
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    samples = open_split(world, "train")
    for name, preprocessing in loader.INPUTS.items():
        kept = cached(samples, preprocessing, tmp_path / name)
        for these, stage_of_the_other in ((samples, "read the cache"), (kept, "decode pictures")):
            measured = loader.measure(these, name, 40, 4)
            assert min(*measured["no_worker"].values(), measured["one_worker"]) > 0
            percent = measured["percent"]
            assert sum(percent.values()) == pytest.approx(100, abs=0.5)
            assert set(percent) == {*loader.STAGES.values(), "the rest"} - {stage_of_the_other}
            assert min(percent.values()) > 0
    held = loader.memory(loader.batches(samples, "416 letterbox", 1, 16, 4), every=2)
    assert len(held) == 2 and min(min(numbers.values()) for numbers in held) > 50
