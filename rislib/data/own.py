"""Your own pictures: a folder with a table of what is said about them, brought into RefCOCO's layout.

What the table may hold is said in `rislib.data.expressions`. Of a mask everything belongs to the thing that
is not 0; of a box, the whole rectangle does. `look` finds all that is wrong with pictures and masks, and
`import_own` writes the folder that `open_split` reads: one reader reads all.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from tqdm.auto import tqdm

from rislib.data.errors import DataError, Fault, locating, raise_fault
from rislib.data.expressions import Box, Row, own_table, read_table
from rislib.data.folders import new_folder
from rislib.data.masks import box_of_mask, decode_segmentation, encode_mask
from rislib.data.pictures import open_picture

SPLIT_BY = "own"


@dataclass(frozen=True)
class Thing:
    """A thing of a picture, and what is said about it."""

    rows: Sequence[Row]
    mask: np.ndarray  # (H, W) bool


@dataclass(frozen=True)
class Found:
    """A picture of the folder, upright, with all things that the table knows in it."""

    image: str
    picture: Image.Image
    things: Sequence[Thing]


def look(
    folder: str | Path, rows: Sequence[Row], on_fault: Fault = raise_fault, *, progress: bool = False
) -> Iterator[Found]:
    """Opens every picture and every mask. What has a fault is left out, if `on_fault` returns."""
    folder, table = Path(folder), own_table(folder).name
    named = {row.image for row in rows} | {row.outline for row in rows if isinstance(row.outline, str)}
    seen: dict[bytes, str] = {}
    for image, members in tqdm(_grouped(rows, "image").items(), "looking at pictures", disable=not progress):
        picture = None
        with locating(table, members[0].place, on_fault):
            picture = _open(folder, members[0], named)
            twin = seen.setdefault(hashlib.sha256((folder / image).read_bytes()).digest(), image)
            if twin != image:
                problem = f"{image} is the same picture as {twin}: delete one, and use one name in all rows"
                raise DataError(problem, field="image")
        if picture is None:
            continue
        things = []
        for about in _grouped(members, "thing").values():
            with locating(table, about[0].place, on_fault):
                things.append(Thing(about, _mask(folder, about[0], picture, named)))
        yield Found(image, picture, things)


def import_own(
    folder: str | Path, out: str | Path, *, size: int | None = 640, progress: bool = False
) -> Path:
    """Writes the new folder `out` in RefCOCO's layout, which appears only once it is complete.

    Args:
        size: the longest side that a picture may have, pixels; larger ones are shrunk, with their masks.
            COCO's pictures have 640; a telephone's have forty times as many pixels. None: as they are.

    Raises:
        DataError: the first fault in table, pictures or masks. `check_folder` lists all of them.
        FileExistsError: `out` is there, and not empty.
    """
    out = Path(out).resolve()
    with new_folder(out, out.name) as (index, pictures):
        rows = read_table(folder)
        instances, references = _write_pictures(Path(folder), rows, pictures, size, progress)
        (index / "instances.json").write_text(json.dumps(instances))
        (index / f"refs({SPLIT_BY}).json").write_text(json.dumps(references))
    return out


# --- pictures and masks ---------------------------------------------------------------------------


def _grouped(rows: Sequence[Row], field: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return groups


def _open(folder: Path, row: Row, named: set[str]) -> Image.Image:
    try:
        picture = open_picture(folder / row.image)
    except FileNotFoundError as error:
        raise _missing(folder, row.image, "image", named) from error
    except DataError as error:
        raise DataError(f"{row.image} {error.problem}", field="image") from error
    shape = picture.height, picture.width
    if row.size not in (None, shape):
        sizes = "{} x {} pixels (height x width), not {} x {}".format(*shape, *row.size)
        raise DataError(f"{row.image} has {sizes}: annotate the picture as it is here", field="size")
    return picture


def _missing(folder: Path, name: str, field: str, named: set[str]) -> DataError:
    """With a file that is called nearly so and that no row names: another case, ending or folder."""
    stem = PureWindowsPath(name).stem.casefold()  # splits at both kinds of slashes
    files = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    near = [file for file in files if PurePosixPath(file).stem.casefold() == stem and file not in named]
    hint = f" (is it {near[0]}?)" if near else ""
    return DataError(f"no file {name}: put it there, or mend the name{hint}", field=field)


def _mask(folder: Path, row: Row, picture: Image.Image, named: set[str]) -> np.ndarray:
    """(H, W) bool of the thing that a row means."""
    width, height = picture.size
    if isinstance(row.outline, str):
        field, mask = "mask", _mask_file(folder, row.outline, (height, width), named)
    elif isinstance(row.outline, tuple):
        field, mask = "box", _rectangle(row.outline, height, width)
    else:
        field, mask = "segmentation", _segmentation(row.outline, height, width)
    if not mask.any():
        raise DataError("no pixel is marked: mark the thing (whatever is not 0 counts)", field=field)
    if mask.all():
        raise DataError("every pixel is marked: the background must be 0", field=field)
    return mask


def _mask_file(folder: Path, name: str, shape: tuple[int, int], named: set[str]) -> np.ndarray:
    try:
        with Image.open(folder / name) as image:
            if image.format == "JPEG":
                raise DataError(f"{name} is a JPEG, which blurs 0: save it as PNG", field="mask")
            pixels = np.asarray(image.convert("RGB") if "A" in image.mode else image)
    except FileNotFoundError as error:
        raise _missing(folder, name, "mask", named) from error
    except DataError:
        raise
    except Exception as error:  # broken pictures make Pillow raise nearly everything
        problem = f"{name} cannot be read ({type(error).__name__}): save it again as PNG"
        raise DataError(problem, field="mask") from error
    mask = pixels.astype(bool) if pixels.ndim == 2 else pixels.any(axis=2)
    if mask.shape != shape:
        (h, w), (height, width) = mask.shape, shape
        advice = "turn it upright, as the picture is shown" if (h, w) == (width, height) else "draw it anew"
        problem = f"{name} has {h} x {w} pixels (height x width), its picture {height} x {width}: {advice}"
        raise DataError(problem, field="mask")
    return mask


def _rectangle(box: Box, height: int, width: int) -> np.ndarray:
    """All pixels that the box touches; it may reach one pixel beyond the edge, for the sake of rounding."""
    x, y, w, h = box
    if min(x, y) < -1 or x + w > width + 1 or y + h > height + 1:
        problem = f"{x:g} {y:g} {w:g} {h:g} leaves the picture of {width} x {height} (width x height)"
        if 0 <= x < w <= width and 0 <= y < h <= height:
            raise DataError(f"{problem}: if these are corners x1 y1 x2 y2, write x y w h", field="box")
        raise DataError(f"{problem}: mend it", field="box")
    mask = np.zeros((height, width), dtype=bool)
    mask[max(0, math.floor(y)) : math.ceil(y + h), max(0, math.floor(x)) : math.ceil(x + w)] = True
    return mask


def _segmentation(segmentation: Any, height: int, width: int) -> np.ndarray:
    if isinstance(segmentation, list):
        for polygon in segmentation:
            if isinstance(polygon, list) and len(polygon) < 6:
                problem = f"a polygon of {len(polygon) // 2} points: it takes 3 to enclose something"
                raise DataError(problem, field="segmentation")
    return decode_segmentation(segmentation, height, width)


# --- writing --------------------------------------------------------------------------------------


def _write_pictures(
    folder: Path, rows: Sequence[Row], pictures: Path, size: int | None, progress: bool
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Puts all pictures into the folder `pictures`; what `instances.json` and `refs(own)` say of them."""
    categories = sorted({row.category for row in rows if row.category})
    images, annotations, references, sentences = [], [], [], itertools.count()
    for image_id, found in enumerate(look(folder, rows, progress=progress), start=1):
        target = pictures / f"{image_id:06}_{PurePosixPath(found.image).name}"
        name, (height, width) = _save(folder / found.image, found.picture, target, size)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for thing in found.things:
            row = thing.rows[0]
            ids = {"ann_id": len(annotations) + 1, "image_id": image_id}
            annotation = {"id": ids["ann_id"], "image_id": image_id}
            if row.category:
                annotation["category_id"] = categories.index(row.category) + 1
            with locating(own_table(folder).name, row.place):
                annotations.append(annotation | _outlined(thing.mask, height, width))
            said = [
                {"sent_id": next(sentences), "sent": row.expression}
                for row in thing.rows
                if row.expression is not None
            ]
            if said:
                references.append({"ref_id": ids["ann_id"], **ids, "split": row.split, "sentences": said})
    names = [{"id": i, "name": name} for i, name in enumerate(categories, start=1)]
    return {"images": images, "annotations": annotations, "categories": names}, references


