"""The reader: what it reads, how fast, and that whatever is wrong comes out as a DataError."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rislib.data import (
    DataError,
    RefDataset,
    check_folder,
    find_datasets,
    load_refcoco,
    with_instances,
)

HEIGHT, WIDTH = 12, 16
REAL = (
    Path(os.environ.get("RISLIB_REAL_SAMPLES", Path(__file__).parents[2] / "shared" / "data"))
    / "refcoco_real"
)


def square(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def documents() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Two pictures with two objects each; four references, of which the first has two sentences."""
    instances = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (1, 2)],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "category_id": k, "segmentation": square(2 * k + i, i, 3 + k)}
            for i in (1, 2)
            for k in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    references = [
        {
            "ref_id": ann_id,
            "ann_id": ann_id,
            "image_id": ann_id // 10,
            "split": "train" if ann_id < 20 else "val",
            "sentences": [{"sent": f"thing {ann_id}", "sent_id": 10 * ann_id}],
        }
        for ann_id in (11, 12, 21, 22)
    ]
    references[0]["sentences"].append({"sent": "left one", "sent_id": 999, "kind": "location"})
    return instances, references


def write_folder(
    root: Path, instances: Any = None, references: Any = None, *, pickled: bool = False, pictures: bool = True
) -> Path:
    valid_instances, valid_references = documents()
    instances = valid_instances if instances is None else instances
    references = valid_references if references is None else references
    (root / "toy").mkdir(parents=True)
    (root / "toy/instances.json").write_text(json.dumps(instances))
    if pickled:
        (root / "toy/refs(me).p").write_bytes(pickle.dumps(references, protocol=2))
    else:
        (root / "toy/refs(me).json").write_text(json.dumps(references))
    (root / "images/toy").mkdir(parents=True)
    for i in (1, 2) if pictures else ():
        Image.new("RGB", (WIDTH, HEIGHT), (100 * i, 0, 0)).save(root / f"images/toy/{i}.png")
    return root


def read_all(root: Path) -> None:
    for source in ("none", "oracle"):
        list(with_instances(load_refcoco(root, "toy", "me", None), source))


@pytest.mark.parametrize("pickled", [False, True])
def test_one_sample_per_sentence(tmp_path: Path, pickled: bool) -> None:
    samples = load_refcoco(write_folder(tmp_path, pickled=pickled), "toy", "me", "train")
    assert samples.name == "toy (me) train"
    assert [sample.expression for sample in samples] == ["thing 11", "left one", "thing 12"]
    assert [sample.kind for sample in samples] == [None, "location", None]
    sample = samples[1]
    assert (sample.image_id, sample.ann_id, sample.ref_id, sample.sent_id) == (1, 11, 11, 999)
    assert (sample.split, sample.category, sample.instances) == ("train", "cat", None)
    assert sample.image.mode == "RGB" and sample.image.getpixel((0, 0)) == (100, 0, 0)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:5, 3:7] = True
    assert (sample.mask == expected).all()


def test_groups_slices_and_other_words(tmp_path: Path) -> None:
    samples = load_refcoco(write_folder(tmp_path), "toy", "me", None)
    assert samples.name == "toy (me)"
    assert samples.by_reference() == [[0, 1], [2], [3], [4]]
    assert samples.by_image() == [[0, 1, 2], [3, 4]]
    assert isinstance(samples[1:3], RefDataset)
    assert samples[1:3].records == samples.records[1:3]
    assert samples[-1].ref_id == 22
    with pytest.raises(IndexError):
        samples[5]
    spoken = samples.with_expressions(["a", "b", "c", "d", "e"])
    assert [record.expression for record in spoken.records] == ["a", "b", "c", "d", "e"]
    assert (spoken[3].mask == samples[3].mask).all() and spoken[3].expression == "d"
    with pytest.raises(ValueError):
        samples.with_expressions(["too few"])


def test_instances_are_all_masks_of_the_picture(tmp_path: Path) -> None:
    sample = with_instances(load_refcoco(write_folder(tmp_path), "toy", "me", "val"), "oracle")[1]
    assert sample.instances.shape == (2, HEIGHT, WIDTH)
    assert (sample.instances[1] == sample.mask).all()
    assert not (sample.instances[0] == sample.mask).all()


def test_a_dataset_goes_through_a_process_boundary(tmp_path: Path) -> None:
    samples = pickle.loads(pickle.dumps(load_refcoco(write_folder(tmp_path), "toy", "me", "val")))
    assert samples[0].expression == "thing 21"


def test_datasets_are_found(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "toy/refs(you).p").write_bytes(b"")
    assert find_datasets(root) == [("toy", "me"), ("toy", "you")]


