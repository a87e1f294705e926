"""nbval compares what is tagged for it, in text, and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

from rislib.course.build import COMPARED, METADATA

SANITIZE = Path(__file__).parents[2] / "notebooks" / "nbval.cfg"


def test_only_tagged_cells_are_compared(tmp_path: Path):
    cells = []
    for source, stored, tags in [
        ("print('now')", "then\n", []),
        ("print('a fact')", "a fact\n", [COMPARED]),
        ("print(object())", "<object object at 0x7f0000000000>\n", [COMPARED]),
        ("print('a number', 1)", "a number 2\n", [COMPARED]),
    ]:
        output = new_output("stream", name="stdout", text=stored)
        cells.append(new_code_cell(source, outputs=[output], execution_count=1, metadata={"tags": tags}))
    nbformat.write(new_notebook(cells=cells, metadata=METADATA), tmp_path / "a.ipynb")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--tb=no",
        "-rA",
    ]
    command += ["--nbval-sanitize-with", str(SANITIZE), "a.ipynb"]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}
    out = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    verdicts = [line.split()[0] for line in out.splitlines() if "::Cell" in line]
    assert sorted(verdicts) == ["FAILED", "PASSED", "PASSED", "PASSED"], out
    assert re.search("^FAILED .*::Cell 3 ", out, re.MULTILINE), out
