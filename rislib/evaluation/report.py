"""Run a method over samples and say how good it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from rislib.data.batches import make_batch
from rislib.evaluation.metrics import PRECISION_LEVELS, Scores
from rislib.evaluation.protocols import Protocol, score_maps, target_mask
from rislib.nouns import Method, Sample
from rislib.processes import processes

if TYPE_CHECKING:
    from rislib.data import RefDataset

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Report:
    """What `evaluate` found: the counts, and the protocol that they were made under."""

    protocol: Protocol
    scores: Scores

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, in percent with four decimals: what `results/` holds.

        Keys: oIoU, mIoU, P@0.5 ... P@0.9, n (expressions), protocol (its name), interval ([low, high], 95 %
        bootstrap over pictures, of oIoU), by_kind ({kind: {oIoU, mIoU, n}}) and by_size (likewise).
        """
        return {
            **{name: round(value, 4) for name, value in self.scores.summary().items()},
            "n": len(self.scores),
            "protocol": self.protocol.name,
            "interval": [round(bound, 4) for bound in self.scores.interval("oIoU")],
            "by_kind": {kind: _brief(part) for kind, part in self.scores.by_kind().items()},
            "by_size": {size: _brief(part) for size, part in self.scores.by_size().items()},
        }

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The same for a terminal. The protocol's headline metric comes first."""
        pictures = len(set(self.scores.image_ids))
        lines = [f"{self.protocol.name}: {len(self.scores):,} expressions, {pictures:,} pictures", ""]

        summary = self.scores.summary()
        for name in sorted(("oIoU", "mIoU"), key=lambda name: name != self.protocol.headline):
            low, high = self.scores.interval(name)
            lines.append(f"  {name}   {summary[name]:6.2f}   95 % interval {low:.2f} to {high:.2f}")
        names = [f"P@{level}" for level in PRECISION_LEVELS]
        lines += ["", "  " + "".join(f"{name:>8}" for name in names)]
        lines += ["  " + "".join(f"{summary[name]:8.2f}" for name in names)]

        kinds = self.scores.by_kind()
        if kinds:
            width = max(map(len, [*kinds, "kind"]))
            lines += ["", f"  {'kind':<{width}}{'n':>8}{'oIoU':>8}{'mIoU':>8}"]
        for kind, part in kinds.items():
            row = f"{len(part):8,}{part.overall_iou():8.2f}{part.mean_iou():8.2f}"
            lines.append(f"  {kind:<{width}}{row}")
        return "\n".join(lines)


def evaluate(
    method: Method,
    samples: Sequence[Sample],
    protocol: Protocol,
    *,
    batch_size: int = 32,
    device: torch.device | str | None = None,
    progress: bool = True,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    together: bool = False,
) -> Report:
    """Ask the method every expression, and count.

    Args:
        method: is moved to `device` and stays there; whether it was in train or eval mode is restored.
        samples: any sequence of samples, such as `rislib.data.load_refcoco(...)`.
        protocol: one of `rislib.evaluation.PROTOCOLS`.
        batch_size: expressions at a time. It does not change the result beyond rounding.
        device: where to run; the method's own when None.
        progress: show a bar.
        precision: of the network's forward pass (autocast). Scores are computed in float32 either way.
        together: share the samples out to all processes of a launch. Each of them must call this, and gets
            the report of them all, the one that a single process would make: every batch is the same.

    Raises:
        ValueError: there are no samples, or the precision is unknown.
    """
    if not len(samples):
        raise ValueError("there are no samples to evaluate on")
    if device is not None:
        method.to(device)
    crew = processes() if together else None
    rank, size = (crew.process_index, crew.num_processes) if crew else (0, 1)
    share = _share(len(samples), batch_size, rank, size)
    scores = protocol.scores()
    shown = (samples[index] for index in share)
    shown = tqdm(shown, desc=protocol.name, unit="sample", total=len(share), disable=not progress or rank)
    for sample, found in answers(method, shown, protocol, batch_size=batch_size, precision=precision):
        target = target_mask(sample.mask, method.preprocessing, protocol)
        known = {"image_id": sample.image_id, "kind": sample.kind, "share": float(sample.mask.mean())}
        scores.add(protocol.foreground(found), target, **known)
    if size > 1:
        scores = reduce(Scores.merge, gather_object([scores]))
    return Report(protocol, scores)


