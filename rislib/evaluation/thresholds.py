"""One pass over the data, many protocols and thresholds; and what a threshold is worth that saw the answers.

Nothing but counts is kept: a `Scores` for each protocol and threshold, as `evaluate` would have made it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from rislib.data.batches import make_batch
from rislib.evaluation.metrics import Scores
from rislib.evaluation.protocols import CRIS_2022, LAVT_2022, Protocol, score_maps, target_mask
from rislib.evaluation.report import _eval_mode
from rislib.nouns import Method, Sample

METRICS = ("oIoU", "mIoU")
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))


def answers(
    method: Method, samples: Iterable[Sample], *protocols: Protocol, batch_size: int = 32
) -> Iterator[tuple[Sample, *tuple[np.ndarray, ...]]]:
    """Each sample, and for each protocol what that thresholds: the score maps of `score_maps`.

    The method is asked where it is, `batch_size` samples at a time, and is in eval mode until the last one.
    Samples of one `image_id` must show one picture.
    """
    device = next(method.parameters()).device
    samples = iter(samples)
    with _eval_mode(method):
        while chosen := list(islice(samples, batch_size)):
            with torch.inference_mode():
                batch = make_batch(chosen, method.preprocessing, method.tokenize, share_pictures=True)
                batch = batch.to(device)
                logits = method.segment(method.features(batch), batch.tokens, batch.token_mask)
            sizes = [sample.mask.shape for sample in chosen]
            maps = [score_maps(logits, method.preprocessing, sizes, protocol) for protocol in protocols]
            yield from zip(chosen, *maps, strict=True)


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
        for protocol, scores in zip(protocols, maps, strict=True):
            target = target_mask(sample.mask, method.preprocessing, protocol)
            for threshold, counted in found[protocol.name].items():
                mask = at(protocol, threshold).foreground(scores)
                counted.add(mask, target, image_id=sample.image_id, kind=sample.kind)
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
