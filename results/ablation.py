"""What are a method's parts worth? Each variant, with each seed, learns from the same number of samples.

`python results/ablation.py cris` (or another of STUDIES) trains them, measures each on val, and writes
cris_ablation.json after every run. Started again, it goes on with the runs that are missing. With
`--processes 2` two trainings run side by side, of one thread each: more than two threads do for one.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rislib.data import open_split, with_instances
from rislib.data.refmini import CATEGORIES, COLOURS
from rislib.evaluation import CRIS_2022, evaluate, hidden_words
from rislib.methods import build
from rislib.training import fit, mini_recipe, provenance

WORDS = {"colour": COLOURS, "name": CATEGORIES, "place": ("left", "right", "top", "bottom")}


class Variant(NamedTuple):
    method: str
    options: dict[str, Any]  # of its builder
    share: float = 1.0  # of the training pictures, the first ones
    instances: str = "none"  # where the masks of things come from, as in `with_instances`


NONE = {"pyramid": (), "mask_grounding": 0.0, "cal": 0.0}
PLAIN = {"lmvsd": 0.0, "vmlsd": 0.0}
OFTEN = {"ratio": 0.4, "at_least_one": True}  # nearly three times as many words are asked for


@dataclass(frozen=True)
class Study:
    samples: int  # that every run learns from
    variants: dict[str, Variant]


STUDIES = {
    "cris": Study(
        6000,
        {
            "full": Variant("cris", {}),
            "inner_product": Variant("cris", {"kernel": "inner_product"}),  # as the paper writes it
            "no_decoder": Variant("cris", {"decoder_layers": 0}),
            "not_contrastive": Variant("cris", {"contrastive": False}),
            "from_scratch": Variant("cris", {"pretrained": False}),
        },
    ),
    "magnet": Study(
        9600,  # about five minutes of MagNet on two cores
        {
            "lavt": Variant("lavt", {}),
            "lavt+mg": Variant("lavt", {"mask_grounding": 0.1}),
            "lavt+mg clean": Variant("lavt", {"mask_grounding": 0.1, "grounding": {"segmentation": "clean"}}),
            "lavt+mg often": Variant("lavt", {"mask_grounding": 0.1, "grounding": OFTEN}),
            "lavt+mg blind": Variant(
                "lavt", {"mask_grounding": 0.1, "grounding": {**OFTEN, "picture": False}}
            ),
            "magnet": Variant("magnet", NONE),
            "magnet+mg": Variant("magnet", {**NONE, "mask_grounding": 1.0}),
            "magnet+cam": Variant("magnet", {"mask_grounding": 0.0, "cal": 0.0}),
            "magnet+cal": Variant("magnet", {**NONE, "cal": 0.5}),
            "magnet+all": Variant("magnet", {}),
            "cris": Variant("cris", {}),
            "cris+mg": Variant("cris", {"mask_grounding": 0.1}),
        },
    ),
    "masksd": Study(
        5000,
        {
            "plain": Variant("cm_masksd", PLAIN),
            "lmvsd": Variant("cm_masksd", {"vmlsd": 0.0}),
            "vmlsd": Variant("cm_masksd", {"lmvsd": 0.0}),
            "both": Variant("cm_masksd", {}),
            "both random": Variant("cm_masksd", {"guided": False}),
            "both V2": Variant("cm_masksd", {"wiring": "V2"}),
            "plain 10 %": Variant("cm_masksd", PLAIN, 0.1),
            "both 10 %": Variant("cm_masksd", {}, 0.1),
            "plain N1": Variant("cm_masksd", {**PLAIN, "neck": "N1"}),
            "plain N2": Variant("cm_masksd", {**PLAIN, "neck": "N2", "wiring": "V2"}),
            "both flowing": Variant("cm_masksd", {"stop_gradient": False}),
        },
    ),
    "masksd_grid": Study(
        2500,  # of LMVSD alone, as K and alpha are of its patches
        {
            f"K {k} % alpha {alpha} %": Variant(
                "cm_masksd", {"vmlsd": 0.0, "top_patches": k / 100, "masked_patches": alpha / 100}
            )
            for k in (10, 25, 50, 100)
            for alpha in (25, 50, 75, 100)
        },
    ),
    "mail": Study(
        5000,
        {
            "none": Variant("mail", {"instances": 0}),
            "proposals": Variant("mail", {}, instances="proposals"),
            "oracle": Variant("mail", {}, instances="oracle"),
            "proposals no selection": Variant("mail", {"selection": None}, instances="proposals"),
            "proposals from scratch": Variant("mail", {"pretrained": False}, instances="proposals"),
            "none from scratch": Variant("mail", {"instances": 0, "pretrained": False}),
            "proposals tokens B": Variant("mail", {"mask_tokens": "B"}, instances="proposals"),
            "proposals selection loss": Variant("mail", {"selection_loss": 0.1}, instances="proposals"),
        },
    ),
}


def ablate(
    out: Path,
    study: Study,
    *,
    data: str = "refmini",
    seeds: Iterable[int] = (0, 1, 2),
    only: Iterable[str] | None = None,
    processes: int = 1,
) -> None:
    """Do the runs that `out` lacks: every variant once (or `only` these), then all with the next seed.

    Raises:
        ValueError: `out` holds runs on other data or with another budget.
    """
    settings = {"data": data, "samples": study.samples, "split": "val"}
    record = json.loads(out.read_text()) if out.exists() else {**settings, "runs": []}
    for name, value in settings.items():
        if record[name] != value:
            raise ValueError(f"{out} was made with {name} = {record[name]}, not {value}")
    done = {(run["variant"], run["seed"]) for run in record["runs"]}
    variants = study.variants if only is None else only
    todo = [(variant, seed) for seed in seeds for variant in variants if (variant, seed) not in done]
    open_split(data, "val")  # drawn once, and not by each process

    with ProcessPoolExecutor(
        processes,
        get_context("spawn"),
        torch.set_num_threads,
        (max(1, torch.get_num_threads() // processes),),
    ) as pool:
        runs = {
            pool.submit(train_and_measure, study.variants[variant], data, study.samples, seed): variant
            for variant, seed in todo
        }
        for run in as_completed(runs):
            measured = {"variant": runs[run], **run.result()}
            record = json.loads(out.read_text()) if out.exists() else record  # another may have written, too
            record["runs"].append(measured)
            partial = out.with_suffix(".partial")
            partial.write_text(json.dumps(record, indent=1) + "\n")
            os.replace(partial, out)
            print(
                "{variant:20} seed {seed}   mIoU {mIoU:.2f}   oIoU {oIoU:.2f}".format(**measured), flush=True
            )


def train_and_measure(variant: Variant, data: str, samples: int, seed: int) -> dict:
    """One run, and what it says on val; with mask grounding, also the words it guesses in a third of that."""
    torch.manual_seed(seed)
    network = build(variant.method, "mini", **variant.options)
    train, val = (with_instances(open_split(data, split), variant.instances) for split in ("train", "val"))
    with tempfile.TemporaryDirectory() as folder:
        trained = fit(
            network,
            train[: round(variant.share * len(train))],
            mini_recipe(variant.method),
            out=folder,
            seed=seed,
            samples_budget=samples,
            channels_last=True,
            progress=False,
        )
        curve = learning_curve(Path(folder) / "log.jsonl", mini_recipe(variant.method).batch_size)
    report = evaluate(network, val, CRIS_2022, progress=False)
    run = {
        **variant._asdict(),
        "recipe": asdict(mini_recipe(variant.method)),
        "seed": seed,
        "parameters": sum(p.numel() for p in network.parameters()),
        "samples_seen": trained.samples,
        "seconds": round(trained.seconds, 1),
        "curve": curve,
        **report.to_json(),
        "by_picture": report.scores.by_picture(),
    }
    if getattr(network, "grounding", None) is not None:  # MaIL cannot have it
        asked = [val[i] for i in range(0, len(val), 3)]
        run["hidden_words"] = hidden_words(network, asked, WORDS)
        run["hidden_words_other_picture"] = hidden_words(network, asked, WORDS, other_picture=True)
    return run | provenance()


def learning_curve(log: Path, batch_size: int, points: int = 20) -> dict[str, list[float]]:
    """The mean loss in each of equal parts of a training, and how many samples were seen at their ends."""
    losses = [line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line]
    ends = [round((i + 1) * len(losses) / points) for i in range(points)]
    parts = [losses[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return {
        "samples": [end * batch_size for end in ends],
        "loss": [round(sum(part) / len(part), 4) for part in parts],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", default="refmini")
    parser.add_argument("--only", nargs="+", help="These variants.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    out = Path(__file__).with_name(f"{given.study}_ablation.json")
    ablate(
        out,
        STUDIES[given.study],
        data=given.data,
        seeds=given.seeds,
        only=given.only,
        processes=given.processes,
    )
