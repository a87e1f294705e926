"""The index of a dataset in RefCOCO's layout: from its files to records whose ids all lead somewhere.

Which files these are is said in `rislib.data.refcoco`, which makes samples of the records. No picture is
opened and no mask is decoded before somebody asks for it.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rislib.data.errors import DataError, Fault, locating, raise_fault
from rislib.data.masks import decode_segmentation
from rislib.data.pickles import load_pickle


@dataclass(frozen=True, slots=True)
class Record:
    """A sample without its pixels."""

    expression: str
    kind: str | None
    image_id: int
    ann_id: int
    ref_id: int
    sent_id: int
    split: str
    category: str


@dataclass(frozen=True, slots=True)
class Picture:
    """Where a picture lies, and the size in pixels that it should have."""

    path: Path
    name: str  # the path as errors give it, relative to the root
    height: int
    width: int

    def open(self) -> Image.Image:
        """The picture as RGB. Raises DataError if it is missing, broken or of another size."""
        with locating(self.name):
            try:
                with Image.open(self.path) as image:
                    _check_size(image, self.height, self.width)
                    return image.convert("RGB")
            except FileNotFoundError as error:
                raise DataError("no such picture") from error
            except DataError:
                raise
            except Exception as error:  # broken pictures make Pillow raise nearly everything
                raise DataError(f"not a readable picture ({type(error).__name__})") from error


@dataclass(frozen=True)
class Instances:
    """What an `instances.json` says."""

    file: str  # relative to the root
    pictures: dict[int, Picture] = field(default_factory=dict)  # by image id
    segmentations: dict[int, Any] = field(default_factory=dict)  # by annotation id, as found in the file
    image_of: dict[int, int] = field(default_factory=dict)  # annotation id -> image id
    category_of: dict[int, str] = field(default_factory=dict)  # annotation id -> category's name

    def mask(self, ann_id: int) -> np.ndarray:
        """(H, W) bool of one annotation, at its picture's size. Raises DataError if it is malformed."""
        picture = self.pictures[self.image_of[ann_id]]
        with locating(self.file, f"annotation {ann_id}"):
            return decode_segmentation(self.segmentations[ann_id], picture.height, picture.width)

    def only(self, ann_ids: set[int]) -> Instances:
        """The same without the segmentations of all other annotations: polygons are what takes the memory."""
        return replace(self, segmentations={ann_id: self.segmentations[ann_id] for ann_id in ann_ids})


def find_datasets(root: str | Path) -> list[tuple[str, str]]:
    """All (dataset, split_by) that lie under `root`, sorted."""
    files = [*Path(root).glob("*/refs(*).p"), *Path(root).glob("*/refs(*).json")]
    return sorted({(file.parent.name, file.stem[len("refs(") : -1]) for file in files})


def picture_folder(root: Path, dataset: str) -> Path:
    """Where a dataset's pictures lie, or should lie if they are not here."""
    folders = [root / "images" / dataset, root / "images/train2014", root / "images/mscoco/images/train2014"]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def read_instances(root: Path, dataset: str, on_fault: Fault = raise_fault) -> Instances:
    """Reads `instances.json`. Each fault goes to `on_fault`; if that returns, the record is left out."""
    found = Instances(f"{dataset}/instances.json")
    with locating(found.file, on_fault=on_fault):
        document = load_json(root / found.file)
        if not isinstance(document, dict):
            raise DataError(f"{_type(document)} instead of an object")
        _read_pictures(document, found, root, picture_folder(root, dataset), on_fault)
        _read_annotations(document, found, read_categories(document, found.file, on_fault), on_fault)
    return found


def read_references(
    root: Path, dataset: str, split_by: str, instances: Instances, on_fault: Fault = raise_fault
) -> list[Record]:
    """Reads `refs(<split_by>)`. Each fault goes to `on_fault`; if that returns, the reference is left out."""
    file = f"{dataset}/refs({split_by}).json"
    if not (root / file).exists():
        file = f"{dataset}/refs({split_by}).p"
    records: list[Record] = []
    with locating(file, on_fault=on_fault):
        rows = load_json(root / file) if file.endswith(".json") else load_pickle(root / file, file)
        seen: set[int] = set()
        for row, label in labelled_rows(rows, "reference", "ref_id"):
            with locating(file, label, on_fault):
                records.extend([*_read_reference(row, instances, seen)])
    return records


