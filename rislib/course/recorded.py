"""Numbers that were measured once: what `results/` holds, for the text and the tables of lessons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE.parent / "results", _PACKAGE / "shipped/results")  # a checkout, an installed wheel


def recorded(name: str) -> dict[str, Any]:
    """A record by its name, such as "cris_mini/val" -> the numbers, and the command that made them.

    Raises:
        FileNotFoundError: there is no such record.
    """
    for folder in _FOLDERS:
        if (folder / f"{name}.json").exists():
            return json.loads((folder / f"{name}.json").read_text())
    raise FileNotFoundError(f"no {name}.json in {' or '.join(map(str, _FOLDERS))}")


def measured(name: str) -> dict[str, Any]:
    """A record that may not have been made yet: then nothing, and one line that says so."""
    try:
        return recorded(name)
    except FileNotFoundError:
        print(f"There is no record {name!r} yet: nothing is shown here.")
        return {}