def without(*path: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return edit


def put(value: Any, *path: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put(99, 1, "ann_id"), "toy/refs(me).json: reference 12: ann_id: no annotation 99"),
        (put(2, 1, "image_id"), "toy/refs(me).json: reference 12: image_id: annotation 12 is of image 1"),
        (put(7, 1, "image_id"), "toy/refs(me).json: reference 12: image_id: no image 7"),
        (put(" ", 1, "sentences", 0, "sent"), "toy/refs(me).json: reference 12: sent: empty expression"),
        (put(True, 1, "ann_id"), "toy/refs(me).json: reference 12: ann_id: bool instead of int"),
        (put(11, 1, "ref_id"), "toy/refs(me).json: reference 11: ref_id: occurs twice"),
        (put("x", 1, "ref_id"), "toy/refs(me).json: reference at place 1: ref_id: str instead of int"),
        (without(1, "split"), "toy/refs(me).json: reference 12: split: missing"),
    ],
)
def test_faults_in_references_name_their_place(
    tmp_path: Path, edit: Callable[[Any], None], message: str
) -> None:
    _, references = documents()
    edit(references)
    with pytest.raises(DataError) as caught:
        read_all(write_folder(tmp_path, references=references))
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            put([[1, 2, 3, 4, 5]], "annotations", 0, "segmentation"),
            "toy/instances.json: annotation 11: segmentation: polygon with 5 numbers",
        ),
        (put(5, "annotations", 0, "image_id"), "toy/instances.json: annotation 11: image_id: no image 5"),
        (
            put(5, "annotations", 0, "category_id"),
            "toy/instances.json: annotation 11: category_id: no category 5",
        ),
        (
            put("../1.png", "images", 0, "file_name"),
            "toy/instances.json: image 1: file_name: not a plain file name",
        ),
        (put("no.png", "images", 0, "file_name"), "images/toy/no.png: no such picture"),
        (
            put(13, "images", 0, "height"),
            "images/toy/1.png: size: 12 x 16 pixels, but instances.json says 13 x 16",
        ),
        (put({}, "annotations"), "toy/instances.json: annotations: dict instead of a list"),
        (without("images"), "toy/instances.json: images: missing"),
    ],
)
def test_faults_in_instances_name_their_place(
    tmp_path: Path, edit: Callable[[Any], None], message: str
) -> None:
    instances, _ = documents()
    edit(instances)
    with pytest.raises(DataError) as caught:
        read_all(write_folder(tmp_path, instances))
    assert str(caught.value) == message


def test_broken_files(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    with pytest.raises(DataError, match=r"nowhere/instances\.json"):
        load_refcoco(root, "nowhere", "me", "val")
    with pytest.raises(DataError, match=r"refs\(you\)\.p"):
        load_refcoco(root, "toy", "you", "val")
    with pytest.raises(DataError, match="no split 'test', but train, val"):
        load_refcoco(root, "toy", "me", "test")
    picture = root / "images/toy/2.png"
    picture.write_bytes(picture.read_bytes()[:40])
    with pytest.raises(DataError, match=r"images/toy/2\.png: not a readable picture"):
        read_all(root)
    index = root / "toy/instances.json"
    index.write_text(index.read_text()[:-20])
    with pytest.raises(DataError, match=r"toy/instances\.json: not readable as JSON"):
        read_all(root)
    index.write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"toy/instances\.json: not readable as JSON"):
        read_all(root)


