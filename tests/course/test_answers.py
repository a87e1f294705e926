"""Every exercise of the course is proved; and what its student hears is kept, to be read in a review.

After a change: python -m rislib course messages LESSON > tests/course/messages/LESSON.txt; and read it.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from rislib.course import check, hint
from rislib.course.answers import AnswerError, Raised, contrast, judge, messages, same
from rislib.course.master import Exercise, Lesson, find_exercise, read_lesson, read_lessons

LESSONS = list(read_lessons())
EXERCISES = [exercise for lesson in LESSONS for exercise in lesson.exercises.values()]
every_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.lesson}-{e.name}")


@every_exercise
def test_a_stub_is_open(exercise: Exercise):
    assert judge(exercise, exercise.define(exercise.stub)).state == "open"


@every_exercise
def test_the_solution_is_right(exercise: Exercise):
    assert judge(exercise, exercise.define(exercise.source)).state == "right"


@every_exercise
def test_every_wrong_answer_hears_its_own_mistake(exercise: Exercise):
    said = {name: inspect.cleandoc(f.__doc__ or "") for name, f in exercise.wrong_answers.items()}
    assert len(set(said.values())) >= 2 and all(said.values())
    for name, answer in exercise.wrong_answers.items():
        verdict = judge(exercise, answer)
        assert verdict.state == "wrong"
        assert f"  Likely: {said[name]}".replace("\n", "\n  ") in verdict.message, name


@every_exercise
def test_there_are_three_hints(exercise: Exercise):
    assert len(exercise.hints) == 3 and all(map(str.strip, exercise.hints))


def test_names_are_unique_in_the_course():
    names = [exercise.name for exercise in EXERCISES]
    assert len(set(names)) == len(names) > 0


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_messages_are_those_that_were_reviewed(lesson: Lesson):
    assert messages(lesson) == (Path(__file__).parent / "messages" / f"{lesson.name}.txt").read_text("utf-8")


FLOATS = np.array([0.1, 0.2, 0.3], dtype=np.float32)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (FLOATS, FLOATS + np.float32(1e-6)),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0], dtype=torch.bfloat16)),
        (torch.tensor([2.0]), torch.tensor([2.0], requires_grad=True)),
        (1.0, np.float32(1)),
        (True, np.True_),
        ((1, "a", None), (1, "a", None)),
        (Raised(ValueError("this")), Raised(ValueError("that"))),
    ],
)
def test_the_same(expected, got):
    assert same(expected, got)


@pytest.mark.parametrize(
    ("expected", "got", "texts"),
    [
        (0.25, 0.5, ("0.25", "0.5")),
        (1.5, None, ("1.5", "None")),
        (2.0, torch.tensor(2.0), ("2", "tensor () float32")),
        (FLOATS, FLOATS[:2], ("array (3,) float32", "array (2,) float32")),
        (FLOATS, FLOATS.astype(np.float64), ("array (3,) float32", "array (3,) float64")),
        (FLOATS, FLOATS * 2, ("0.1 at [0]", "0.2 at [0] (3 of 3 values differ)")),
        (torch.eye(2), torch.tensor([[1, 0], [0, float("nan")]]), None),
        (
            torch.zeros(2, dtype=torch.long),
            torch.tensor([0, 3]),
            ("0 at [1]", "3 at [1] (1 of 2 values differ)"),
        ),
        (torch.tensor(1.0), torch.tensor(2.0), ("1", "2 (1 of 1 values differ)")),
        ((1, 2), (2, 1), ("(1, 2)", "(2, 1)")),
        ((1, 2), [1, 2], ("(1, 2)", "[1, 2]")),
        (
            (1, FLOATS),
            (1, FLOATS * 2),
            ("[1]: 0.1 at [0]", "[1]: 0.2 at [0] (3 of 3 values differ)"),
        ),
        ((FLOATS, 1), (FLOATS, 2), ("(array (3,) float32, 1)", "(array (3,) float32, 2)")),
        ("cat", "dog", ("'cat'", "'dog'")),
        (1, Raised(TypeError("no")), ("1", "TypeError: no")),
        (Raised(ValueError("a")), 3, ("ValueError: a", "3")),
    ],
)
def test_not_the_same(expected, got, texts: tuple[str, str] | None):
    assert not same(expected, got)
    texts = texts or ("1 at [1, 1]", "nan at [1, 1] (1 of 4 values differ)")
    assert contrast(expected, got) == texts


@pytest.fixture
def tiny(course: Path, monkeypatch: pytest.MonkeyPatch) -> Exercise:
    monkeypatch.setattr("rislib.course.master._FOLDERS", (course / "src",))
    for name in ("RISLIB_STRICT", "NBGRADER_EXECUTION"):
        monkeypatch.delenv(name, raising=False)
    return read_lesson(course / "src" / "00_tiny.py").exercises["double"]


def double(x):
    return x * x


def test_in_a_lesson_it_prints_and_goes_on(tiny: Exercise, capsys):
    check(double)
    check(tiny.define(tiny.stub))
    hint(1)
    hint(3, "double")
    hint(4)
    assert capsys.readouterr().out.splitlines() == [
        "✗ double is not right yet. Case 1 of 2:",
        "    x         1",
        "    expected  2",
        "    got       1",
        "  Likely: this is the square.",
        '  Stuck? Run hint(1, "double") in a new cell.',
        "○ double is still open, and the lesson goes on without it.",
        '  Where to begin? Run hint(1, "double") in a new cell.',
        "double, hint 1 of 3: Think of the weather.",
        "double, hint 3 of 3: It pours.",
        "double has hints 1 to 3.",
    ]


@pytest.mark.parametrize(("name", "value"), [("RISLIB_STRICT", "1"), ("NBGRADER_EXECUTION", "autograde")])
def test_where_somebody_counts_on_it_it_raises(tiny: Exercise, monkeypatch, capsys, name: str, value: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(AnswerError, match="this is the square"):
        check(double)
    with pytest.raises(AnswerError, match="still open"):
        check(tiny.define(tiny.stub))
    check(tiny.reference)
    assert capsys.readouterr().out == "✓ double is right in all 2 cases.\n"


def test_an_unforeseen_mistake_is_given_no_name(tiny: Exercise):
    assert "Likely" not in judge(tiny, lambda x: x + 1).message  # right for 1, wrong for 3
    assert "TypeError" in judge(tiny, lambda: 0).message


def test_an_answer_cannot_spoil_its_inputs(course: Path):
    def zero(x):
        x *= 0
        return x

    arrays = Exercise(
        "f", "00", "import numpy as np", "def f(x): return x.sum()", "def cases():\n    yield (np.ones(3),)"
    )
    assert "array (3,) float64" in judge(arrays, zero).message
    assert judge(arrays, lambda x: zero(x).sum() + 3).state == "right"


def test_a_passing_answer_is_silent_on_stderr(tiny: Exercise, capsys):
    """nbgrader gives no points where anything stands on stderr."""

    def double(x):
        warnings.warn("x", stacklevel=1)
        return 2 * x

    check(double)
    assert capsys.readouterr().err == ""


def test_check_takes_a_function_of_the_course():
    with pytest.raises(ValueError, match="no exercise 'nothing'"):
        find_exercise("nothing")
