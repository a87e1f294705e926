"""What is said about one's own pictures: the table `expressions.csv` or `expressions.json` of their folder.

    expressions.csv       image,expression,mask
                          garden/1.jpg,the cat on the wall,masks/cat1.png
    expressions.json      COCO's annotations, each with an `expression` or `captions`

A row is a sentence; rows with the same image and mask speak of one thing. Images and masks are paths within
the folder. In place of a mask there may be a `box`, "x y w h" in pixels from the upper left corner, or
columns x, y, w and h. A `split` is train, val, test, testA or testB; without any, pictures are dealt out,
80/10/10, always in the same way. Other columns are not read.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from rislib.data.errors import DataError, Fault, locating, raise_fault
from rislib.data.index import known_id, labelled_rows, load_json, new_id, read_categories, take

TABLES = ("expressions.csv", "expressions.json")
SPLITS = ("train", "val", "test", "testA", "testB")

Box = tuple[float, float, float, float]  # x, y, width, height in pixels


@dataclass(frozen=True, slots=True)
class Row:
    """A sentence of the table, and where to find the thing that it means."""

    place: str  # as errors call it: "row 4", "annotation 17"
    image: str  # path within the folder
    outline: str | Box | list | dict  # a mask's path within the folder, a box, or COCO's segmentation
    thing: Any  # the same for all sentences about one thing
    expression: str | None  # None: a thing of which nothing is said (COCO)
    split: str
    category: str = ""
    size: tuple[int, int] | None = None  # height, width that the table gives the picture (COCO)


def own_table(folder: str | Path) -> Path | None:
    """The table of a folder of one's own pictures; None where there is none."""
    return next((Path(folder) / name for name in TABLES if (Path(folder) / name).is_file()), None)


def read_table(
    folder: str | Path, on_fault: Fault = raise_fault, on_remark: Callable[[str], None] = lambda _: None
) -> list[Row]:
    """Every sentence of the table, with its split. No picture is opened.

    A fault goes to `on_fault`; if that returns, the row is left out. What is only odd, or was decided here,
    goes to `on_remark`, a line each.
    """
    table = own_table(folder)
    if table is None:
        raise DataError(f"no {' or '.join(TABLES)}", file=str(folder))
    rows: list[Row] = []
    with locating(table.name, on_fault=on_fault):
        if other := [name for name in TABLES if name != table.name and (table.parent / name).exists()]:
            raise DataError(f"there is {other[0]}, too: keep one of them")
        rows = list((_csv_rows if table.suffix == ".csv" else _coco_rows)(table, on_fault))
        if not rows:
            raise DataError("says nothing about any picture")
    rows = _check_words(table.name, rows, on_fault)
    rows = _check_splits(table.name, rows, on_fault, on_remark)
    for remark in _oddities(rows):
        on_remark(f"{table.name}: {remark}")
    return rows


# --- the table ----------------------------------------------------------------------------------


def _csv_rows(table: Path, on_fault: Fault) -> Iterator[Row]:
    lines = _lines(table)
    _, header = next(lines, (1, []))
    columns = [name.strip().lower() for name in header]
    _check_columns(columns)
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        with locating(table.name, f"row {number}", on_fault):
            if len(cells) > len(columns):
                problem = (
                    f'{len(cells)} cells for {len(columns)} columns: put "quotes" around what has a comma'
                )
                raise DataError(problem)
            cell = dict(zip(columns, map(str.strip, cells), strict=False))
            image = _path(cell.get("image", ""), "image")
            outline = _csv_outline(cell)
            place, split = f"row {number}", cell.get("split", "")
            yield Row(place, image, outline, (image, outline), cell.get("expression", ""), split)


