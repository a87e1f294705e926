"""What the first cell of every notebook does: see where it is, install what is missing, say what it found."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PROFILES = ("ci", "cpu", "gpu")
KEPT = ("torch", "torchvision")  # made for the machine's driver: never replaced if they serve


def start(profile: str) -> str:
    """Make the notebook ready to run, and print versions and device.

    Args:
        profile: "ci" (seconds), "cpu" (minutes) or "gpu" (the full-scale world). RISLIB_PROFILE overrides it;
            nbgrader always has "ci", since an answer is graded in seconds.

    Returns:
        The profile to go on with.

    Raises:
        ValueError: there is no such profile.
        subprocess.CalledProcessError: something is missing and could not be installed.
    """
    graded = "NBGRADER_EXECUTION" in os.environ
    profile = "ci" if graded else os.environ.get("RISLIB_PROFILE", profile)
    if profile not in PROFILES:
        raise ValueError(f"no profile {profile!r}; there are {', '.join(PROFILES)}")
    missing = unmet(requirements())
    if missing:
        install(missing)
    if graded:
        keep_check()

    import torch

    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"cpu, {torch.get_num_threads()} threads"
    installed = f", installed {', '.join(missing)}" if missing else ""
    print(f"Python {platform.python_version()}, torch {torch.__version__}, on {device}")
    print(f"rislib {metadata.version('rislib')}, {place()}, profile {profile}{installed}")
    return profile


def keep_check() -> None:
    """Before each cell `check` is ours again: a cell that names something else so would grade itself."""
    from IPython import get_ipython

    from rislib.course import check

    if shell := get_ipython():
        shell.events.register("pre_run_cell", lambda _: shell.user_ns.update(check=check))


def place() -> str:
    if "google.colab" in sys.modules:
        return "Colab"
    return "Kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else "local"


def requirements() -> list[str]:
    """What rislib and its lessons need, as pip writes it."""
    from packaging.requirements import Requirement  # Jupyter's kernel needs it too, so it is always there

    stated = [Requirement(line) for line in metadata.requires("rislib") or ()]
    wanted = [r for r in stated if r.marker is None or r.marker.evaluate({"extra": "lessons"})]
    return [f"{r.name}{r.specifier}" for r in wanted]


def unmet(requirements: list[str]) -> list[str]:
    """Those that are not installed, or in a version that does not serve."""
    from packaging.requirements import Requirement

    def serves(requirement: Requirement) -> bool:
        try:
            return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
        except metadata.PackageNotFoundError:
            return False

    return [line for line in requirements if not serves(Requirement(line))]


def install(missing: list[str]) -> None:
    """pip install, in which a torch that serves stays as it is."""
    from packaging.requirements import Requirement

    replaced = {Requirement(line).name for line in missing}
    kept = () if "torch" in replaced else [name for name in KEPT if name not in replaced]
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("".join(f"{name}=={metadata.version(name)}\n" for name in kept))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "-c", str(constraints), *missing]
        subprocess.run(command, check=True)
    importlib.invalidate_caches()
