"""One word for a dataset: a RefMini flavour by name, or a folder."""

from __future__ import annotations

from pathlib import Path

from rislib.data.errors import DataError
from rislib.data.refcoco import RefDataset, find_datasets, load_refcoco
from rislib.data.refmini import FLAVOURS
from rislib.data.refmini.build import load_refmini


def open_split(where: str | Path, split: str, *, instances: bool = False) -> RefDataset:
    """A split of the dataset `where`.

    Args:
        where: "refmini", "refmini+", "refminig" (drawn on first use), or a folder in RefCOCO's layout that
            holds one dataset, such as `data build` makes.
        instances: whether samples carry the masks of all annotations of their picture.

    Raises:
        DataError: the folder holds no dataset or several (then call `load_refcoco`), or no such split.
    """
    if where in FLAVOURS:
        return load_refmini(str(where), split, instances=instances)
    found = find_datasets(where)
    if len(found) != 1:
        names = ", ".join(f"{dataset} ({split_by})" for dataset, split_by in found) or "nothing"
        raise DataError(f"expected one dataset, found {names}", file=str(where))
    dataset, split_by = found[0]
    return load_refcoco(where, dataset, split_by, split, instances=instances)
