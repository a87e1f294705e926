"""A course of two lessons, and a kernel that answers at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_output

TINY = '''\
# %% [markdown]
# # 00 · Tiny

# %% tags=["parameters"]
profile = "cpu"

# %% tags=["imports"]
import math

from rislib.course import check


# %% exercise="double"
def double(x):
    """A number, twice."""
    # BEGIN SOLUTION
    return 2 * x
    # END SOLUTION


# %% tests="double"
def cases():
    yield (1.0,)
    yield (3.0,)


hints = ("Think of the weather.", "Of rain.", "It pours.")


def wrong_square(x):
    """this is the square."""
    return x * x


def wrong_pi(x):
    """this is a half circle."""
    return math.pi * x


# %% points=2
check(double)

# %% tags=["nbval-check-output"]
print(double(4))
'''

PLAIN = """\
# %% [markdown]
# # 01 · Plain: no exercises

# %% tags=["parameters"]
profile = "cpu"

# %%
1 + 1
"""


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """A folder of notebooks with two masters, nothing built."""
    folder = tmp_path / "notebooks"
    (folder / "src").mkdir(parents=True)
    (folder / "src" / "00_tiny.py").write_text(TINY, encoding="utf-8")
    (folder / "src" / "01_plain.py").write_text(PLAIN, encoding="utf-8")
    return folder


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> list:
    """Instead of running, every code cell prints "ok"; or what is put into this list, cell by cell."""
    outputs: list = []

    def execute(client: NotebookClient, **_):
        code = [cell for cell in client.nb.cells if cell.cell_type == "code"]
        for number, cell in enumerate(code, 1):
            usual = [new_output("stream", name="stdout", text="ok\n")]
            cell.outputs = outputs[number - 1] if number <= len(outputs) else usual
            cell.execution_count = number

    monkeypatch.setattr(NotebookClient, "execute", execute)
    return outputs
