"""Instance masks for methods that read them beside picture and words, and where they come from.

    with_instances(samples, "proposals")   what a segmenter found; `propose` keeps it beside the dataset
    with_instances(samples, "found.json")  what any other program found, in COCO's results format
    with_instances(samples, "oracle")      the annotations. One of them is the answer: a bound, not a result
    with_instances(samples, "none")        no masks

The choice stays with the samples as `instances_from`, and whoever reports a number says it: what seems to be
a method's gain may be its segmenter's, or the oracle's.

COCO's results format is a JSON list with an entry per mask: `image_id`, `segmentation` (run lengths or
polygons, at the picture's size), `score`; other fields are not read. A picture may have no entry.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as coco
from tqdm.auto import tqdm

from rislib.data.errors import DataError, locating
from rislib.data.index import Picture, collector_paused, known_id, labelled_rows, load_json, read_instances
from rislib.data.masks import box_of_mask, decode_segmentation, encode_mask
from rislib.data.refcoco import RefDataset, annotations_of
from rislib.encoders import fingerprint

if TYPE_CHECKING:
    from rislib.encoders.segmenter import Segmenter

MAKE_THEM = "make them with `python -m rislib propose` and the name or folder of the dataset"


@dataclass(frozen=True)
class Proposals:
    """The masks of a results file: of each picture the surest, without doubles."""

    name: str
    file: Path
    pictures: Mapping[int, Picture]
    found: Mapping[int, Sequence[tuple[str, Any]]]  # image id -> (label, segmentation), the surest first
    overlap: float
    most: int

    def masks(self, image_id: int) -> np.ndarray:
        picture = self.pictures[image_id]
        masks = np.zeros((0, picture.height, picture.width), dtype=bool)
        boxes = np.zeros((0, 4))
        for label, segmentation in self.found.get(image_id, ()):
            if len(masks) == self.most:
                break
            with locating(str(self.file), label):
                mask = decode_segmentation(segmentation, picture.height, picture.width)
            box = np.array([box_of_mask(mask)], dtype=float)
            double = len(boxes) and coco.iou(box, boxes, [0] * len(boxes)).max() > self.overlap
            if mask.any() and not double:
                masks, boxes = np.concatenate([masks, mask[None]]), np.concatenate([boxes, box])
        return masks


def with_instances(
    samples: RefDataset,
    source: str | Path,
    *,
    min_score: float = 0.65,
    overlap: float = 0.5,
    most: int = 16,
) -> RefDataset:
    """The same samples with instance masks of `source`: "proposals", "oracle", "none" or a results file.

    Args:
        min_score, overlap, most: which proposals remain: those at least so sure (MAttNet's value); of two
            whose boxes have a larger IoU the surer one; and of these the surest so many. They come in the
            order of their scores. An oracle's masks all remain, in the annotations' order.

    Raises:
        DataError: the proposals are not here, of other weights than the segmenter has now, not of all
            pictures, or malformed. A malformed mask is noticed when its sample is taken.
        FileNotFoundError: the segmenter's own weights are not here.
    """
    if source == "none":
        return samples.with_source(None)
    image_ids = {record.image_id for record in samples.records}
    if source == "oracle":
        with collector_paused():
            instances = read_instances(samples.folder.parent, samples.folder.name)
        return samples.with_source(annotations_of(instances, image_ids))
    file = Path(source)
    if source == "proposals":
        file = samples.folder / "proposals.json"
        _check_origin(file, image_ids)
    found = read_results(file, samples.pictures, min_score)
    return samples.with_source(Proposals(str(source), file, samples.pictures, found, overlap, most))


def read_results(
    file: Path, pictures: Mapping[int, Picture], min_score: float = 0.0
) -> dict[int, list[tuple[str, Any]]]:
    """COCO's results format -> image id -> (what errors call it, segmentation), the surest first.

    Raises:
        DataError: the file cannot be read, or an entry has no known picture, no score or no mask.
    """
    found: dict[int, list[tuple[float, str, Any]]] = {}
    with locating(str(file)), collector_paused():
        for row, label in labelled_rows(load_json(file), "proposal", "id"):
            with locating(str(file), label):
                image_id = known_id(row, "image_id", pictures, "image")
                score = row.get("score")
                if type(score) not in (int, float) or not math.isfinite(score):
                    raise DataError("missing" if score is None else f"{score!r} is no score", field="score")
                if "segmentation" not in row:
                    raise DataError("missing: boxes are not enough", field="segmentation")
                if score >= min_score:
                    found.setdefault(image_id, []).append((score, label, row["segmentation"]))
    for proposals in found.values():
        proposals.sort(key=lambda proposal: -proposal[0])
    return {image_id: [each[1:] for each in proposals] for image_id, proposals in found.items()}


def propose(samples: RefDataset, segmenter: Segmenter, *, progress: bool = True) -> Path:
    """Segment every picture of `samples`, and keep what is found in the dataset's folder.

    Only pictures are looked at, no annotation. Proposals that were there before are replaced. Writes
    proposals.json (COCO's results format) and, last, proposals.origin.json: by whom, with which weights, of
    which pictures. Returns the path of the former.
    """
    file, origin = samples.folder / "proposals.json", samples.folder / "proposals.origin.json"
    image_ids = list(dict.fromkeys(record.image_id for record in samples.records))
    rows = []
    for image_id in tqdm(image_ids, desc="looking for things", unit="picture", disable=not progress):
        for mask, score in zip(*segmenter.segment(samples.pictures[image_id].open()), strict=True):
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": 1,  # of a thing; pycocotools' own reader wants one
                    "segmentation": encode_mask(mask),
                    "bbox": box_of_mask(mask),
                    "score": round(float(score), 4),
                }
            )
    origin.unlink(missing_ok=True)  # whatever happens now, the old one does not vouch for the new
    _write_json(file, rows)
    _write_json(origin, {"segmenter": segmenter.name, "weights": segmenter.weights, "pictures": image_ids})
    return file


def recall(samples: RefDataset, iou: Sequence[float] = (0.5, 0.75)) -> dict[str, float]:
    """How many of all annotated objects the instance masks of `samples` find: see `average_recall`.

    Raises:
        ValueError: the samples carry no instance masks.
    """
    if samples.source is None:
        raise ValueError("the samples carry no instance masks: with_instances(samples, ...) gives them some")
    truth = with_instances(samples, "oracle").source
    image_ids = dict.fromkeys(record.image_id for record in samples.records)
    return average_recall(((truth.masks(i), samples.source.masks(i)) for i in image_ids), iou)


def average_recall(
    pictures: Iterable[tuple[np.ndarray, np.ndarray]], iou: Sequence[float] = (0.5, 0.75)
) -> dict[str, float]:
    """Of each picture its objects (M, H, W) bool and the proposals (N, H, W) bool -> {"AR@0.5": 91.3, ...}.

    AR@x is the percentage of objects that some proposal meets with an IoU of at least x; "proposals" is
    their mean number. Objects that do not overlap cannot share a proposal where x is above one half.
    """
    best, numbers = [], []
    for objects, proposals in pictures:
        best.append(best_overlaps(objects, proposals))
        numbers.append(len(proposals))
    best = np.concatenate(best)
    shares = {f"AR@{x}": round(100 * float((best >= x).mean()), 2) for x in iou}
    return {**shares, "proposals": round(float(np.mean(numbers)), 2)}


def best_overlaps(objects: np.ndarray, proposals: np.ndarray) -> np.ndarray:
    """objects (M, H, W), proposals (N, H, W) bool -> (M,): the IoU of each object's best proposal."""
    if not len(proposals):
        return np.zeros(len(objects))
    a, b = (masks.reshape(len(masks), -1).astype(np.float32) for masks in (objects, proposals))
    common = a @ b.T  # (M, N) pixels, exact: float32 counts to 2**24
    return (common / (a.sum(1)[:, None] + b.sum(1) - common)).max(1)


def _check_origin(file: Path, image_ids: set[int]) -> None:
    """Raises DataError unless these are the pictures' proposals by the segmenter as it is now."""
    with locating(str(file)):
        origin = file.with_name("proposals.origin.json")
        if not origin.exists():
            raise DataError(f"no proposals yet: {MAKE_THEM}")
        made = load_json(origin)
        if made["segmenter"] == "mini" and made["weights"] != fingerprint("segmenter"):
            raise DataError(f"made with other weights than the segmenter has now: {MAKE_THEM}")
        if missing := len(image_ids.difference(made["pictures"])):
            raise DataError(f"without {missing} of {len(image_ids)} pictures: {MAKE_THEM}")


def _write_json(path: Path, content: Any) -> None:
    """All at once."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.write_text(json.dumps(content))
    os.replace(partial, path)