@contextmanager
def collector_paused() -> Iterator[None]:
    """Millions of small lists, none of them garbage: the collector would search them again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# --- record by record -------------------------------------------------------------------------


def _read_pictures(
    document: dict[str, Any], found: Instances, root: Path, folder: Path, on_fault: Fault
) -> None:
    relative = folder.relative_to(root).as_posix()
    for row, label in labelled_rows(document.get("images"), "image", "id", "images"):
        with locating(found.file, label, on_fault):
            image_id = new_id(row, "id", found.pictures)
            name = take(row, "file_name", str)
            if not name or Path(name).name != name:
                raise DataError("not a plain file name", field="file_name")
            height, width = take(row, "height", int), take(row, "width", int)
            if min(height, width) < 1:
                raise DataError(f"a picture of {height} x {width} pixels", field="height")
            found.pictures[image_id] = Picture(folder / name, f"{relative}/{name}", height, width)


def read_categories(document: dict[str, Any], file: str, on_fault: Fault) -> dict[int, str]:
    names: dict[int, str] = {}
    for row, label in labelled_rows(document.get("categories", []), "category", "id", "categories"):
        with locating(file, label, on_fault):
            names[new_id(row, "id", names)] = take(row, "name", str)
    return names


def _read_annotations(
    document: dict[str, Any], found: Instances, categories: dict[int, str], on_fault: Fault
) -> None:
    for row, label in labelled_rows(document.get("annotations"), "annotation", "id", "annotations"):
        with locating(found.file, label, on_fault):
            ann_id = new_id(row, "id", found.image_of)
            image_id = known_id(row, "image_id", found.pictures, "image")
            category = ""
            if "category_id" in row:
                category = categories[known_id(row, "category_id", categories, "category")]
            if "segmentation" not in row:
                raise DataError("missing", field="segmentation")
            found.image_of[ann_id] = image_id
            found.category_of[ann_id] = category
            found.segmentations[ann_id] = row["segmentation"]


def _read_reference(row: dict[str, Any], instances: Instances, seen: set[int]) -> Iterator[Record]:
    """The records of one reference, one per sentence."""
    ref_id = new_id(row, "ref_id", seen)
    seen.add(ref_id)
    ann_id = known_id(row, "ann_id", instances.image_of, "annotation")
    image_id = known_id(row, "image_id", instances.pictures, "image")
    if instances.image_of[ann_id] != image_id:
        raise DataError(f"annotation {ann_id} is of image {instances.image_of[ann_id]}", field="image_id")
    split = take(row, "split", str)
    sentences = take(row, "sentences", list)
    if not sentences:
        raise DataError("no sentence", field="sentences")
    for sentence in sentences:
        if not isinstance(sentence, dict):
            raise DataError(f"{_type(sentence)} instead of an object", field="sentences")
        expression = take(sentence, "sent", str)
        if not expression.strip():
            raise DataError("empty expression", field="sent")
        sent_id = new_id(sentence, "sent_id", ())
        kind = take(sentence, "kind", str) if sentence.get("kind") is not None else None
        category = instances.category_of[ann_id]
        yield Record(expression, kind, image_id, ann_id, ref_id, sent_id, split, category)


# --- parts of a file --------------------------------------------------------------------------


def load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(error.strerror or "cannot be read") from error
    except (ValueError, RecursionError, MemoryError) as error:
        problem = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DataError(f"not readable as JSON ({problem})") from error


def _check_size(image: Image.Image, height: int, width: int) -> None:
    if image.size != (width, height):
        problem = f"{image.height} x {image.width} pixels, but instances.json says {height} x {width}"
        raise DataError(problem, field="size")


def labelled_rows(
    rows: Any, noun: str, key: str, field: str | None = None
) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of a list, each with what errors call it: "annotation 17", by its id if it has one."""
    if not isinstance(rows, list):
        raise DataError("missing" if rows is None else f"{_type(rows)} instead of a list", field=field)
    for position, row in enumerate(rows):
        label = f"{noun} at place {position}"
        if isinstance(row, dict) and _is_id(row.get(key)):
            label = f"{noun} {row[key]}"
        yield row, label


def take(row: Any, field: str, kind: type) -> Any:
    """A field of the record, of exactly this type: True is no number here."""
    if not isinstance(row, dict):
        raise DataError(f"{_type(row)} instead of an object")
    if field not in row:
        raise DataError("missing", field=field)
    if type(row[field]) is not kind:
        raise DataError(f"{_type(row[field])} instead of {kind.__name__}", field=field)
    return row[field]


def new_id(row: Any, field: str, seen: Any) -> int:
    number = take(row, field, int)
    if not _is_id(number):
        raise DataError("out of range", field=field)
    if number in seen:
        raise DataError("occurs twice", field=field)
    return number


def known_id(row: Any, field: str, known: Any, noun: str) -> int:
    number = new_id(row, field, ())
    if number not in known:
        raise DataError(f"no {noun} {number}", field=field)
    return number


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _type(value: Any) -> str:
    return type(value).__name__
