"""The hub's tables: converted, they give the samples that RefCOCO's own files give."""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rislib.cli import app
from rislib.data import DataError, check_folder, hub, load_refcoco, open_split
from rislib.data.hub import convert_hub, import_stream

SHARED = Path(os.environ.get("RISLIB_REAL_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
REAL = SHARED / "refcoco_real"


def hub_rows(instances: dict[str, Any], references: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """RefCOCO's own documents as `jxu124/refcoco` has them, every column of its card."""
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    rows = []
    for reference in references:
        image, annotation = images[reference["image_id"]], annotations[reference["ann_id"]]
        x, y, width, height = annotation["bbox"]
        more = {
            "raw_anns": json.dumps(annotation),
            "raw_image_info": json.dumps(image),
            "raw_sentences": json.dumps(reference["sentences"]),
            "image_path": f"coco/train2014/{image['file_name']}",
            "bbox": [x, y, x + width, y + height],
            "captions": [sentence["sent"] for sentence in reference["sentences"]],
            "global_image_id": f"coco.{image['id']}",
            "anns_id": f"refcoco.{annotation['id']}",
        }
        rows.append(reference | more)
    return rows


def documents() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two pictures, three objects (the third is spoken of by nobody), three references to two of them."""

    def annotation(ann_id: int, image_id: int, outlines: list[list[float]]) -> dict[str, Any]:
        box = [1.0, 1.0, 8.0, 8.0]
        record = {"id": ann_id, "image_id": image_id, "category_id": 90, "bbox": box, "iscrowd": 0}
        return {**record, "area": 32.0, "segmentation": outlines}

    two_parts = [[1, 1, 5, 1, 5, 5], [7, 7, 12, 7, 12, 11]]
    instances = {
        "images": [
            {"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "height": 12, "width": 16} for i in (1, 2)
        ],
        "annotations": [
            annotation(11, 1, two_parts),
            annotation(21, 2, [[2, 2, 9, 2, 9, 9]]),
            annotation(22, 2, [[1, 1, 3, 1, 3, 3]]),
        ],
        "categories": [{"id": 90, "name": "toothbrush", "supercategory": "indoor"}],
    }
    references = [
        {
            "sent_ids": [10 * ref_id, 10 * ref_id + 1],
            "file_name": f"COCO_train2014_{ann_id // 10:012}_{ref_id}.jpg",
            "ann_id": ann_id,
            "ref_id": ref_id,
            "image_id": ann_id // 10,
            "split": split,
            "sentences": [
                {"raw": text.title(), "sent": text, "sent_id": 10 * ref_id + k, "tokens": text.split()}
                for k, text in enumerate(("the \u2028 brush", f"brush {ref_id}"))
            ],
            "category_id": 90,
        }
        for ref_id, ann_id, split in [(1, 11, "train"), (2, 21, "testA"), (3, 21, "testA")]
    ]
    return instances, references


def rows() -> list[dict[str, Any]]:
    return hub_rows(*documents())


def as_list(file: Path, rows: list[Any]) -> Path:
    file.write_text(json.dumps(rows))
    return file


def as_lines(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def as_parquet(file: Path, rows: list[Any]) -> Path:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.Table.from_pylist(rows), file)
    return file


FORMS = [("rows.json", as_list), ("rows.json", as_lines), ("rows.jsonl", as_lines), ("r.parquet", as_parquet)]


def original(root: Path, dataset: str = "refcoco", split_by: str = "unc") -> Path:
    instances, references = documents()
    (root / dataset).mkdir(parents=True)
    (root / dataset / "instances.json").write_text(json.dumps(instances))
    (root / dataset / f"refs({split_by}).p").write_bytes(pickle.dumps(references, protocol=2))
    return root


@pytest.mark.parametrize(("name", "write"), FORMS)
def test_every_form_gives_the_records_of_the_original(tmp_path: Path, name: str, write: Callable) -> None:
    file = write(tmp_path / name, rows())
    assert convert_hub([file], tmp_path / "hub", "refcoco") == "unc"
    expected = load_refcoco(original(tmp_path / "original"), "refcoco", "unc", None)
    samples = load_refcoco(tmp_path / "hub", "refcoco", "unc", None)
    assert samples.records == expected.records
    for record in samples.records:
        mask = samples._instances.mask(record.ann_id)
        assert mask.any() and (mask == expected._instances.mask(record.ann_id)).all()
    assert [path.suffix for path in (tmp_path / "hub/refcoco").iterdir()] == [".json", ".json"]


def test_splits_under_the_hubs_names(tmp_path: Path) -> None:
    """An export of single splits may name them as the hub does: there, testA is "test"."""
    renamed = rows()
    for row, split in zip(renamed, ("validation", "test", "testB"), strict=True):
        row["split"] = split
    for dataset, split_by, splits in [
        ("refcoco", "unc", ["val", "testA", "testB"]),
        ("refcoco+", "unc", ["val", "testA", "testB"]),
        ("refcocog", "umd", ["val", "test", "testB"]),
    ]:
        assert convert_hub([as_list(tmp_path / "rows.json", renamed)], tmp_path, dataset) == split_by
        found = load_refcoco(tmp_path, dataset, split_by, None).records[::2]
        assert [record.split for record in found] == splits


def test_several_files_and_parsed_columns(tmp_path: Path) -> None:
    first, second, third = rows()
    third |= {column: json.loads(third[column]) for column in ("raw_anns", "raw_image_info")}
    files = [as_list(tmp_path / "a.json", [first]), as_lines(tmp_path / "b.jsonl", [second, third])]
    convert_hub(files, tmp_path, "refcoco")
    assert len(load_refcoco(tmp_path, "refcoco", "unc", None)) == 6


def test_nothing_that_is_there_is_overwritten_or_hidden(tmp_path: Path) -> None:
    """A .json would go before the original's .p."""
    root = original(tmp_path)
    file = as_list(tmp_path / "rows.json", rows())
    with pytest.raises(DataError, match="is already there"):
        convert_hub([file], root, "refcoco")
    (root / "refcoco/instances.json").unlink()
    with pytest.raises(DataError, match=r"refs\(unc\)\.p: is already there"):
        convert_hub([file], root, "refcoco")
    assert not (root / "refcoco/instances.json").exists()


def put(key: str, value: Any) -> Callable[[list[Any]], None]:
    return lambda rows: rows[2].update({key: value})


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("raw_anns", "{"), "rows.json: row 2: raw_anns: not readable as JSON"),
        (put("raw_anns", "[]"), "rows.json: row 2: raw_anns: is not the record of 21"),
        (put("ann_id", 22), "rows.json: row 2: raw_anns: is not the record of 22"),
        (put("image_id", 2.0), "rows.json: row 2: raw_image_info: is not the record of 2.0"),
        (put("raw_anns", '{"id": 21}'), "rows.json: row 2: raw_anns: contradicts an earlier row about 21"),
        (lambda rows: rows[2].pop("raw_anns"), "rows.json: row 2: not jxu124's form: no raw_anns"),
        (lambda rows: rows.append(7), "rows.json: row 3: int instead of an object"),
    ],
)
def test_faults_name_their_place_and_leave_nothing(tmp_path: Path, edit: Callable, message: str) -> None:
    edited = rows()
    edit(edited)
    with pytest.raises(DataError) as caught:
        convert_hub([as_list(tmp_path / "rows.json", edited)], tmp_path, "refcoco")
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "refcoco").exists()


