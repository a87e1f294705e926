"""A run is a folder: what was trained, how, and what came of it.

run.json            method, size and options (enough to build it again), data, command, commit, machine
model.safetensors   the trained weights, as far as masks depend on them
checkpoint.safetensors   all that the training was, to go on with it: also the heads that only it needs
log.jsonl           losses, step by step
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from rislib.checkpoints import read_checkpoint, rebuild
from rislib.data import RefDataset, cached, open_split, with_instances
from rislib.evaluation import PROTOCOLS, Report, blinded, dissect, evaluate, shuffled
from rislib.methods import build
from rislib.nouns import Method
from rislib.processes import processes
from rislib.rehearsal import Rehearsal, rehearse
from rislib.training import RECIPES, Recipe, fit, mini_recipe, provenance, write_record


def train_run(
    method: str,
    *,
    out: Path | str,
    data: str = "refmini",
    preset: str = "mini",
    options: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    minutes: float | None = None,
    samples: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    resume: bool = False,
    from_scratch: bool = False,
    start: Path | str | None = None,
    blind: bool = False,
    instances: str = "none",
    cache: Path | str | None = None,
    progress: bool = True,
    **means: Any,
) -> Path:
    """Train a method by its name on a dataset by its name; returns the run's folder.

    Of several processes that a launcher started, each must call this; the first one writes.

    Args:
        options: keyword arguments of the builder; `rislib.methods.part_options` adds and leaves out parts.
        recipe: how; the mini world's own unless given, for networks of that size.
        minutes, samples, epochs: how long. At most one, the recipe's epochs if none. No two runs of so many
            minutes are alike.
        seed: of the new weights, the order of the samples, and dropout.
        from_scratch: no pretrained encoders.
        start: the folder of a finished run of the same network: go on from its weights (fine-tuning).
        blind: every expression replaced by the same word, to learn what a picture gives away by itself.
        instances: where the masks come from that MaIL reads: see `rislib.data.with_instances`.
        cache: a folder for resized pictures, made by the first run that names it: see `rislib.data.cached`.
            A run is the same with and without it.
        means: workers, micro_batch, checkpointing and compile of `rislib.training.fit`. A run may be resumed
            with others.

    Raises:
        ValueError: unknown method or size, no recipe for a full size, not exactly one budget, a run to resume
            that is another one, a run to start from that is another network, or instance masks for a method
            that reads none.
        FileNotFoundError: the run to start from is none, or has not ended.
        DataError: the data or the instance masks are not here, or are malformed; or the cache is another's.
    """
    if start is not None and (from_scratch or Path(start).resolve() == Path(out).resolve()):
        raise ValueError("a start is another run's folder, and not from scratch")
    options = {"pretrained": not from_scratch, **(options or {})}
    recipe = recipe or choose_recipe(method, preset)
    network, references = _open(
        method, preset, options, data, seed=seed, start=start, blind=blind, instances=instances, cache=cache
    )
    record = {
        "method": method,
        "preset": preset,
        "options": options,
        "start": None if start is None else str(start),
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": data,
        "blind": blind,
        "instances": instances,
        "seed": seed,
        "budget": {"minutes": minutes, "samples": samples, "epochs": epochs},
        "recipe": asdict(recipe),
    }
    if resume and (Path(out) / "run.json").exists():
        _check_same(record, read_record(out))
    record |= provenance()  # now: the commit may be another one when the training ends
    record["processes"] = processes().num_processes
    _write_record(out, record)
    run = fit(
        network,
        references,
        recipe,
        out=out,
        seed=seed,
        minutes=minutes,
        samples_budget=samples,
        epochs=epochs,
        resume=resume,
        channels_last=True,
        progress=progress,
        **means,
    )
    _write_record(out, {**record, "samples_seen": run.samples, "seconds": round(run.seconds, 1)})
    return Path(out)


def choose_recipe(
    method: str, preset: str, name: str | None = None, *, precision: str | None = None
) -> Recipe:
    """A recipe by its name, or the mini world's for this method; with another precision, if one is given.

    Raises:
        ValueError: no such recipe or precision, or no name for a network of full size.
    """
    if name is None and preset == "mini":
        recipe = mini_recipe(method)
    elif name in RECIPES:
        recipe = RECIPES[name]
    else:
        asked = "say which recipe the network follows" if name is None else f"no recipe {name!r}"
        raise ValueError(f"{asked}; there are {', '.join(RECIPES)}")
    return replace(recipe, precision=precision) if precision else recipe


def rehearse_run(
    method: str,
    *,
    data: str = "refmini",
    preset: str = "mini",
    options: Mapping[str, Any] | None = None,
    recipe: Recipe | None = None,
    minutes: float | None = None,
    samples: int | None = None,
    epochs: float | None = None,
    seed: int = 0,
    from_scratch: bool = False,
    blind: bool = False,
    instances: str = "none",
    cache: Path | str | None = None,
    **means: Any,
) -> Rehearsal:
    """What `train_run` would cost on this machine; writes nothing but the cache. Arguments as there."""
    options = {"pretrained": not from_scratch, **(options or {})}
    network, references = _open(
        method, preset, options, data, seed=seed, blind=blind, instances=instances, cache=cache
    )
    return rehearse(
        network,
        references,
        recipe or choose_recipe(method, preset),
        seed=seed,
        minutes=minutes,
        samples_budget=samples,
        epochs=epochs,
        channels_last=True,
        **means,
    )


def evaluate_run(
    run: Path | str,
    *,
    data: str = "refmini",
    split: str = "val",
    protocol: str = "cris_2022",
    shuffle_text: bool = False,
    instances: str | None = None,
    progress: bool = True,
) -> Report:
    """Measure a run. One that was trained blind is measured blind.

    Of several processes that a launcher started, each must call this, and asks its share.

    Args:
        instances: as in `train_run`; those that the run was trained with when None.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: no such protocol; words to shuffle in a run that was trained without; or instance masks
            for a method that reads none.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    record = read_record(run)
    blind = record["blind"]
    if blind and shuffle_text:
        raise ValueError(f"{run} was trained blind: it has no words that could be shuffled")
    method = load_method(run)
    with processes().local_main_process_first():
        samples = _with_instances(method, open_split(data, split), instances or record["instances"])
    if blind:
        samples = blinded(samples)
    if shuffle_text:
        samples = shuffled(samples)
    device = processes().device
    return evaluate(method, samples, PROTOCOLS[protocol], device=device, progress=progress, together=True)


