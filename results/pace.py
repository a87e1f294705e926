"""How many samples does each method learn from in five minutes of this machine?

`python results/pace.py`, with nothing beside it, trains each for a part of that and writes pace.json. The
studies give every run so many samples, and no minutes: only then is a run exactly reproducible.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from rislib.data import open_split, with_instances
from rislib.methods import build
from rislib.study import STUDIES
from rislib.training import fit, mini_recipe, provenance, write_record

MINUTES = 0.75

pace = {}
for name, variant in STUDIES["five_minutes"].variants.items():
    torch.manual_seed(0)
    samples = with_instances(open_split("refmini", "train"), variant.instances)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            build(variant.method, "mini", **variant.options),
            samples,
            mini_recipe(variant.method),
            out=folder,
            minutes=MINUTES,
            channels_last=True,
            progress=False,
        )
    pace[name] = round(run.samples / run.seconds * 300)
    print(f"{name:16} {pace[name]:7,} samples in five minutes", flush=True)
record = {"samples_in_five_minutes": pace, "minutes_measured": MINUTES, **provenance()}
write_record(Path(__file__).with_suffix(".json"), record)