def _save(file: Path, picture: Image.Image, target: Path, size: int | None) -> tuple[str, tuple[int, int]]:
    """Puts a picture beside `target`, unchanged if it can be; its name there, and (height, width)."""
    with Image.open(file) as raw:
        kind = "JPEG" if raw.format in ("JPEG", "MPO") else "PNG"
        upright = raw.getexif().get(ExifTags.Base.Orientation, 1) == 1
        plain = raw.format == kind and raw.mode in ("RGB", "L") and upright and not raw.has_transparency_data
    target = target.with_suffix(".jpg" if kind == "JPEG" else ".png")
    if size is not None and max(picture.size) > size:
        picture.thumbnail((size, size), Image.Resampling.LANCZOS)
        plain = False
    if plain:
        shutil.copyfile(file, target)
    else:
        picture.save(target, **({"quality": 95} if kind == "JPEG" else {}))
    return target.name, (picture.height, picture.width)


def _outlined(mask: np.ndarray, height: int, width: int) -> dict[str, Any]:
    """COCO's fields for a mask, shrunk with its picture to height x width."""
    if mask.shape != (height, width):
        share = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        mask = np.asarray(share) > 127
        if not mask.any():
            raise DataError("too small to be seen in the shrunk picture: import with a larger size")
    box = box_of_mask(mask)
    return {"segmentation": encode_mask(mask), "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
