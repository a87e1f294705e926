"""Masters -> notebooks, and the question whether the notebooks on disk are what their masters say.

    notebooks/NN_topic.ipynb             for students: exercises are stubs, no outputs
    notebooks/solutions/NN_topic.ipynb   to read: exercises are solved, executed under profile "cpu"

Both are a function of the master alone, byte for byte. Of jupytext's work only a cell's type, tags and text
are used, so another version of it changes nothing. Outputs cannot be recomputed to the byte: a solution
carries a seal, the hash of its outputs, and an output edited by hand is found too.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

from rislib.course.master import Lesson, checked_by, read_lessons, tagged

WIDGET = "application/vnd.jupyter.widget-view+json"
COMPARED = "nbval-check-output"  # nbval's own tag: the cell's text must come out the same on every machine
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
BOOTSTRAP = """\
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

if importlib.util.find_spec("rislib") is None:  # on Colab, on Kaggle, or in a fresh environment
    around = [p for p in (Path.cwd(), *Path.cwd().parents) if (p / "rislib" / "course").is_dir()]
    source = os.environ.get("RISLIB_SOURCE") or (around and around[0])
    assert source, "set os.environ['RISLIB_SOURCE'] to the address of rislib's repository (git+https://...)"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", str(source)], check=True)

from rislib.course.start import start

profile = start(profile)"""


def student_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.ipynb"


def solution_path(folder: Path, name: str) -> Path:
    return folder / "solutions" / f"{name}.ipynb"


def notebook(lesson: Lesson, *, solved: bool) -> NotebookNode:
    """The lesson's notebook, not executed: the student's, or the one with solutions."""
    cells = []
    for cell in lesson.cells:
        if "tests" in cell.metadata:
            continue
        metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
        source = cell.source
        if "exercise" in cell.metadata:
            exercise = lesson.exercises[cell.metadata.exercise]
            source = exercise.source if solved else exercise.stub
            metadata["nbgrader"] = nbgrader(exercise.name, solution=True)
        elif "points" in cell.metadata:
            metadata["nbgrader"] = nbgrader(f"check-{checked_by(cell)}", points=cell.metadata.points)
        new = new_code_cell if cell.cell_type == "code" else new_markdown_cell
        cells.append(new(source, metadata=metadata, id=_id(cell.source)))
        if tagged(cell, "parameters"):
            cells.append(new_code_cell(BOOTSTRAP, metadata={"tags": ["bootstrap"]}, id="bootstrap"))
    seen: Counter[str] = Counter()
    for cell in cells:
        seen[cell.id] += 1
        if seen[cell.id] > 1:
            cell.id += f"-{seen[cell.id]}"
    return new_notebook(cells=cells, metadata=METADATA)


def nbgrader(grade_id: str, *, solution: bool = False, points: int | None = None) -> dict[str, Any]:
    """nbgrader's metadata, format 3: a cell for the answer, or a locked one that is graded."""
    graded = points is not None
    flags = {"grade": graded, "solution": solution, "locked": graded, "task": False}
    return {"grade_id": grade_id, "schema_version": 3, **flags, **({"points": points} if graded else {})}


def serialise(nb: NotebookNode) -> str:
    return nbformat.v4.writes(nb) + "\n"


def build(
    folder: Path, names: Iterable[str] = (), *, execute: bool = True, again: bool = False
) -> list[Path]:
    """Write the notebooks that differ from their masters in `folder / "src"`; returns those written.

    Args:
        names: of lessons; all of them if there are none.
        execute: also make the solutions, which takes minutes per lesson whose code has changed.
        again: execute the solutions of unchanged lessons, too: the library has changed.

    Raises:
        MasterError: a master does not keep the rules.
        ValueError: there is no such lesson.
        CellExecutionError: a solution does not run. Nothing of that lesson's solution is written.
    """
    lessons = {lesson.name: lesson for lesson in read_lessons(folder / "src")}
    if unknown := set(names) - lessons.keys():
        raise ValueError(f"no lesson {', '.join(sorted(unknown))}; there are {', '.join(lessons)}")
    written = []
    for name, lesson in lessons.items():
        if names and name not in names:
            continue
        path, text = student_path(folder, name), serialise(notebook(lesson, solved=False))
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            written.append(path)
        path, solution = solution_path(folder, name), notebook(lesson, solved=True)
        if execute and (again or list(solution_problems(path, solution))):
            path.parent.mkdir(exist_ok=True)
            reworded = None if again else _reworded(read_notebook(path) if path.exists() else None, solution)
            path.write_text(serialise(reworded or executed(solution, path.parent)), encoding="utf-8")
            written.append(path)
    return written


def _reworded(nb: NotebookNode | None, wanted: NotebookNode) -> NotebookNode | None:
    """`wanted` with the outputs of `nb`, if nothing but text stands between the two; else None."""
    if nb is None or nb != sealed(copy.deepcopy(nb)):  # an output edited by hand must not get a new seal
        return None
    done, todo = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (nb, wanted))
    if [(cell.source, cell.metadata) for cell in done] != [(cell.source, cell.metadata) for cell in todo]:
        return None
    for cell, run in zip(todo, done, strict=True):
        cell.outputs, cell.execution_count = run.outputs, run.execution_count
    return sealed(wanted)


