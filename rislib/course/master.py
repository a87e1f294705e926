"""Masters: lessons as text, one file each, in the py:percent format of jupytext.

A master is a Python script that runs from top to bottom. Four kinds of cells mean something to the workshop:

    # %% tags=["parameters"]         profile = "cpu"; the notebook's first cell proper is set behind it
    # %% tags=["imports"]            the imports, which exercises and their tests can rely on
    # %% exercise="iou"              a function; its solution stands between # BEGIN and # END SOLUTION
    # %% tests="iou"                 cases(), hints and wrong_*() of that exercise; in no notebook
    # %% points=2                    check(iou), alone: shows the verdict, and is what nbgrader grades
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a notebook's first cell imports this module before its requirements are there
    from nbformat import NotebookNode

CELL_LINES = 15  # what one can take in at a glance; tests, which nobody sees, may be longer

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE.parent / "notebooks" / "src", _PACKAGE / "shipped" / "lessons")  # a checkout, a wheel
_SOLUTION = re.compile(r"^( *)# BEGIN SOLUTION\n.*?^ *# END SOLUTION$", re.MULTILINE | re.DOTALL)
_STUB = (
    r"\1# BEGIN SOLUTION\n"
    r"\1raise NotImplementedError  # your code takes the place of this line\n"
    r"\1# END SOLUTION"
)


class MasterError(ValueError):
    """A master that does not keep the rules; says which and where."""


@dataclass(frozen=True)
class Exercise:
    """What a student writes, and all that is needed to judge it."""

    name: str  # of the function
    lesson: str
    imports: str  # source of the lesson's imports
    source: str  # of the function, with its solution
    tests: str  # source of cases, hints and wrong answers

    @property
    def stub(self) -> str:
        """The function's source without its solution."""
        return _SOLUTION.sub(_STUB, self.source)

    def define(self, source: str) -> Callable:
        """The function that `source` defines, where the lesson's imports are known."""
        return self._run(source)[self.name]

    @property
    def reference(self) -> Callable:
        return self._names[self.name]

    @property
    def cases(self) -> Sequence[tuple]:
        """Arguments of one call each."""
        return list(self._names["cases"]())

    @property
    def hints(self) -> Sequence[str]:
        return self._names["hints"]

    @property
    def wrong_answers(self) -> dict[str, Callable]:
        """Functions that make one mistake each, which their docstring explains."""
        return {name: f for name, f in self._names.items() if name.startswith("wrong_")}

    @cached_property
    def _names(self) -> dict[str, Any]:
        return self._run(self.source, self.tests)

    def _run(self, *sources: str) -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": f"{self.lesson}.{self.name}"}
        for source in (self.imports, *sources):
            exec(compile(source, f"<{self.lesson}: {self.name}>", "exec"), names)
        return names


@dataclass(frozen=True)
class Lesson:
    name: str  # NN_topic
    cells: list[NotebookNode]  # as in the master
    exercises: dict[str, Exercise]  # by name


def masters_folder() -> Path:
    """Where the masters are: `notebooks/src` of a checkout, or inside an installed wheel.

    Raises:
        FileNotFoundError: neither is there.
    """
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    looked = " or ".join(map(str, _FOLDERS))
    raise FileNotFoundError(f"No {looked}: the lessons belong to a complete checkout or wheel of rislib.")


def read_lessons(folder: Path | None = None) -> Iterator[Lesson]:
    """All lessons of a folder of masters, in order. Raises MasterError."""
    for path in sorted((folder or masters_folder()).glob("[0-9][0-9]_*.py")):
        yield read_lesson(path)


def find_exercise(name: str) -> Exercise:
    """The exercise whose function is called `name`; names are unique in the course.

    Raises:
        ValueError: there is none.
    """
    for path in sorted(masters_folder().glob("[0-9][0-9]_*.py")):
        if name in path.read_text(encoding="utf-8") and name in (found := read_lesson(path).exercises):
            return found[name]
    raise ValueError(f"The course has no exercise {name!r}: check(...) takes the function that you wrote.")


def read_lesson(path: Path) -> Lesson:
    """The lesson of one master.

    Raises:
        MasterError: it does not keep the rules.
    """
    import jupytext

    def rule(kept: bool, complaint: str) -> None:
        if not kept:
            raise MasterError(f"{path.name}: {complaint}")

    cells = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent").cells
    rule(bool(cells) and cells[0].source.startswith("# "), "the first cell is a markdown cell with the title")
    parameters = [cell.source for cell in cells if tagged(cell, "parameters")]
    rule(
        len(parameters) == 1 and parameters[0].startswith('profile = "cpu"'),
        'one cell is tagged "parameters" and says profile = "cpu"',
    )
    for cell in cells:
        lines = cell.source.splitlines()
        short = len(lines) <= CELL_LINES or cell.cell_type != "code" or "tests" in cell.metadata
        rule(short, f"the cell {lines[:1]}... has {len(lines)} lines, of {CELL_LINES} at most")

    sources = {cell.metadata.exercise: cell.source for cell in cells if "exercise" in cell.metadata}
    tests = {cell.metadata.tests: cell.source for cell in cells if "tests" in cell.metadata}
    graded = [checked_by(cell) for cell in cells if "points" in cell.metadata]
    rule(len(sources) == sum("exercise" in c.metadata for c in cells), "two exercises have the same name")
    rule(sources.keys() == tests.keys(), f"exercises {list(sources)}, but tests for {list(tests)}")
    rule(
        sorted(map(str, graded)) == sorted(sources),
        f"exercises {list(sources)}, but cells with points check {graded}; such a cell is check(name) alone",
    )
    for name, source in sources.items():
        rule(f"def {name}(" in source, f"exercise {name} defines no function of that name")
        rule(bool(_SOLUTION.search(source)), f"exercise {name} has no # BEGIN SOLUTION ... # END SOLUTION")

    imports = "\n".join(cell.source for cell in cells if tagged(cell, "imports"))
    exercises = {name: Exercise(name, path.stem, imports, sources[name], tests[name]) for name in sources}
    return Lesson(path.stem, cells, exercises)


def tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", ())


def checked_by(cell: NotebookNode) -> str | None:
    """`iou` where a cell is `check(iou)`, and nothing else."""
    match = re.fullmatch(r"check\((\w+)\)", cell.source.strip())
    return match and match[1]
