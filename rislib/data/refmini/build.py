"""RefMini on disk, in RefCOCO's own layout, so that one reader reads both.

<root>/<flavour>/instances.json      pictures, objects, masks (RLE), categories
<root>/<flavour>/refs(rislib).json   references and their sentences
<root>/images/<flavour>/*.png
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm.auto import tqdm

from rislib.data.folders import new_folder
from rislib.data.masks import encode_mask
from rislib.data.refcoco import RefDataset, load_refcoco
from rislib.data.refmini.forms import Form
from rislib.data.refmini.paint import Painting, paint
from rislib.data.refmini.scene import CATEGORIES, Scene, sample_scene
from rislib.data.refmini.speak import FLAVOURS, Expression, speak

SPLIT_BY = "rislib"
WORLD = 2  # goes up whenever the same seed gives another world, so that no old one is taken for it
SPLITS = {"train": "any", "val": "any", "testA": "people", "testB": "things"}  # split -> cast
REFERENCES_PER_PICTURE = 3
SMALLEST = 0.008  # of the picture: nobody is asked for fewer pixels


def data_home() -> Path:
    """Where worlds are kept: $RISLIB_DATA, the `data/` of a checkout, or ~/.cache/rislib."""
    if "RISLIB_DATA" in os.environ:
        return Path(os.environ["RISLIB_DATA"])
    checkout = Path(__file__).parents[3]
    return checkout / "data" if (checkout / "pyproject.toml").exists() else Path.home() / ".cache" / "rislib"


def load_refmini(
    flavour: str = "refmini",
    split: str | None = "val",
    *,
    seed: int = 0,
    size: int = 128,
) -> RefDataset:
    """A split of the world `seed`; the world is drawn on first use (about a minute)."""
    root = data_home() / f"{flavour}-world{WORLD}-seed{seed}-{size}px"
    if not root.exists():
        build_refmini(root, flavour, seed=seed, size=size)
    return load_refcoco(root, flavour, SPLIT_BY, split)


def build_refmini(
    out: Path | str,
    flavour: str = "refmini",
    *,
    seed: int = 0,
    size: int = 128,
    train: int = 24_000,
    val: int = 1_200,
    progress: bool = True,
) -> Path:
    """Draw a world and write it to the new folder `out`, which appears only once it is complete.

    `train` and `val` are numbers of references (`val` holds for testA and testB as well); `size` is
    the pictures' side in pixels. Worlds of different seeds, and splits of one, share no scene.
    Raises ValueError for an unknown flavour and FileExistsError if `out` is already there.
    """
    out = Path(out)
    if flavour not in FLAVOURS:
        raise ValueError(f"unknown flavour {flavour!r}: one of {', '.join(FLAVOURS)}")
    writer = _Records()
    with new_folder(out, flavour) as (folder, pictures):
        for split in SPLITS:
            wanted = train if split == "train" else val
            with tqdm(total=wanted, desc=f"drawing {flavour} {split}", disable=not progress) as bar:
                for picture in draw_pictures(f"{seed}/{split}", split, flavour, size, wanted):
                    name = writer.add(picture, split)
                    picture.painting.image.save(pictures / name, compress_level=1)
                    bar.update(len(picture.references))
        (folder / "instances.json").write_text(json.dumps(writer.instances()))
        (folder / f"refs({SPLIT_BY}).json").write_text(json.dumps(writer.references))
    return out


@dataclass(frozen=True)
class Picture:
    """A painted scene and what is said about it: index of the thing -> its expressions."""

    scene: Scene
    painting: Painting
    references: dict[int, list[Expression]]


def draw_pictures(seed: str, split: str, flavour: str, size: int, references: int) -> Iterator[Picture]:
    """Pictures with exactly `references` references among them."""
    index = 0
    while references > 0:
        picture = draw_picture(
            f"{seed}/{index}", split, flavour, size, min(references, REFERENCES_PER_PICTURE)
        )
        index += 1
        if picture.references:
            references -= len(picture.references)
            yield picture


def draw_picture(
    seed: str, split: str, flavour: str, size: int, most: int = REFERENCES_PER_PICTURE
) -> Picture:
    """One scene, painted, with up to `most` of its things referred to.

    As RefCOCO was collected, only a thing whose category appears twice is referred to;
    testA asks for people alone.
    """
    scene = sample_scene(seed, SPLITS[split])
    painting = paint(scene, size)
    rng = random.Random(f"speak/{flavour}/{seed}")
    categories = [thing.category for thing in scene.things]
    areas = painting.masks.mean((1, 2))
    targets = [
        i
        for i, category in enumerate(categories)
        if categories.count(category) > 1
        and areas[i] > SMALLEST
        and (split != "testA" or category == "person")
    ]
    rng.shuffle(targets)
    references: dict[int, list[Expression]] = {}
    for target in targets:
        expressions = speak(scene, target, flavour, rng)
        if expressions and len(references) < most:
            references[target] = expressions
    return Picture(scene, painting, references)


class _Records:
    """COCO's tables, as they grow picture by picture."""

    def __init__(self) -> None:
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.references: list[dict] = []
        self._sentences = 0

    def add(self, picture: Picture, split: str) -> str:
        """Record a picture; returns its file name."""
        image_id = len(self.images) + 1
        name = f"{image_id:06d}.png"
        width, height = picture.painting.image.size
        self.images.append(
            {"id": image_id, "file_name": name, "width": width, "height": height, "scene": picture.scene.seed}
        )
        for i, (thing, mask) in enumerate(zip(picture.scene.things, picture.painting.masks, strict=True)):
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            if not len(rows):
                continue
            left, top = int(columns[0]), int(rows[0])
            category_id = CATEGORIES.index(thing.category) + 1
            annotation = {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "segmentation": encode_mask(mask),
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                "iscrowd": 0,
            }
            self.annotations.append(annotation)
            if i in picture.references:
                self._add_reference(annotation, name, split, picture.references[i])
        return name

    def _add_reference(self, annotation: dict, name: str, split: str, expressions: list[Expression]) -> None:
        sentences = [
            {
                "sent_id": self._sentences + i,
                "sent": expression.text,
                "raw": expression.text,
                "tokens": expression.text.split(),
                "kind": expression.kind,
                "form": _plain(expression.form),
            }
            for i, expression in enumerate(expressions)
        ]
        self._sentences += len(sentences)
        self.references.append(
            {
                "ref_id": len(self.references),
                "ann_id": annotation["id"],
                "image_id": annotation["image_id"],
                "category_id": annotation["category_id"],
                "file_name": name,
                "split": split,
                "sent_ids": [s["sent_id"] for s in sentences],
                "sentences": sentences,
            }
        )

    def instances(self) -> dict:
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def _plain(form: Form) -> dict:
    """A form as JSON, without the conditions that it does not make."""

    def drop(pairs: list[tuple]) -> dict:
        return {key: value for key, value in pairs if value is not None}

    return asdict(form, dict_factory=drop)
