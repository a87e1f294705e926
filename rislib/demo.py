"""`make demo`: from nothing to segmented pictures, in minutes."""

from __future__ import annotations

import json
import random
from pathlib import Path

from rislib.data import RefDataset, open_split
from rislib.evaluation import Report
from rislib.predict import Predictor
from rislib.runs import evaluate_run, read_log, train_run
from rislib.training import provenance
from rislib.viz import contact_sheet, learning_curve


def run_demo(out: Path | str = "demo", *, minutes: float = 5, seed: int = 0) -> Report:
    """Draw RefMini, train CRIS for `minutes`, measure it on val, and write what it sees to `out`.

    Writes contact_sheet.png, learning_curve.png, report.json and the run itself.
    """
    out = Path(out)
    run = train_run("cris", out=out / "run", data="refmini", minutes=minutes, seed=seed)
    report = evaluate_run(run, data="refmini", split="val")
    out.joinpath("report.json").write_text(json.dumps({**report.to_json(), **provenance()}, indent=1) + "\n")
    learning_curve(read_log(run)).savefig(out / "learning_curve.png")

    chosen = one_per_picture(open_split("refmini", "val"), 24, seed)
    predictor = Predictor.from_run(run)
    masks = []
    for sample in chosen:
        predictor.set_image(sample.image)
        masks.append(predictor.segment(sample.expression).mask)
    contact_sheet(chosen, masks, columns=6, width=14, title="CRIS on RefMini val").savefig(
        out / "contact_sheet.png"
    )

    print(f"\nRefMini val\n{report.table()}\n\nLook at {out / 'contact_sheet.png'}")
    print(f'Ask it: python -m rislib segment PICTURE "the red car on the left" --run {run} --out answer.png')
    return report


def one_per_picture(samples: RefDataset, n: int, seed: int) -> list:
    """`n` samples of different pictures, drawn by lot and not by how well they went."""
    rng = random.Random(seed)
    return [samples[rng.choice(indices)] for indices in rng.sample(samples.by_image(), n)]
