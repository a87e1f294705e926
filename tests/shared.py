"""What tests of the command line and of timings share."""

from __future__ import annotations

import torch
from typer.testing import CliRunner

from rislib.cli import app


def rislib(*arguments: object, code: int = 0) -> str:
    """What the command says; it must end with this exit status."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result.output


class Clock:
    """Time that passes only where a test lets it: what is measured is then known exactly."""

    seconds = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.seconds
