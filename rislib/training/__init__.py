"""Training: one `fit` for all methods, the recipes it follows, and what it writes down."""

from rislib.training.loop import Run, fit
from rislib.training.order import epoch_order
from rislib.training.provenance import git_commit, machine, provenance, write_record
from rislib.training.recipe import (
    CRIS_2022,
    LAVT_2022,
    MINI,
    MINI_SWIN,
    Recipe,
    mini_recipe,
    parameter_groups,
)

__all__ = [
    "CRIS_2022",
    "LAVT_2022",
    "MINI",
    "MINI_SWIN",
    "Recipe",
    "Run",
    "epoch_order",
    "fit",
    "git_commit",
    "machine",
    "mini_recipe",
    "parameter_groups",
    "provenance",
    "write_record",
]
