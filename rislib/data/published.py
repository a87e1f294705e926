"""How much the published datasets hold, split by split: what `data check` holds a folder against.

References and images are those of the TensorFlow Datasets catalogue (`ref_coco`). Sentences are those that
papers give for these splits; counting the released val and test splits gives the same three numbers.

- RefCOCO's four splits sum to 142,210 sentences, as CRIS has it; Yu et al. (ECCV 2016, arXiv 1608.00272), who
  made them, write 142,209.
- Google's splits divide objects: one picture may lie in train and in val. UNC's and UMD's divide
  pictures, and are the ones that papers compare on.
- Google's test part of RefCOCOg was never released. Its split of RefCOCO has no published number of sentences
  that is known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Size:
    """How much one split holds. None: not known."""

    references: int
    sentences: int | None
    images: int


SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Whose splits are meant where a dataset is named alone."""

PUBLISHED: dict[tuple[str, str], dict[str, Size]] = {
    ("refcoco", "unc"): {
        "train": Size(42_404, 120_624, 16_994),
        "val": Size(3_811, 10_834, 1_500),
        "testA": Size(1_975, 5_657, 750),
        "testB": Size(1_810, 5_095, 750),
    },
    ("refcoco", "google"): {
        "train": Size(40_000, None, 19_213),
        "val": Size(5_000, None, 4_559),
        "test": Size(5_000, None, 4_527),
    },
    ("refcoco+", "unc"): {
        "train": Size(42_278, 120_191, 16_992),
        "val": Size(3_805, 10_758, 1_500),
        "testA": Size(1_975, 5_726, 750),
        "testB": Size(1_798, 4_889, 750),
    },
    ("refcocog", "umd"): {
        "train": Size(42_226, 80_512, 21_899),
        "val": Size(2_573, 4_896, 1_300),
        "test": Size(5_023, 9_602, 2_600),
    },
    ("refcocog", "google"): {
        "train": Size(44_822, 85_474, 24_698),
        "val": Size(5_000, 9_536, 4_650),
    },
}


def differences(dataset: str, split_by: str, found: Mapping[str, Size]) -> list[str]:
    """What differs from the published numbers, one line each; of a dataset that is not listed, nothing does.

    Args:
        dataset, split_by: such as "refcoco+" and "unc".
        found: the size of every split that there is.
    """
    published = PUBLISHED.get((dataset, split_by))
    if published is None:
        return []
    lines = []
    for split in [*published, *(split for split in found if split not in published)]:
        name = f"{dataset} ({split_by}) {split}"
        if split not in published:
            lines.append(f"{name}: {found[split].references:,} references, but no such split is published")
        elif split not in found:
            lines.append(f"{name}: 0 references, but {published[split].references:,} are published")
        else:
            for what in (field.name for field in fields(Size)):
                here, there = getattr(found[split], what), getattr(published[split], what)
                if there is not None and here != there:
                    lines.append(f"{name}: {here:,} {what}, but {there:,} are published")
    return lines
