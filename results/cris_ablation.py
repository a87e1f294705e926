"""What are the parts of CRIS worth? Five variants, three seeds, 6,000 samples each: an hour on two CPU cores.

`python results/cris_ablation.py` trains them one after the other, measures each on val, and writes
cris_ablation.json after every run. Started again, it goes on with the runs that are missing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from rislib.data import open_split
from rislib.evaluation import CRIS_2022, evaluate
from rislib.methods.cris import cris_mini
from rislib.training import MINI, fit, provenance

VARIANTS = {
    "full": {},
    "inner_product": {"kernel": "inner_product"},  # as the paper writes it
    "no_decoder": {"decoder_layers": 0},
    "not_contrastive": {"contrastive": False},
    "from_scratch": {"pretrained": False},
}


def ablate(
    out: Path,
    *,
    data: str = "refmini",
    samples: int = 6000,
    variants: Iterable[str] = tuple(VARIANTS),
    seeds: Iterable[int] = (0, 1, 2),
) -> None:
    """Do the runs that `out` lacks: every variant once, then all with the next seed.

    Raises:
        ValueError: `out` holds runs on other data or with another budget.
    """
    variants = tuple(variants)
    settings = {"data": data, "samples": samples, "split": "val"}
    record = json.loads(out.read_text()) if out.exists() else {**settings, "runs": []}
    for name, value in settings.items():
        if record[name] != value:
            raise ValueError(f"{out} was made with {name} = {record[name]}, not {value}")
    done = {(run["variant"], run["seed"]) for run in record["runs"]}
    wanted = [(variant, seed) for seed in seeds for variant in variants]
    todo = [run for run in wanted if run not in done]
    if not todo:
        return

    train, val = open_split(data, "train"), open_split(data, "val")
    for variant, seed in todo:
        torch.manual_seed(seed)
        network = cris_mini(**VARIANTS[variant])
        with tempfile.TemporaryDirectory() as folder:
            trained = fit(
                network,
                train,
                MINI,
                out=folder,
                seed=seed,
                samples_budget=samples,
                channels_last=True,
                progress=False,
            )
        run = {
            "variant": variant,
            "options": VARIANTS[variant],
            "seed": seed,
            "parameters": sum(p.numel() for p in network.parameters()),
            "samples_seen": trained.samples,
            "seconds": round(trained.seconds, 1),
            **evaluate(network, val, CRIS_2022, progress=False).to_json(),
            **provenance(),
        }
        record["runs"].append(run)
        partial = out.with_suffix(".partial")
        partial.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(partial, out)
        print(f"{variant:16} seed {seed}   mIoU {run['mIoU']:.2f}   oIoU {run['oIoU']:.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--data", default="refmini")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    ablate(given.out, data=given.data, samples=given.samples)
