"""An instructor hands the course out with nbgrader, and grades what comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook

from rislib.course.build import solution_path, student_path
from rislib.course.master import read_lesson

SHIPPED = Path(__file__).parents[2] / "notebooks"
LESSON = "00_start_here"
CELL_SECONDS = 40  # enough to import torch on a busy machine; nbgrader's default is 30


@pytest.fixture(autouse=True)
def activated(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an activated environment: nbgrader starts alembic by its bare name."""
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)


def nbgrader(folder: Path, *arguments: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RISLIB_")}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def generate(folder: Path, shipped: Path) -> Path:
    """Start a course with one assignment from a shipped notebook; returns what is released to students."""
    source = folder / "source" / "ps1"
    source.mkdir(parents=True)
    shutil.copy(shipped, source)
    nbgrader(folder, "generate_assignment", "ps1")
    return folder / "release" / "ps1" / shipped.name


def submit(
    folder: Path, released: Path, student: str, answers: dict[str, str], *, whole: bool = False
) -> None:
    """Hand in `answers`, by grade_id; unless `whole`, without the lesson in between, to save minutes."""
    nb = nbformat.read(released, as_version=4)
    needed = {"parameters", "bootstrap", "imports"}
    if not whole:
        nb.cells = [
            c for c in nb.cells if "nbgrader" in c.metadata or needed.intersection(c.metadata.get("tags", ()))
        ]
    for cell in nb.cells:
        grade_id = cell.metadata.get("nbgrader", {}).get("grade_id")
        cell.source = answers.get(grade_id, cell.source)
    path = folder / "submitted" / student / "ps1" / released.name
    path.parent.mkdir(parents=True)
    nbformat.write(nb, path)


@pytest.mark.parametrize("shipped", [student_path(SHIPPED, LESSON), solution_path(SHIPPED, LESSON)])
def test_both_shipped_notebooks_are_handed_out_without_solutions(tmp_path: Path, shipped: Path):
    lesson = read_lesson(SHIPPED / "src" / f"{LESSON}.py")
    released = nbformat.read(generate(tmp_path, shipped), as_version=4)
    cells = {cell.metadata.nbgrader.grade_id: cell for cell in released.cells if "nbgrader" in cell.metadata}
    assert set(cells) == {name for e in lesson.exercises for name in (e, f"check-{e}")}
    for name, exercise in lesson.exercises.items():
        head = exercise.source.partition("# BEGIN SOLUTION")[0]
        assert cells[name].source.startswith(head) and "raise NotImplementedError()" in cells[name].source
        assert cells[f"check-{name}"].source == f"check({name})"
    assert not any(cell.get("outputs") for cell in released.cells)


def test_submissions_get_the_points_they_deserve(tmp_path: Path):
    released = generate(tmp_path, solution_path(SHIPPED, LESSON))
    exercises = read_lesson(SHIPPED / "src" / f"{LESSON}.py").exercises
    first = next(iter(exercises))
    solved = {name: exercise.source for name, exercise in exercises.items()}
    endless = f"def {first}(*_):\n    while True:\n        pass"
    submit(tmp_path, released, "perfect", solved, whole=True)
    submit(tmp_path, released, "blank", {})
    submit(tmp_path, released, "half", {first: solved[first]})
    submit(tmp_path, released, "endless", {**solved, first: endless})
    submit(tmp_path, released, "cheat", {f"check-{name}": "pass" for name in exercises})
    submit(tmp_path, released, "judge", {first: f"def {first}(*_):\n    return 0\ncheck = print"})
    log = nbgrader(tmp_path, "autograde", "ps1", f"--Execute.timeout={CELL_SECONDS}")
    assert "Timeout" in log
    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as gradebook:
        scores = {s.student_id: s.score for s in gradebook.assignment_submissions("ps1")}
        points = {
            cell.name: cell.max_score for cell in gradebook.find_assignment("ps1").notebooks[0].grade_cells
        }
    total, one = sum(points.values()), points[f"check-{first}"]
    assert 0 < one < total
    assert scores == {
        "perfect": total,
        "blank": 0,
        "half": one,
        "endless": total - one,
        "cheat": 0,
        "judge": 0,
    }
