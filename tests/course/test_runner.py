"""The runner's holes, one notebook each: what papermill alone lets pass, or waits for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Barrier

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from typer.testing import CliRunner

from rislib.course import runner
from rislib.course.cli import course_app
from rislib.course.runner import Budget, Outcome, notebooks, run_notebook

ENOUGH = Budget(lesson=300, cell=200)
PARAMETERS = {"tags": ["parameters"]}


def write(path: Path, *sources: str, tags: tuple[str, ...] = ()) -> Path:
    """A notebook with a parameters cell, then `sources`; `tags` are those of the second of these."""
    cells = [new_code_cell('profile = "cpu"', metadata=PARAMETERS), *map(new_code_cell, sources)]
    if tags:
        cells[2].metadata["tags"] = list(tags)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run(path: Path, budget: Budget = ENOUGH, **parameters: str) -> Outcome:
    return run_notebook(path, {"profile": "ci", **parameters}, budget)


def test_a_good_notebook_is_run_where_it_lies_with_its_parameter_and_measured(tmp_path: Path):
    path = write(
        tmp_path / "good.ipynb",
        "import os, pathlib, time",
        "assert profile == 'ci' and pathlib.Path('good.ipynb').exists()",
        "assert os.environ['RISLIB_STRICT'] == '0'",
        "block = bytearray(200_000_000); time.sleep(1)",
        "",
    )
    before = path.read_bytes()
    outcome = run(path)
    assert outcome.failures == ()
    assert 1 <= outcome.slowest_cell_seconds <= outcome.seconds < 300
    assert 200 < outcome.peak_megabytes < 1000
    assert path.read_bytes() == before


def test_exercises_must_hold_in_a_solution(tmp_path: Path):
    source = "import os; assert os.environ['RISLIB_STRICT'] == '1'"
    assert run(write(tmp_path / "solutions" / "a.ipynb", source)).failures == ()


@pytest.mark.parametrize(
    ("source", "tags", "failures"),
    [
        ("import sys; sys.exit(0)", (), ["SystemExit: 0", "(last = 1) did not run"]),
        ("import os; os._exit(0)", (), ["did not run"]),
        ("raise ValueError('on purpose')", (), ["ValueError: on purpose", "(last = 1) did not run"]),
        ("raise ValueError('allowed')", ("raises-exception",), ["ValueError: allowed"]),
        ("1", ("skip-execution",), ["(1) did not run"]),
    ],
    ids=["sys.exit", "os._exit", "error", "allowed error", "skipped"],
)
def test_a_notebook_that_has_not_done_its_work(tmp_path: Path, source: str, tags, failures: list[str]):
    outcome = run(write(tmp_path / "a.ipynb", "first = 1", source, "last = 1", tags=tags))
    assert len(outcome.failures) == len(failures), outcome.failures
    for failure, part in zip(outcome.failures, failures, strict=True):
        assert part in failure


def test_a_notebook_that_asks_its_kernel_to_leave(tmp_path: Path):
    """The kernel goes a moment after exit(): without the pause, all cells might run."""
    outcome = run(write(tmp_path / "a.ipynb", "exit()", "import time; time.sleep(2)", "last = 1"))
    assert any(failure.endswith("did not run") for failure in outcome.failures)


def test_an_unknown_parameter(tmp_path: Path):
    outcome = run(write(tmp_path / "a.ipynb", "1"), seed="3")
    assert outcome.failures == ("it has no parameter seed",)


def test_a_missing_notebook(tmp_path: Path):
    assert run(tmp_path / "a.ipynb").failures == ("there is no such notebook",)


def test_no_notebook(tmp_path: Path):
    (tmp_path / "a.ipynb").write_text("{")
    assert run(tmp_path / "a.ipynb").failures == ("it is no notebook",)


def test_a_notebook_without_code(tmp_path: Path):
    path = tmp_path / "a.ipynb"
    nbformat.write(new_notebook(), path)
    assert run_notebook(path, {}, ENOUGH).failures


def test_a_cell_over_its_budget(tmp_path: Path):
    path = write(tmp_path / "a.ipynb", "import time", "time.sleep(1000)", "last = 1")
    outcome = run(path, Budget(lesson=300, cell=3))
    assert any("(time.sleep(1000)) took more than its 3 seconds" in f for f in outcome.failures)
    assert outcome.seconds < 300


def test_a_lesson_over_its_budget_even_if_its_kernel_does_not_listen(tmp_path: Path):
    deaf = "import os, signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    note = "print(os.getpid(), file=open('pid', 'w'))"
    path = write(tmp_path / "a.ipynb", f"{deaf}\n{note}", "while True: pass")
    outcome = run(path, Budget(lesson=20, cell=1000))
    assert outcome.failures[0] == "it took more than its 20 seconds"
    assert 20 <= outcome.seconds < 60
    kernel = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(kernel) or psutil.Process(kernel).status() == psutil.STATUS_ZOMBIE


def test_every_notebook_on_disk_is_run(course: Path):
    draft = write(course / "solutions" / "draft.ipynb", "1")
    lessons = [course / f"{name}.ipynb" for name in ("00_tiny", "solutions/00_tiny")]
    plain = [course / f"{name}.ipynb" for name in ("01_plain", "solutions/01_plain")]
    assert notebooks(course) == [*lessons, *plain, draft]
    assert notebooks(course, ["01_plain"]) == plain


def test_notebooks_run_side_by_side_and_are_told_of_in_their_order(monkeypatch: pytest.MonkeyPatch):
    both = Barrier(2)

    def run_notebook(path: Path, parameters: dict, budget: Budget) -> Outcome:
        both.wait(timeout=20)  # one by one, the first would wait in vain
        if path.name == "a.ipynb":
            time.sleep(0.2)
        return Outcome(path.name, ())

    monkeypatch.setattr(runner, "run_notebook", run_notebook)
    outcomes = runner.run([Path("a.ipynb"), Path("b.ipynb")], "ci", processes=2)
    assert [outcome.notebook for outcome in outcomes] == ["a.ipynb", "b.ipynb"]


def test_the_table_and_its_json(course: Path, monkeypatch: pytest.MonkeyPatch):
    def run_notebook(path: Path, parameters: dict, budget: Budget) -> Outcome:
        assert parameters == {"profile": "cpu"} and budget == Budget(720, 480)
        return Outcome(str(path), ("it is bad",) if "01" in path.name else (), 12.3, 4.5, 678)

    monkeypatch.setattr(runner, "run_notebook", run_notebook)
    table = course / "table.json"
    options = ["--folder", str(course), "--profile", "cpu", "--patience", "2", "--json", str(table)]
    good = CliRunner().invoke(course_app, ["run", "00_tiny", *options])
    assert good.exit_code == 0 and "00_tiny.ipynb" in good.output and "678 MB" in good.output
    bad = CliRunner().invoke(course_app, ["run", *options])
    assert bad.exit_code == 1 and bad.output.count("FAILED: it is bad") == 2
    record = json.loads(table.read_text())
    assert record["profile"] == "cpu" and len(record["notebooks"]) == 4
    assert record["notebooks"][0]["peak_megabytes"] == 678 and "commit" in record
