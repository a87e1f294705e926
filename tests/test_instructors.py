"""What the instructor's page says of lessons, commands and files is what they are."""

from __future__ import annotations

import inspect
import re
import shlex
from pathlib import Path

import pytest
import typer
from nbgrader.apps.nbgraderapp import NbGraderApp

from rislib.cli import app
from rislib.course.master import Lesson, checked_by, read_lessons
from rislib.methods import CRIS
from rislib.study.plan import STUDIES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "notebooks" / "INSTRUCTORS.md").read_text("utf-8")
LESSONS = {lesson.name[:2]: lesson for lesson in read_lessons()}
CODE = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL) + re.findall(r"`([^`\n]+)`", PAGE)
COMMANDS = re.findall(r"^(?:python -m rislib|nbgrader) [^#\n]+", "\n".join(CODE), re.MULTILINE)


def points(lesson: Lesson) -> dict[str, int]:
    return {checked_by(cell): cell.metadata.points for cell in lesson.cells if "points" in cell.metadata}


def minutes(lesson: Lesson) -> int:
    """The longest time that its head names: that with the exercises."""
    head = re.search(r"\*Time: (.*?)You need", lesson.cells[0].source, re.DOTALL)
    return max(map(int, re.findall(r"\d+", head[1])))


def test_every_lesson_has_its_section_with_its_minutes_and_points():
    stated = re.findall(r"^### (\d\d) .* · (\d+) minutes · (\d+) points$", PAGE, re.MULTILINE)
    real = [(key, str(minutes(x)), str(sum(points(x).values()))) for key, x in LESSONS.items()]
    assert stated == real


@pytest.mark.parametrize("key", LESSONS)
def test_every_exercise_has_its_row_with_its_points(key: str):
    section = re.search(rf"^### {key} .*?(?=^##)", PAGE, re.MULTILINE | re.DOTALL)[0]
    rows = {name: int(n) for name, n in re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)}
    assert list(rows.items()) == list(points(LESSONS[key]).items())


@pytest.mark.parametrize("row", re.findall(r"^\| \d+ \| \d\d.*", PAGE, re.MULTILINE))
def test_syllabuses_add_up(row: str):
    """A week of "06 or 07" has the minutes of both, which agree, and the points of either."""
    _, lessons, stated_minutes, stated_points, _ = (cell.strip() for cell in row.strip("|").split("|"))
    week = [LESSONS[key] for key in re.findall(r"\d\d", lessons)]
    times, sums = [minutes(lesson) for lesson in week], [sum(points(lesson).values()) for lesson in week]
    if "or" in lessons:
        assert ({stated_minutes}, stated_points) == (set(map(str, times)), " or ".join(map(str, sums)))
    else:
        assert (int(stated_minutes), int(stated_points)) == (sum(times), sum(sums))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_options_exist(line: str):
    words = shlex.split(line.removeprefix("python -m rislib"))
    if words[0] == "nbgrader":
        assert words[1] in NbGraderApp.subcommands
        return
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= known
    variants = {words[i + 1] for i, word in enumerate(words) if word == "--variant"}
    assert not variants or variants <= STUDIES[words[0]].variants.keys()


def test_files_exist_and_names_are_known():
    named = set(re.findall(r"`((?:rislib|tests|results|data|notebooks)/[\w./]*)`", PAGE))
    named |= {f"tests/{name}" for name in re.findall(r"`((?:course/)?test_\w+\.py)`", PAGE)}
    assert len(named) > 10 and not [path for path in sorted(named) if not (ROOT / path).exists()]
    projects = PAGE.partition("## Projects")[2]
    assert set(re.findall(r"`(\w+)=", projects)) <= inspect.signature(CRIS).parameters.keys()
