"""COCO segmentations (polygons, run lengths) to boolean masks and back, through pycocotools.

pycocotools trusts its input: bad run lengths make it read or write outside its buffers. Everything is
therefore checked here before it is handed over.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

from rislib.data.errors import DataError

FIELD = "segmentation"
LONGEST_CODE = 7  # characters of one compressed run length: 5 bits each, and a run has at most 32


def decode_segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A COCO `segmentation` -> (height, width) bool.

    It may be a list of polygons [x0, y0, x1, y1, ...], all of which belong to the object; run lengths as
    a list of numbers (COCO's crowds); or compressed run lengths as text or bytes.

    Raises:
        DataError: if it is none of these, or not for a picture of this size.
    """
    if isinstance(segmentation, list):
        _check_polygons(segmentation, height, width)
        rle = coco.merge(coco.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation, dict):
        runs = _checked_runs(segmentation, height, width)
        rle = coco.frPyObjects({"size": [height, width], "counts": runs}, height, width)
    else:
        raise _wrong(f"{type(segmentation).__name__} instead of polygons or run lengths")
    return coco.decode(rle).astype(bool)


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """(H, W) bool -> compressed run lengths {"size": [H, W], "counts": text}, ready for JSON."""
    rle = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def box_of_mask(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(H, W) bool -> COCO's box (x, y, width, height) in pixels; all 0 for an empty mask."""
    x, y, width, height = coco.toBbox(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))
    return int(x), int(y), int(width), int(height)


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    if not polygons:
        raise _wrong("no polygon")
    for polygon in polygons:
        if not isinstance(polygon, list):
            raise _wrong(f"{type(polygon).__name__} instead of a polygon")
        if len(polygon) < 6 or len(polygon) % 2:
            raise _wrong(f"polygon with {len(polygon)} numbers")
        _check_coordinates(polygon[0::2], "x", width)
        _check_coordinates(polygon[1::2], "y", height)


def _check_coordinates(values: list[Any], axis: str, side: int) -> None:
    """Numbers, finite, and near the picture: pycocotools' memory grows with how far a polygon reaches."""
    for value in values:
        if type(value) is not int and type(value) is not float:
            raise _wrong(f"{type(value).__name__} instead of a number in a polygon")
        if not -side <= value <= 2 * side:  # NaN is caught as well
            raise _wrong(f"polygon with {axis} far outside a picture of {side} pixels, or not finite")


def _checked_runs(segmentation: dict[Any, Any], height: int, width: int) -> list[int]:
    """The run lengths of a dictionary with `size` and `counts`, certain to cover height x width pixels."""
    if segmentation.get("size") != [height, width]:
        raise _wrong(f"run lengths of another size than the picture's {height} x {width}")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        runs = counts
    elif isinstance(counts, str | bytes):
        runs = _decompressed(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
    else:
        raise _wrong(f"{type(counts).__name__} instead of run lengths")
    if not all(type(run) is int and run >= 0 for run in runs):
        raise _wrong("run lengths that are not counts")
    if sum(runs) != height * width:
        raise _wrong(f"run lengths that do not cover the {height * width} pixels of the picture")
    return runs


def _decompressed(code: bytes) -> list[int]:
    """COCO's compressed run lengths -> numbers (`rleFrString` in pycocotools' maskApi.c).

    Each number is written in groups of 5 bits, lowest first, one character (from "0") per group; the
    sixth bit says that more groups follow, the fifth of the last one is the sign. From the fourth number
    on it is the difference to the number two places before.
    """
    runs: list[int] = []
    value = length = 0
    for character in code:
        group = character - ord("0")
        if not 0 <= group < 64 or length == LONGEST_CODE:
            raise _wrong("compressed run lengths that are none")
        value |= (group & 31) << 5 * length
        length += 1
        if group & 32:
            continue
        if group & 16:
            value -= 1 << 5 * length
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = length = 0
    if length:
        raise _wrong("compressed run lengths that break off")
    return runs


def _wrong(problem: str) -> DataError:
    return DataError(problem, field=FIELD)
