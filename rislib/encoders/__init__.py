"""Pretrained towers, each seen as one thing: dense patches, word states, global vectors.

The mini towers are trained by this project itself, on its own scenes, and travel with it.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE.parent / "data", _PACKAGE / "shipped")  # a checkout, an installed wheel


def shipped_file(relative: str) -> Path:
    """Path of a file that travels with the project, such as `vocab/refmini.txt`.

    Raises:
        FileNotFoundError: neither the checkout's `data` nor the wheel's `shipped` folder holds it.
    """
    for folder in _FOLDERS:
        if (folder / relative).exists():
            return folder / relative
    looked = " or ".join(str(folder / relative) for folder in _FOLDERS)
    raise FileNotFoundError(f"No {looked}: this file belongs to a complete checkout or wheel of rislib.")


def shipped(name: str) -> Path:
    """Path of the weights of a mini tower, such as `clip-rn`.

    Raises:
        FileNotFoundError: the weights are not here; the message says which command makes them.
    """
    try:
        return shipped_file(f"weights/{name}.safetensors")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Make the weights with `python -m rislib pretrain {name}`, "
            "or build the network with pretrained=False."
        ) from None
