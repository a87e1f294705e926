"""The published counts: agree with the released sentences, add up, and a folder is held against them."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rislib.cli import app
from rislib.data.published import PUBLISHED, Size, differences

SHARED = Path(os.environ.get("RISLIB_REAL_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
REAL, EXPRESSIONS = SHARED / "refcoco_real", SHARED / "expressions" / "val_test.jsonl.gz"


@pytest.mark.skipif(not EXPRESSIONS.exists(), reason="no real expressions here")
def test_counts_of_the_released_val_and_test_splits() -> None:
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with gzip.open(EXPRESSIONS, "rt") as lines:
        for row in map(json.loads, lines):
            rows.setdefault((row["dataset"], row["split"]), []).append(row)
    assert len(rows) == 8
    for (dataset, split), members in rows.items():
        split_by = "umd" if dataset == "refcocog" else "unc"
        assert PUBLISHED[dataset, split_by][split] == Size(
            references=len(members),
            sentences=sum(len(row["sentences"]) for row in members),
            images=len({row["image_id"] for row in members}),
        )


def test_splits_add_up_to_the_published_totals() -> None:
    """RefCOCO: 50,000 objects, 142,210 expressions, 19,994 pictures; RefCOCO+: 49,856, 141,564, 19,992."""

    def total(what: str, dataset: str, split_by: str) -> int:
        return sum(getattr(size, what) for size in PUBLISHED[dataset, split_by].values())

    assert total("references", "refcoco", "unc") == total("references", "refcoco", "google") == 50_000
    assert total("sentences", "refcoco", "unc") == 142_210
    assert total("images", "refcoco", "unc") == 19_994
    assert total("references", "refcoco+", "unc") == 49_856
    assert total("sentences", "refcoco+", "unc") == 141_564
    assert total("images", "refcoco+", "unc") == 19_992
    # the same objects and sentences, split twice; only UMD's splits share no picture
    assert total("references", "refcocog", "umd") == total("references", "refcocog", "google") == 49_822
    assert total("sentences", "refcocog", "umd") == total("sentences", "refcocog", "google") == 95_010
    assert total("images", "refcocog", "umd") == 25_799 < total("images", "refcocog", "google")


def test_every_kind_of_difference_is_one_line() -> None:
    found = dict(PUBLISHED["refcoco+", "unc"])
    assert differences("refcoco+", "unc", found) == []
    found["val"] = Size(3_804, 10_758, 1_500)
    found["testA"] = Size(1_975, 5_727, 751)
    del found["testB"]
    found["test"] = Size(2, 3, 1)
    assert differences("refcoco+", "unc", found) == [
        "refcoco+ (unc) val: 3,804 references, but 3,805 are published",
        "refcoco+ (unc) testA: 5,727 sentences, but 5,726 are published",
        "refcoco+ (unc) testA: 751 images, but 750 are published",
        "refcoco+ (unc) testB: 0 references, but 1,798 are published",
        "refcoco+ (unc) test: 2 references, but no such split is published",
    ]


def test_what_is_not_published_is_not_compared() -> None:
    assert differences("refmini", "refmini", {"train": Size(1, 1, 1)}) == []
    assert differences("refcoco", "berkeley", {"train": Size(1, 1, 1)}) == []
    sizes = {split: Size(s.references, 7, s.images) for split, s in PUBLISHED["refcoco", "google"].items()}
    assert differences("refcoco", "google", sizes) == []  # no number of sentences is known


# --- whole folders ----------------------------------------------------------------------------


def write_like_published(root: Path, dataset: str, split_by: str) -> None:
    """An index with the published counts, and 200,000 annotations of 500 bytes, as COCO's are."""
    images: list[str] = []
    references: list[dict[str, Any]] = []
    sent_ids = count()
    for split, size in PUBLISHED[dataset, split_by].items():
        first = len(images)
        for image_id in range(first, first + size.images):
            name = f"COCO_train2014_{image_id:012}.jpg"
            images.append(f'{{"id": {image_id}, "file_name": "{name}", "height": 480, "width": 640}}')
        fewest, longer = divmod(size.sentences, size.references)  # so many have one sentence more
        for i in range(size.references):
            sentences = [
                {"sent": "man on left", "raw": "Man on left", "sent_id": next(sent_ids)}
                for _ in range(fewest + (i < longer))
            ]
            ref_id = len(references)
            ids = {"ref_id": ref_id, "ann_id": ref_id, "image_id": first + i % size.images, "category_id": 1}
            references.append({**ids, "split": split, "sentences": sentences})
    image_of = [reference["image_id"] for reference in references]
    image_of += [ann_id % len(images) for ann_id in range(len(references), 200_000)]
    outline = ", ".join(f"{7.31 * k:.2f}" for k in range(40))
    annotations = (
        f'{{"segmentation": [[{outline}]], "area": 702.1, "iscrowd": 0, "image_id": {image_id}, '
        f'"bbox": [473.07, 395.93, 38.65, 28.67], "category_id": 1, "id": {ann_id}}}'
        for ann_id, image_id in enumerate(image_of)
    )
    (root / dataset).mkdir(parents=True)
    (root / dataset / "instances.json").write_text(
        f'{{"images": [{", ".join(images)}], "annotations": [{", ".join(annotations)}], '
        '"categories": [{"id": 1, "name": "person"}]}'
    )
    (root / dataset / f"refs({split_by}).p").write_bytes(pickle.dumps(references, protocol=2))


MEASURE = """
import sys, time
from rislib.data import check_folder
start = time.process_time()  # one thread: what a clock would show if nothing else were running
report = check_folder(sys.argv[1], pixels=False)
print(report.ok, sum(count.sentences for count in report.counts), time.process_time() - start)
"""


def test_an_index_of_refcocos_size_passes_in_10_seconds(tmp_path: Path) -> None:
    write_like_published(tmp_path, "refcoco", "unc")
    for _ in range(4):  # a busy machine makes no slow check: one good try of four is enough
        printed = subprocess.check_output([sys.executable, "-c", MEASURE, str(tmp_path)], text=True)
        ok, sentences, seconds = printed.split()
        assert (ok, sentences) == ("True", "142210")
        if float(seconds) < 10:
            break
    shutil.rmtree(tmp_path)  # 80 MB
    assert float(seconds) < 10


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples here")
def test_the_command_refuses_a_part_unless_told_so() -> None:
    def run(*options: str) -> tuple[int, list[str]]:
        result = CliRunner().invoke(app, ["data", "check", str(REAL), "--index-only", *options])
        return result.exit_code, result.stdout.splitlines()

    code, lines = run("--subset")
    assert code == 0 and lines[-1] == "no fault"
    code, lines = run()
    assert code == 1
    assert "refcoco (unc) train: 0 references, but 42,404 are published" in lines or any(
        line.startswith("refcoco (unc) train: ") and line.endswith("but 42,404 are published")
        for line in lines
    )
    # as many splits as are published, of which none is whole
    named = {line.split(":")[0] for line in lines if line.endswith("are published")}
    compared = [key for key in PUBLISHED if key != ("refcoco", "google")]
    assert named == {f"{d} ({by}) {split}" for d, by in compared for split in PUBLISHED[d, by]}
