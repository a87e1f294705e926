"""The published networks on a GPU: how fast are they, of how fast they could be, and do they learn?

`python results/full_size.py` times a training step and a forward pass of each in bf16, plain and compiled,
and trains each for some minutes on RefMini, drawn at the network's own picture size. Towers are random, and
no hub is asked, unless `--pretrained` is said. `--small` does the same with the mini networks, not compiled,
and a few samples: a minute or two of a CPU.

The record is whole after each piece. Stopped, the same command goes on with what is missing. What fails, for
want of memory or otherwise, is written down as that, and tried again by the next call.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from rislib.benchmark import METHODS, benchmark
from rislib.data import build_refmini, open_split, with_instances
from rislib.evaluation import CRIS_2022, evaluate, shuffled
from rislib.methods import build
from rislib.study.run import learning_curve
from rislib.training import MINI, fit, machine, mini_recipe, provenance, write_record

FULL = ("cris_r50", "lavt", "magnet", "cm_masksd_b16", "mail_b32")
SMALL = ("cris_mini", "lavt_mini", "magnet_mini", "cm_masksd_mini", "mail_mini")
WORDPIECES = ("lavt", "magnet", "mail_b32")  # read by a vocabulary that only the hub has
RECIPE = replace(MINI, learning_rate=1e-4, batch_size=48)  # at full size; ours, for minutes, not days
SHARE, MINUTES = 0.45, 30  # goals: of a matrix product's FLOP/s; for this with CRIS-R50:
REFCOCO = 50 * 42_404  # samples, CRIS's epochs


def cells(given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What decides each piece, as the record says it. What is compiled comes after all that is plain."""
    methods = given.methods or (SMALL if given.small else FULL)
    compiled = (False,) if given.small else (False, True)
    for compile, batch, method, mode in product(compiled, given.batches, methods, ("train", "forward")):
        steps = 2 if given.small else 10
        options = {"batch": batch, "precision": "bf16", "compile": compile, "steps": steps}
        yield {"method": method, "mode": mode, **options}
    references, sentences = (60, 20) if given.small else (6000, 200)
    samples = 96 if given.small and given.samples is None else given.samples
    for method in methods if samples or given.minutes else ():
        yield {
            "method": method,
            "mode": "learn",
            "pretrained": given.pretrained,
            "references": references,
            "sentences": sentences,
            "samples": samples,
            "minutes": None if samples else given.minutes,
            "seed": given.seed,
        }


