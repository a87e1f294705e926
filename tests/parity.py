"""What the tests of networks share: weights from names, one small batch, the published references."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from reference import weights
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.checkpoints import published_name
from rislib.nouns import Batch, Method

REFERENCE = Path(weights.__file__).parent
SENTENCES = ["the red cup", "the left dog", "a dog left of the blue cup", "cup"]

Names = Sequence[tuple[str, str]]  # our names and the published ones, as in `rislib.checkpoints`


def randomise(model: nn.Module) -> nn.Module:
    """Weights and batch statistics that leave nothing at zero or one, in eval mode."""
    state = model.state_dict()
    floating = {k: weights.tensor(k, tuple(v.shape)) for k, v in state.items() if v.is_floating_point()}
    model.load_state_dict(state | floating)
    return model.eval()


def mini_batch(model: Method, size: int = 96) -> Batch:
    """The four sentences, each with a picture of coloured squares and a mask of others.

    Untrained networks take one picture of plain noise for another: what mixes pictures up would not show.
    """
    generator = torch.Generator().manual_seed(0)
    tokens, token_mask = model.tokenize(SENTENCES)
    mask = (torch.rand(4, 1, size // 16, size // 16, generator=generator) > 0.6).float()
    squares = torch.randn(4, 3, size // 32, size // 32, generator=generator)
    noise = torch.randn(4, 3, size, size, generator=generator)
    return Batch(
        image=1.5 * F.interpolate(squares, size=(size, size)) + 0.5 * noise,
        tokens=tokens,
        token_mask=token_mask,
        mask=F.interpolate(mask, size=(size, size)),
    )


def relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def reference_tensors(name: str) -> dict[str, Tensor]:
    """What the published network `name` says; reference/README.md tells to what."""
    arrays = np.load(REFERENCE / f"{name}.npz")
    return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays}


def reference_keys(name: str) -> dict:
    """Name -> shape, in the published network's checkpoint."""
    return json.loads((REFERENCE / f"{name}.keys.json").read_text())


def check_published_names(model: nn.Module, names: Names, published: Mapping[str, list[int]]) -> None:
    """Every entry of a published checkpoint has a place of its own in `model`, and no place is left over."""
    state = model.state_dict()
    ours = {published_name(name, names): list(tensor.shape) for name, tensor in state.items()}
    assert len(ours) == len(state)
    assert {k: v for k, v in ours.items() if not k.endswith("num_batches_tracked")} == published


def published_state(model: nn.Module, names: Names) -> dict[str, Tensor]:
    """A checkpoint as it could be published for `model`, of random numbers."""
    return {published_name(name, names): torch.rand(v.shape) for name, v in model.state_dict().items()}
