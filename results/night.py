"""Fifty pictures of one's own: what does a network learn from them, and what does it forget?

`python results/night.py RUN`: RUN was trained by day. 150 pictures are drawn, darkened, and kept as one keeps
one's own: PNG files, masks, a CSV. RUN learns on from 50 of them (`night`), or from these and 50 of the day
(`both`), 1,200 samples each. 100 others measure it, at night and by day. Prints and records the numbers.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from rislib.data import import_own
from rislib.data.refmini.build import draw_pictures
from rislib.runs import evaluate_run, read_record, train_run
from rislib.training import provenance, write_record

PICTURES, TRAIN, SAMPLES = 150, 50, 1200
NIGHT = 0.35, 0.4, 0.6  # what remains of red, green and blue


def draw(folder: Path, nights: int, days: int) -> Path:
    """A folder of one's own: the first TRAIN pictures of each light are `train`, the others `val`."""
    (folder / "masks").mkdir(parents=True)
    rows = []
    for light, number, seed in (("night", nights, "own"), ("day", days, "own by day")):
        for i, drawn in enumerate(islice(draw_pictures(seed, "train", "refmini", 128, 10**6), number)):
            pixels = np.asarray(drawn.painting.image)
            image, split = f"{light}{i}.png", "train" if i < TRAIN else "val"
            Image.fromarray((pixels * NIGHT).astype(np.uint8) if light == "night" else pixels).save(
                folder / image
            )
            for thing, said in drawn.references.items():
                mask = f"masks/{light}{i}_{thing}.png"
                Image.fromarray(drawn.painting.masks[thing]).save(folder / mask)
                rows += [[image, expression.text, mask, split] for expression in said]
    with (folder / "expressions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "expression", "mask", "split"], *rows])
    return import_own(folder, folder.with_name(f"{folder.name}_imported"))


def measure(run: Path, folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    numbers = {}
    for light in ("night", "day"):
        report = evaluate_run(run, data=str(folders[light]), progress=False).to_json()
        numbers[light] = {key: report[key] for key in ("oIoU", "mIoU", "interval", "n")}
    return numbers


if __name__ == "__main__":
    start = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        folders = {
            "night": draw(Path(place) / "night", PICTURES, 0),
            "day": draw(Path(place) / "day", 0, PICTURES),
            "both": draw(Path(place) / "both", TRAIN, TRAIN),
        }
        record = {"start": {**read_record(start), "run": start.name}, "before": measure(start, folders)}
        for name in ("night", "both"):
            out = Path(place) / "runs" / name
            train_run("cris", out=out, data=str(folders[name]), start=start, samples=SAMPLES, progress=False)
            record[name] = measure(out, folders)
            print(name, json.dumps(record[name]), flush=True)
    record |= {"pictures": TRAIN, "samples": SAMPLES, **provenance()}
    write_record(Path(__file__).with_suffix(".json"), record)
