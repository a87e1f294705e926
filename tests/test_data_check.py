"""`check_folder`: right counts, and every fault listed, each on a line of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rislib.data import check_folder
from rislib.data.check import Count
from rislib.data.published import PUBLISHED, Size


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two datasets over three pictures with two objects each; the second one is split twice."""
    (tmp_path / "images/train2014").mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (20, 10)).save(tmp_path / f"images/train2014/{i}.jpg")
    triangle = [[1, 1, 9, 1, 1, 9]]
    instances = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 10, "width": 20} for i in range(3)],
        "annotations": [{"id": i, "image_id": i // 2, "segmentation": triangle} for i in range(6)],
    }
    references = [
        {
            "ref_id": i,
            "ann_id": i,
            "image_id": i // 2,
            "split": "train" if i < 4 else "val",
            "sentences": [{"sent": "one", "sent_id": 2 * i}, {"sent": "two", "sent_id": 2 * i + 1}],
        }
        for i in range(6)
    ]
    for dataset, split_by in [("refa", "me"), ("refb", "me"), ("refb", "you")]:
        (tmp_path / dataset).mkdir(exist_ok=True)
        (tmp_path / dataset / "instances.json").write_text(json.dumps(instances))
        (tmp_path / dataset / f"refs({split_by}).json").write_text(json.dumps(references))
    return tmp_path


def edit(file: Path, change: Any) -> None:
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def test_counts(root: Path) -> None:
    report = check_folder(root)
    assert report.ok and report.faults == ()
    assert report.counts == tuple(
        Count(dataset, split_by, split, references, 2 * references, images)
        for dataset, split_by in [("refa", "me"), ("refb", "me"), ("refb", "you")]
        for split, references, images in [("train", 4, 2), ("val", 2, 1)]
    )
    lines = report.lines()
    assert len(lines) == 7 and lines[-1] == "no fault"
    assert "refa (me) train" in lines[0] and "8 sentences" in lines[0]


def test_counts_are_held_against_the_published_ones(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"train": Size(4, 8, 2), "val": Size(2, 4, 1)}
    monkeypatch.setitem(PUBLISHED, ("refb", "me"), sizes)
    assert check_folder(root).ok
    edit(root / "refb/refs(me).json", lambda references: references.pop())
    report = check_folder(root)
    assert not report.ok and report.faults == ()
    assert report.differences == (
        "refb (me) val: 1 references, but 2 are published",
        "refb (me) val: 2 sentences, but 4 are published",
    )
    assert report.lines()[6:] == [*report.differences, "no fault, 2 of the counts not as published"]
    assert check_folder(root, published=False).ok
    (root / "refb/refs(me).json").write_text("[{")  # one fault, not one per split
    report = check_folder(root)
    assert len(report.faults) == 1 and report.differences == ()


def test_all_faults_are_listed_at_once(root: Path) -> None:
    def break_instances(document: Any) -> None:
        document["annotations"][1]["segmentation"] = [[1, 2, 3]]
        document["annotations"][2]["segmentation"] = [[1, 1, 1, 1, 1, 1]]
        document["annotations"][5]["image_id"] = 77

    def break_references(document: Any) -> None:
        document[0]["sentences"][1]["sent"] = ""
        document[3]["split"] = None

    edit(root / "refa/instances.json", break_instances)
    edit(root / "refa/refs(me).json", break_references)
    (root / "refb/refs(you).json").write_text("[{")
    (root / "images/train2014/2.jpg").write_bytes(b"no picture")
    report = check_folder(root)
    assert not report.ok
    assert sorted(report.faults) == sorted(
        [
            "refa/instances.json: annotation 1: segmentation: polygon with 3 numbers",
            "refa/instances.json: annotation 2: segmentation: no pixel, and sentences refer to it",
            "refa/instances.json: annotation 5: image_id: no image 77",
            "refa/refs(me).json: reference 0: sent: empty expression",
            "refa/refs(me).json: reference 3: split: NoneType instead of str",
            "refa/refs(me).json: reference 5: ann_id: no annotation 5",
            "images/train2014/2.jpg: not a readable picture (UnidentifiedImageError)",
            "images/train2014/2.jpg: not a readable picture (UnidentifiedImageError)",
            next(
                fault for fault in report.faults if fault.startswith("refb/refs(you).json: not readable as")
            ),
        ]
    )
    assert report.lines()[-1] == "9 faults"
    train = report.counts[0]
    assert (train.references, train.sentences, train.images) == (2, 4, 2)


def test_without_pixels_only_the_index_is_read(root: Path) -> None:
    for picture in (root / "images/train2014").iterdir():
        picture.unlink()
    assert check_folder(root, pixels=False).ok
    assert len(check_folder(root).faults) == 6  # three pictures, in two datasets


def test_an_empty_folder_is_a_fault(tmp_path: Path) -> None:
    assert not check_folder(tmp_path).ok
    assert not check_folder(tmp_path / "nowhere").ok
