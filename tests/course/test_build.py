"""Notebooks are what their masters say, and nothing on disk escapes `course check`."""

from __future__ import annotations

import base64
import io
import random
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_output
from PIL import Image
from typer.testing import CliRunner

from rislib.course import build as workshop
from rislib.course.build import build, notebook, problems, solution_path, student_path
from rislib.course.cli import course_app
from rislib.course.master import MasterError, read_lesson, read_lessons

SHIPPED = Path(__file__).parents[2] / "notebooks"


def test_what_is_shipped_is_what_the_masters_say():
    assert problems(SHIPPED) == []


@pytest.fixture
def built(course: Path, kernel: list) -> Path:
    assert len(build(course)) == 4
    assert problems(course) == []
    return course


def test_building_again_changes_nothing(built: Path):
    before = {path: path.read_bytes() for path in built.rglob("*.ipynb")}
    assert build(built) == []
    assert build(built, again=True) == [solution_path(built, "00_tiny"), solution_path(built, "01_plain")]
    assert before == {path: path.read_bytes() for path in built.rglob("*.ipynb")}


def test_only_what_changed_is_built(built: Path):
    master = built / "src" / "01_plain.py"
    master.write_text(master.read_text().replace("1 + 1", "1 + 2"))
    assert build(built) == [student_path(built, "01_plain"), solution_path(built, "01_plain")]
    with pytest.raises(ValueError, match="no lesson 07_none; there are 00_tiny, 01_plain"):
        build(built, ["07_none"])


def test_new_words_keep_the_outputs(built: Path, kernel: list):
    """Text is free to change without minutes of execution; code is not, nor is an output edited by hand."""
    master, path = built / "src" / "00_tiny.py", solution_path(built, "00_tiny")
    kernel[:] = [[new_output("stream", name="stdout", text="executed again\n")]]
    master.write_text(master.read_text().replace("00 · Tiny", "00 · Small"))
    assert build(built) == [student_path(built, "00_tiny"), path]
    assert "Small" in path.read_text() and "executed again" not in path.read_text()
    assert problems(built) == []

    path.write_text(path.read_text().replace("ok", "excellent"))
    assert build(built) == [path]
    assert "executed again" in path.read_text() and "excellent" not in path.read_text()
    kernel[:] = [[new_output("stream", name="stdout", text="and again\n")]]
    master.write_text(master.read_text().replace("import math", "import cmath"))
    build(built)
    assert "and again" in path.read_text()
    assert problems(built) == []


def test_a_newer_jupytext_changes_nothing(built: Path, monkeypatch: pytest.MonkeyPatch):
    reads = jupytext.reads

    def newer(text: str, **options):
        nb = reads(text, **options)
        nb.metadata.jupytext.text_representation = {"format_version": "99.0", "jupytext_version": "99.0"}
        for cell in nb.cells:
            cell.id = "new"
            cell.metadata["lines_to_previous_cell"] = 7
        return nb

    monkeypatch.setattr(jupytext, "__version__", "99.0")
    monkeypatch.setattr(jupytext, "reads", newer)
    assert problems(built) == []


def test_a_student_sees_no_solution_no_test_no_hint(built: Path):
    text = student_path(built, "00_tiny").read_text()
    assert "raise NotImplementedError  # your code takes the place of this line" in text
    for secret in ("return 2 * x", "wrong_", "rain", "cases", 'outputs": [\n'):
        assert secret not in text
    solution = solution_path(built, "00_tiny").read_text()
    assert "return 2 * x" in solution and "wrong_" not in solution


def test_a_new_cell_changes_no_other_cells_id(course: Path):
    master = course / "src" / "00_tiny.py"
    before = {cell.id: cell.source for cell in notebook(read_lesson(master), solved=False).cells}
    master.write_text(master.read_text().replace("# %% exercise", "# %%\n1\n\n# %%\n1\n\n# %% exercise"))
    after = {cell.id: cell.source for cell in notebook(read_lesson(master), solved=False).cells}
    assert before.items() <= after.items() and len(after) == len(before) + 2


