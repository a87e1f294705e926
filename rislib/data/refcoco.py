"""RefCOCO, RefCOCO+, RefCOCOg, and every dataset laid out like them (RefMini is).

    root/refcoco+/instances.json       pictures, annotations and categories, as COCO has them
    root/refcoco+/refs(unc).p          the references; `.json` holds the same records, and goes first
    root/images/<dataset>/             pictures; or images/train2014, or images/mscoco/images/train2014

A reference is one object that several sentences speak of; each sentence is a sample of its own. Ids are
checked when the index is read (`rislib.data.index`), pictures and masks when a sample is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, overload

import numpy as np
from PIL import Image

from rislib.data.cache import Cache, keep
from rislib.data.errors import DataError
from rislib.data.index import (
    Instances,
    Picture,
    Record,
    collector_paused,
    read_instances,
    read_references,
)
from rislib.nouns import Preprocessing, Sample


class InstanceSource(Protocol):
    """Where samples get their instance masks from. Those there are: see `rislib.data.instances`."""

    @property
    def name(self) -> str:
        """As reports say it."""

    def masks(self, image_id: int) -> np.ndarray:
        """(N, H, W) bool, at the picture's size; N may be 0. Raises DataError if one is malformed."""


@dataclass(frozen=True)
class Annotations:
    """Every annotated object of a picture, in the file's order. The answer is among them: an oracle."""

    instances: Instances
    of_picture: Mapping[int, Sequence[int]]  # image id -> annotation ids
    name: ClassVar = "oracle"

    def masks(self, image_id: int) -> np.ndarray:
        return np.stack([self.instances.mask(ann_id) for ann_id in self.of_picture[image_id]])


class RefDataset(Sequence[Sample]):
    """A sequence of samples, one per sentence. Each is read from disk when it is asked for.

    Attributes:
        records: the samples without their pixels, in the same order.
        name: such as "refcoco+ (unc) val".
        folder: where its index lies.
        source: of the masks that samples carry as `instances`; None: they carry none.
        cache: of the pictures, resized for a network; None: they are read at their own size.
    """

    def __init__(
        self,
        records: Sequence[Record],
        instances: Instances,
        name: str,
        folder: Path,
        source: InstanceSource | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.records = tuple(records)
        self.name = name
        self.folder = folder
        self.source = source
        self.cache = cache
        self._instances = instances
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
        return Sample(
            image=self._picture(record.image_id),
            expression=record.expression,
            mask=self._instances.mask(record.ann_id),
            image_id=record.image_id,
            ann_id=record.ann_id,
            ref_id=record.ref_id,
            sent_id=record.sent_id,
            split=record.split,
            category=record.category,
            kind=record.kind,
            instances=None if self.source is None else self.source.masks(record.image_id),
        )

    @property
    def pictures(self) -> Mapping[int, Picture]:
        """All pictures of the index by image id, also those of other splits."""
        return self._instances.pictures

    @property
    def instances_from(self) -> str:
        """Whose instance masks the samples carry, for reports: "none", "oracle", "proposals", or a file."""
        return "none" if self.source is None else self.source.name

    def _picture(self, image_id: int) -> Image.Image:
        """A copy; the last picture is kept, since what is said of one often comes in a row."""
        if self.cache is not None:
            return self.cache.picture(self.pictures[image_id].name)
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

    def with_source(self, source: InstanceSource | None) -> RefDataset:
        """The same samples with other instance masks. `rislib.data.with_instances` knows sources by name."""
        return RefDataset(self.records, self._instances, self.name, self.folder, source, self.cache)

    def with_cache(self, cache: Cache | None) -> RefDataset:
        """The same samples, their pictures out of a cache. `cached` makes one."""
        return RefDataset(self.records, self._instances, self.name, self.folder, self.source, cache)

    def _with_records(self, records: Sequence[Record]) -> RefDataset:
        return RefDataset(records, self._instances, self.name, self.folder, self.source, self.cache)

    def _grouped(self, key: Callable[[Record], int]) -> list[list[int]]:
        groups: dict[int, list[int]] = {}
        for index, record in enumerate(self.records):
            groups.setdefault(key(record), []).append(index)
        return list(groups.values())


def load_refcoco(root: str | Path, dataset: str, split_by: str, split: str | None) -> RefDataset:
    """One split of a dataset in RefCOCO's layout. Other masks than the answers': `with_instances`.

    Args:
        root: the folder that holds the dataset's folder and `images`.
        dataset: name of the dataset's folder, such as "refcoco+".
        split_by: who split it, as in the name of the references' file: "unc", "umd" or "google".
        split: such as "train", "val", "testA"; None for all.

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
    targets = objects.only({record.ann_id for record in records})
    return RefDataset(records, targets, name, Path(root) / dataset)


def cached(
    samples: RefDataset, preprocessing: Preprocessing, folder: str | Path, *, progress: bool = False
) -> RefDataset:
    """The same samples with their pictures out of `folder`, of size x size; what it lacks is put there first.

    Masks keep the pictures' own size: these samples are for `fit`. Raises DataError as `keep` does.
    """
    shown = (samples.pictures[record.image_id] for record in samples.records)
    return samples.with_cache(keep(shown, preprocessing, folder, progress=progress))


def annotations_of(instances: Instances, image_ids: Iterable[int]) -> Annotations:
    """All that is annotated in these pictures."""
    of_picture: dict[int, list[int]] = {image_id: [] for image_id in image_ids}
    for ann_id, image_id in instances.image_of.items():
        if image_id in of_picture:
            of_picture[image_id].append(ann_id)
    wanted = {ann_id for ann_ids in of_picture.values() for ann_id in ann_ids}
    return Annotations(instances.only(wanted), of_picture)
