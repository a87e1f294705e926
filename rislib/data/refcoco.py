"""RefCOCO, RefCOCO+, RefCOCOg, and every dataset laid out like them (RefMini is).

    root/refcoco+/instances.json       pictures, annotations and categories, as COCO has them
    root/refcoco+/refs(unc).p          the references; `.json` holds the same records, and goes first
    root/images/<dataset>/             pictures; or images/train2014, or images/mscoco/images/train2014

A reference is one object that several sentences speak of; each sentence is a sample of its own. Ids are
checked when the index is read (`rislib.data.index`), pictures and masks when a sample is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from rislib.data.errors import DataError
from rislib.data.index import Instances, Record, collector_paused, read_instances, read_references
from rislib.nouns import Sample


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
        self._last: tuple[int, Image.Image] | None = None

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
        image = self._picture(record.image_id)
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

    def _picture(self, image_id: int) -> Image.Image:
        """A copy; the last picture is kept, since what is said of one often comes in a row."""
        if self._last is None or self._last[0] != image_id:
            self._last = image_id, self._instances.pictures[image_id].open()
        return self._last[1].copy()

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
