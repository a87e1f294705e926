"""What goes wrong: every answer gets one of eight names, by rules over the picture's objects.

P is the prediction, T the thing that is meant, O any other object; IoU, precision (share of P on T) and
recall (share of T in P) are those of P and T. The first rule that holds names the answer:

    nothing             P is empty
    right               IoU >= 0.7
    boundary only       IoU >= 0.5, and three of four wrong pixels lie along T's edge, within the rim
    too much, objects   recall >= 0.7, and beyond the rim more is added than missed, most of it on objects
    too much, ground    the same, but most of it on no object
    wrong object        some O is met better than T: IoU(P, O) > IoU(P, T)
    part of it          precision >= 0.7: hardly anything but T, and not all of it
    scattered           what is left: pieces of T and of something else, or of the ground alone

"Wrong object" comes after "too much": who marks all of the right thing and another one has found it. Masks
are compared at the picture's own size, whatever the protocol does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from tqdm.auto import tqdm

from rislib.data import RefDataset, with_instances
from rislib.data.refmini import Scene, Thing
from rislib.data.refmini.forms import PLACES
from rislib.evaluation.edits import reactions, remembered
from rislib.evaluation.metrics import intersection_and_union
from rislib.evaluation.protocols import Protocol
from rislib.evaluation.report import answers
from rislib.evaluation.thresholds import METRICS, bought, sweep
from rislib.nouns import Method

ERRORS = (
    "right",
    "boundary only",
    "part of it",
    "too much, objects",
    "too much, ground",
    "wrong object",
    "scattered",
    "nothing",
)


@dataclass(frozen=True)
class Finding:
    """What was wrong with one answer. Places count the annotations of its picture."""

    error: str  # one of ERRORS
    kind: str | None  # of the expression
    target: int  # place of the thing that is meant
    iou: float  # with that, in [0, 1]
    other: int | None  # place of the other object that is met best; None where none is met
    other_iou: float


def name_error(
    prediction: np.ndarray,
    truth: np.ndarray,
    others: np.ndarray,
    *,
    right: float = 0.7,
    close: float = 0.5,
    most: float = 0.7,
    rim: float = 0.015,
    thin: float = 0.75,
) -> str:
    """One of `ERRORS`, exactly one, by the rules above.

    Args:
        prediction: (H, W) bool.
        truth: (H, W) bool, the thing that is meant.
        others: (N, H, W) bool, all other objects of the picture; N may be 0.
        right: the least IoU of a right answer.
        close: the least IoU of one with a wrong boundary.
        most: the least recall of "too much", and the least precision of "part of it".
        rim: how far the rim reaches to both sides of the edge, as a share of the picture's longer side.
        thin: the least share of wrong pixels within the rim where only the boundary is wrong.
    """
    iou = _iou(prediction, truth)
    if not prediction.any():
        return "nothing"
    if iou >= right:
        return "right"
    wrong, near = prediction ^ truth, _rim(truth, rim)
    if iou >= close and (wrong & near).sum() >= thin * wrong.sum():
        return "boundary only"
    shared, added, missed = prediction & truth, prediction & ~truth & ~near, truth & ~prediction & ~near
    if shared.sum() >= most * truth.sum() and added.sum() > missed.sum():
        on_objects = added & others.any(axis=0)
        return "too much, objects" if 2 * on_objects.sum() > added.sum() else "too much, ground"
    if any(_iou(prediction, other) > iou for other in others):
        return "wrong object"
    return "part of it" if shared.sum() >= most * prediction.sum() else "scattered"


def find_errors(
    method: Method, samples: RefDataset, protocol: Protocol, *, progress: bool = True, **thresholds: float
) -> list[Finding]:
    """What was wrong with every answer, in the samples' order. `thresholds` go to `name_error`."""
    protocol = replace(protocol, resolution="original")
    objects = with_instances(samples, "oracle").source
    shown = tqdm(samples, desc="errors", unit="sample", disable=not progress)
    findings = []
    for sample, scores in answers(method, shown, protocol):
        prediction, masks = protocol.foreground(scores), objects.masks(sample.image_id)  # (N, H, W)
        target = objects.of_picture[sample.image_id].index(sample.ann_id)
        error = name_error(prediction, masks[target], np.delete(masks, target, axis=0), **thresholds)
        ious = [_iou(prediction, mask) for mask in masks]
        iou, ious[target] = ious[target], 0.0
        other = int(np.argmax(ious)) if any(ious) else None
        findings.append(Finding(error, sample.kind, target, iou, other, max(ious)))
    return findings


def count_errors(findings: Sequence[Finding]) -> dict[str, dict[str, int]]:
    """{"all", and each kind of expression: {error: how many}}; every one of `ERRORS` is there."""
    counts: dict[str, dict[str, int]] = {}
    for finding in findings:
        for kind in _kinds(finding):
            counts.setdefault(kind, dict.fromkeys(ERRORS, 0))[finding.error] += 1
    return dict(sorted(counts.items()))


def gallery(findings: Sequence[Finding], count: int = 12) -> dict[str, list[int]]:
    """Places of the answers worth looking at: {"worst": [...], "closest_calls": [...]}.

    The worst have the lowest IoU, and among equals meet another object best. The closest calls could not
    decide between two: the lower of their two IoUs, with T and with another object, is highest.
    """
    worst = sorted(range(len(findings)), key=lambda i: (findings[i].iou, -findings[i].other_iou))
    close = sorted(range(len(findings)), key=lambda i: -min(findings[i].iou, findings[i].other_iou))
    return {"worst": worst[:count], "closest_calls": close[:count]}


