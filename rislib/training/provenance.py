"""What stands beside every number: the command that made it, the commit, the machine."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def provenance() -> dict[str, Any]:
    """{"command", "commit", "machine"} of this process. Absolute paths are shortened to names."""
    program = Path(sys.argv[0]).name
    words = ["rislib"] if program in ("rislib", "__main__.py") else ["python", program]
    words += [Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:]]
    return {"command": shlex.join(words), "commit": git_commit(), "machine": machine()}


def write_record(file: Path | str, record: dict[str, Any]) -> None:
    """Numbers as JSON that a person can read: one line for each, and one for a whole list of them.

    The file is replaced at once; a reader never finds half of it.
    """
    text = json.dumps(record, indent=1, allow_nan=False)
    text = re.sub(r"\[\s+([-\d.eE+,\s]+?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n")
    os.replace(partial, file)


def machine() -> dict[str, Any]:
    """What to put beside a number: processor, cores, device, and the versions of Python and torch."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def git_commit() -> str | None:
    """The commit of the checkout rislib runs from, with "-dirty" if it was changed; None without one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside another project's checkout
        return None
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        return subprocess.check_output(command, cwd=root, stderr=subprocess.DEVNULL, text=True).strip()
    except (OSError, subprocess.CalledProcessError):
        return None
