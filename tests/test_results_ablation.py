"""results/ablation.py, with a budget of one step."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rislib.methods import build

SCRIPT = Path(__file__).parents[1] / "results" / "ablation.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module that other processes can import, too."""
    sys.path.insert(0, str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("ablation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["ablation"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))
    del sys.modules["ablation"]


def test_it_writes_every_run_and_goes_on_where_it_stopped(script: ModuleType, world: Path, tmp_path: Path):
    out = tmp_path / "ablation.json"
    full = {"full": script.Variant("cris", {})}
    both = {
        **full,
        "no_decoder": script.Variant("cris", {"decoder_layers": 0, "mask_grounding": 0.1}, share=0.5),
    }
    script.ablate(out, script.Study(24, both), data=str(world), seeds=(0,), processes=2)
    first = {run["variant"]: run for run in json.loads(out.read_text())["runs"]}
    assert first.keys() == both.keys()
    for run in first.values():
        assert (run["seed"], run["samples_seen"], run["protocol"]) == (0, 24, "cris_2022")
        assert {"mIoU", "oIoU", "command", "commit", "machine"} <= run.keys()
    assert first["full"]["parameters"] > first["no_decoder"]["parameters"]
    assert "hidden_words" not in first["full"]
    assert (first["full"]["share"], first["no_decoder"]["share"]) == (1.0, 0.5)
    assert first["no_decoder"]["hidden_words"]["colour"]["asked"] > 0

    script.ablate(out, script.Study(24, full), data=str(world), seeds=(0, 1))
    runs = json.loads(out.read_text())["runs"]
    assert [run["variant"] for run in runs[:2]] == list(first)
    assert [(run["variant"], run["seed"]) for run in runs[2:]] == [("full", 1)]


def test_it_refuses_to_mix_budgets(script: ModuleType, tmp_path: Path):
    out = tmp_path / "ablation.json"
    out.write_text(json.dumps({"data": "refmini", "samples": 6000, "split": "val", "runs": []}))
    with pytest.raises(ValueError, match="samples = 6000, not 24"):
        script.ablate(out, script.Study(24, {}))


def test_every_variant_can_be_built(script: ModuleType, vocabulary: Path):
    for study in script.STUDIES.values():
        for variant in study.variants.values():
            options = {**variant.options, "pretrained": False}
            build(variant.method, "mini", **options, vocabulary=vocabulary)
