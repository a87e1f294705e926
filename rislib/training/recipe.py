"""How a method is trained: a `Recipe`, and the parameter groups that follow from it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from torch import nn
from torch.optim import Optimizer

from rislib.nouns import Method


@dataclass(frozen=True)
class Recipe:
    """How a method is trained, and how long unless `fit` is told; all other times are fractions of that.

    The defaults belong to no paper. With warm-up the first step has rate 0: it only starts Adam's averages.

    Raises:
        ValueError: the warm-up would leave no time for anything else, or a choice is unknown.
    """

    optimiser: Literal["adamw", "adam"] = "adamw"
    learning_rate: float = 1e-3  # at its peak
    encoder_factor: float = 1.0  # times the learning rate, for `Method.encoder_parameters()`
    encoder_factor_from: float = 0.0  # until then these, too, learn at the full rate
    weight_decay: float = 0.01
    undecayed: tuple[str, ...] | None = None  # parts of names without decay; None: all vectors and scalars
    schedule: Literal["cosine", "multistep", "poly", "constant"] = "cosine"
    warmup: float = 0.0  # the rate rises linearly from 0 this long
    milestones: tuple[float, ...] = ()  # multistep: at each of them, times `gamma`
    gamma: float = 0.1
    power: float = 0.9  # poly: (1 - progress) ** power
    batch_size: int = 32  # of one optimiser step, over all processes
    by_picture: bool = False  # what is said of one picture comes together and shares its features
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"  # fp16 needs a GPU; CPUs train it in fp32
    clip_norm: float = 0.0  # largest norm of all gradients together; 0: no clipping
    epochs: float | None = None  # the paper's, if it has any

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of the training in [0, 1), not {self.warmup}")
        for field in ("optimiser", "schedule", "precision"):
            choices = get_args(get_type_hints(Recipe)[field])
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} is one of {', '.join(choices)}, not {getattr(self, field)!r}")

    def rate(self, progress: float) -> float:
        """The learning rate at `progress` in [0, 1], as a fraction of `learning_rate`."""
        if progress < self.warmup:
            return progress / self.warmup
        after_warmup = (progress - self.warmup) / (1 - self.warmup)
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * after_warmup))
        if self.schedule == "poly":
            return (1 - after_warmup) ** self.power
        if self.schedule == "multistep":
            return self.gamma ** sum(progress >= milestone for milestone in self.milestones)
        return 1.0


MINI = Recipe(
    learning_rate=1e-3,
    encoder_factor=0.3,
    weight_decay=0.01,
    warmup=0.05,
    batch_size=24,
    by_picture=True,
    clip_norm=1.0,
)
"""For the mini world, some minutes on two CPU cores. Chosen by us, from no paper."""

MINI_SWIN = replace(MINI, learning_rate=2e-3, encoder_factor=0.15)
"""The same for LAVT and MagNet. Their towers have never met: what is between them must be learned first.

Tried with 9,600 samples of seed 0: MagNet has 42.2 oIoU, with `MINI` 38.0.
"""


def mini_recipe(method: str) -> Recipe:
    """The mini world's recipe for a method of this name."""
    return MINI_SWIN if method in ("lavt", "magnet") else MINI


CRIS_2022 = Recipe(
    optimiser="adam",
    learning_rate=1e-4,
    encoder_factor=0.1,
    weight_decay=0.0,
    schedule="multistep",
    milestones=(35 / 50,),
    batch_size=64,
    precision="fp16",
    epochs=50,
)
"""CRIS's published code, but for Connect's rate (see cris.py). The encoders' factor: not in the paper."""

CRIS_2022_SLIP = replace(CRIS_2022, encoder_factor_from=1 / 50)
"""The same with a slip of that code: the factor is not yet in force in the first epoch."""

LAVT_2022 = Recipe(
    learning_rate=5e-5,
    weight_decay=0.01,
    undecayed=("norm", "relative_position_bias_table"),
    schedule="poly",
    batch_size=32,
    precision="fp32",
    epochs=40,
)
"""LAVT's published code, all of it. Like CRIS's it keeps the epoch that is best on val; `fit` the last."""

MAGNET_2024 = LAVT_2022
"""LAVT's. Its rate, decay and epochs are defaults of MagNet's released parser, as is a batch of 8 per GPU.

Inferred: all else. The released code cannot train.
"""

CM_MASKSD_2024 = CRIS_2022
"""CRIS's. Inferred, all of it: nothing is stated, and the authors process their data as CRIS does."""

MAIL_2021 = Recipe(
    learning_rate=1e-4,
    encoder_factor=0.5,
    weight_decay=0.01,
    schedule="poly",
    power=1.0,
    warmup=0.1,
    batch_size=64,
    precision="fp16",
    epochs=40,
)
"""Nothing is stated, and no code was released. Decay, warm-up and linear descent are how ViLT is fine-tuned.

Inferred: batch, epochs and rate, from others of its time. Ours: the encoder's factor.
"""

RECIPES = {
    "mini": MINI,
    "mini_swin": MINI_SWIN,
    "cris_2022": CRIS_2022,
    "cris_2022_slip": CRIS_2022_SLIP,
    "lavt_2022": LAVT_2022,
    "magnet_2024": MAGNET_2024,
    "cm_masksd_2024": CM_MASKSD_2024,
    "mail_2021": MAIL_2021,
}


def parameter_groups(method: Method, recipe: Recipe) -> list[dict[str, Any]]:
    """The groups an optimiser gets: encoder or not, times decayed or not; empty ones left out.

    Each holds `params` as (name, parameter) pairs, `lr`, the same as `initial_lr`, and `weight_decay`.
    Frozen parameters are in none.
    """

    def decays(name: str, parameter: nn.Parameter) -> bool:
        if recipe.undecayed is None:
            return parameter.ndim >= 2
        return not any(part in name for part in recipe.undecayed)

    encoder = {id(parameter) for parameter in method.encoder_parameters()}
    groups = []
    for in_encoder, decayed in itertools.product((False, True), (True, False)):
        params = [
            (name, parameter)
            for name, parameter in method.named_parameters()
            if parameter.requires_grad
            and (id(parameter) in encoder) == in_encoder
            and decays(name, parameter) == decayed
        ]
        lr = recipe.learning_rate * (recipe.encoder_factor if in_encoder else 1.0)
        decay = recipe.weight_decay if decayed else 0.0
        groups.append({"params": params, "lr": lr, "initial_lr": lr, "weight_decay": decay})
    return [group for group in groups if group["params"]]


def set_rates(optimiser: Optimizer, recipe: Recipe, progress: float) -> float:
    """Give each of `parameter_groups` its learning rate at `progress`; returns the one without any factor."""
    rate = recipe.rate(progress)
    for group in optimiser.param_groups:
        own = progress >= recipe.encoder_factor_from
        group["lr"] = rate * (group["initial_lr"] if own else recipe.learning_rate)
    return rate * recipe.learning_rate
