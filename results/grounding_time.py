"""Does a network that was trained with mask grounding answer as fast as one without?

`python results/grounding_time.py` builds both, with random weights, asks them in turns and writes it down.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch

from rislib.methods import build
from rislib.training import provenance, write_record

TURNS = 100
NAMES = ("cris", "lavt", "magnet")


@torch.inference_mode()
def seconds(network, image: torch.Tensor, tokens: torch.Tensor) -> float:
    start = time.perf_counter()
    network(image, tokens)
    return time.perf_counter() - start


def compare(name: str, turns: int = TURNS) -> dict[str, float]:
    """Medians of both in milliseconds, and with / without."""
    pair = [build(name, "mini", mask_grounding=weight).eval() for weight in (1.0, 0.0)]
    size = pair[0].preprocessing.size
    image, (tokens, _) = torch.randn(1, 3, size, size), pair[0].tokenize(["the red car on the left"])
    times = [[seconds(network, image, tokens) for network in pair] for _ in range(turns)]
    with_head, without = (
        1e3 * statistics.median(column) for column in zip(*times[turns // 10 :], strict=True)
    )
    return {
        "with_head_ms": round(with_head, 2),
        "without_ms": round(without, 2),
        "ratio": round(with_head / without, 3),
    }


if __name__ == "__main__":
    record = {"turns": TURNS, **{name: compare(name) for name in NAMES}, **provenance()}
    write_record(Path(__file__).with_suffix(".json"), record)
    print(json.dumps({name: record[name] for name in NAMES}))