def _lines(table: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of the table, counted as spreadsheets do."""
    reader = csv.reader(io.StringIO(_text(table), newline=""), strict=True)
    try:
        yield from enumerate(reader, start=1)
    except csv.Error as error:
        problem = f"cannot be divided into cells ({error}): is each quote closed?"
        raise DataError(problem, record=f"line {reader.line_num}") from error


def _text(table: Path) -> str:
    content = table.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content[: error.start].count(b"\n") + 1
        problem = f'byte {content[error.start]:#04x} is not UTF-8: save the table again as "CSV UTF-8"'
        raise DataError(problem, record=f"row {row}") from error


def _check_columns(columns: list[str]) -> None:
    names = ", ".join(columns)
    for sign, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(columns) == 1 and sign in columns[0]:
            raise DataError(
                f"its columns are separated by {name}: save the table with commas", record="row 1"
            )
    for name in ("image", "expression"):
        if name not in columns:
            problem = f"no column {name!r}, but {names}: the first line must name it"
            raise DataError(problem, record="row 1")
    if not {"mask", "box"} & set(columns) and not {"x", "y", "w", "h"} <= set(columns):
        problem = f"no column 'mask' or 'box', nor x, y, w and h, but {names}: say where the things are"
        raise DataError(problem, record="row 1")


def _csv_outline(cell: dict[str, str]) -> str | Box:
    if cell.get("mask"):
        return _path(cell["mask"], "mask")
    numbers = re.findall(r"[^\s,;\[\]()]+", cell.get("box", "")) or [cell.get(side, "") for side in "xywh"]
    if not any(numbers):
        raise DataError("neither mask nor box: say where the thing is, or delete the row")
    return _box(numbers)


def _path(name: str, field: str) -> str:
    if not name:
        raise DataError(f"missing: name the {field}'s file, or delete the row", field=field)
    return PurePosixPath(name).as_posix()  # ./1.jpg is 1.jpg


def _box(numbers: Sequence[Any]) -> Box:
    try:
        x, y, w, h = map(float, numbers)
    except (TypeError, ValueError) as error:
        given = " ".join(map(str, numbers))
        raise DataError(f"four numbers x y w h, not {given!r}", field="box") from error
    if not all(map(math.isfinite, (x, y, w, h))) or min(w, h) <= 0:
        raise DataError(f"w {w:g} and h {h:g} enclose nothing: they are width and height", field="box")
    return x, y, w, h


def _coco_rows(table: Path, on_fault: Fault) -> Iterator[Row]:
    document = load_json(table)
    if not isinstance(document, dict) or not {"images", "annotations"} <= document.keys():
        raise DataError("no COCO: that is an object with lists 'images' and 'annotations'")
    images: dict[int, dict[str, Any]] = {}
    for row, label in labelled_rows(document["images"], "image", "id", "images"):
        with locating(table.name, label, on_fault):
            number = new_id(row, "id", images)
            take(row, "file_name", str)
            images[number] = row
    categories = read_categories(document, table.name, on_fault)
    seen: set[int] = set()
    spoken = False
    for row, label in labelled_rows(document["annotations"], "annotation", "id", "annotations"):
        with locating(table.name, label, on_fault):
            number = new_id(row, "id", seen)
            seen.add(number)
            image = images[known_id(row, "image_id", images, "image")]
            outline = row.get("segmentation") or _coco_box(row)
            size = (image["height"], image["width"]) if {"height", "width"} <= image.keys() else None
            split = str(row.get("split", image.get("split", "")))
            category = ""
            if "category_id" in row:
                category = categories[known_id(row, "category_id", categories, "category")]
            name = _path(image["file_name"], "file_name")
            for words in _coco_words(row):
                spoken |= words is not None
                yield Row(label, name, outline, number, words, split, category, size)
    if seen and not spoken:
        raise DataError("no annotation has an 'expression' or 'captions': say what refers to the thing")


def _coco_box(row: dict[str, Any]) -> Box:
    if "bbox" not in row:
        problem = "neither segmentation nor bbox: what is said of a whole picture refers to no thing"
        raise DataError(problem)
    return _box(row["bbox"] if isinstance(row["bbox"], list) else [row["bbox"]])


def _coco_words(row: dict[str, Any]) -> list[str | None]:
    """What is said of the annotated thing; [None] where nothing is."""
    words = row.get("expression", row.get("captions"))
    words = [words] if isinstance(words, str) else words or [None]
    if not isinstance(words, list) or not all(isinstance(each, str | None) for each in words):
        raise DataError("neither text nor a list of texts", field="expression")
    return [each if each is None else each.strip() for each in words]


# --- what is said -------------------------------------------------------------------------------


def _check_words(table: str, rows: Sequence[Row], on_fault: Fault) -> list[Row]:
    """The rows whose sentences say something, and something else than those before."""
    kept: list[Row] = []
    said: dict[tuple[str, str], Row] = {}
    for row in rows:
        with locating(table, row.place, on_fault):
            if row.expression is not None:
                _check_sentence(row.expression)
                words = " ".join(row.expression.casefold().split())
                before = said.setdefault((row.image, words), row)
                if before is not row and before.thing == row.thing:
                    raise DataError(f"says what {before.place} says: delete one of them", field="expression")
                if before is not row:
                    problem = f"{before.place} says it of another thing of {row.image}: tell them apart"
                    raise DataError(problem, field="expression")
            kept.append(row)
    return kept


def _check_sentence(expression: str) -> None:
    if not expression:
        raise DataError("empty: say what the thing is, or delete the row", field="expression")
    if re.fullmatch(r"\S+\.(jpe?g|png|gif|bmp|webp|tiff?|heic)", expression, re.IGNORECASE):
        raise DataError(f"{expression} is a file's name: are columns exchanged?", field="expression")
    if not any(letter.isalpha() for letter in expression):
        problem = f"{expression!r} has no letter: say in words what the thing is"
        raise DataError(problem, field="expression")


def _check_splits(
    table: str, rows: Sequence[Row], on_fault: Fault, on_remark: Callable[[str], None]
) -> list[Row]:
    if rows and not any(row.split for row in rows):
        dealt = deal({row.image for row in rows})
        counts = Counter(dealt.values())
        shares = ", ".join(f"{split} {counts[split]}" for split in SPLITS if counts[split])
        on_remark(f"{table}: no split is given: pictures were dealt out, {shares}")
        return [replace(row, split=dealt[row.image]) for row in rows]
    kept: list[Row] = []
    first: dict[str, Row] = {}
    for row in rows:
        with locating(table, row.place, on_fault):
            if row.expression is not None and row.split not in SPLITS:
                problem = f"{row.split!r} is none of {', '.join(SPLITS)}: give all rows one of these, or none"
                raise DataError(problem, field="split")
            before = first.setdefault(row.image, row) if row.expression is not None else row
            if before.split != row.split:
                problem = f"{row.split}, but {before.place} has {row.image} in {before.split}: choose one"
                raise DataError(problem, field="split")
            kept.append(row)
    return kept


def deal(images: set[str]) -> dict[str, str]:
    """A split for each picture: of ten, 8 train, 1 val, 1 test; of three or more, at least one in each.

    Names decide, and not their order; so it is always the same as long as no picture comes or goes.
    """
    order = sorted(images, key=lambda image: hashlib.sha256(image.encode()).digest())
    part = max(1, round(len(order) / 10)) if len(order) > 2 else 0
    splits = ["val"] * part + ["test"] * part
    return dict(zip(order, splits + ["train"] * (len(order) - len(splits)), strict=True))


def _oddities(rows: Sequence[Row]) -> Iterator[str]:
    """What may be meant, but mostly is not; and what a box costs."""
    said = [row.expression for row in rows if row.expression is not None]
    if len(said) > 2 and all(len(words.split()) == 1 for words in said):
        common, times = Counter(said).most_common(1)[0]
        yield (
            f"every expression is one word ({common!r} {times} of {len(said)} times), like a category: "
            "say what tells a thing from others of its kind"
        )
    boxes = list({row.thing: row.outline for row in rows if isinstance(row.outline, tuple)}.values())
    if boxes:
        yield f"{len(boxes)} things have no mask but a box: the whole rectangle is taken for the thing"
    if len(boxes) > 4 and all(w > x and h > y for x, y, w, h in boxes):
        yield "in every box w > x and h > y, as if they were corners x1 y1 x2 y2: look at some of them"
