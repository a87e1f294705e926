"""`check` and `hint`: what a student hears about an answer.

An answer is held against the reference on the exercise's cases. If its results are those of a wrong answer
that is stored with the exercise, in every case, the student is told that mistake.

An open or wrong answer is a printed word, and the lesson goes on. It is an error where somebody counts on it:
with RISLIB_STRICT=1, and under nbgrader, which says so through NBGRADER_EXECUTION.
"""

from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from rislib.course.master import Exercise, Lesson, find_exercise

RTOL, ATOL = 1e-4, 1e-6  # of floating-point results: wide enough for another order of summation
SHOWN = 12  # arrays of so many values are printed whole


class AnswerError(AssertionError):
    """An open or wrong answer, where that is an error."""


@dataclass(frozen=True)
class Verdict:
    state: Literal["open", "wrong", "right"]
    message: str


@dataclass(frozen=True)
class Raised:
    """The outcome of a call that returned nothing."""

    error: Exception


_last: str | None = None  # the exercise that was checked last, which hint(1) is about


def check(answer: Callable) -> None:
    """Say whether `answer` does what its exercise asks; it is found by the function's name.

    Raises:
        AnswerError: it is open or wrong, and the check is strict.
        ValueError: the course has no such exercise.
    """
    global _last
    exercise = find_exercise(answer.__name__)
    _last = exercise.name
    verdict = judge(exercise, answer)
    if verdict.state != "right" and is_strict():
        raise AnswerError(verdict.message)
    print(verdict.message)


def hint(number: int, exercise: str | None = None) -> None:
    """Print a hint, 1 to 3, for an exercise, or for the one that was checked last."""
    name = exercise or _last
    if name is None:
        print('Which exercise? Say for example hint(1, "iou").')
        return
    hints = find_exercise(name).hints
    if not 1 <= number <= len(hints):
        print(f"{name} has hints 1 to {len(hints)}.")
        return
    print(f"{name}, hint {number} of {len(hints)}: {hints[number - 1]}")


def is_strict() -> bool:
    return os.environ.get("RISLIB_STRICT") == "1" or "NBGRADER_EXECUTION" in os.environ


def judge(exercise: Exercise, answer: Callable) -> Verdict:
    """The verdict on an answer, in the words that the student reads."""
    name, cases = exercise.name, exercise.cases
    ask = f'Run hint(1, "{name}") in a new cell.'
    got = []
    for case in cases:
        got.append(outcome(answer, case))
        if isinstance(got[-1], Raised) and isinstance(got[-1].error, NotImplementedError):
            message = f"○ {name} is still open, and the lesson goes on without it.\n  Where to begin? {ask}"
            return Verdict("open", message)
    expected = [outcome(exercise.reference, case) for case in cases]
    wrong = next((i for i in range(len(cases)) if not same(expected[i], got[i])), None)
    if wrong is None:
        return Verdict("right", f"✓ {name} is right in all {len(cases)} cases.")

    parameters = inspect.signature(exercise.reference).parameters
    shown = {label: describe(value) for label, value in zip(parameters, cases[wrong], strict=False)}
    shown["expected"], shown["got"] = contrast(expected[wrong], got[wrong])
    width = max(map(len, shown))
    lines = [f"✗ {name} is not right yet. Case {wrong + 1} of {len(cases)}:"]
    lines += [f"    {label:{width}}  {text}" for label, text in shown.items()]
    mistake = likely_mistake(exercise, got)
    lines += [f"  Likely: {mistake}"] if mistake else []
    return Verdict("wrong", "\n".join([*lines, f"  Stuck? {ask}"]))


def likely_mistake(exercise: Exercise, got: list[Any]) -> str | None:
    """What the stored wrong answer has to say that gives the same results in every case."""
    for wrong in exercise.wrong_answers.values():
        if all(same(outcome(wrong, case), g) for case, g in zip(exercise.cases, got, strict=True)):
            return inspect.cleandoc(wrong.__doc__ or "").replace("\n", "\n  ")
    return None


