"""What several test files share. Plain functions for networks are in parity.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.register_assert_rewrite("parity", "shared")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefMini folder of 60 references to train on and 12 in each other split, at 128 px."""
    from rislib.data.refmini.build import build_refmini

    out = tmp_path_factory.mktemp("worlds") / "world"
    return build_refmini(out, seed=7, train=60, val=12, progress=False)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the word pieces of `parity.SENTENCES`."""
    from parity import SENTENCES

    from rislib.encoders.tokenizers import build_vocabulary

    path = tmp_path_factory.mktemp("vocabulary") / "words.txt"
    path.write_text("\n".join(build_vocabulary(SENTENCES)))
    return path


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As many as the reference tensors were computed on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """The clock that benchmarks and dry runs look at: a `shared.Clock`."""
    from shared import Clock

    import rislib.benchmark
    import rislib.rehearsal

    clock = Clock()
    monkeypatch.setattr(rislib.benchmark, "now", clock)
    monkeypatch.setattr(rislib.rehearsal, "now", clock)
    return clock