def test_a_stub_stays_the_same_cell_when_it_is_solved(course: Path):
    lesson = read_lesson(course / "src" / "00_tiny.py")
    ids = [[cell.id for cell in notebook(lesson, solved=solved).cells] for solved in (False, True)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("where", [student_path, solution_path])
def test_any_flipped_character_is_found(built: Path, where):
    path = where(built, "00_tiny")
    raw = path.read_bytes()
    for position in random.Random(0).sample(range(len(raw)), 100):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        assert problems(built), f"byte {position}: {raw[position - 20 : position + 20]}"
    path.write_bytes(raw)
    assert problems(built) == []


def test_what_is_missing_and_what_is_too_much_is_found(built: Path):
    def found(*parts: str) -> None:
        lines = problems(built)
        assert len(lines) == len(parts)
        assert all(part in line for part, line in zip(parts, lines, strict=True)), lines

    stray = built / "solutions" / "draft.ipynb"
    stray.write_text(student_path(built, "00_tiny").read_text())
    found("draft.ipynb has no master")
    stray.unlink()
    (built / "src" / "01_plain.py").rename(built / "plain.py")
    found("01_plain.ipynb has no master", "solutions/01_plain.ipynb has no master")
    (built / "plain.py").rename(built / "src" / "01_plain.py")
    student_path(built, "00_tiny").unlink()
    solution_path(built, "01_plain").unlink()
    found("00_tiny.ipynb is missing", "solutions/01_plain.ipynb is missing")


def test_an_edited_source_is_named(built: Path):
    path = student_path(built, "00_tiny")
    path.write_text(path.read_text().replace("A number, twice", "A number"))
    assert problems(built) == [f"{path} is not what its master says: cell 5 differs"]
    result = CliRunner().invoke(course_app, ["check", "--folder", str(built)])
    assert result.exit_code == 1 and "cell 5 differs" in result.output


def png(image: Image.Image) -> str:
    image.save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


PICTURE = {"image/png": png(Image.new("RGB", (4, 3), "orange"))}


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (None, "is tagged nbval-check-output, but its output is not text"),
        (new_output("display_data", PICTURE), "picture without alt text"),
        (new_output("display_data", PICTURE, metadata={"image/png": {"alt": "a"}}), "is not text"),
        (new_output("error", ename="ValueError", evalue="", traceback=[]), "ended in an error"),
    ],
)
def test_outputs_that_are_refused(course: Path, kernel: list, output, complaint: str):
    kernel += [[]] * 5 + [[] if output is None else [output]]  # the tagged cell is the sixth
    build(course, ["00_tiny"])
    assert any(f"code cell 6 {complaint}" in line or complaint in line for line in problems(course))


def test_a_picture_becomes_small_and_stays_what_it_is(course: Path, kernel: list):
    """Two thousand colours and noise: a photograph, which needs more than 256."""
    noise = np.random.default_rng(0).normal(0, 4, (64, 64, 3))
    down, across = 4.0 * np.mgrid[:64, :64]
    ramp = np.stack([down, across, 90 + 0 * down], axis=2)
    pixels = (ramp + noise).clip(0, 255).astype(np.uint8)
    shown = {"image/png": png(Image.fromarray(pixels))}
    kernel += [[new_output("display_data", shown, metadata={"image/png": {"alt": "a ramp"}})]]
    build(course)
    cells = [c for c in nbformat.read(solution_path(course, "00_tiny"), 4).cells if c.cell_type == "code"]
    (kept,) = (o for cell in cells for o in cell.outputs if "image/png" in o.get("data", {}))
    assert len(kept.data["image/png"]) < 0.6 * len(shown["image/png"])
    image = Image.open(io.BytesIO(base64.b64decode(kept.data["image/png"])))
    difference = np.asarray(image.convert("RGB")).astype(int) - pixels
    assert image.size == (64, 64) and np.abs(difference).mean() < 8


def test_what_dies_with_the_kernel_is_not_kept(course: Path, kernel: list):
    picture = new_output("display_data", PICTURE, metadata={"image/png": {"alt": "a box"}})
    progress = new_output("stream", name="stderr", text="50%|#####     |")
    widget = new_output("display_data", {workshop.WIDGET: {"model_id": "1"}, "text/plain": "Box()"})
    kernel += [[progress, widget, picture]]
    build(course, ["01_plain"])
    cell = next(c for c in nbformat.read(solution_path(course, "01_plain"), 4).cells if c.cell_type == "code")
    assert cell.outputs == [picture]


def test_a_real_kernel(course: Path):
    build(course, ["01_plain"])
    nb = nbformat.read(solution_path(course, "01_plain"), 4)
    assert [cell.execution_count for cell in nb.cells if cell.cell_type == "code"] == [1, 2, 3]
    assert nb.cells[-1].outputs[0].data["text/plain"] == "2"
    assert "rislib" in nb.cells[2].outputs[0].text and nb.metadata.language_info == {"name": "python"}
    assert not [line for line in problems(course) if "01_plain" in line]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("# # 00 · Tiny", "# Tiny", "title"),
        ('"cpu"', '"gpu"', 'profile = "cpu"'),
        ("print(double(4))", "\n".join(["print()"] * 16), "has 16 lines, of 15 at most"),
        ('tests="double"', 'tests="triple"', "tests for"),
        ("check(double)", "check(double); 1", "such a cell is check(name) alone"),
        ("# %% points=2\n", "# %%\n", "such a cell is check(name) alone"),
        ("def double", "def triple", "defines no function of that name"),
        ("# END SOLUTION", "# END", "no # BEGIN SOLUTION"),
    ],
)
def test_masters_keep_the_rules(course: Path, old: str, new: str, complaint: str):
    master = course / "src" / "00_tiny.py"
    assert old in master.read_text()
    master.write_text(master.read_text().replace(old, new))
    with pytest.raises(MasterError, match="00_tiny") as error:
        list(read_lessons(course / "src"))
    assert complaint in str(error.value)
