"""One's own pictures: what is wrong with a folder is said in one line, and what is right becomes samples."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shared import rislib

from rislib.data import DataError, box_of_mask, check_folder, import_own, open_split, with_instances
from rislib.data.expressions import deal
from rislib.data.refmini.build import draw_pictures
from rislib.predict import Predictor
from rislib.runs import load_method, read_record, train_run

SIDE = 96
Rows = list[dict[str, Any]]
Change = Callable[[Path, Rows], Any]


def draw(folder: Path, pictures: int = 3) -> Rows:
    """0.png, 1.png, ... with masks/0a.png, masks/0b.png, ... of two things each; the rows of their table."""
    rows = []
    (folder / "masks").mkdir(parents=True)
    for i, drawn in enumerate(draw_pictures("own", "train", "refmini", SIDE, 100 * pictures)):
        if i == pictures:
            break
        drawn.painting.image.save(folder / f"{i}.png")
        for letter, (thing, said) in zip("ab", drawn.references.items(), strict=False):
            mask = f"masks/{i}{letter}.png"
            Image.fromarray(drawn.painting.masks[thing]).save(folder / mask)
            rows.append({"image": f"{i}.png", "expression": said[0].text, "mask": mask})
    return rows


def write_csv(folder: Path, rows: Rows) -> None:
    with (folder / "expressions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_coco(folder: Path, rows: Rows) -> dict[str, Any]:
    """The same as COCO has it, with boxes in place of masks."""
    names = sorted({row["image"] for row in rows})
    document = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {
                "id": i,
                "image_id": names.index(row["image"]),
                "bbox": box_of_mask(np.asarray(Image.open(folder / row["mask"]))),
                "expression": row["expression"],
            }
            for i, row in enumerate(rows)
        ],
    }
    (folder / "expressions.json").write_text(json.dumps(document))
    return document


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    folder = tmp_path_factory.mktemp("own") / "mine"
    return folder, draw(folder)


@pytest.fixture
def mine(drawn: tuple[Path, Rows], tmp_path: Path) -> tuple[Path, Rows]:
    """A folder in which nothing is wrong, but that its table is still to be written; and the table's rows."""
    folder, rows = drawn
    shutil.copytree(folder, tmp_path / "mine")
    return tmp_path / "mine", [dict(row) for row in rows]


# --- what may be wrong ------------------------------------------------------------------------
# Each change breaks the folder or the rows; then the table is written, unless the change did that.


def put(row: int, **cells: Any) -> Change:
    """Other cells in a row; 0 is the table's row 2, as row 1 names the columns."""
    return lambda folder, rows: rows[row].update(cells)


def text(change: Callable[[str], str], encoding: str = "utf-8") -> Change:
    """Another text of the table."""

    def apply(folder: Path, rows: Rows) -> None:
        write_csv(folder, rows)
        file = folder / "expressions.csv"
        file.write_bytes(change(file.read_bytes().decode()).encode(encoding))

    return apply


def boxed(box: str) -> Change:
    """Boxes in place of masks, the first one this."""

    def apply(folder: Path, rows: Rows) -> None:
        for number, row in enumerate(rows):
            row.update(mask="", box=f"{20 + number} 20 10 10" if number else box)

    return apply


def drawn_anew(name: str, pixels: np.ndarray, kind: str = "PNG") -> Change:
    return lambda folder, rows: Image.fromarray(pixels).save(folder / name, kind)


def split(first: str, second: str, others: str = "train") -> Change:
    def apply(folder: Path, rows: Rows) -> None:
        for row, name in zip(rows, [first, second, *[others] * len(rows)], strict=False):
            row["split"] = name

    return apply


def coco(edit: Callable[[dict[str, Any]], Any]) -> Change:
    """The table as COCO has it, edited."""

    def apply(folder: Path, rows: Rows) -> None:
        document = write_coco(folder, rows)
        edit(document)
        (folder / "expressions.json").write_text(json.dumps(document))

    return apply


def annotated(**fields: Any) -> Change:
    return coco(lambda document: document["annotations"][0].update(fields))


def damage(folder: Path, rows: Rows) -> None:
    file = folder / "0.png"
    file.write_bytes(file.read_bytes()[:200])


def same_words(folder: Path, rows: Rows) -> None:
    rows[0]["expression"], rows[1]["expression"] = "The dog", "the  dog"


