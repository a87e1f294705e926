"""Training: one `fit` for all methods, the recipes it follows, and what it writes down."""

from rislib.training.loop import Run, fit
from rislib.training.order import epoch_order
from rislib.training.provenance import git_commit, machine, provenance, write_record
from rislib.training.recipe import (
    CM_MASKSD_2024,
    CRIS_2022,
    CRIS_2022_SLIP,
    LAVT_2022,
    MAGNET_2024,
    MAIL_2021,
    MINI,
    MINI_SWIN,
    RECIPES,
    Recipe,
    mini_recipe,
    parameter_groups,
)

__all__ = [
    "CM_MASKSD_2024",
    "CRIS_2022",
    "CRIS_2022_SLIP",
    "LAVT_2022",
    "MAGNET_2024",
    "MAIL_2021",
    "MINI",
    "MINI_SWIN",
    "RECIPES",
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
