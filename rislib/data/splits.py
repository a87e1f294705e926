"""One word for a dataset: a RefMini flavour or a RefCOCO by name, or a folder."""

from __future__ import annotations

import re
from pathlib import Path

from rislib.data.errors import DataError
from rislib.data.expressions import own_table
from rislib.data.index import find_datasets
from rislib.data.published import SPLIT_BY
from rislib.data.refcoco import RefDataset, load_refcoco
from rislib.data.refmini import FLAVOURS
from rislib.data.refmini.build import data_home, load_refmini


def open_split(where: str | Path, split: str | None) -> RefDataset:
    """A split of the dataset `where`.

    Args:
        where: "refmini", "refmini+", "refminig" (drawn on first use); "refcoco", "refcoco+", "refcocog", as
            `data get` puts them into the data folder; a folder in RefCOCO's layout that holds one dataset,
            such as `data build` makes; or, where it holds several, the file of references itself, such as
            "data/refcocog/refs(google).p".
        split: such as "train", "val", "testA"; None for all.

    Raises:
        DataError: the folder holds no dataset or several, or no such split.
    """
    if where in FLAVOURS:
        return load_refmini(str(where), split)
    if where in SPLIT_BY:
        return load_refcoco(data_home(), str(where), SPLIT_BY[where], split)
    where = Path(where)
    if own_table(where):
        todo = f"bring it into RefCOCO's layout first: python -m rislib data import {where} --out NEW"
        raise DataError(f"a folder of your own pictures; {todo}, and then name NEW", file=str(where))
    if named := re.fullmatch(r"refs\((.+)\)\.(p|json)", where.name):
        root, dataset, split_by = where.parents[1], where.parent.name, named[1]
    else:
        found = find_datasets(where)
        if len(found) != 1:
            names = ", ".join(f"{dataset}/refs({split_by})" for dataset, split_by in found) or "nothing"
            raise DataError(f"expected one dataset, found {names}", file=str(where))
        root, (dataset, split_by) = where, found[0]
    return load_refcoco(root, dataset, split_by, split)