def _colour(thing: Thing) -> str | None:
    return thing.outfit.shirt if thing.outfit else thing.colour


def _side(thing: Thing) -> int:
    """-1 left and 1 right, as RefMini's words mean it; 0 between."""
    return PLACES["right"](thing, 0) - PLACES["left"](thing, 0)


# What a wrongly chosen thing may share with the one that is meant. People's colour is their shirt's.
SHARED: dict[str, Callable[[Thing, Thing], bool]] = {
    "category": lambda a, b: a.category == b.category,
    "name": lambda a, b: a.name == b.name,
    "colour": lambda a, b: _colour(a) == _colour(b),
    "size": lambda a, b: a.size == b.size,
    "opposite side": lambda a, b: _side(a) * _side(b) == -1,
}


def confusions(
    findings: Sequence[Finding], samples: RefDataset, scenes: Mapping[int, Scene]
) -> dict[str, dict[str, Any]]:
    """What the chosen objects share with the right ones, over all answers named "wrong object". Percent.

    {"all", and each kind of expression: {"n": answers, and for each name in `SHARED` {"chosen": how many of
    the chosen objects do, "chance": how many of all other objects of the same pictures, as a mean}}}
    """
    cases: dict[str, list[list[tuple[float, float]]]] = {}
    for finding, record in zip(findings, samples.records, strict=True):
        if finding.error == "wrong object":
            others = list(scenes[record.image_id].things)
            chosen, meant = others[finding.other], others.pop(finding.target)
            case = [
                (share(chosen, meant), np.mean([share(o, meant) for o in others]))
                for share in SHARED.values()
            ]
            for kind in _kinds(finding):
                cases.setdefault(kind, []).append(case)
    found: dict[str, dict[str, Any]] = {}
    for kind, measured in sorted(cases.items()):
        means = np.round(100 * np.mean(measured, axis=0), 2).tolist()  # (what is shared, 2)
        shares = {name: {"chosen": a, "chance": b} for name, (a, b) in zip(SHARED, means, strict=True)}
        found[kind] = {"n": len(measured), **shares}
    return found


def dissect(
    method: Method,
    samples: RefDataset,
    protocol: Protocol,
    *,
    selection: RefDataset | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """All of it, as plain numbers for `results/`.

    Keys: n, protocol, errors (see `count_errors`), worst and closest_calls (see `gallery`), confusions and
    reactions (RefMini only), thresholds ({protocol: {threshold: {oIoU, mIoU}}}, the two published protocols),
    and bought ({protocol: {metric: see `bought`}}), if there is another split for the `selection` of one.
    """
    findings = find_errors(method, samples, protocol, progress=progress)
    numbers: dict[str, Any] = {"n": len(findings), "protocol": protocol.name}
    numbers |= {"errors": count_errors(findings), **gallery(findings)}
    if memory := remembered(samples):
        numbers["confusions"] = confusions(findings, samples, memory.scenes)
        numbers["reactions"] = reactions(method, samples, memory, protocol, progress=progress)
    swept = sweep(method, samples, progress=progress)
    numbers["thresholds"] = {
        name: {str(t): {m: round(counted.summary()[m], 4) for m in METRICS} for t, counted in scores.items()}
        for name, scores in swept.items()
    }
    if selection is not None:
        chosen = sweep(method, selection, progress=progress)
        numbers["bought"] = {
            name: {metric: bought(chosen[name], scores, metric) for metric in METRICS}
            for name, scores in swept.items()
        }
    return numbers


def table(numbers: Mapping[str, Any]) -> str:
    """Errors, by kind of expression, and reactions, as `dissect` found them: for a terminal."""
    kinds = numbers["errors"]
    errors = {error: {kind: kinds[kind][error] for kind in kinds} for error in ERRORS}
    tables = [(errors, list(kinds))]
    if "reactions" in numbers:
        tables.append((numbers["reactions"], ["n", "same_answer", "n_meant", "right_before", "right_after"]))
    lines = []
    for rows, columns in tables:
        lines += ["", " " * 18 + "".join(f"{column:>13}" for column in columns)]
        for name, row in rows.items():
            lines.append(f"{name:<18}" + "".join(f"{row.get(column, ''):>13}" for column in columns))
    return "\n".join(lines)


def _kinds(finding: Finding) -> list[str]:
    return ["all"] if finding.kind is None else ["all", finding.kind]


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    intersection, union = intersection_and_union(a, b)
    return intersection / max(union, 1)


def _rim(mask: np.ndarray, rim: float) -> np.ndarray:
    """Pixels in whose neighbourhood, a square reaching a share `rim` of the longer side, the edge runs."""
    reach = max(1, round(rim * max(mask.shape)))
    least = most = np.pad(mask, reach, mode="edge")  # so that the picture's border is no edge
    for axis in (0, 1):
        least = sliding_window_view(least, 2 * reach + 1, axis).all(-1)
        most = sliding_window_view(most, 2 * reach + 1, axis).any(-1)
    return most & ~least