def measure(cell: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """A piece: `cell`, and what came of it."""
    gc.collect()
    torch.cuda.empty_cache()  # does nothing without a GPU
    torch.compiler.reset()  # it would go on from the last network's shapes, and after eight of them give up
    if cell["mode"] == "learn":
        return cell | learn(cell, given)
    return benchmark(cell["method"], **{key: cell[key] for key in cell if key != "method"}).to_json()


def learn(cell: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """Train one; ten times on the way it is asked the first sentences of val, at last with other words."""
    family, preset = METHODS[cell["method"]]
    with torch.device("meta"):  # without weights: all that is asked is what it wants
        size = build(family, preset, pretrained=False).preprocessing.size
    world = given.worlds / f"{size}px-{cell['references']}"
    if not world.exists():
        build_refmini(world, size=size, train=cell["references"], val=100)
    train, val = open_split(world, "train"), open_split(world, "val")[: cell["sentences"]]
    recipe = mini_recipe(family)
    if preset != "mini":  # random towers have nothing to keep
        recipe = replace(RECIPE, encoder_factor=0.1 if cell["pretrained"] else 1)
    with tempfile.TemporaryDirectory() as out:
        options = {"pretrained": cell["pretrained"]}
        if cell["method"] in WORDPIECES and not cell["pretrained"]:  # then the world's words will do
            words = {word for record in train.records for word in record.expression.split()}
            options["vocab_file"] = Path(out) / "words.txt"
            special = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
            options["vocab_file"].write_text("\n".join([*special, *sorted(words)]))
        torch.manual_seed(cell["seed"])
        network = build(family, preset, **options)
        instances = "none"
        if network.reads_instances:  # the true masks: how good a segmenter is, is not the question here
            instances = "oracle"
            train, val = with_instances(train, instances), with_instances(val, instances)

        def ask(network, samples=val) -> dict[str, float]:
            report = evaluate(network, samples, CRIS_2022, precision=recipe.precision, progress=False)
            return {"oIoU": round(report.scores.overall_iou(), 4)}

        run = fit(
            network,
            train,
            recipe,
            out=out,
            seed=cell["seed"],
            samples_budget=cell["samples"],
            minutes=cell["minutes"],
            checkpoint_every=math.inf,
            validate=ask,
            workers=0 if given.small else min(16, os.cpu_count() or 1),
            micro_batch=given.micro_batch,
            channels_last=True,
            progress=False,
        )
        lines = map(json.loads, (Path(out) / "log.jsonl").read_text().splitlines())
        asked = [line for line in lines if "validation" in line]
        curve = learning_curve(Path(out) / "log.jsonl")
    return {
        "pixels": size,
        "instances": instances,
        "batch": recipe.batch_size,
        "samples_seen": run.samples,
        "seconds": round(run.seconds, 1),  # with its answers
        "curve": curve,
        "asked_after": [line["step"] * recipe.batch_size for line in asked],  # samples
        "oIoU": [line["validation"]["oIoU"] for line in asked],
        "shuffled": ask(network, shuffled(val)),
    }


def goals(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """The best of what was timed, beside what it should be; a small network's minutes say nothing."""
    timed = sorted((piece for piece in pieces if "share" in piece), key=lambda piece: piece["share"])
    share = {f"{piece['method']} {piece['mode']}": piece["share"] for piece in timed}
    fastest = {piece["method"]: piece["images_per_second"] for piece in timed if piece["mode"] == "train"}
    minutes = {name: round(REFCOCO / fastest[name] / 60, 1) for name in fastest if "cris" in name}
    return {"share": {"goal": SHARE, **share}, "refcoco_minutes": {"goal": MINUTES, **minutes}}


def row(piece: dict[str, Any]) -> str:
    """A piece for a terminal."""
    what = f"{piece['method']:15}{piece['mode']:8}{piece.get('batch', ''):>4} "
    what += "compiled  " if piece.get("compile") else 10 * " "
    if "failed" in piece:
        return what + piece["failed"][:60]
    if piece["mode"] == "learn":
        losses, found = piece["curve"]["loss"], piece["oIoU"]
        learnt = f"loss {losses[0]:.3f} -> {losses[-1]:.3f}, oIoU {found[0]:.1f} -> {found[-1]:.1f}"
        return f"{what}{learnt}, with another picture's words {piece['shuffled']['oIoU']:.1f}"
    speed = f"{piece['images_per_second']:9.1f} images/s{piece['peak_gib']:8.2f} GiB"
    return f"{what}{speed}{piece['tflop_per_second']:9.3f} TFLOP/s, {piece['share']:.1%} of a product's"


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--methods", nargs="+", choices=FULL + SMALL)
    parser.add_argument("--batches", nargs="*", type=int, help="Samples in a timed step. None: time nothing.")
    parser.add_argument("--minutes", type=float, default=3.0, help="Of each training; 0: train nothing.")
    parser.add_argument("--samples", type=int, help="Of each training, in place of minutes.")
    parser.add_argument("--micro-batch", type=int, help="Of trainings, where memory is short.")
    parser.add_argument("--pretrained", action="store_true", help="Trainings begin with published towers.")
    parser.add_argument("--seed", type=int, default=0, help="Of trainings.")
    parser.add_argument("--worlds", type=Path, default=Path("runs/full_size"), help="Drawn on first use.")
    parser.add_argument("--out", type=Path, help="full_size.json beside this file, if there is a GPU.")
    given = parser.parse_args(words)
    given.batches = ([2] if given.small else [32]) if given.batches is None else given.batches
    if given.out is None:
        if not torch.cuda.is_available():
            parser.error("there is no GPU here, and full_size.json is for one: say --out FILE")
        given.out = Path(__file__).with_suffix(".json")
    device = machine()["device"]
    record = json.loads(given.out.read_text()) if given.out.exists() else {"device": device, "pieces": []}
    if record["device"] != device:
        parser.error(f"{given.out} was made on {record['device']}, and this is {device}: say another --out")

    for cell in cells(given):
        before = [piece for piece in record["pieces"] if cell.items() <= piece.items()]
        if not before or "failed" in before[0]:
            try:
                piece = measure(cell, given)
            except Exception as error:  # whatever it is, the others need not wait for it
                traceback.print_exc()
                piece = {**cell, "failed": f"{type(error).__name__}: {error}"}
            pieces = [piece for piece in record["pieces"] if piece not in before] + [piece | provenance()]
            record = {"device": device, "goals": goals(pieces), "pieces": pieces}
            write_record(given.out, record)
            before = [piece]
        print(row(before[0]), flush=True)
    print(json.dumps(goals(record["pieces"]), indent=1))


if __name__ == "__main__":
    main()
