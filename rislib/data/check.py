"""Reads a whole folder of data and lists everything that is wrong with it, or unlike what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rislib.data.errors import DataError
from rislib.data.expressions import TABLES, Row, own_table, read_table
from rislib.data.index import (
    Instances,
    Record,
    collector_paused,
    find_datasets,
    read_instances,
    read_references,
)
from rislib.data.own import SPLIT_BY, look
from rislib.data.published import Size, differences


@dataclass(frozen=True)
class Count:
    """How much there is of one split."""

    dataset: str
    split_by: str
    split: str
    references: int
    sentences: int
    images: int

    def __str__(self) -> str:
        name = f"{self.dataset} ({self.split_by}) {self.split}"
        return f"{name:32}{self.references:8,} references{self.sentences:9,} sentences{self.images:8,} images"


@dataclass(frozen=True)
class Report:
    """What `check_folder` found."""

    counts: tuple[Count, ...]
    faults: tuple[str, ...]  # what is wrong, one line each
    differences: tuple[str, ...] = ()  # which counts are not the published ones, one line each
    remarks: tuple[str, ...] = ()  # what is right but odd, one line each

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and everything as published. Remarks do not count."""
        return not self.faults and not self.differences

    def lines(self) -> list[str]:
        """The report for a terminal: the counts, a line for all that is wrong, then how many these are."""
        number = len(self.faults)
        end = f"{number:,} fault{'s' if number > 1 else ''}" if number else "no fault"
        if self.differences:
            end += f", {len(self.differences):,} of the counts not as published"
        return [*map(str, self.counts), *self.remarks, *self.faults, *self.differences, end]


def check_folder(
    root: str | Path, *, pixels: bool = True, published: bool = True, progress: bool = False
) -> Report:
    """Reads every index under `root` and, with `pixels`, every picture and every mask.

    `root` is a folder in RefCOCO's layout, or of one's own pictures (`rislib.data.own`).

    With `published`, the counts of refcoco, refcoco+ and refcocog are held against the published ones: not
    what one wants where the folder holds a part of them on purpose. Other names have no such counts.

    It goes on after a fault, so that one run lists all of them. A record with a fault is left out, so
    what refers to it is listed as well. One picture is held in memory at a time.
    """
    root = Path(root)
    check = _Check()
    if own_table(root):
        return _check_own(root, check, pixels, progress)
    datasets = find_datasets(root)
    if not datasets:
        problem = (
            f"no <dataset>/refs(<split_by>).p or .json, and for your own pictures no {' or '.join(TABLES)}"
        )
        check.fault(DataError(problem, file=root.name))
    for dataset in sorted({name for name, _ in datasets}):
        with collector_paused():
            instances = read_instances(root, dataset, check.fault)
            referred: set[int] = set()
            for split_by in (by for name, by in datasets if name == dataset):
                records = read_references(root, dataset, split_by, instances, check.fault)
                check.count(dataset, split_by, records, published)
                referred |= {record.ann_id for record in records}
        if pixels:
            check.read_pixels(instances, referred, progress)
    return check.report()


def _check_own(folder: Path, check: _Check, pixels: bool, progress: bool) -> Report:
    rows = read_table(folder, check.fault, check.remarks.append)
    check.count(folder.resolve().name, SPLIT_BY, _numbered(rows), published=False)
    if pixels:
        for _ in look(folder, rows, check.fault, progress=progress):
            pass
    return check.report()


def _numbered(rows: Sequence[Row]) -> list[Record]:
    """What is said, with numbers for pictures and things."""
    images: dict[str, int] = {}
    things: dict[Any, int] = {}
    records = []
    for i, row in enumerate(rows):
        image = images.setdefault(row.image, len(images))
        thing = things.setdefault(row.thing, len(things))
        if row.expression is not None:
            records.append(Record(row.expression, None, image, thing, thing, i, row.split, row.category))
    return records


@dataclass
class _Check:
    """Collects what is found on the way."""

    counts: list[Count] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def report(self) -> Report:
        return Report(tuple(self.counts), tuple(self.faults), tuple(self.differences), tuple(self.remarks))

    def fault(self, error: DataError) -> None:
        self.faults.append(" ".join(str(error).split()))  # a file name may hold a line break

    def count(self, dataset: str, split_by: str, records: Sequence[Record], published: bool) -> None:
        splits: dict[str, list[Record]] = {}
        for record in records:
            splits.setdefault(record.split, []).append(record)
        sizes = {
            split: Size(
                references=len({record.ref_id for record in members}),
                sentences=len(members),
                images=len({record.image_id for record in members}),
            )
            for split, members in splits.items()
        }
        for split, size in sizes.items():
            self.counts.append(Count(dataset, split_by, split, size.references, size.sentences, size.images))
        if published and records:  # an unreadable file is one fault, not one per split
            self.differences.extend(differences(dataset, split_by, sizes))

    def read_pixels(self, instances: Instances, referred: set[int], progress: bool) -> None:
        """Opens every picture and decodes its masks; those of a faulty picture have no size to go by."""
        ann_ids_of: dict[int, list[int]] = {}
        for ann_id, image_id in instances.image_of.items():
            ann_ids_of.setdefault(image_id, []).append(ann_id)
        for image_id, picture in tqdm(instances.pictures.items(), instances.file, disable=not progress):
            try:
                picture.open()
            except DataError as error:
                self.fault(error)
                continue
            for ann_id in ann_ids_of.get(image_id, []):
                self._read_mask(instances, ann_id, must_show=ann_id in referred)

    def _read_mask(self, instances: Instances, ann_id: int, must_show: bool) -> None:
        try:
            empty = not instances.mask(ann_id).any()
        except DataError as error:
            self.fault(error)
            return
        if empty and must_show:
            problem = "no pixel, and sentences refer to it"
            self.fault(DataError(problem, instances.file, f"annotation {ann_id}", "segmentation"))
