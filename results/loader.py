"""How many samples a second does one core read, resize and batch? What takes the time? Does memory grow?

`python results/loader.py [--data FOLDER]` asks for batches as `fit` does, of CRIS's pictures (416 px,
letterbox) and of LAVT's (480 px, stretched), with no device to wait for. Without a folder it draws 60 scenes
of 640 x 480 pixels, as large as COCO's, and keeps them as JPEG; photographs take longer to decode: `--data`.
All of it once more with the pictures out of a cache (`rislib.data.cached`). Both read files that the system
has in memory: a cache's are larger, what a disk makes of that is not measured. Some minutes on an idle
machine; prints the numbers and writes loader.json.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import itertools
import json
import multiprocessing
import os
import pstats
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from rislib.data import RefDataset, cached, import_own, open_split
from rislib.data.refmini.build import draw_pictures
from rislib.encoders import clip
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.nouns import Preprocessing
from rislib.training import CRIS_2022, provenance, write_record
from rislib.training.order import Batches

INPUTS = {
    "416 letterbox": Preprocessing(416, "letterbox", clip.MEAN, clip.STD),
    "480 stretch": Preprocessing(480, "stretch", clip.MEAN, clip.STD),
}
STAGES = {  # function -> what it does, in the loader's order
    "rislib/data/index.py:open": "decode pictures",
    "rislib/data/cache.py:picture": "read the cache",
    "rislib/data/masks.py:decode_segmentation": "decode masks",
    "rislib/data/transforms.py:to_tensor": "resize pictures",
    "rislib/data/transforms.py:mask": "resize masks",
    "rislib/encoders/tokenizers.py:__call__": "tokenize",
}
GOAL = 50 * 42_404 / (30 * 60)  # samples/s of CRIS's 50 epochs of RefCOCO in half an hour


def draw(folder: Path, pictures: int) -> RefDataset:
    """Scenes of 640 x 480 pixels as JPEG, with masks as run lengths."""
    own = folder / "own"
    own.mkdir()
    rows = []
    for i, drawn in enumerate(
        itertools.islice(draw_pictures("loader", "train", "refmini", 640, 10**6), pictures)
    ):
        drawn.painting.image.crop((0, 80, 640, 560)).save(own / f"{i}.jpg", quality=90)
        for thing, said in drawn.references.items():
            mask = drawn.painting.masks[thing, 80:560]
            if mask.any():
                Image.fromarray(mask).save(own / f"{i}_{thing}.png")
                rows.append([f"{i}.jpg", said[0].text, f"{i}_{thing}.png"])
    with (own / "expressions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["image", "expression", "mask"], *rows])
    return open_split(import_own(own, folder / "drawn"), None)


def batches(samples: RefDataset, name: str, workers: int, amount: int, batch: int) -> Iterator:
    """About `amount` samples as `fit` loads them."""
    method = SimpleNamespace(preprocessing=INPUTS[name], tokenize=ClipTokenizer(17))
    source = Batches(samples, method, replace(CRIS_2022, batch_size=batch), seed=0, rank=0, processes=1)
    return iter(DataLoader(source, batch_size=None, sampler=range(amount // batch), num_workers=workers))


def speed(loader: Iterator, batch: int) -> dict[str, float]:
    """Samples per second, and per second that this process computes; without the first three batches."""
    for _ in range(3):
        next(loader)
    wall, computing = time.perf_counter(), time.process_time()
    number = batch * sum(1 for _ in loader)
    wall, computing = time.perf_counter() - wall, time.process_time() - computing
    return {"per_second": round(number / wall, 1), "per_cpu_second": round(number / computing, 1)}


def shares(loader: Iterator) -> dict[str, float]:
    """Percent of the loader's time by stage; cProfile makes what calls much Python look a little slower."""
    next(loader)
    profile = cProfile.Profile(time.process_time)
    profile.runcall(list, loader)
    stats = pstats.Stats(profile)
    found = {what: 0.0 for what in STAGES.values()}
    for (file, _, function), (_, _, _, seconds, _) in stats.stats.items():
        for place, what in STAGES.items():
            if f"{file}:{function}".endswith(place):
                found[what] += seconds
    found["the rest"] = stats.total_tt - sum(found.values())
    return {what: round(100 * seconds / stats.total_tt, 1) for what, seconds in found.items() if seconds}


def memory(loader: Iterator, every: int) -> list[dict[str, int]]:
    """MiB that this process and its workers hold, after each `every` batches."""
    held = []
    for number, _ in enumerate(loader, start=1):
        if number % every == 0:
            workers = sum(mebibytes(child.pid) for child in multiprocessing.active_children())
            held.append({"process": mebibytes(os.getpid()), "workers": workers})
    return held


def mebibytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024)


def measure(samples: RefDataset, name: str, amount: int, batch: int) -> dict[str, Any]:
    """Speed without a worker and with one, cores for CRIS's goal, and where the time goes."""
    alone = speed(batches(samples, name, 0, amount, batch), batch)
    measured = {
        "no_worker": alone,
        "one_worker": speed(batches(samples, name, 1, amount, batch), batch)["per_second"],
        "cores_for_the_goal": round(GOAL / alone["per_cpu_second"], 1),
        "percent": shares(batches(samples, name, 0, amount // 5, batch)),
    }
    print(name, "cached" if samples.cache else "", json.dumps(measured), flush=True)
    return measured


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="As `open_split` takes it; all its splits are read.")
    parser.add_argument("--samples", type=int, default=2000, help="For each speed.")
    parser.add_argument("--long", type=int, default=10_000, help="Samples for the memory.")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        samples = open_split(given.data, None) if given.data else draw(Path(folder), 60)
        pictures = [samples.pictures[record.image_id] for record in samples.records]
        record = {
            "data": given.data or "drawn",
            "expressions": len(samples),
            "median_height_and_width": np.median([(p.height, p.width) for p in pictures], axis=0).tolist(),
            "batch": given.batch,
            "goal_samples_per_second": round(GOAL),
        }
        for name, preprocessing in INPUTS.items():
            kept = cached(samples, preprocessing, Path(folder) / name, progress=True)
            record[name] = measure(samples, name, given.samples, given.batch)
            record[f"{name}, cached"] = measure(kept, name, given.samples, given.batch)
        every = max(1, given.long // given.batch // 10)
        record["samples_for_memory"] = given.long
        for workers, key in enumerate(("mebibytes_no_worker", "mebibytes_one_worker")):
            record[key] = memory(batches(samples, "416 letterbox", workers, given.long, given.batch), every)
            print(key, json.dumps(record[key]), flush=True)
    write_record(given.out, record | provenance())
