"""Does `train ... --dry-run` say how long a training takes?

`python results/dry_run.py` does both, the dry run and 200 steps of the training, and writes down how they
compare. With `--preset r50 --data DATA --recipe cris_2022 --micro-batch 16 --workers 8`, at full size.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from rislib.runs import choose_recipe, read_record, rehearse_run, train_run
from rislib.training import provenance, write_record

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="cris")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--data", default="refmini")
    parser.add_argument("--recipe")
    parser.add_argument("--precision")
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    recipe = choose_recipe(given.method, given.preset, given.recipe, precision=given.precision)
    settings = {
        "preset": given.preset,
        "data": given.data,
        "recipe": recipe,
        "samples": given.steps * recipe.batch_size,
        "micro_batch": given.micro_batch,
        "workers": given.workers,
    }
    projected = rehearse_run(given.method, **settings)
    print(projected.table())
    with tempfile.TemporaryDirectory() as folder:
        seconds = read_record(train_run(given.method, out=folder, **settings))["seconds"]
    record = {
        "method": given.method,
        "preset": given.preset,
        "data": given.data,
        "projected_seconds": round(3600 * projected.hours, 1),
        "measured_seconds": seconds,  # with the last checkpoint
        "projected_over_measured": round(3600 * projected.hours / seconds, 3),
        "dry_run": asdict(projected),
        **provenance(),
    }
    write_record(given.out, record)
    print(json.dumps({name: record[name] for name in record if "seconds" in name or "over" in name}))
