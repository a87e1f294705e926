"""A small world that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefMini folder of 60 references to train on and 12 in each other split, at 128 px."""
    from rislib.data.refmini.build import build_refmini

    out = tmp_path_factory.mktemp("worlds") / "world"
    return build_refmini(out, seed=7, train=60, val=12, progress=False)