def executed(nb: NotebookNode, cwd: Path) -> NotebookNode:
    """The notebook with outputs, in which every exercise must hold, and sealed."""
    metadata = [cell.metadata.copy() for cell in nb.cells]
    client = NotebookClient(
        nb,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(cwd)}},
    )
    client.execute(env={**os.environ, "RISLIB_STRICT": "1", "RISLIB_PROFILE": "cpu"})
    for cell, plain in zip(nb.cells, metadata, strict=True):
        cell.metadata = plain
        if cell.cell_type == "code":
            cell.outputs = [kept for output in cell.outputs if (kept := _still(output))]
    return sealed(nb)


def sealed(nb: NotebookNode) -> NotebookNode:
    """The notebook with the hash of its outputs among its metadata, and no others."""
    outputs = [(cell.execution_count, cell.outputs) for cell in nb.cells if cell.cell_type == "code"]
    digest = hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()
    nb.metadata = nbformat.from_dict({**METADATA, "rislib": {"outputs": digest}})
    return nb


def problems(folder: Path) -> list[str]:
    """Everything in which the notebooks of `folder` are not what its masters say, a line each."""
    lessons = {lesson.name: lesson for lesson in read_lessons(folder / "src")}
    found = []
    expected = set()
    for name, lesson in lessons.items():
        path, wanted = student_path(folder, name), notebook(lesson, solved=False)
        expected |= {path, solution_path(folder, name)}
        if not path.exists():
            found.append(f"{path} is missing")
        elif path.read_bytes() != serialise(wanted).encode():
            found.append(
                f"{path} is not what its master says{_first_difference(read_notebook(path), wanted)}"
            )
        found += solution_problems(solution_path(folder, name), notebook(lesson, solved=True))
    for path in sorted(folder.rglob("*.ipynb")):
        if path not in expected and ".ipynb_checkpoints" not in path.parts:
            found.append(f"{path} has no master")
    return found


def solution_problems(path: Path, wanted: NotebookNode) -> Iterable[str]:
    """In which the solution notebook at `path` is not an execution of `wanted`, a line each."""
    if not path.exists():
        yield f"{path} is missing"
        return
    nb = read_notebook(path)
    if nb is None:
        yield f"{path} is no notebook"
        return
    if path.read_bytes() != serialise(_with_outputs_of(nb, wanted)).encode():
        yield f"{path} is not what its master says{_first_difference(nb, wanted)}"
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        where = f"{path}, code cell {number}"
        texts = [o for o in cell.outputs if "text" in o or "text/plain" in o.get("data", {})]
        images = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        if cell.execution_count is None:
            yield f"{where} did not run"
        if any(output.output_type == "error" for output in cell.outputs):
            yield f"{where} ended in an error"
        if any("alt" not in output.metadata.get("image/png", {}) for output in images):
            yield f"{where} shows a picture without alt text: show(picture, alt=...)"
        if tagged(cell, COMPARED) and (images or not texts):  # nbval would pass it and compare nothing
            yield f"{where} is tagged {COMPARED}, but its output is not text"


def _id(source: str) -> str:
    """A cell's id, from its text: adding a cell changes no other."""
    return hashlib.sha256(source.encode()).hexdigest()[:8]


def _still(output: NotebookNode) -> NotebookNode | None:
    """What is left of an output when the kernel is gone: nothing of widgets, progress bars and warnings."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    data = output.get("data", {})
    if WIDGET in data:
        return None
    if "image/png" in data:
        data["image/png"] = _with_256_colours(data["image/png"])
    return output


def _with_256_colours(picture: str) -> str:
    """A PNG in base64 -> a third of it, and hardly a difference: pictures would be most of the repository."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    image.save(smaller := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def _with_outputs_of(nb: NotebookNode, wanted: NotebookNode) -> NotebookNode:
    wanted = copy.deepcopy(wanted)
    for cell, done in zip(wanted.cells, nb.cells, strict=False):
        if cell.cell_type == done.cell_type == "code":
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    return sealed(wanted)


def read_notebook(path: Path) -> NotebookNode | None:
    """The notebook at `path`; None where there is no valid one."""
    try:
        nb = nbformat.reads(path.read_bytes(), as_version=4)
        nbformat.validate(nb)
    except Exception:  # there are many ways of being no notebook
        return None
    return nb


def _first_difference(nb: NotebookNode | None, wanted: NotebookNode) -> str:
    if nb is None:
        return ": it is no notebook"
    pairs = zip_longest((cell.source for cell in nb.cells), (cell.source for cell in wanted.cells))
    number = next((i for i, (a, b) in enumerate(pairs, 1) if a != b), None)
    return f": cell {number} differs" if number else ": metadata, layout or an output was changed"