def wordless(document: dict[str, Any]) -> None:
    for each in document["annotations"]:
        del each["expression"]


def captions(document: dict[str, Any]) -> None:
    del document["annotations"][0]["bbox"]


BLANK, ALL = np.zeros((SIDE, SIDE), bool), np.ones((SIDE, SIDE), bool)
CSV, JSON = "expressions.csv: ", "expressions.json: "
BROKEN: dict[str, tuple[Change, str]] = {
    "wrong delimiter": (
        text(lambda table: table.replace(",", ";")),
        CSV + "row 1: its columns are separated by semicolons: save the table with commas",
    ),
    "wrong encoding": (
        text(lambda table: table.replace("1.png,", "1.png,café ", 1), "latin-1"),
        CSV + 'row 4: byte 0xe9 is not UTF-8: save the table again as "CSV UTF-8"',
    ),
    "missing column": (
        text(lambda table: table.replace("expression", "text", 1)),
        CSV + "row 1: no column 'expression', but image, text, mask: the first line must name it",
    ),
    "no outlines": (
        text(lambda table: table.replace("mask", "notes", 1)),
        CSV + "row 1: no column 'mask' or 'box', nor x, y, w and h, but image, expression, notes: say where "
        "the things are",
    ),
    "empty table": (text(lambda table: table.split()[0]), CSV + "says nothing about any picture"),
    "comma without quotes": (
        text(lambda table: table.replace("0.png,", "0.png,well, ", 1)),
        CSV + 'row 2: 4 cells for 3 columns: put "quotes" around what has a comma',
    ),
    "open quote": (
        text(lambda table: table.replace("2.png,", '2.png,"', 1)),
        CSV + "line 7: cannot be divided into cells (unexpected end of data): is each quote closed?",
    ),
    "two tables": (
        lambda folder, rows: write_csv(folder, rows) or (folder / "expressions.json").write_text("{}"),
        CSV + "there is expressions.json, too: keep one of them",
    ),
    "missing picture": (
        put(0, image="cat.png"),
        CSV + "row 2: image: no file cat.png: put it there, or mend the name",
    ),
    "picture called otherwise": (
        lambda folder, rows: (folder / "0.png").rename(folder / "0.PNG"),
        CSV + "row 2: image: no file 0.png: put it there, or mend the name (is it 0.PNG?)",
    ),
    "no picture's name": (
        put(0, image=""),
        CSV + "row 2: image: missing: name the image's file, or delete the row",
    ),
    "no picture": (
        lambda folder, rows: (folder / "0.png").write_text("Dear diary"),
        CSV + "row 2: image: 0.png is no picture that Pillow knows: save it as JPEG or PNG",
    ),
    "damaged picture": (
        damage,
        CSV + "row 2: image: 0.png is damaged (OSError): copy it anew, or save it again as JPEG or PNG",
    ),
    "real numbers": (
        drawn_anew("0.png", np.zeros((SIDE, SIDE), np.float32), "TIFF"),
        CSV + "row 2: image: 0.png has real numbers for pixels: save it with 8 bits",
    ),
    "the same picture twice": (
        lambda folder, rows: shutil.copy(folder / "0.png", folder / "1.png"),
        CSV + "row 4: image: 1.png is the same picture as 0.png: delete one, and use one name in all rows",
    ),
    "missing mask": (
        put(0, mask="masks/cat.png"),
        CSV + "row 2: mask: no file masks/cat.png: put it there, or mend the name",
    ),
    "unreadable mask": (
        lambda folder, rows: (folder / "masks/0a.png").write_text("cat"),
        CSV + "row 2: mask: masks/0a.png cannot be read (UnidentifiedImageError): save it again as PNG",
    ),
    "mask of another size": (
        drawn_anew("masks/0a.png", BLANK[:60, :80]),
        CSV
        + "row 2: mask: masks/0a.png has 60 x 80 pixels (height x width), its picture 96 x 96: draw it anew",
    ),
    "empty mask": (
        drawn_anew("masks/0a.png", BLANK),
        CSV + "row 2: mask: no pixel is marked: mark the thing (whatever is not 0 counts)",
    ),
    "mask of everything": (
        drawn_anew("masks/0a.png", ALL),
        CSV + "row 2: mask: every pixel is marked: the background must be 0",
    ),
    "blurred mask": (
        drawn_anew("masks/0a.png", BLANK, "JPEG"),
        CSV + "row 2: mask: masks/0a.png is a JPEG, which blurs 0: save it as PNG",
    ),
    "neither mask nor box": (
        put(0, mask=""),
        CSV + "row 2: neither mask nor box: say where the thing is, or delete the row",
    ),
    "box outside": (
        boxed("70 70 60 60"),
        CSV + "row 2: box: 70 70 60 60 leaves the picture of 96 x 96 (width x height): mend it",
    ),
    "box as corners": (
        boxed("50 40 90 80"),
        CSV + "row 2: box: 50 40 90 80 leaves the picture of 96 x 96 (width x height): if these are corners "
        "x1 y1 x2 y2, write x y w h",
    ),
    "box without area": (
        boxed("10 10 0 20"),
        CSV + "row 2: box: w 0 and h 20 enclose nothing: they are width and height",
    ),
    "box without numbers": (
        boxed("top left"),
        CSV + "row 2: box: four numbers x y w h, not 'top left'",
    ),
    "empty expression": (
        put(0, expression=" "),
        CSV + "row 2: expression: empty: say what the thing is, or delete the row",
    ),
    "number": (
        put(0, expression="17"),
        CSV + "row 2: expression: '17' has no letter: say in words what the thing is",
    ),
    "file's name": (
        put(0, expression="masks/0a.png"),
        CSV + "row 2: expression: masks/0a.png is a file's name: are columns exchanged?",
    ),
    "duplicate": (
        lambda folder, rows: rows.append(rows[1]),
        CSV + "row 8: expression: says what row 3 says: delete one of them",
    ),
    "ambiguous": (
        same_words,
        CSV + "row 3: expression: row 2 says it of another thing of 0.png: tell them apart",
    ),
    "picture in two splits": (
        split("train", "val"),
        CSV + "row 3: split: val, but row 2 has 0.png in train: choose one",
    ),
    "unknown split": (
        split("training", "train"),
        CSV + "row 2: split: 'training' is none of train, val, test, testA, testB: give all rows one of "
        "these, or none",
    ),
    "split for some": (
        split("train", ""),
        CSV
        + "row 3: split: '' is none of train, val, test, testA, testB: give all rows one of these, or none",
    ),
    "no JSON": (
        lambda folder, rows: (folder / "expressions.json").write_text("{"),
        JSON + "not readable as JSON (Expecting property name enclosed in double quotes: line 1 column 2 "
        "(char 1))",
    ),
    "no COCO": (
        coco(lambda document: document.pop("annotations")),
        JSON + "no COCO: that is an object with lists 'images' and 'annotations'",
    ),
    "COCO without words": (
        coco(wordless),
        JSON + "no annotation has an 'expression' or 'captions': say what refers to the thing",
    ),
    "COCO's captions of pictures": (
        coco(captions),
        JSON
        + "annotation 0: neither segmentation nor bbox: what is said of a whole picture refers to no thing",
    ),
    "COCO's unknown picture": (annotated(image_id=9), JSON + "annotation 0: image_id: no image 9"),
    "polygon of two points": (
        annotated(segmentation=[[1, 1, 9, 9]]),
        JSON + "annotation 0: segmentation: a polygon of 2 points: it takes 3 to enclose something",
    ),
    "COCO of another size": (
        coco(lambda document: document["images"][0].update(height=480, width=640)),
        JSON + "annotation 0: size: 0.png has 96 x 96 pixels (height x width), not 480 x 640: annotate the "
        "picture as it is here",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_one_line(mine: tuple[Path, Rows], name: str) -> None:
    folder, rows = mine
    change, line = BROKEN[name]
    change(folder, rows)
    if not any((folder / table).exists() for table in ("expressions.csv", "expressions.json")):
        write_csv(folder, rows)
    faults = check_folder(folder).faults
    assert faults == (line,)
    with pytest.raises(DataError) as refused:
        import_own(folder, folder.parent / "out")
    assert str(refused.value) == line
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]  # nothing is left behind


def test_several_mistakes_are_listed_at_once(mine: tuple[Path, Rows]) -> None:
    folder, rows = mine
    for name in ("empty mask", "file's name", "unreadable mask", "damaged picture"):
        BROKEN[name][0](folder, rows)
    put(3, expression="")(folder, rows)
    put(4, image="cat.png")(folder, rows)
    write_csv(folder, rows)
    assert len(check_folder(folder).faults) == 4  # row 2 has three of them, and shows one at a time
    assert len(check_folder(folder, pixels=False).faults) == 2


def test_what_is_odd_is_said_and_no_fault(mine: tuple[Path, Rows]) -> None:
    folder, rows = mine
    for number, row in enumerate(rows):
        row.update(mask="", box=f"{number} 2 60 60", expression=("person", "dog")[number % 2], split="train")
    write_csv(folder, rows)
    report = check_folder(folder)
    assert report.ok and report.remarks == (
        CSV + "every expression is one word ('person' 3 of 6 times), like a category: say what tells a thing "
        "from others of its kind",
        CSV + "6 things have no mask but a box: the whole rectangle is taken for the thing",
        CSV + "in every box w > x and h > y, as if they were corners x1 y1 x2 y2: look at some of them",
    )
    assert [line for line in report.lines() if line.startswith("mine (own) train")]


# --- what is right ----------------------------------------------------------------------------


def test_a_folder_becomes_samples(mine: tuple[Path, Rows]) -> None:
    folder, rows = mine
    rows.append({**rows[0], "expression": "the other name of it"})
    write_csv(folder, rows)
    report = check_folder(folder)
    assert report.faults == ()
    assert report.remarks == (CSV + "no split is given: pictures were dealt out, train 1, val 1, test 1",)
    assert sum(count.sentences for count in report.counts) == 7
    assert sum(count.references for count in report.counts) == 6

    with pytest.raises(DataError, match=r"data import .*mine --out NEW"):
        open_split(folder, "train")
    samples = open_split(import_own(folder, folder.parent / "new"), None)
    assert check_folder(folder.parent / "new").counts[0].dataset == "new"
    assert samples.name == "new (own)" and len(samples.by_reference()) == 6
    expected = {row["expression"]: row for row in rows}
    assert len(samples) == len(expected)
    for sample in samples:
        row = expected[sample.expression]
        assert (sample.mask == np.asarray(Image.open(folder / row["mask"]))).all()
        assert (np.asarray(sample.image) == np.asarray(Image.open(folder / row["image"]))).all()
    assert {record.split for record in samples.records} == {"train", "val", "test"}
    with pytest.raises(FileExistsError):
        import_own(folder, folder.parent / "new")


def test_cocos_annotations(mine: tuple[Path, Rows]) -> None:
    folder, rows = mine
    document = write_coco(folder, rows)
    document["categories"] = [{"id": 7, "name": "animal"}]
    triangle = [[1, 1, 9, 1, 1, 9]]
    document["annotations"][0].update(captions=["one", "two"], segmentation=triangle, category_id=7)
    del document["annotations"][0]["expression"], document["annotations"][1]["expression"]
    for each in document["images"]:
        each.update(height=SIDE, width=SIDE)
    for each in document["annotations"]:
        each.update({"split": "val"} if "expression" in each or "captions" in each else {})
    (folder / "expressions.json").write_text(json.dumps(document))
    samples = open_split(import_own(folder, folder.parent / "new"), "val")
    assert [sample.expression for sample in samples[:2]] == ["one", "two"] and len(samples) == 6
    assert samples[0].mask.sum() < 40 and samples[0].category == "animal"
    left, top, width, height = document["annotations"][2]["bbox"]
    assert samples[2].mask.sum() == width * height
    assert samples[2].mask[top : top + height, left : left + width].all()
    assert len(with_instances(samples, "oracle")[0].instances) == 2  # one of them nobody speaks of


def test_boxes_in_four_columns_may_touch_the_edge(mine: tuple[Path, Rows]) -> None:
    folder, rows = mine
    rows = [{"image": "0.png", "expression": "it", "x": "90.5", "y": "-1", "w": 6, "h": "3.5"}]
    write_csv(folder, rows)
    mask = open_split(import_own(folder, folder.parent / "new"), None)[0].mask
    assert box_of_mask(mask) == (90, 0, 6, 3) and mask.sum() == 18


def test_pictures_are_dealt_by_name_and_whole() -> None:
    images = {f"{i}.jpg" for i in range(50)}
    splits = deal(images)
    assert sorted(splits.values()) == ["test"] * 5 + ["train"] * 40 + ["val"] * 5
    assert deal(set(sorted(images, reverse=True))) == splits
    assert sorted(deal({"a", "b", "c"}).values()) == ["test", "train", "val"]
    assert deal({"a", "b"}) == {"a": "train", "b": "train"}


def test_any_kind_of_picture_becomes_rgb_and_upright(tmp_path: Path) -> None:
    """Red on the left, as it should look; and mostly not as the file has it."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :20] = 255, 0, 0
    pixels[:, 40:] = 0, 0, 255
    picture = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # "turn me by 90 degrees, clockwise"
    alpha = picture.copy()
    alpha.putalpha(Image.fromarray(np.where(np.arange(60) < 50, 255, 0).astype(np.uint8)[None].repeat(40, 0)))
    deep = np.linspace(0, 65535, 60).astype(np.uint16)[None].repeat(40, 0)
    picture.rotate(90, expand=True).save(tmp_path / "turned.jpg", exif=turned, quality=100, subsampling=0)
    alpha.save(tmp_path / "alpha.png")
    Image.fromarray(deep).save(tmp_path / "deep.png")
    picture.convert("CMYK").save(tmp_path / "cmyk.tif")
    picture.convert("L").save(tmp_path / "grey.png")
    picture.quantize().save(tmp_path / "palette.gif")
    names = ["turned.jpg", "alpha.png", "deep.png", "cmyk.tif", "grey.png", "palette.gif"]
    write_csv(tmp_path, [{"image": name, "expression": "it", "box": "0 0 20 40"} for name in names])

    samples = open_split(import_own(tmp_path, tmp_path / "new"), None)
    shown = {name: np.asarray(sample.image).astype(int) for name, sample in zip(names, samples, strict=True)}
    assert all(sample.mask[:, :20].all() and not sample.mask[:, 20:].any() for sample in samples)
    for name in ("turned.jpg", "alpha.png", "cmyk.tif", "palette.gif"):
        assert abs(shown[name][:, :18] - [255, 0, 0]).max() < 12, name
        assert abs(shown[name][:, 42:49] - [0, 0, 255]).max() < 12, name
    assert (shown["alpha.png"][:, 50:] == 255).all()
    assert (shown["deep.png"][..., 0] == deep >> 8).all()
    assert (shown["grey.png"] == np.asarray(picture.convert("L"))[..., None]).all()


def test_large_pictures_are_shrunk_with_their_masks(tmp_path: Path) -> None:
    mask = np.zeros((600, 900), bool)
    mask[150:300, 450:750] = True
    Image.effect_noise((900, 600), 50).convert("RGB").save(tmp_path / "large.jpg")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    write_csv(tmp_path, [{"image": "large.jpg", "expression": "the block", "mask": "mask.png"}])
    sample = open_split(import_own(tmp_path, tmp_path / "small", size=300), None)[0]
    assert sample.image.size == (300, 200) and box_of_mask(sample.mask) == (150, 50, 100, 50)
    whole = import_own(tmp_path, tmp_path / "whole", size=None)
    stored = next((whole / "images/whole").iterdir())
    assert stored.read_bytes() == (tmp_path / "large.jpg").read_bytes()  # and not pressed a second time
    mask[:] = False
    mask[0, 0] = True
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="row 2: too small to be seen in the shrunk picture"):
        import_own(tmp_path, tmp_path / "tiny", size=300)


def test_only_data_errors_escape(mine: tuple[Path, Rows]) -> None:
    """Bytes of both tables exchanged, cut off and doubled at random: a fault, or nothing."""
    folder, rows = mine
    document = write_coco(folder, rows)
    document["annotations"][0]["segmentation"] = [[1, 1, 9, 1, 1, 9]]
    document["images"][0]["split"] = document["images"][1]["split"] = document["images"][2]["split"] = "val"
    coco_text = json.dumps(document).encode()
    (folder / "expressions.json").unlink()
    write_csv(folder, [{**row, "split": "train", "box": "1 2 3 4"} for row in rows])
    csv_text = (folder / "expressions.csv").read_bytes()
    (folder / "expressions.csv").unlink()
    pieces = [
        b"",
        b'"',
        b",",
        b"\n",
        b"\x00",
        b"null",
        b"-1",
        b"[]",
        b"{}",
        b"1e999",
        b"\xff",
        b"../",
        b"9" * 30,
    ]
    rng = np.random.default_rng(0)
    failed = 0
    for name, content in [("expressions.csv", csv_text), ("expressions.json", coco_text)] * 150:
        start = int(rng.integers(len(content)))
        end = start + int(rng.integers(8))
        piece = pieces[rng.integers(len(pieces))]
        (folder / name).write_bytes(content[:start] + piece + content[end:])
        report = check_folder(folder)
        assert report.lines()
        failed += not report.ok
        (folder / name).unlink()
    assert 100 < failed < 300


# --- what it is good for ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run("cris", out=tmp_path_factory.mktemp("runs") / "cris", data=str(world), samples=48)


def test_a_run_learns_on_from_own_pictures(mine: tuple[Path, Rows], run: Path, tmp_path: Path) -> None:
    folder, rows = mine
    write_csv(folder, [{**row, "split": "val" if row["image"] == "2.png" else "train"} for row in rows])
    assert "no fault" in rislib("data", "import", folder, "--out", tmp_path / "new")
    start = ("train", "cris", "--data", tmp_path / "new", "--start", run)

    # A training of one step changes no weight: with warm-up, the first step's rate is 0.
    rislib(*start, "--samples", 24, "--out", tmp_path / "same")
    before, same = load_method(run), load_method(tmp_path / "same")
    assert read_record(tmp_path / "same")["start"] == str(run)
    unchanged = [
        torch.equal(a, b) for a, b in zip(before.parameters(), same.parameters(), strict=True) if a.ndim > 1
    ]
    assert all(unchanged) and len(unchanged) > 50

    rislib(*start, "--samples", 48, "--out", tmp_path / "tuned")
    tuned = load_method(tmp_path / "tuned")
    assert not torch.equal(before.neck.p5[0].weight, tuned.neck.p5[0].weight)
    assert "2 expressions, 1 pictures" in rislib("evaluate", tmp_path / "tuned", "--data", tmp_path / "new")

    for i, words in enumerate(("the dog", "the red car on the left", "the girl in the hat")):
        answer = tmp_path / f"answer{i}.png"
        assert "pixels" in rislib(
            "segment", folder / f"{i}.png", words, "--run", tmp_path / "tuned", "--out", answer
        )
        assert Image.open(answer).size == (5 * SIDE, 5 * SIDE)  # small pictures are shown larger


def test_only_the_same_network_can_go_on(run: Path, world: Path, tmp_path: Path) -> None:
    train = {"data": str(world), "samples": 24, "out": tmp_path / "out", "start": run}
    with pytest.raises(ValueError, match="its decoder_layers is None, and 0 is asked for"):
        train_run("cris", options={"decoder_layers": 0}, **train)
    with pytest.raises(ValueError, match="its method is cris, and lavt is asked for"):
        train_run("lavt", **train)
    with pytest.raises(ValueError, match="not from scratch"):
        train_run("cris", from_scratch=True, **train)
    with pytest.raises(ValueError, match="another run's folder"):
        train_run("cris", **{**train, "out": run})
    with pytest.raises(FileNotFoundError, match="not a run"):
        train_run("cris", **{**train, "start": tmp_path})
    assert not (tmp_path / "out").exists() and load_method(run)


def test_a_telephones_picture_is_segmented_upright(run: Path, tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (64, 48)).save(tmp_path / "turned.jpg", exif=turned)
    predictor = Predictor.from_run(run)
    predictor.set_image(tmp_path / "turned.jpg")
    assert predictor.segment("the dog").mask.shape == (64, 48)
    rislib("segment", tmp_path / "turned.jpg", "the dog", "--run", run, "--out", tmp_path / "answer.png")
    width, height = Image.open(tmp_path / "answer.png").size
    assert width < height


def test_the_import_says_what_is_wrong_and_writes_nothing(mine: tuple[Path, Rows], tmp_path: Path) -> None:
    folder, rows = mine
    put(0, expression="")(folder, rows)
    write_csv(folder, rows)
    output = rislib("data", "import", folder, "--out", tmp_path / "new", code=1)
    assert CSV + "row 2: expression: empty" in output and "1 fault" in output
    assert not (tmp_path / "new").exists()
    assert rislib("data", "check", folder, code=1).count("row 2") == 1
