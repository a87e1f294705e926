"""RefCOCO as the Hugging Face hub has it, brought into RefCOCO's own layout: one reader for all.

`jxu124/refcoco`, `jxu124/refcocoplus` and `jxu124/refcocog` are tables with a row per reference. Used are:

    ref_id, ann_id, image_id, split        as in refs(...).p: the split is train, val, testA, testB, test
    sentences                              list of {sent, sent_id, raw, tokens}
    raw_anns                               COCO's annotation, as JSON text: its outlines are here
    raw_image_info                         COCO's image record, as JSON text: file name, height, width

They hold no pictures (`data get train2014` brings these) and only annotations that someone refers to: of a
picture's other objects nothing is known, so samples with `instances` carry fewer masks than the original's.
Their `bbox` has two corners, unlike COCO's; it is not used.

`jxu124/refcoco-benchmark` has the splits that one measures on (refcoco_unc_val, refcoco_unc_testA,
refcoco_plus_unc_val, refcocog_umd_val, ...) and their pictures: a row per picture.

    image                                  {bytes, path}: the file as COCO has it
    image_info                             COCO's image record
    ref_list                               list of {ref_info: as in refs(...).p, ann_info: COCO's annotation}

So public programs read it; one of them counts 1,500 pictures, 3,811 references and 10,834 sentences in
refcoco_unc_val, which are UNC's. `import_stream` reads it over the network, row by row; to the disk come only
the pictures of these splits, not all of COCO's 13 GB. For training no such table is known here.

`lmms-lab/RefCOCO` and its relatives are refused, see `LMMS_LAB`: by the sizes in their cards, and by their
columns (`segmentation: sequence of float32`). Nothing in them says which row comes from which split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from rislib.data.errors import DataError, locating
from rislib.data.folders import new_folder
from rislib.data.index import take
from rislib.data.published import SPLIT_BY
from rislib.data.refcoco import load_refcoco

COLUMNS = frozenset({"ref_id", "ann_id", "image_id", "split", "sentences", "raw_anns", "raw_image_info"})

# The hub calls UNC's testA "test". The column `split` keeps the old names, exports need not.
SPLITS = {
    "refcoco": {"validation": "val", "test": "testA"},
    "refcoco+": {"validation": "val", "test": "testA"},
    "refcocog": {"validation": "val"},
}

LMMS_LAB = (
    "lmms-lab's form, which cannot stand for the benchmark. The 8,811 references of RefCOCO's val are UNC's "
    "3,811 and Google's 5,000 in one (RefCOCOg: 7,573, UMD's 2,573 and Google's 5,000), with pictures that "
    "UNC and UMD train on. An outline is one flat list, so objects of several parts are lost. There is no "
    "train, and no id of picture, object or sentence. Take jxu124/refcoco, .../refcocoplus or .../refcocog"
)


def convert_hub(files: Iterable[str | Path], root: str | Path, dataset: str) -> str:
    """Writes <root>/<dataset>/instances.json and refs(...).json from tables of the hub; then `load_refcoco`.

    Args:
        files: as downloaded: .parquet (needs pyarrow), .json (a list) or .jsonl (a row per line).
        root: the data folder; pictures belong in <root>/images/train2014.
        dataset: which one it is: "refcoco", "refcoco+" or "refcocog".

    Returns:
        Who split it: "unc" or "umd".

    Raises:
        DataError: a file has another form, rows contradict each other, the dataset is already there, or a
            .parquet file and no pyarrow to read it.
    """
    if dataset not in SPLIT_BY:
        raise DataError(f"no dataset {dataset!r}, only {', '.join(SPLIT_BY)}")
    folder, split_by = Path(root) / dataset, SPLIT_BY[dataset]
    targets = [folder / "instances.json", folder / f"refs({split_by}).json"]
    for there in (*targets, folder / f"refs({split_by}).p"):
        if there.exists():
            raise DataError("is already there, and would be lost or hidden", file=str(there))
    documents = _documents(files, dataset)
    folder.mkdir(parents=True, exist_ok=True)
    for target, document in zip(targets, documents, strict=True):
        unfinished = target.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(document))
        unfinished.replace(target)
    return split_by


def import_stream(name: str, splits: Sequence[str], out: str | Path, *, progress: bool = False) -> Path:
    """Writes the new folder `out` in RefCOCO's layout from a table that holds its pictures, read as a stream.

    The folder appears only once it is complete and read; whoever is stopped begins anew.

    Args:
        name: of a dataset on the hub in the form of `jxu124/refcoco-benchmark`, or a folder with its files.
        splits: as that dataset calls them. In the folder they are what `ref_info` says: val, testA, ...

    Raises:
        DataError: the library `datasets` is not here, rows have another form or contradict each other.
        FileExistsError: `out` is there, and not empty.
        OSError, ValueError: the hub cannot be reached, has no such dataset, or that no such split.
    """
    out = Path(out).resolve()
    images: dict[Any, Any] = {}
    annotations: dict[Any, Any] = {}
    references: list[dict[str, Any]] = []
    with new_folder(out, out.name) as (index, pictures):
        for split in splits:
            for position, row in enumerate(tqdm(_stream(name, split), split, disable=not progress)):
                with locating(f"{name} {split}", f"row {position}"):
                    references += _unpack(row, images, annotations, pictures)
        instances = _instances(images, annotations)
        (index / "instances.json").write_text(json.dumps(instances))
        (index / "refs(hub).json").write_text(json.dumps(references))
        load_refcoco(index.parent, out.name, "hub", None)
    return out


def _stream(name: str, split: str) -> Iterable[dict[str, Any]]:
    try:
        from datasets import Image, load_dataset
    except ImportError as error:
        raise DataError("the hub is streamed by its own library: pip install datasets") from error
    rows = load_dataset(name, split=split, streaming=True)
    return rows.cast_column("image", Image(decode=False))  # the file as it is


def _unpack(row: Any, images: dict[Any, Any], annotations: dict[Any, Any], pictures: Path) -> list[Any]:
    """Writes a row's picture, notes its records, and returns its references."""
    image = {key: take(row.get("image_info"), key, int) for key in ("id", "height", "width")}
    image["file_name"] = take(row["image_info"], "file_name", str)
    if Path(image["file_name"]).name != image["file_name"]:
        raise DataError("not a plain file name", field="file_name")
    _put(images, image["id"], image, "image_info")
    (pictures / image["file_name"]).write_bytes(take(row.get("image"), "bytes", bytes))
    references = []
    for each in take(row, "ref_list", list):
        reference, annotation = take(each, "ref_info", dict), take(each, "ann_info", dict)
        _put(annotations, reference.get("ann_id"), annotation, "ann_info")
        references.append({key: reference.get(key) for key in ("ref_id", "ann_id", "split", "sentences")})
        references[-1]["image_id"] = image["id"]
    return references


