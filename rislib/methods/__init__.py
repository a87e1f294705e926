"""Referring segmentation networks: one paper, one file. A method sees tensors, never a dataset."""

from __future__ import annotations

from rislib.methods.cris import CRIS, cris_mini, cris_r50, cris_r101
from rislib.methods.lavt import LAVT, lavt, lavt_mini
from rislib.methods.magnet import MagNet, magnet, magnet_mini
from rislib.nouns import Method

BUILDERS = {
    ("cris", "mini"): cris_mini,
    ("cris", "r50"): cris_r50,
    ("cris", "r101"): cris_r101,
    ("lavt", "mini"): lavt_mini,
    ("lavt", "base"): lavt,
    ("magnet", "mini"): magnet_mini,
    ("magnet", "base"): magnet,
}


def build(method: str, preset: str, **options) -> Method:
    """A method by its name and size, as the command line and run records spell them.

    `options` go to the builder. Raises ValueError, with the names there are, for any other pair.
    """
    if (method, preset) not in BUILDERS:
        known = ", ".join(" ".join(pair) for pair in BUILDERS)
        raise ValueError(f"no method {method!r} of size {preset!r}; there are: {known}")
    return BUILDERS[method, preset](**options)


__all__ = [
    "BUILDERS",
    "CRIS",
    "LAVT",
    "MagNet",
    "build",
    "cris_mini",
    "cris_r50",
    "cris_r101",
    "lavt",
    "lavt_mini",
    "magnet",
    "magnet_mini",
]
