"""results/loader.py, with a few samples: its stages are functions that must still be called so."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from rislib.data import open_split

SCRIPT = Path(__file__).parents[1] / "results" / "loader.py"


def test_it_measures_speed_stages_and_memory(world: Path) -> None:
    spec = importlib.util.spec_from_file_location("loader", SCRIPT)
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    samples = open_split(world, "train")
    for name in loader.INPUTS:
        measured = loader.speed(loader.batches(samples, name, 0, 20, 4), 4)
        assert measured["per_second"] > 0 and measured["per_cpu_second"] > 0
        percent = loader.shares(loader.batches(samples, name, 0, 20, 4))
        assert sum(percent.values()) == pytest.approx(100, abs=0.5)
        assert set(percent) == {*loader.STAGES.values(), "the rest"}
        assert min(percent.values()) > 0
    held = loader.memory(loader.batches(samples, "416 letterbox", 1, 16, 4), every=2)
    assert len(held) == 2 and min(min(numbers.values()) for numbers in held) > 50
