"""Pretrained towers, each seen as one thing: dense patches, word states, global vectors.

The mini towers are trained by this project itself, on its own scenes, and travel with it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Those that `python -m rislib pretrain` makes.
PRETRAINED = ("clip-rn", "clip-vit", "swin", "bert", "vilt", "segmenter")

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
        FileNotFoundError: the weights are not here; says what to do.
    """
    try:
        return shipped_file(f"weights/{name}.safetensors")
    except FileNotFoundError as error:
        if name in PRETRAINED:
            advice = f"{error} Make the weights with `python -m rislib pretrain {name}`, or build"
        else:
            advice = f"The mini tower {name} has not been pretrained yet. Build"
        raise FileNotFoundError(f"{advice} the network with pretrained=False.") from None


def fingerprint(name: str) -> str:
    """SHA-256 of a mini tower's weights: as long as it stays the same, so does what was made with them.

    Raises:
        FileNotFoundError: the weights are not here; says what to do.
    """
    return hashlib.sha256(shipped(name).read_bytes()).hexdigest()


def load_weights(encoder: nn.Module, path: str | Path) -> None:
    """Fill `encoder` in place from a safetensors file, such as `shipped` finds.

    Raises:
        RuntimeError: a name is missing, unexpected, or has another shape; the message lists them.
    """
    encoder.load_state_dict(load_file(path))


def from_transformers(model: type[PreTrainedModel], name: str, pretrained: str | bool | None) -> nn.Module:
    """A network without its pooler: random, or as the hub has it, by `name` unless told another.

    Raises:
        RuntimeError: the weights cannot be had; says what to do.
    """
    if not pretrained:
        return model(model.config_class(), add_pooling_layer=False)
    name = name if pretrained is True else pretrained
    try:
        return model.from_pretrained(name, add_pooling_layer=False)
    except OSError as error:
        raise not_loaded(name, "transformers", error) from error


def not_loaded(name: str, library: str, error: Exception) -> RuntimeError:
    """What to raise where `library` could not load a full-size tower's weights: it says what to do."""
    return RuntimeError(
        f"{library} could not load {name} ({error}). The weights come from the Hugging Face hub: run this "
        "once on a machine with a network and copy its folder ~/.cache/huggingface here, or build the "
        "network with pretrained=None."
    )
