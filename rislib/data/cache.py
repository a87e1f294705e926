"""Pictures resized once and kept, so that a training neither decodes nor resizes them again and again.

    index.jsonl       a line on how all of them were resized, then a line for each picture
    pictures.uint8    size * size * 3 bytes for each (rows, columns, RGB), in the index's order

Batches are the same as without it, bit for bit: what is kept is what resizing ends with, whole numbers; they
are only normalised on the way into a batch. At 416 pixels RefCOCO's 16,994 pictures for training take 8.8 GB.
Whether that helps is a question of the disk: 1,000 samples a second are 0.5 GB a second, unless memory holds
the file after the first epoch. Masks are not kept: a letterbox makes their edges grey, so that bits do not
hold them, and to read bits instead of polygons would spare a twentieth of what a sample then still costs.

Both files only ever grow, and a picture's line is written when its pixels are on the disk. So whoever is
killed leaves at worst an end that no line speaks of, which the next one cuts off; and readers, which open
nothing for longer than a picture, may be as many as there are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm.auto import tqdm

from rislib.data.errors import DataError
from rislib.data.index import Picture
from rislib.data.transforms import Letterbox, geometry_for
from rislib.nouns import Preprocessing

INDEX, PICTURES = "index.jsonl", "pictures.uint8"
BLOCK = 64  # pictures between two waits for the disk


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of a picture: the file it comes from, and the pixels made of it."""

    name: str  # relative to the data's root
    bytes: int  # of its file
    modified: int  # nanoseconds since 1970
    source: int  # CRC-32 of its file
    pixels: int  # CRC-32 of what is kept of it


@dataclass(frozen=True)
class Cache:
    """Resized pictures in a folder. Only paths and numbers: processes may send each other one."""

    folder: Path
    settings: Mapping[str, Any]  # see `settings_of`
    entries: Sequence[Entry]
    places: Mapping[str, int]  # a picture's name -> its place among the entries

    def pixels(self, place: int) -> np.ndarray:
        """(size, size, 3) uint8, mapped into memory."""
        side = self.settings["size"]
        start = place * _bytes(self.settings)
        return np.memmap(self.folder / PICTURES, np.uint8, "r", start, (side, side, 3))

    def picture(self, name: str) -> Image.Image:
        """A picture by its name, RGB of size x size. Raises KeyError where it is not kept."""
        return Image.fromarray(self.pixels(self.places[name]))

    def broken(self, *, progress: bool = False) -> list[str]:
        """The names of pictures that are no longer as they were written; reads all of them."""
        entries = tqdm(self.entries, f"checking {self.folder}", disable=not progress)
        return [entry.name for i, entry in enumerate(entries) if crc32(self.pixels(i)) != entry.pixels]


def keep(
    pictures: Iterable[Picture], preprocessing: Preprocessing, folder: str | Path, *, progress: bool = False
) -> Cache:
    """What `folder` keeps; those of the pictures that it lacks are put there first.

    If this is stopped, the same call goes on where it was. The pictures' files may be gone by then; those
    that are there must still be the same.

    Raises:
        DataError: `folder` is of another preprocessing or damaged, a picture has changed since or cannot be
            read, or there is no room on the disk. The message says what to do.
    """
    folder, settings = Path(folder), settings_of(preprocessing)
    named = {picture.name: picture for picture in pictures}
    cache = read_cache(folder, settings)
    if named.keys() - cache.places.keys():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            cache = read_cache(folder, settings)  # another process may have been at work meanwhile
            missing = [picture for name, picture in named.items() if name not in cache.places]
            _add(cache, missing, preprocessing, progress)
        cache = read_cache(folder, settings)
    for name, picture in named.items():
        _check_source(picture, cache.entries[cache.places[name]], folder)
    return cache


