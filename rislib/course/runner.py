"""Runs notebooks, and believes none that it did not see through to its end.

papermill does the running, but it passes notebooks that have not done their work: one that leaves by
sys.exit(0), one that has no parameter of the given name. And a kernel that does not listen to it can keep it
waiting for ever. So each notebook runs in a process of its own, which is watched, and what it left behind is
read.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import papermill
import psutil
from nbformat import NotebookNode

from rislib.course.build import read_notebook, solution_path, student_path
from rislib.course.master import read_lessons


@dataclass(frozen=True)
class Budget:
    """Seconds that a lesson and a single cell of it may take."""

    lesson: float
    cell: float


BUDGETS = {"ci": Budget(60, 30), "cpu": Budget(360, 240), "gpu": Budget(7200, 3600)}


@dataclass(frozen=True)
class Outcome:
    """How one notebook went. It is well if there are no failures."""

    notebook: str
    failures: tuple[str, ...]
    seconds: float = 0.0
    slowest_cell_seconds: float = 0.0
    peak_megabytes: float = 0.0  # of the kernel and all that it started


def notebooks(folder: Path, names: Iterable[str] = ()) -> list[Path]:
    """Both notebooks of the lessons called `names`; or of all, and whatever notebook lies there besides.

    A lesson's notebooks are listed even if they are not there: it is the runner that says so.
    """
    known = list(names) or [lesson.name for lesson in read_lessons(folder / "src")]
    expected = [place(folder, name) for name in known for place in (student_path, solution_path)]
    lying = [] if names else [p for p in folder.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts]
    return expected + sorted(set(lying) - set(expected))


def run(paths: Iterable[Path], profile: str, patience: float = 1.0, processes: int = 1) -> Iterator[Outcome]:
    """Run notebooks, and tell of each as soon as it and those before it are done.

    Args:
        profile: decides the budgets, and is given to every notebook as its parameter.
        patience: multiplies the budgets, for slow or busy machines.
        processes: so many run side by side.
    """
    budget = Budget(BUDGETS[profile].lesson * patience, BUDGETS[profile].cell * patience)
    with ThreadPoolExecutor(processes) as pool:  # threads that wait, each for a process
        yield from pool.map(lambda path: run_notebook(path, {"profile": profile}, budget), paths)


def run_notebook(path: Path, parameters: dict[str, str], budget: Budget) -> Outcome:
    """Run one notebook where it lies, with `parameters`; exercises must hold if it lies in `solutions`."""
    if not path.exists():
        return Outcome(str(path), ("there is no such notebook",))
    if read_notebook(path) is None:
        return Outcome(str(path), ("it is no notebook",))
    unknown = parameters.keys() - papermill.inspect_notebook(str(path)).keys()
    if unknown:
        return Outcome(str(path), (f"it has no parameter {', '.join(sorted(unknown))}",))
    strict = "1" if path.parent.name == "solutions" else "0"
    env = {**os.environ, "RISLIB_STRICT": strict}
    env.pop("RISLIB_PROFILE", None)
    with tempfile.TemporaryDirectory() as scratch:
        out, log = Path(scratch) / path.name, Path(scratch) / "log"
        command = [sys.executable, "-m", "papermill", str(path.resolve()), str(out), "--no-progress-bar"]
        command += ["--cwd", str(path.parent), "--execution-timeout", str(math.ceil(budget.cell))]
        command += ["--start-timeout", str(math.ceil(budget.lesson))]  # a busy machine starts kernels late
        for name, value in parameters.items():
            command += ["--parameters_raw", name, value]
        with log.open("w") as stderr:
            process = psutil.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=stderr)
            seconds, peak = _watch(process, budget.lesson)
        executed = read_notebook(out)  # none, if it was stopped while it wrote
        cells = executed.cells if executed else []
        code = [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]
        slowest = max((cell.metadata.papermill.duration or 0 for cell in code), default=0)
        failures = []
        if seconds > budget.lesson:
            failures.append(f"it took more than its {budget.lesson:g} seconds")
        failures += _failures(code, budget)
        if not failures and (process.returncode != 0 or not code):
            failures.append((log.read_text().strip() or "nothing was run").splitlines()[-1])
    return Outcome(str(path), tuple(failures), round(seconds, 1), round(slowest, 1), round(peak / 1e6))


def _failures(code: list[NotebookNode], budget: Budget) -> list[str]:
    """What the executed code cells tell, up to the first that did not run."""
    found = []
    for cell in code:
        name = f"cell {cell.id} ({cell.source.strip().splitlines()[0]})"
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"{name}: {output.ename}: {output.evalue.strip()}")
        if (cell.metadata.papermill.duration or 0) > budget.cell:
            found.append(f"{name} took more than its {budget.cell:g} seconds")
        if cell.execution_count is None:
            return [*found, f"{name} did not run"]
    return found


def _watch(process: psutil.Popen, limit: float) -> tuple[float, float]:
    """Wait for a process, at most `limit` seconds -> seconds taken, bytes that its children had at most."""
    began, peak = time.monotonic(), 0
    while process.poll() is None and time.monotonic() - began <= limit:
        peak = max(peak, sum(_memory(child) for child in process.children(recursive=True)))
        time.sleep(0.1)
    seconds = time.monotonic() - began
    if process.poll() is None:
        family = [*process.children(recursive=True), process]  # a kernel would outlive its papermill
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=10)
    return seconds, peak


def _memory(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0
