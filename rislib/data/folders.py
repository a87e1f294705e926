"""A dataset's folder is complete, or it is not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: Path, dataset: str) -> Iterator[tuple[Path, Path]]:
    """Where to write a dataset's index, and its pictures: both appear at `out` when the block ends well.

    Raises:
        FileExistsError: `out` is there, and not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; choose another folder or delete it")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    index, pictures = partial / dataset, partial / "images" / dataset
    try:
        index.mkdir(parents=True)
        pictures.mkdir(parents=True)
        yield index, pictures
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
