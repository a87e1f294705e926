"""Reads a whole folder of data and lists everything that is wrong with it, or unlike what was published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from rislib.data.errors import DataError
from rislib.data.index import (
    Instances,
    Record,
    collector_paused,
    find_datasets,
    read_instances,
    read_references,
)
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

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong, and everything as published."""
        return not self.faults and not self.differences

    def lines(self) -> list[str]:
        """The report for a terminal: the counts, a line for all that is wrong, then how many these are."""
        number = len(self.faults)
        end = f"{number:,} fault{'s' if number > 1 else ''}" if number else "no fault"
        if self.differences:
            end += f", {len(self.differences):,} of the counts not as published"
        return [*map(str, self.counts), *self.faults, *self.differences, end]


def check_folder(
    root: str | Path, *, pixels: bool = True, published: bool = True, progress: bool = False
) -> Report:
    """Reads every index under `root` and, with `pixels`, every picture and every mask.

    With `published`, the counts of refcoco, refcoco+ and refcocog are held against the published ones: not
    what one wants where the folder holds a part of them on purpose. Other names have no such counts.

    It goes on after a fault, so that one run lists all of them. A record with a fault is left out, so
    what refers to it is listed as well. One picture is held in memory at a time.
    """
    root = Path(root)
    check = _Check()
    datasets = find_datasets(root)
    if not datasets:
        check.fault(DataError("no <dataset>/refs(<split_by>).p or .json", file=root.name))
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
    return Report(tuple(check.counts), tuple(check.faults), tuple(check.differences))


@dataclass
class _Check:
    """Collects what is found on the way."""

    counts: list[Count] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

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