def _share(samples: int, batch_size: int, rank: int, processes: int) -> range:
    """Which samples a process asks: whole batches in a row, so many as every other process, or one less."""
    batches = math.ceil(samples / batch_size)
    first, last = (batches * number // processes * batch_size for number in (rank, rank + 1))
    return range(first, min(last, samples))


def answers(
    method: Method,
    samples: Iterable[Sample],
    *protocols: Protocol,
    batch_size: int = 32,
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
) -> Iterator[tuple[Sample, *tuple[np.ndarray, ...]]]:
    """Each sample, and for each protocol what that thresholds: the score maps of `score_maps`.

    The method is asked where it is, `batch_size` samples at a time, and is in eval mode until the last one.
    Samples of one `image_id` must show one picture.

    Raises:
        ValueError: the precision is unknown.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
    device = next(method.parameters()).device
    samples = iter(samples)
    with _eval_mode(method):
        while chosen := list(islice(samples, batch_size)):
            with (
                torch.inference_mode(),
                torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32"),
            ):
                batch = make_batch(chosen, method.preprocessing, method.tokenize, share_pictures=True)
                batch = batch.to(device)
                logits = method.segment(method.features(batch), batch.tokens, batch.token_mask)
            sizes = [sample.mask.shape for sample in chosen]
            maps = [score_maps(logits, method.preprocessing, sizes, protocol) for protocol in protocols]
            yield from zip(chosen, *maps, strict=True)


def shuffled(samples: RefDataset, seed: int = 0) -> RefDataset:
    """The same pictures with expressions about other pictures: what a score owes to the words, control one.

    Pictures are put on a ring in random order, and each takes the expressions of the next one. An expression
    that happens to be said of the picture as well is passed over: no sample keeps, even by chance, words
    of its own picture.

    Raises:
        ValueError: some picture finds no expression that is not its own (one picture, or all alike).
    """
    own: dict[int, list[str]] = {}
    for record in samples.records:
        own.setdefault(record.image_id, []).append(record.expression)
    ring = np.random.default_rng(seed).permutation(sorted(own)).tolist()
    foreign = {
        image_id: _foreign_expressions(own[image_id], [own[other] for other in ring[i + 1 :] + ring[:i]])
        for i, image_id in enumerate(ring)
    }
    taken = dict.fromkeys(own, 0)
    expressions = []
    for record in samples.records:
        choices = foreign[record.image_id]
        expressions.append(choices[taken[record.image_id] % len(choices)])
        taken[record.image_id] += 1
    return samples.with_expressions(expressions)


def blinded(samples: RefDataset, word: str = "thing") -> RefDataset:
    """The same pictures, each expression replaced by one word that tells nothing: control two."""
    return samples.with_expressions([word] * len(samples))


def _foreign_expressions(own: list[str], others: list[list[str]]) -> list[str]:
    """The expressions, none of them in `own`, of the first of the others that has any."""
    for other in others:
        if foreign := [expression for expression in other if expression not in own]:
            return foreign
    raise ValueError(f"no picture has an expression other than {sorted(set(own))}")


def _brief(part: Scores) -> dict[str, float]:
    return {"oIoU": round(part.overall_iou(), 4), "mIoU": round(part.mean_iou(), 4), "n": len(part)}


@contextmanager
def _eval_mode(method: Method) -> Iterator[None]:
    """Eval mode inside; outside, every module as it was (frozen towers may stay in eval mode in training)."""
    before = {module: module.training for module in method.modules()}
    method.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
