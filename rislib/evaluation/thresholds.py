"""One pass over the data, many protocols and thresholds; and what a threshold is worth that saw the answers.

Nothing but counts is kept: a `Scores` for each protocol and threshold, as `evaluate` would have made it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tqdm.auto import tqdm

from rislib.evaluation.metrics import Scores
from rislib.evaluation.protocols import CRIS_2022, LAVT_2022, Protocol, target_mask
from rislib.evaluation.report import answers
from rislib.nouns import Method, Sample

METRICS = ("oIoU", "mIoU")
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


def at(protocol: Protocol, threshold: float) -> Protocol:
    """The protocol with another threshold, given as a probability in (0, 1), also where it cuts logits."""
    logit = protocol.score == "logit"
    return replace(protocol, threshold=math.log(threshold / (1 - threshold)) if logit else threshold)


def sweep(
    method: Method,
    samples: Sequence[Sample],
    protocols: Sequence[Protocol] = (CRIS_2022, LAVT_2022),
    thresholds: Sequence[float] = THRESHOLDS,
    *,
    progress: bool = True,
) -> dict[str, dict[float, Scores]]:
    """{protocol: {threshold, a probability: what `evaluate` counts at it}}."""
    found = {p.name: {t: p.scores() for t in thresholds} for p in protocols}
    shown = tqdm(samples, desc="thresholds", unit="sample", disable=not progress)
    for sample, *maps in answers(method, shown, *protocols):
        known = {"image_id": sample.image_id, "kind": sample.kind, "share": float(sample.mask.mean())}
        for protocol, scores in zip(protocols, maps, strict=True):
            target = target_mask(sample.mask, method.preprocessing, protocol)
            for threshold, counted in found[protocol.name].items():
                mask = at(protocol, threshold).foreground(scores)
                counted.add(mask, target, **known)
    return found


def bought(
    selection: Mapping[float, Scores], reported: Mapping[float, Scores], metric: Literal["oIoU", "mIoU"]
) -> dict[str, float]:
    """What it buys to pick the threshold on the reported split and not, as one should, on another.

    Args:
        selection, reported: one protocol's sweeps over both splits, with the same thresholds.

    Returns:
        {"chosen": the best threshold of `selection`, "value": the metric there on the reported split, "best":
        its own best threshold, "best_value", "points": the difference, never negative}. Metrics in percent.
    """
    there, here = ({t: s.summary()[metric] for t, s in split.items()} for split in (selection, reported))
    chosen, best = max(there, key=there.get), max(here, key=here.get)
    found = {"chosen": chosen, "value": here[chosen], "best": best, "best_value": here[best]}
    return {name: round(x, 4) for name, x in (found | {"points": here[best] - here[chosen]}).items()}