def outcome(function: Callable, case: tuple) -> Any:
    """What a function makes of copies of the arguments: its result, or Raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbgrader takes any word on stderr for a failure
        try:
            return function(*copy.deepcopy(case))
        except Exception as error:
            return Raised(error)


def same(expected: Any, got: Any) -> bool:
    """Equal in type, shape, dtype and, but for rounding, in every value; or errors of one type."""
    if isinstance(expected, Raised) and isinstance(got, Raised):
        return type(expected.error) is type(got.error)
    if isinstance(expected, (tuple, list)):
        return type(got) is type(expected) and len(got) == len(expected) and all(map(same, expected, got))
    if not _kind(expected):
        return bool(expected == got)
    if _kind(got) != _kind(expected) or _form(got) != _form(expected):
        return False
    return bool(_close(_array(expected), _array(got)).all())


def contrast(expected: Any, got: Any) -> tuple[str, str]:
    """Two short texts in which results that are not the same differ visibly."""
    import numpy as np

    if isinstance(expected, (tuple, list)) and type(got) is type(expected) and len(got) == len(expected):
        first = next(i for i in range(len(expected)) if not same(expected[i], got[i]))
        if _kind(expected[first]) in ("array", "tensor"):
            return tuple(f"[{first}]: {text}" for text in contrast(expected[first], got[first]))
    kind = _kind(expected)
    if kind not in ("array", "tensor") or _kind(got) != kind or _form(got) != _form(expected):
        return describe(expected), describe(got)
    e, g = _array(expected), _array(got)
    differ = ~_close(e, g)
    at = tuple(np.argwhere(differ)[0].tolist())
    place = f" at {list(at)}" if at else ""
    return f"{_value(e[at])}{place}", f"{_value(g[at])}{place} ({differ.sum()} of {e.size} values differ)"


def describe(x: Any) -> str:
    """A value in one short line; of a large array its kind, shape and dtype."""
    if isinstance(x, Raised):
        return f"{type(x.error).__name__}: {x.error}"
    if isinstance(x, (tuple, list)):
        opening, closing = "()" if isinstance(x, tuple) else "[]"
        return opening + ", ".join(map(describe, x)) + closing
    if _kind(x) == "number":
        return _value(x)
    if not _kind(x):
        return repr(x)
    array = _array(x)
    short = array.dtype.kind in "bi" and array.size <= SHOWN
    return f"{_kind(x)} {_form(x)}" + (f" {array.tolist()}" if short else "")


def _kind(x: Any) -> Literal["number", "array", "tensor"] | None:
    import numpy as np

    if isinstance(x, (bool, int, float, np.generic)):
        return "number"
    if isinstance(x, np.ndarray):
        return "array"
    return "tensor" if hasattr(x, "detach") else None


def _form(x: Any) -> str:
    """Shape and dtype; nothing of a number, whose exact type matters to nobody."""
    return "" if _kind(x) == "number" else f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def _array(x: Any) -> Any:
    """A number, array or tensor as an array; bfloat16, which numpy lacks, as float64."""
    import numpy as np

    if _kind(x) != "tensor":
        return np.asarray(x)
    x = x.detach().cpu()
    return (x.double() if x.is_floating_point() else x).numpy()


def _close(expected: Any, got: Any) -> Any:
    """Which values of two arrays are equal; those of floating point but for rounding."""
    import numpy as np

    if "f" in expected.dtype.kind + got.dtype.kind:
        return np.isclose(got, expected, RTOL, ATOL, equal_nan=True)
    return np.equal(expected, got)


def _value(x: Any) -> str:
    x = getattr(x, "item", lambda: x)()
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def messages(lesson: Lesson) -> str:
    """All that a student can hear in a lesson's exercises: stub, solution, each wrong answer, each hint."""
    lines = []
    for exercise in lesson.exercises.values():
        answers = {"stub": exercise.define(exercise.stub), "solution": exercise.reference}
        for title, answer in (answers | exercise.wrong_answers).items():
            lines += [f"--- {exercise.name}: {title}", judge(exercise, answer).message]
        lines += [f"--- {exercise.name}: hint {n}\n{text}" for n, text in enumerate(exercise.hints, 1)]
    return "\n".join(lines) + "\n"
