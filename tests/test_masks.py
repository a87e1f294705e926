"""Masks: every form that COCO has, and what is malformed never reaches pycocotools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from rislib.data import DataError, box_of_mask, decode_segmentation, encode_mask

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))


def run_lengths(mask: np.ndarray) -> list[int]:
    """Column by column, starting with the zeros: the slow way."""
    runs, current = [0], False
    for pixel in mask.T.ravel():
        if pixel != current:
            runs.append(0)
            current = not current
        runs[-1] += 1
    return runs


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mask=MASKS)
def test_all_run_length_forms_agree(mask: np.ndarray) -> None:
    height, width = mask.shape
    encoded = encode_mask(mask)
    assert (decode_segmentation(encoded, height, width) == mask).all()
    as_bytes = {"size": encoded["size"], "counts": encoded["counts"].encode()}
    assert (decode_segmentation(as_bytes, height, width) == mask).all()
    plain = {"size": [height, width], "counts": run_lengths(mask)}
    assert (decode_segmentation(plain, height, width) == mask).all()


def test_long_runs_survive_compression() -> None:
    mask = np.zeros((3000, 2000), bool)
    mask[100:2900, 50:1900] = True
    mask[1000, 1000] = False
    assert (decode_segmentation(encode_mask(mask), 3000, 2000) == mask).all()


def test_polygons_of_one_object_are_merged() -> None:
    polygons = [[1, 1, 4, 1, 4, 3, 1, 3], [6.0, 2, 9, 2, 9, 8, 6, 8], [3, 2, 7, 2, 7, 5, 3, 5]]
    expected = np.zeros((10, 12), bool)
    expected[1:3, 1:4] = expected[2:8, 6:9] = expected[2:5, 3:7] = True
    assert (decode_segmentation(polygons, 10, 12) == expected).all()


def test_polygons_that_leave_the_picture_are_cut() -> None:
    mask = decode_segmentation([[-3, -3, 5, -3, 5, 20, -3, 20]], 10, 12)
    assert mask[:, :5].all() and not mask[:, 5:].any()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(mask=MASKS)
def test_box_is_the_smallest(mask: np.ndarray) -> None:
    x, y, width, height = box_of_mask(mask)
    assert width * height == 0 or mask[y : y + height, x : x + width].sum() == mask.sum()
    if mask.any():
        rows, columns = np.nonzero(mask)
        expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
        assert (x, y, width, height) == expected
    else:
        assert (x, y, width, height) == (0, 0, 0, 0)


def rle(counts: Any, size: Any = (4, 5)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        3,
        "text",
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[1, 2, 3, 4, 5, 6, 7]],
        [[1, 2, 3, 4, 5, float("nan")]],
        [[1, 2, 3, 4, 5, float("inf")]],
        [[1, 2, 3, 4, 5, 10**400]],
        [[1, 2, 3, 4, 5, 1e9]],
        [[1, 2, 3, 4, 5, "6"]],
        [[1, 2, 3, 4, 5, True]],
        [1, 2, 3, 4, 5, 6],
        [{"size": [4, 5], "counts": [20]}],
        {},
        {"counts": [20]},
        {"size": [4, 5]},
        rle([20], (5, 4)),
        rle([20], (4, 5, 1)),
        rle([20], "45"),
        rle([]),
        rle([19]),
        rle([21]),
        rle([25, -5]),
        rle([2**32, 20]),
        rle([10.0, 10]),
        rle([True] * 20),
        rle(["20"]),
        rle(20),
        rle(""),
        rle("P" * 5),
        rle("o" * 100_000),
        rle("ooooooooo0"),
        rle("d0d0d0"),
        rle("\x00\x01"),
        rle("é"),
        rle(b"\xff\xff"),
    ],
)
def test_malformed_input(segmentation: Any) -> None:
    with pytest.raises(DataError):
        decode_segmentation(segmentation, 4, 5)


@settings(max_examples=300, deadline=10_000, derandomize=True)
@given(counts=st.binary(max_size=30) | st.text(max_size=30) | st.lists(st.integers(-5, 30), max_size=8))
def test_random_run_lengths(counts: Any) -> None:
    try:
        mask = decode_segmentation(rle(counts), 4, 5)
    except DataError:
        return
    assert mask.shape == (4, 5)