STRANGE = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        2**70,
        1.5,
        float("nan"),
        float("inf"),
        "",
        "a",
        "\x00",
        "..",
        [],
        [[]],
        {},
        [None],
        [{}],
    ]
)


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON document."""
    children = document.items() if isinstance(document, dict) else enumerate(document)
    found = []
    for key, child in children:
        found.append((*path, key))
        if isinstance(child, dict | list):
            found += places(child, (*path, key))
    return found


@settings(max_examples=150, deadline=10_000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_only_data_errors_escape(data: st.DataObject) -> None:
    """Whatever is dropped, retyped, nested or cut off: reading and checking raise DataError or nothing."""
    both = list(copy.deepcopy(documents()))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(both)[2:] or [(0,)]))
        where = both
        for key in path[:-1]:
            where = where[key]
        action = data.draw(st.sampled_from(["drop", "replace", "nest"]))
        if action == "drop" and len(path) > 1:
            del where[path[-1]]
        else:
            where[path[-1]] = [where[path[-1]]] if action == "nest" else data.draw(STRANGE)
        if not all(isinstance(part, dict | list) for part in both):
            break
    with tempfile.TemporaryDirectory() as folder:
        root = write_folder(Path(folder), *both, pickled=data.draw(st.booleans()))
        if data.draw(st.booleans()):
            file = data.draw(st.sampled_from(sorted(path for path in root.rglob("*") if path.is_file())))
            content = bytearray(file.read_bytes())
            at = data.draw(st.integers(0, len(content) - 1))
            cut = data.draw(st.booleans())
            content = (
                content[:at] if cut else content[:at] + data.draw(st.binary(max_size=8)) + content[at + 1 :]
            )
            file.write_bytes(bytes(content))
        try:
            read_all(root)
            failed = False
        except DataError:
            failed = True
        report = check_folder(root)
        assert report.lines()
        assert not (failed and report.ok)


MEASURE = """
import re, sys, time
from pathlib import Path
from rislib.data import load_refcoco
start = time.process_time()  # one thread: what a clock would show if nothing else were running
samples = load_refcoco(sys.argv[1], "refcoco", "unc", None)
seconds = time.process_time() - start
# Not getrusage: its peak is inherited from the process that forked this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 2**20
print(len(samples), len(samples.by_reference()), seconds, peak)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_index_of_refcocos_size_is_ready_in_5_seconds(tmp_path: Path) -> None:
    """142,209 expressions, 50,000 references, 20,000 images, 200,000 annotations.

    The polygons have 40 numbers on average, which gives the 500 bytes per annotation of COCO's own file.
    """
    draw = random.Random(0)
    polygons = []
    for _ in range(500):
        numbers = [f"{draw.uniform(0, 480):.2f}" for _ in range(2 * draw.randint(4, 36))]
        polygons.append(f"[[{', '.join(numbers)}]]")
    images = ", ".join(
        f'{{"id": {i}, "file_name": "COCO_train2014_{i:012}.jpg", "height": 480, "width": 640}}'
        for i in range(20_000)
    )
    annotations = ", ".join(
        f'{{"segmentation": {draw.choice(polygons)}, "area": 702.1, "iscrowd": 0, "image_id": {i % 20_000}, '
        f'"bbox": [473.07, 395.93, 38.65, 28.67], "category_id": 1, "id": {i}}}'
        for i in range(200_000)
    )
    categories = '[{"supercategory": "animal", "id": 1, "name": "cat"}]'
    (tmp_path / "refcoco").mkdir()
    (tmp_path / "refcoco/instances.json").write_text(
        f'{{"images": [{images}], "annotations": [{annotations}], "categories": {categories}}}'
    )
    references, sent_id = [], 0
    for i in range(50_000):
        number = 3 if i < 42_209 else 2
        sentences = [
            {
                "tokens": ["man", "on", "left"],
                "raw": f"Man on left {i}",
                "sent_id": sent_id + k,
                "sent": f"man on left {i}",
            }
            for k in range(number)
        ]
        references.append(
            {
                "sent_ids": list(range(sent_id, sent_id + number)),
                "file_name": f"COCO_train2014_{i % 20_000:012}_{i}.jpg",
                "ann_id": i,
                "ref_id": i,
                "image_id": i % 20_000,
                "split": "train",
                "sentences": sentences,
                "category_id": 1,
            }
        )
        sent_id += number
    (tmp_path / "refcoco/refs(unc).p").write_bytes(pickle.dumps(references, protocol=2))
    for _ in range(4):  # a busy machine makes no slow index: one good try of four is enough
        printed = subprocess.check_output([sys.executable, "-c", MEASURE, str(tmp_path)], text=True)
        expressions, number_of_references, seconds, gigabytes = map(float, printed.split())
        assert (expressions, number_of_references) == (142_209, 50_000)
        assert gigabytes < 1.5
        if seconds < 5:
            break
    assert seconds < 5


@pytest.mark.skipif(not REAL.is_dir(), reason="no real samples here")
def test_real_records_give_the_official_masks() -> None:
    lines = (REAL / "triples.jsonl").read_text().splitlines()
    triples = [json.loads(line) for line in lines]
    counted = 0
    for dataset, split_by in find_datasets(REAL):
        by_key = {
            (triple["ann_id"], triple["sent"], triple["split"]): triple
            for triple in triples
            if (triple["dataset"], triple["split_by"]) == (dataset, split_by)
        }
        for sample in load_refcoco(REAL, dataset, split_by, None):
            triple = by_key[sample.ann_id, sample.expression, sample.split]
            mask = np.asarray(Image.open(REAL / triple["mask"])) > 0
            assert (sample.mask == mask).all()
            assert sample.category == triple["category"]
            counted += 1
    assert counted > 300