def load_method(run: Path | str, *, heads: bool = False) -> Method:
    """The trained network of a run, in eval mode.

    Args:
        heads: with what only training needs, as far as the run had that.

    Raises:
        FileNotFoundError: the folder holds no run, or one whose training has not ended.
    """
    record = read_record(run)
    weights = Path(run) / "model.safetensors"
    if not weights.exists():
        raise FileNotFoundError(f"{run} has no model.safetensors yet: finish it with `train ... --resume`.")
    if not heads:
        return rebuild(record, weights)
    network = build(record["method"], record["preset"], **{**record["options"], "pretrained": False})
    stored = read_checkpoint(Path(run) / "checkpoint.safetensors")
    state = {name.removeprefix("model."): x for name, x in stored.items() if name.startswith("model.")}
    network.load_state_dict(state)
    return network.eval()


def dissect_run(
    run: Path | str,
    *,
    data: str,
    split: str = "val",
    protocol: str = "cris_2022",
    instances: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """What goes wrong in a run's answers: see `rislib.evaluation.dissect`. Thresholds are chosen on val.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: no such protocol; the run was trained blind; or as in `evaluate_run`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; there are {', '.join(PROTOCOLS)}")
    record = read_record(run)
    if record["blind"]:
        raise ValueError(f"{run} was trained blind: it reads no words that could be edited")
    method = load_method(run).to(processes().device)
    source = instances or record["instances"]
    samples = _with_instances(method, open_split(data, split), source)
    selection = None if split == "val" else _with_instances(method, open_split(data, "val"), source)
    return dissect(method, samples, PROTOCOLS[protocol], selection=selection, progress=progress)


def read_record(run: Path | str) -> dict[str, Any]:
    """What `run.json` says. Raises FileNotFoundError if the folder holds no run."""
    path = Path(run) / "run.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{run} is not a run: it has no run.json. `python -m rislib train` makes one."
        )
    return {"instances": "none", "start": None, **json.loads(path.read_text())}  # older runs mention neither


def read_log(run: Path | str) -> list[dict[str, Any]]:
    """The training log, one record per logged step."""
    return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()]


def _open(
    method: str,
    preset: str,
    options: Mapping[str, Any],
    data: str,
    *,
    seed: int,
    start: Path | str | None = None,
    blind: bool,
    instances: str,
    cache: Path | str | None,
) -> tuple[Method, RefDataset]:
    """A new network, or that of the run to start from, and what it is going to train on."""
    torch.manual_seed(seed)
    with processes().local_main_process_first():  # what must be downloaded or drawn, one process does
        if start is None:
            network = build(method, preset, **options)
        else:
            network = _started(start, method, preset, options)
        references = _with_instances(network, open_split(data, "train"), instances)
        if cache is not None:
            references = cached(references, network.preprocessing, cache, progress=True)
    return network, blinded(references) if blind else references


def _with_instances(method: Method, samples: RefDataset, source: str) -> RefDataset:
    if source != "none" and not method.reads_instances:
        raise ValueError(f"{type(method).__name__} reads no instance masks, neither {source} nor any other")
    return with_instances(samples, source)


def _started(run: Path | str, method: str, preset: str, options: Mapping[str, Any]) -> Method:
    """The network of a finished run, heads and all, if it is the one that is asked for."""
    record = read_record(run)
    asked = {"method": method, "preset": preset, **json.loads(json.dumps(options))}
    there = {"method": record["method"], "preset": record["preset"], **record["options"]}
    for key in (asked.keys() | there.keys()) - {"pretrained"}:  # where its towers began is all the same
        if asked.get(key) != there.get(key):
            problem = f"its {key} is {there.get(key)}, and {asked.get(key)} is asked for"
            raise ValueError(f"{run} cannot be started from: {problem}")
    return load_method(run, heads=True)


def _write_record(run: Path | str, facts: dict[str, Any]) -> None:
    if processes().is_main_process:
        write_record(Path(run) / "run.json", facts)


def _check_same(now: dict[str, Any], before: dict[str, Any]) -> None:
    for key, value in json.loads(json.dumps(now)).items():
        if before[key] != value:
            raise ValueError(f"this is not the run to resume: {key} was {before[key]}, and is {value} now")
