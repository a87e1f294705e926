"""Referring segmentation networks: one paper, one file. A method sees tensors, never a dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rislib.methods.cm_masksd import CMMaskSD, cm_masksd_b16, cm_masksd_mini
from rislib.methods.cris import CRIS, cris_mini, cris_r50, cris_r101
from rislib.methods.lavt import LAVT, lavt, lavt_mini
from rislib.methods.magnet import MagNet, magnet, magnet_mini
from rislib.methods.mail import MaIL, mail_b32, mail_mini
from rislib.nouns import Method

BUILDERS = {
    ("cris", "mini"): cris_mini,
    ("cris", "r50"): cris_r50,
    ("cris", "r101"): cris_r101,
    ("lavt", "mini"): lavt_mini,
    ("lavt", "base"): lavt,
    ("magnet", "mini"): magnet_mini,
    ("magnet", "base"): magnet,
    ("cm_masksd", "mini"): cm_masksd_mini,
    ("cm_masksd", "b16"): cm_masksd_b16,
    ("mail", "mini"): mail_mini,
    ("mail", "b32"): mail_b32,
}

CLASSES = {"cris": CRIS, "lavt": LAVT, "magnet": MagNet, "cm_masksd": CMMaskSD, "mail": MaIL}


def build(method: str, preset: str, **options) -> Method:
    """A method by its name and size, as the command line and run records spell them.

    `options` go to the builder. Raises ValueError, with the names there are, for any other pair.
    """
    if (method, preset) not in BUILDERS:
        known = ", ".join(" ".join(pair) for pair in BUILDERS)
        raise ValueError(f"no method {method!r} of size {preset!r}; there are: {known}")
    return BUILDERS[method, preset](**options)


def part_options(method: str, *, add: Iterable[str] = (), without: Iterable[str] = ()) -> dict[str, Any]:
    """Builders' options that add or leave out parts of a method by their names, `Method.parts`.

    Raises:
        ValueError: unknown method or part, with the names there are; or a part that is both.
    """
    if method not in CLASSES:
        raise ValueError(f"no method {method!r}; there are {', '.join(CLASSES)}")
    parts, add, without = CLASSES[method].parts, list(add), list(without)
    for name in add + without:
        if name not in parts:
            raise ValueError(f"{method} has no part {name!r}; it has {', '.join(parts)}")
        if name in add and name in without:
            raise ValueError(f"{name} can be added or left out, not both")
    left_out, added = [parts[name][0] for name in without], [parts[name][1] for name in add]
    return {option: value for options in left_out + added for option, value in options.items()}


__all__ = [
    "BUILDERS",
    "CLASSES",
    "CRIS",
    "LAVT",
    "CMMaskSD",
    "MaIL",
    "MagNet",
    "build",
    "cm_masksd_b16",
    "cm_masksd_mini",
    "cris_mini",
    "cris_r50",
    "cris_r101",
    "lavt",
    "lavt_mini",
    "magnet",
    "magnet_mini",
    "mail_b32",
    "mail_mini",
    "part_options",
]