def test_what_the_conversion_does_not_look_at_the_reader_does(tmp_path: Path) -> None:
    edited = rows()
    edited[0]["sentences"][0]["sent"] = " "
    convert_hub([as_list(tmp_path / "rows.json", edited)], tmp_path, "refcoco")
    with pytest.raises(DataError, match=r"refs\(unc\)\.json: reference 1: sent: empty expression"):
        load_refcoco(tmp_path, "refcoco", "unc", None)


def test_other_files(tmp_path: Path) -> None:
    for name, content, message in [
        ("a.json", "{", "a.json: not readable as JSON"),
        ("a.json", "[1, ", "a.json: not readable as JSON"),
        ("a.csv", "", "a.csv: neither .parquet nor .json nor .jsonl"),
    ]:
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=message):
            convert_hub([tmp_path / name], tmp_path, "refcoco")
    with pytest.raises(DataError, match="no dataset 'refcocoplus'"):
        convert_hub([], tmp_path, "refcocoplus")


def test_a_broken_parquet_file(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no table")
    with pytest.raises(DataError, match=r"a\.parquet: not readable as parquet"):
        convert_hub([tmp_path / "a.parquet"], tmp_path, "refcoco")


def test_without_pyarrow_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it were not installed
    (tmp_path / "a.parquet").touch()
    with pytest.raises(DataError, match=r"a\.parquet: parquet needs pyarrow \(pip install pyarrow\)"):
        convert_hub([tmp_path / "a.parquet"], tmp_path, "refcoco")


def test_lmms_lab_is_refused_and_told_why(tmp_path: Path) -> None:
    row = {
        "question_id": "0",
        "question": "Please carefully observe the area circled in the image",
        "answer": ["bowl behind the others"],
        "segmentation": [490.4, 116.1, 468.3, 1.0, 640.0, 1.0],
        "bbox": [468.3, 0.9, 171.7, 115.2],
        "iscrowd": 0,
        "file_name": "COCO_train2014_000000580957_4.jpg",
    }
    file = as_list(tmp_path / "val.json", [row])
    result = CliRunner().invoke(app, ["data", "convert", "refcoco", str(file), "--out", str(tmp_path)])
    assert result.exit_code == 1 and isinstance(result.exception, DataError)
    for reason in ("8,811", "Google's 5,000", "no train", "jxu124/refcoco"):
        assert reason in str(result.exception)


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples here")
@pytest.mark.parametrize(
    ("dataset", "split_by"), [("refcoco", "unc"), ("refcoco+", "unc"), ("refcocog", "umd")]
)
def test_real_records_come_through_unchanged(tmp_path: Path, dataset: str, split_by: str) -> None:
    instances = json.loads((REAL / dataset / "instances.json").read_text())
    references = pickle.loads((REAL / dataset / f"refs({split_by}).p").read_bytes())
    file = as_lines(tmp_path / "rows.jsonl", hub_rows(instances, references))
    (tmp_path / "images").symlink_to(REAL / "images")
    result = CliRunner().invoke(app, ["data", "convert", dataset, str(file), "--out", str(tmp_path)])
    assert result.exit_code == 0, result.exception
    expected = load_refcoco(REAL, dataset, split_by, None)
    samples = load_refcoco(tmp_path, dataset, split_by, None)
    assert samples.records == expected.records  # categories, too, which the tables lack
    assert len({record.category for record in samples.records}) > 5
    assert check_folder(tmp_path, published=False).ok
    for sample, other in zip(samples[:20], expected[:20], strict=True):
        assert (sample.mask == other.mask).all() and sample.image == other.image


# --- streamed, with pictures --------------------------------------------------------------------


def benchmark_rows(instances: dict[str, Any], references: list[Any], pictures: Path) -> list[dict[str, Any]]:
    """RefCOCO's own documents as `jxu124/refcoco-benchmark` has them."""
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    rows = []
    for image in instances["images"]:
        there = [reference for reference in references if reference["image_id"] == image["id"]]
        pairs = [{"ref_info": each, "ann_info": annotations[each["ann_id"]]} for each in there]
        picture = {"bytes": (pictures / image["file_name"]).read_bytes(), "path": image["file_name"]}
        rows.append({"image": picture, "image_info": image, "ref_list": pairs})
    return [row for row in rows if row["ref_list"]]


@pytest.fixture
def table(tmp_path: Path) -> tuple[Path, Path, list[dict[str, Any]]]:
    """A folder as the hub has it, one in RefCOCO's layout of the same content, and the rows."""
    datasets = pytest.importorskip("datasets", reason="streaming needs the hub's library `datasets`")
    instances, references = documents()
    root = original(tmp_path / "original")
    (root / "images/train2014").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for image in instances["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images/train2014" / image["file_name"])
    rows = benchmark_rows(instances, references, root / "images/train2014")
    (tmp_path / "hub/data").mkdir(parents=True)
    for row, split in zip(rows, ("refcoco_unc_train", "refcoco_unc_testA"), strict=True):
        rows_of_split = datasets.Dataset.from_list([row]).cast_column("image", datasets.Image())
        rows_of_split.to_parquet(tmp_path / f"hub/data/{split}-00000-of-00001.parquet")
    return tmp_path / "hub", root, rows


def test_a_stream_gives_the_samples_of_the_original(table: tuple, tmp_path: Path) -> None:
    hub, root, _ = table
    out, splits = tmp_path / "streamed", ["refcoco_unc_train", "refcoco_unc_testA"]
    chosen = [option for split in splits for option in ("--split", split)]
    result = CliRunner().invoke(app, ["data", "stream", str(hub), *chosen, "--out", str(out)])
    assert result.exit_code == 0, result.exception
    expected, samples = load_refcoco(root, "refcoco", "unc", None), open_split(out, None)
    assert samples.records == expected.records and len(samples) == 6
    for sample, other in zip(samples, expected, strict=True):
        assert (sample.mask == other.mask).all() and sample.image == other.image
    assert check_folder(out, published=False).ok
    with pytest.raises(FileExistsError, match="is not empty"):
        import_stream(str(hub), splits, out)


def test_only_the_pictures_of_the_split_come_to_the_disk(table: tuple, tmp_path: Path) -> None:
    hub, _, rows = table
    out = import_stream(str(hub), ["refcoco_unc_testA"], tmp_path / "streamed")
    assert [file.name for file in (out / "images/streamed").iterdir()] == [rows[1]["image_info"]["file_name"]]
    assert {record.split for record in open_split(out, None).records} == {"testA"}
    with pytest.raises(ValueError, match="refcoco_unc_testZ"):
        import_stream(str(hub), ["refcoco_unc_testZ"], tmp_path / "other")


def faulty(rows: list[dict[str, Any]], edit: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    row = copy.deepcopy(rows[1])
    edit(row)
    return row


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda row: row["image_info"].update(file_name="../x.jpg"), "file_name: not a plain file name"),
        (lambda row: row["image"].update(bytes=None), "bytes: NoneType instead of bytes"),
        (lambda row: row.pop("ref_list"), "ref_list: missing"),
        (lambda row: row["ref_list"][1].update(ann_info={"id": 21}), "contradicts an earlier row about 21"),
        (lambda row: row["ref_list"][0]["ref_info"].update(ref_id=3), "reference 3: ref_id: occurs twice"),
    ],
)
def test_faults_of_a_stream_leave_nothing(
    table: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: Callable, message: str
) -> None:
    rows = [table[2][0], faulty(table[2], edit)]
    monkeypatch.setattr(hub, "_stream", lambda name, split: rows)
    with pytest.raises(DataError, match=message):
        import_stream("owner/name", ["refcoco_unc_val"], tmp_path / "streamed")
    assert {path.name for path in tmp_path.iterdir()} == {"hub", "original"}


def test_without_datasets_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # as if it were not installed
    with pytest.raises(DataError, match=r"pip install datasets"):
        import_stream("owner/name", ["refcoco_unc_val"], tmp_path / "streamed")
    assert list(tmp_path.iterdir()) == []
