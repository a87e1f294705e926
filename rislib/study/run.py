"""Do a study's runs, one by one: each trains a network, measures it on val, and leaves one record.

A study can be stopped at any moment and started again; it goes on with the runs that are missing. A run that
another study has done already, with the same network, data, seed and budget, is taken from there.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tqdm.auto import tqdm

from rislib.data import open_split, with_instances
from rislib.data.refmini import CATEGORIES, COLOURS
from rislib.evaluation import CRIS_2022, dissect, evaluate, hidden_words, shuffled
from rislib.methods import build
from rislib.study.plan import STUDIES, Study
from rislib.training import fit, mini_recipe, provenance, write_record

WORDS = {"colour": COLOURS, "name": CATEGORIES, "place": ("left", "right", "top", "bottom")}


def run_study(
    name: str,
    folder: Path | str = "results",
    *,
    data: Iterable[str] | None = None,
    variants: Iterable[str] | None = None,
    seeds: Iterable[int] | None = None,
    processes: int = 1,
    progress: bool = True,
) -> Path:
    """Do the runs that FOLDER/NAME.json lacks: every variant once, on each data, then all with the next seed.

    Args:
        name: one of `STUDIES`.
        data, variants, seeds: only these.
        processes: trainings side by side, which share the CPU's threads: two of one thread each do more than
            one of two.

    Returns:
        The record's file. It is whole after every run: {"title", "samples", "split", "runs": [...]}.

    Raises:
        ValueError: there is no such study or variant, or the file holds runs of another budget.
        ExceptionGroup: some runs failed, after all others were done and kept.
    """
    if name not in STUDIES:
        raise ValueError(f"no study {name!r}; there are {', '.join(STUDIES)}")
    study, file = STUDIES[name], Path(folder) / f"{name}.json"
    if unknown := set(variants or ()) - set(study.variants):
        raise ValueError(f"{name} has no variant {sorted(unknown)}; it has {', '.join(study.variants)}")
    cells = list(product(seeds or range(study.seeds), data or study.data, list(variants or study.variants)))
    done = {_cell(run) for run in _read(file, study)["runs"]}
    todo = [cell for cell in cells if cell not in done]
    for source in {source for _, source, _ in todo}:
        open_split(source, "val")  # drawn once, and not by each process

    def keep(run: dict[str, Any]) -> None:
        with FileLock(file.with_suffix(".lock")):  # other processes may do other runs of this study
            record = _read(file, study)
            if not any(_cell(run) == _cell(one) for one in record["runs"]):  # perhaps they did this one, too
                record["runs"].append(run)
                write_record(file, record)
        bar.update(run["samples"])
        bar.write(f"{run['variant']:24} {run['data']:9} seed {run['seed']}   oIoU {run['oIoU']:.2f}")

    budgets = {cell: study.variants[cell[2]].samples or study.samples for cell in cells}
    bar = tqdm(
        total=sum(budgets.values()),
        initial=sum(budgets[cell] for cell in cells if cell in done),
        desc=name,
        unit="sample",
        disable=not progress,
    )
    threads = max(1, torch.get_num_threads() // processes)
    with (
        bar,
        ProcessPoolExecutor(processes, get_context("spawn"), torch.set_num_threads, (threads,)) as pool,
    ):
        futures, errors = [], []
        for seed, source, variant in todo:
            cell = describe(study, variant, source, seed)
            twin = None if study.closely else _twin(cell, Path(folder))
            if twin:
                keep(twin)
            else:
                futures.append(pool.submit(run_once, cell, study.closely))
        for finished in as_completed(futures):
            if error := finished.exception():  # the others go on, and are kept
                errors.append(error)
            else:
                keep(finished.result())
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(todo)} runs of {name} failed", errors)
    return file


def describe(study: Study, variant: str, data: str, seed: int) -> dict[str, Any]:
    """What decides a run, as its record says it."""
    one = study.variants[variant]
    return {
        "variant": variant,
        "method": one.method,
        "options": json.loads(json.dumps(dict(one.options))),  # as the file will give them back
        "share": one.share,
        "instances": one.instances,
        "samples": one.samples or study.samples,
        "data": data,
        "seed": seed,
    }


def run_once(cell: dict[str, Any], closely: bool) -> dict[str, Any]:
    """One run's record: what `Report.to_json` says on val, by_picture, the curve, and how it was made."""
    torch.manual_seed(cell["seed"])
    network = build(cell["method"], "mini", **cell["options"])
    train, val = (
        with_instances(open_split(cell["data"], split), cell["instances"]) for split in ("train", "val")
    )
    recipe = mini_recipe(cell["method"])
    with tempfile.TemporaryDirectory() as out:
        trained = fit(
            network,
            train[: round(cell["share"] * len(train))],
            recipe,
            out=out,
            seed=cell["seed"],
            samples_budget=cell["samples"],
            channels_last=True,
            progress=False,
        )
        curve = learning_curve(Path(out) / "log.jsonl")
    report = evaluate(network, val, CRIS_2022, progress=False)
    sums = report.scores.by_picture()
    run = {
        **cell,
        "recipe": asdict(recipe),
        "parameters": sum(p.numel() for p in network.parameters()),
        "samples_seen": trained.samples,
        "seconds": round(trained.seconds, 1),
        **report.to_json(),
        "by_picture": sums | {"ious": [round(iou, 4) for iou in sums["ious"]]},
        "curve": curve,
    }
    if closely:  # an anatomy takes as long as a training: once is enough for each
        other_words = evaluate(network, shuffled(val), CRIS_2022, progress=False).to_json()
        run["shuffled"] = {metric: other_words[metric] for metric in ("oIoU", "mIoU")}
    if closely and cell["seed"] == 0:
        run["anatomy"] = dissect(network, val, CRIS_2022, progress=False)
    if getattr(network, "grounding", None) is not None:
        asked = [val[i] for i in range(0, len(val), 3)]
        run["hidden_words"] = hidden_words(network, asked, WORDS)
        run["hidden_words_other_picture"] = hidden_words(network, asked, WORDS, other_picture=True)
    return run | provenance()


def learning_curve(log: Path, points: int = 20) -> dict[str, list[float]]:
    """The mean loss in each of equal parts of a training, and how many samples were seen at their ends."""
    lines = [line for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    points = min(points, len(lines))
    ends = [round((i + 1) * len(lines) / points) for i in range(points)]
    parts = [lines[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return {
        "samples": [part[-1]["samples"] for part in parts],
        "loss": [round(sum(line["loss"] for line in part) / len(part), 4) for part in parts],
    }


def _cell(run: dict[str, Any]) -> tuple[int, str, str]:
    return run["seed"], run["data"], run["variant"]


def _twin(cell: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """The same run in another study's record, under this study's name for it."""
    same = {name: value for name, value in cell.items() if name != "variant"}
    for file in sorted(folder.glob("*.json")):
        for run in json.loads(file.read_text()).get("runs", ()):
            if "by_picture" in run and same.items() <= run.items():
                return {**run, "variant": cell["variant"], "taken_from": file.stem}
    return None


def _read(file: Path, study: Study) -> dict[str, Any]:
    """A study's record, or the beginning of one."""
    head = {"title": study.title, "samples": study.samples, "split": "val"}
    if not file.exists():
        return {**head, "runs": []}
    record = json.loads(file.read_text())
    if record["samples"] != study.samples:
        raise ValueError(f"{file} was made with {record['samples']} samples a run, not {study.samples}")
    return {**record, **head}
