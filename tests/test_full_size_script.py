"""results/full_size.py, with one mini network: what a GPU's hour will depend on."""

from __future__ import annotations

import importlib.util
import json
from argparse import Namespace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "results" / "full_size.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("full_size", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call(script: ModuleType, folder: Path, *words: str) -> dict:
    """What the record holds after this call."""
    out = folder / "record.json"
    places = "--worlds", str(folder / "worlds"), "--out", str(out)
    script.main(["--small", "--methods", "lavt_mini", "--samples", "48", *places, *words])
    return json.loads(out.read_text())


def test_what_failed_is_written_down_and_tried_again_and_nothing_else(script, tmp_path, monkeypatch):
    benchmark, asked = script.benchmark, []

    def short_of_memory(name: str, **options):
        asked.append(options["mode"])
        if options["mode"] == "train":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return benchmark(name, **options)

    monkeypatch.setattr(script, "benchmark", short_of_memory)
    pieces = {piece["mode"]: piece for piece in call(script, tmp_path)["pieces"]}
    assert list(pieces) == ["train", "forward", "learn"]
    failed, timed, learnt = pieces.values()
    assert failed["failed"].startswith("OutOfMemoryError: CUDA out of memory")
    assert not {"images_per_second", "share"} & set(failed)
    assert timed["images_per_second"] > 0 and timed["share"] > 0 and timed["precision"] == "bf16"
    assert learnt["samples_seen"] == learnt["curve"]["samples"][-1] == learnt["asked_after"][-1] == 48
    assert len(learnt["curve"]["loss"]) == len(learnt["oIoU"]) == 2 and learnt["pixels"] == 96
    assert {"command", "commit", "machine"} <= set(failed) & set(timed) & set(learnt)

    monkeypatch.setattr(script, "benchmark", lambda name, **options: asked.append("again") or timing)
    timing = Namespace(to_json=lambda: {**timed, "mode": "train", "images_per_second": 589.0, "share": 0.5})
    record = call(script, tmp_path)
    assert asked == ["train", "forward", "again"]
    assert sorted(piece["mode"] for piece in record["pieces"]) == ["forward", "learn", "train"]
    assert not any("failed" in piece for piece in record["pieces"])
    assert [piece for piece in record["pieces"] if piece["mode"] == "learn"] == [learnt]
    assert record["goals"]["share"]["lavt_mini train"] == 0.5


def test_a_record_of_another_machine_is_left_alone(script, tmp_path, capsys):
    (tmp_path / "record.json").write_text('{"device": "NVIDIA H100", "pieces": []}')
    with pytest.raises(SystemExit):
        call(script, tmp_path)
    assert "was made on NVIDIA H100" in capsys.readouterr().err


def test_goals_take_the_best_of_each(script):
    """CRIS sees RefCOCO fifty times: 2,120,200 samples."""
    speeds = {False: 300.0, True: 1178.0}
    pieces = [
        {"method": "cris_r50", "mode": mode, "share": speed / 2000, "images_per_second": speed}
        for speed in (speeds[True], speeds[False])
        for mode in ("train", "forward")
    ]
    found = script.goals([*pieces, {"method": "cris_r50", "mode": "train", "failed": "OutOfMemoryError"}])
    assert found["share"] == {"goal": 0.45, "cris_r50 train": 0.589, "cris_r50 forward": 0.589}
    assert found["refcoco_minutes"] == {"goal": 30, "cris_r50": 30.0}


def test_compiled_networks_come_last_and_each_is_compiled_for_its_own_shapes(script, monkeypatch):
    """With the compiler's first half only: the second takes minutes on two cores."""
    given = Namespace(small=False, methods=["cris_mini"], batches=[2, 3], minutes=0, samples=None)
    cells = list(script.cells(given))
    assert [cell["compile"] for cell in cells] == 4 * [False] + 4 * [True]
    dynamic: list[bool] = []  # of each graph, whether it was compiled for any batch and not for this one

    def look(graph: torch.fx.GraphModule, inputs: list):
        dynamic.append(any(isinstance(x, torch.SymInt) for x in inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=look))
    for cell in [cell for cell in cells if cell["compile"] and cell["mode"] == "forward"]:
        dynamic.clear()
        piece = script.measure({**cell, "steps": 1}, given)
        assert piece["compile"] and piece["images_per_second"] > 0
        assert dynamic and not any(dynamic)
