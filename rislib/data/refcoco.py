"""RefCOCO, RefCOCO+, RefCOCOg, and every dataset laid out like them (RefMini is).

    root/refcoco+/instances.json       pictures, annotations and categories, as COCO has them
    root/refcoco+/refs(unc).p          the references; `.json` holds the same records, and goes first
    root/images/<dataset>/             pictures; or images/train2014, or images/mscoco/images/train2014

A reference is one object that several sentences speak of; each sentence is a sample of its own. Ids are
checked when the index is read, pictures and masks when a sample is taken.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from rislib.data.errors import DataError, Fault, locating, raise_fault
from rislib.data.masks import decode_segmentation
from rislib.data.pickles import load_pickle
from rislib.nouns import Sample


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


class RefDataset(Sequence[Sample]):
    """A sequence of samples, one per sentence. Each is read from disk when it is asked for.

    Attributes:
        records: the samples without their pixels, in the same order.
        name: such as "refcoco+ (unc) val".
    """

    def __init__(
        self,
        records: Sequence[Record],
        instances: Instances,
        name: str,
        neighbours: dict[int, list[int]] | None = None,
    ) -> None:
        """`neighbours`: image id -> all its annotations, if samples are to carry them as `instances`."""
        self.records = tuple(records)
        self.name = name
        self._instances = instances
        self._neighbours = neighbours

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> RefDataset: ...
    def __getitem__(self, index: int | slice) -> Sample | RefDataset:
        """A sample, or for a slice a smaller dataset. Raises DataError if the sample cannot be read."""
        if isinstance(index, slice):
            return self._with_records(self.records[index])
        record = self.records[index]
        image = self._instances.pictures[record.image_id].open()
        instances = None
        if self._neighbours is not None:
            masks = [self._instances.mask(ann_id) for ann_id in self._neighbours[record.image_id]]
            instances = np.stack(masks)  # (N, H, W)
        return Sample(
            image=image,
            expression=record.expression,
            mask=self._instances.mask(record.ann_id),
            image_id=record.image_id,
            ann_id=record.ann_id,
            ref_id=record.ref_id,
            sent_id=record.sent_id,
            split=record.split,
            category=record.category,
            kind=record.kind,
            instances=instances,
        )

    def __repr__(self) -> str:
        return f"<RefDataset {self.name}: {len(self)} expressions>"

    def by_reference(self) -> list[list[int]]:
        """For each reference the indices of its sentences, in order."""
        return self._grouped(lambda record: record.ref_id)

    def by_image(self) -> list[list[int]]:
        """For each picture the indices of its sentences, in order."""
        return self._grouped(lambda record: record.image_id)

    def with_expressions(self, expressions: Sequence[str]) -> RefDataset:
        """The same pictures and masks with other words. Raises ValueError unless there is one per sample."""
        if len(expressions) != len(self):
            raise ValueError(f"{len(expressions)} expressions for {len(self)} samples")
        pairs = zip(self.records, expressions, strict=True)
        return self._with_records([replace(record, expression=words) for record, words in pairs])

    def _with_records(self, records: Sequence[Record]) -> RefDataset:
        return RefDataset(records, self._instances, self.name, self._neighbours)

    def _grouped(self, key: Callable[[Record], int]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for index, record in enumerate(self.records):
            groups.setdefault(key(record), []).append(index)
        return list(groups.values())


def load_refcoco(
    root: str | Path, dataset: str, split_by: str, split: str | None, *, instances: bool = False
) -> RefDataset:
    """One split of a dataset in RefCOCO's layout.

    Args:
        root: the folder that holds the dataset's folder and `images`.
        dataset: name of the dataset's folder, such as "refcoco+".
        split_by: who split it, as in the name of the references' file: "unc", "umd" or "google".
        split: such as "train", "val", "testA"; None for all.
        instances: whether samples carry the masks of all annotations of their picture.

    Raises:
        DataError: if the index is missing or wrong, or has no such split.
    """
    with collector_paused():
        objects = read_instances(Path(root), dataset)
        records = read_references(Path(root), dataset, split_by, objects)
    name = f"{dataset} ({split_by})"
    if split is not None:
        splits = sorted({record.split for record in records})
        if split not in splits:
            raise DataError(f"no split {split!r}, but {', '.join(splits)}", file=name)
        records = [record for record in records if record.split == split]
        name = f"{name} {split}"
    images = {record.image_id for record in records}
    if not instances:
        return RefDataset(records, objects.only({record.ann_id for record in records}), name)
    neighbours: dict[int, list[int]] = {image_id: [] for image_id in images}
    for ann_id, image_id in objects.image_of.items():
        if image_id in images:
            neighbours[image_id].append(ann_id)
    wanted = {ann_id for ann_ids in neighbours.values() for ann_id in ann_ids}
    return RefDataset(records, objects.only(wanted), name, neighbours)


def find_datasets(root: str | Path) -> list[tuple[str, str]]:
    """All (dataset, split_by) that lie under `root`, sorted."""
    files = [*Path(root).glob("*/refs(*).p"), *Path(root).glob("*/refs(*).json")]
    return sorted({(file.parent.name, file.stem[len("refs(") : -1]) for file in files})


def read_instances(root: Path, dataset: str, on_fault: Fault = raise_fault) -> Instances:
    """Reads `instances.json`. Each fault goes to `on_fault`; if that returns, the record is left out."""
    found = Instances(f"{dataset}/instances.json")
    with locating(found.file, on_fault=on_fault):
        document = _load_json(root / found.file)
        if not isinstance(document, dict):
            raise DataError(f"{_type(document)} instead of an object")
        _read_pictures(document, found, root, picture_folder(root, dataset), on_fault)
        _read_annotations(document, found, _read_categories(document, found.file, on_fault), on_fault)
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
        rows = _load_json(root / file) if file.endswith(".json") else load_pickle(root / file, file)
        seen: set[int] = set()
        for row, label in _rows(rows, "reference", "ref_id"):
            with locating(file, label, on_fault):
                records.extend([*_read_reference(row, instances, seen)])
    return records


def _read_pictures(
    document: dict[str, Any], found: Instances, root: Path, folder: Path, on_fault: Fault
) -> None:
    relative = folder.relative_to(root).as_posix()
    for row, label in _rows(document.get("images"), "image", "id", "images"):
        with locating(found.file, label, on_fault):
            image_id = _new_id(row, "id", found.pictures)
            name = _take(row, "file_name", str)
            if not name or Path(name).name != name:
                raise DataError("not a plain file name", field="file_name")
            height, width = _take(row, "height", int), _take(row, "width", int)
            if min(height, width) < 1:
                raise DataError(f"a picture of {height} x {width} pixels", field="height")
            found.pictures[image_id] = Picture(folder / name, f"{relative}/{name}", height, width)


def _read_categories(document: dict[str, Any], file: str, on_fault: Fault) -> dict[int, str]:
    names: dict[int, str] = {}
    for row, label in _rows(document.get("categories", []), "category", "id", "categories"):
        with locating(file, label, on_fault):
            names[_new_id(row, "id", names)] = _take(row, "name", str)
    return names


def _read_annotations(
    document: dict[str, Any], found: Instances, categories: dict[int, str], on_fault: Fault
) -> None:
    for row, label in _rows(document.get("annotations"), "annotation", "id", "annotations"):
        with locating(found.file, label, on_fault):
            ann_id = _new_id(row, "id", found.image_of)
            image_id = _known_id(row, "image_id", found.pictures, "image")
            category = ""
            if "category_id" in row:
                category = categories[_known_id(row, "category_id", categories, "category")]
            if "segmentation" not in row:
                raise DataError("missing", field="segmentation")
            found.image_of[ann_id] = image_id
            found.category_of[ann_id] = category
            found.segmentations[ann_id] = row["segmentation"]


def _read_reference(row: dict[str, Any], instances: Instances, seen: set[int]) -> Iterator[Record]:
    """The records of one reference, one per sentence."""
    ref_id = _new_id(row, "ref_id", seen)
    seen.add(ref_id)
    ann_id = _known_id(row, "ann_id", instances.image_of, "annotation")
    image_id = _known_id(row, "image_id", instances.pictures, "image")
    if instances.image_of[ann_id] != image_id:
        raise DataError(f"annotation {ann_id} is of image {instances.image_of[ann_id]}", field="image_id")
    split = _take(row, "split", str)
    sentences = _take(row, "sentences", list)
    if not sentences:
        raise DataError("no sentence", field="sentences")
    for sentence in sentences:
        if not isinstance(sentence, dict):
            raise DataError(f"{_type(sentence)} instead of an object", field="sentences")
        expression = _take(sentence, "sent", str)
        if not expression.strip():
            raise DataError("empty expression", field="sent")
        sent_id = _new_id(sentence, "sent_id", ())
        kind = _take(sentence, "kind", str) if sentence.get("kind") is not None else None
        category = instances.category_of[ann_id]
        yield Record(expression, kind, image_id, ann_id, ref_id, sent_id, split, category)


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(error.strerror or "cannot be read") from error
    except (ValueError, RecursionError, MemoryError) as error:
        problem = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DataError(f"not readable as JSON ({problem})") from error


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


def picture_folder(root: Path, dataset: str) -> Path:
    folders = [root / "images" / dataset, root / "images/train2014", root / "images/mscoco/images/train2014"]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _check_size(image: Image.Image, height: int, width: int) -> None:
    if image.size != (width, height):
        problem = f"{image.height} x {image.width} pixels, but instances.json says {height} x {width}"
        raise DataError(problem, field="size")


def _rows(rows: Any, noun: str, key: str, field: str | None = None) -> Iterator[tuple[dict[str, Any], str]]:
    """The records of a list, each with what errors call it: "annotation 17", by its id if it has one."""
    if not isinstance(rows, list):
        raise DataError("missing" if rows is None else f"{_type(rows)} instead of a list", field=field)
    for position, row in enumerate(rows):
        label = f"{noun} at place {position}"
        if isinstance(row, dict) and _is_id(row.get(key)):
            label = f"{noun} {row[key]}"
        yield row, label


def _take(row: Any, field: str, kind: type) -> Any:
    """A field of the record, of exactly this type: True is no number here."""
    if not isinstance(row, dict):
        raise DataError(f"{_type(row)} instead of an object")
    if field not in row:
        raise DataError("missing", field=field)
    if type(row[field]) is not kind:
        raise DataError(f"{_type(row[field])} instead of {kind.__name__}", field=field)
    return row[field]


def _new_id(row: Any, field: str, seen: Any) -> int:
    number = _take(row, field, int)
    if not _is_id(number):
        raise DataError("out of range", field=field)
    if number in seen:
        raise DataError("occurs twice", field=field)
    return number


def _known_id(row: Any, field: str, known: Any, noun: str) -> int:
    number = _new_id(row, field, ())
    if number not in known:
        raise DataError(f"no {noun} {number}", field=field)
    return number


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _type(value: Any) -> str:
    return type(value).__name__