def settings_of(preprocessing: Preprocessing) -> dict[str, Any]:
    """What decides how a picture is resized: size, way, and in a letterbox the border's colour.

    Whoever changes how `Geometry.image` resizes counts the version up: what was kept is then no longer read.
    """
    geometry = geometry_for(preprocessing, 1, 1)
    border = list(geometry.colour) if isinstance(geometry, Letterbox) else None
    return {"version": 1, "size": preprocessing.size, "resize": preprocessing.resize, "border": border}


def read_cache(folder: Path, settings: Mapping[str, Any]) -> Cache:
    """What the folder holds, perhaps nothing yet. Raises DataError if it has other settings or is damaged."""
    lines = _whole_lines(folder / INDEX).splitlines()
    try:
        there, *entries = [json.loads(line) for line in lines] or [dict(settings)]
        entries = [Entry(**entry) for entry in entries]
    except (ValueError, TypeError) as error:
        raise DataError("damaged: delete this folder, and it is made anew", str(folder), INDEX) from error
    if there != settings:
        problem = f"holds pictures of {json.dumps(there)}, not {json.dumps(settings)}: name another folder"
        raise DataError(problem, str(folder))
    pixels = folder / PICTURES
    if (pixels.stat().st_size if pixels.exists() else 0) < len(entries) * _bytes(settings):
        raise DataError("lacks pixels: delete this folder, and it is made anew", str(folder), PICTURES)
    return Cache(folder, settings, entries, {entry.name: place for place, entry in enumerate(entries)})


def _bytes(settings: Mapping[str, Any]) -> int:
    """Of one picture."""
    return 3 * settings["size"] ** 2


def _whole_lines(file: Path) -> bytes:
    """Without the last one where it breaks off."""
    content = file.read_bytes() if file.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _add(cache: Cache, missing: Sequence[Picture], preprocessing: Preprocessing, progress: bool) -> None:
    """Resizes what is missing and writes it behind what is there."""
    size, free = len(missing) * _bytes(cache.settings), shutil.disk_usage(cache.folder).free
    if size > free:
        problem = f"{len(missing):,} pictures take {size:,} bytes, and {free:,} are free: name another folder"
        raise DataError(problem, str(cache.folder))
    whole = _whole_lines(cache.folder / INDEX)
    said = f"{cache.folder}: {len(missing):,} pictures, {size / 1e9:.1f} GB"
    with (
        (cache.folder / PICTURES).open("ab") as pixels,
        (cache.folder / INDEX).open("ab") as index,
        tqdm(total=len(missing), desc=said, disable=not progress) as bar,
    ):
        pixels.truncate(len(cache.entries) * _bytes(cache.settings))
        index.truncate(len(whole))
        if not whole:
            _write(index, _line(cache.settings))
        for start in range(0, len(missing), BLOCK):
            made = [_resized(picture, preprocessing) for picture in missing[start : start + BLOCK]]
            _write(pixels, b"".join(square for square, _ in made))
            _write(index, b"".join(_line(asdict(entry)) for _, entry in made))
            bar.update(len(made))


def _resized(picture: Picture, preprocessing: Preprocessing) -> tuple[bytes, Entry]:
    image = picture.open()
    square = geometry_for(preprocessing, picture.height, picture.width).image(image).tobytes()
    status = picture.path.stat()
    source = crc32(picture.path.read_bytes())
    return square, Entry(picture.name, status.st_size, status.st_mtime_ns, source, crc32(square))


def _line(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def _write(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()
    os.fsync(file.fileno())


def _check_source(picture: Picture, entry: Entry, folder: Path) -> None:
    """A copied file is as good as the first: where only its time differs, its content decides."""
    if not picture.path.exists():
        return
    status = picture.path.stat()
    if (status.st_size, status.st_mtime_ns) == (entry.bytes, entry.modified):
        return
    if status.st_size != entry.bytes or crc32(picture.path.read_bytes()) != entry.source:
        problem = f"has changed since it was put into {folder}: delete that folder, and it is made anew"
        raise DataError(problem, picture.name)
