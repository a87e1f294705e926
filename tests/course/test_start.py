"""The first cell of every notebook: on a bare machine, and on one that has all it needs."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rislib.course import start
from rislib.course.build import BOOTSTRAP
from rislib.course.master import CELL_LINES

ROOT = Path(__file__).parents[2]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What pip would have been asked; constraint files are read into the list."""
    asked: list[list[str]] = []

    def run(command: list[str], check: bool) -> None:
        assert check and command[:4] == [sys.executable, "-m", "pip", "install"]
        asked.append([Path(a).read_text() if a.endswith(".txt") else a for a in command[4:]])

    monkeypatch.setattr(subprocess, "run", run)
    return asked


def test_it_needs_nothing_but_python():
    """-S: no site-packages. Whatever the first cell imports must be there before anything is installed."""
    code = "import rislib.course.start, rislib.course as c; c.check, c.hint, c.show"
    subprocess.run([sys.executable, "-S", "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})


def test_where_all_is_there_nothing_is_installed(pip: list, monkeypatch, capsys):
    for name in ("RISLIB_PROFILE", "NBGRADER_EXECUTION", "KAGGLE_KERNEL_RUN_TYPE"):
        monkeypatch.delenv(name, raising=False)
    assert start.start("cpu") == "cpu"
    assert pip == []
    out = capsys.readouterr().out
    assert f"torch {metadata.version('torch')}" in out and "local, profile cpu\n" in out


def test_the_profile(pip: list, monkeypatch):
    monkeypatch.setenv("RISLIB_PROFILE", "gpu")
    assert start.start("cpu") == "gpu"
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    assert start.start("cpu") == "ci"
    monkeypatch.delenv("NBGRADER_EXECUTION")
    monkeypatch.setenv("RISLIB_PROFILE", "tpu")
    with pytest.raises(ValueError, match="no profile 'tpu'; there are ci, cpu, gpu"):
        start.start("cpu")


def test_only_what_is_missing_is_installed(monkeypatch):
    versions = {"torch": "2.12.0+cu126", "numpy": "1.26.4", "timm": "1.0.31"}

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "version", version)
    assert start.unmet(["torch>=2.11", "numpy>=2.0", "timm>=1.0.20", "open_clip_torch>=3.3", "torch"]) == [
        "numpy>=2.0",
        "open_clip_torch>=3.3",
    ]


def test_rislib_states_what_its_lessons_need():
    lines = start.requirements()
    assert any(line.startswith("torch>=") for line in lines)
    assert not any(line.startswith("pytest") for line in lines)


def test_a_torch_that_serves_stays(pip: list, monkeypatch):
    monkeypatch.setattr(metadata, "version", {"torch": "2.12.0+cu126", "torchvision": "0.27.0+cu126"}.get)
    start.install(["timm>=1.0.20"])
    assert pip.pop() == ["--quiet", "-c", "torch==2.12.0+cu126\ntorchvision==0.27.0+cu126\n", "timm>=1.0.20"]
    start.install(["torchvision>=0.26"])  # pip has to find the one that fits this torch
    assert pip.pop() == ["--quiet", "-c", "torch==2.12.0+cu126\n", "torchvision>=0.26"]
    start.install(["torch>=2.11"])  # this torch does not serve
    assert pip.pop() == ["--quiet", "-c", "", "torch>=2.11"]


def test_the_cell_installs_rislib_where_it_is_missing(pip: list, monkeypatch, tmp_path: Path):
    assert len(BOOTSTRAP.splitlines()) <= CELL_LINES
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(start, "start", lambda profile: "ci")
    monkeypatch.setitem(os.environ, "RISLIB_SOURCE", "")
    monkeypatch.chdir(ROOT / "notebooks" / "solutions")
    names = {"profile": "cpu"}
    exec(BOOTSTRAP, names)
    assert pip.pop() == ["--quiet", "--no-deps", str(ROOT)]  # never its requirements: start knows which
    assert names["profile"] == "ci"
    monkeypatch.setitem(os.environ, "RISLIB_SOURCE", "git+https://example.org/rislib")
    exec(BOOTSTRAP, {"profile": "cpu"})
    assert pip.pop() == ["--quiet", "--no-deps", "git+https://example.org/rislib"]
    monkeypatch.setitem(os.environ, "RISLIB_SOURCE", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="RISLIB_SOURCE"):
        exec(BOOTSTRAP, {"profile": "cpu"})


@pytest.mark.parametrize("found", ["Colab", "Kaggle", "local"])
def test_where_it_is(monkeypatch, found: str):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    if found == "Colab":
        monkeypatch.setitem(sys.modules, "google.colab", sys)
    if found == "Kaggle":
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert start.place() == found