def _documents(files: Iterable[str | Path], dataset: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What `instances.json` and `refs(...)` would have said."""
    images: dict[Any, Any] = {}
    annotations: dict[Any, Any] = {}
    references: list[dict[str, Any]] = []
    for file in map(Path, files):
        with locating(file.name):
            for position, row in enumerate(_rows(file)):
                with locating(file.name, f"row {position}"):
                    _check_form(row)
                    _put(images, row["image_id"], _parsed(row, "raw_image_info"), "raw_image_info")
                    _put(annotations, row["ann_id"], _parsed(row, "raw_anns"), "raw_anns")
                    reference = {key: row[key] for key in ("ref_id", "ann_id", "image_id", "sentences")}
                    split = str(row["split"])
                    references.append(reference | {"split": SPLITS[dataset].get(split, split)})
    return _instances(images, annotations), references


def _rows(file: Path) -> Iterator[Any]:
    """The rows of a table; columns that are not used may be missing."""
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
    elif file.suffix in (".json", ".jsonl"):
        try:
            text = file.read_text(encoding="utf-8").strip()
            # A row per line in .json, too: `datasets` exports so. Not splitlines(), which knows rarer ends
            yield from json.loads(text) if text.startswith("[") else map(json.loads, text.split("\n"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"not readable as JSON ({error})") from error
    else:
        raise DataError("neither .parquet nor .json nor .jsonl")


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError as error:
        raise DataError("parquet needs pyarrow (pip install pyarrow), or export it as .jsonl") from error
    try:
        with parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(4096, columns=_wanted(table.schema_arrow.names)):
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise DataError(f"not readable as parquet ({error})") from error


def _wanted(columns: Sequence[str]) -> list[str]:
    """Not pictures: they are what fills such tables."""
    return [name for name in columns if name not in ("image", "raw_sentences", "captions")]


def _check_form(row: Any) -> None:
    if not isinstance(row, dict):
        raise DataError(f"{type(row).__name__} instead of an object")
    if {"question", "answer", "segmentation"} <= row.keys():
        raise DataError(LMMS_LAB)
    if missing := sorted(COLUMNS - row.keys()):
        raise DataError(f"not jxu124's form: no {', '.join(missing)}")


def _parsed(row: dict[str, Any], column: str) -> Any:
    """A column of JSON text; exports may have parsed it already."""
    if not isinstance(row[column], str):
        return row[column]
    try:
        return json.loads(row[column])
    except (ValueError, RecursionError) as error:
        raise DataError(f"not readable as JSON ({error})", field=column) from error


def _put(records: dict[Any, Any], key: Any, record: Any, column: str) -> None:
    """Several references share a picture or an object; they must say the same of it."""
    if not isinstance(record, dict) or type(key) is not int or record.get("id") != key:
        raise DataError(f"is not the record of {key!r}", field=column)
    if records.setdefault(key, record) != record:
        raise DataError(f"contradicts an earlier row about {key}", field=column)


def _instances(images: dict[Any, Any], annotations: dict[Any, Any]) -> dict[str, Any]:
    return {
        "images": list(images.values()),
        "annotations": list(annotations.values()),
        "categories": _coco_categories(),
    }


def _coco_categories() -> list[dict[str, Any]]:
    """COCO's 80 names, which the tables lack; torchvision keeps them, by id, with "N/A" in between."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights as detector

    names = detector.COCO_V1.meta["categories"]
    return [{"id": i, "name": name} for i, name in enumerate(names) if name not in ("__background__", "N/A")]
