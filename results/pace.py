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
from rislib.training import fit, mini_recipe, provenance, write_record

METHODS = {"cris": "none", "lavt": "none", "magnet": "none", "cm_masksd": "none", "mail": "proposals"}
MINUTES = 0.75

pace = {}
for method, instances in METHODS.items():
    torch.manual_seed(0)
    samples = with_instances(open_split("refmini", "train"), instances)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(
            build(method, "mini"),
            samples,
            mini_recipe(method),
            out=folder,
            minutes=MINUTES,
            channels_last=True,
            progress=False,
        )
    pace[method] = round(run.samples / run.seconds * 300)
    print(f"{method:10} {pace[method]:7,} samples in five minutes", flush=True)
record = {"samples_in_five_minutes": pace, "minutes_measured": MINUTES, **provenance()}
write_record(Path(__file__).with_suffix(".json"), record)
