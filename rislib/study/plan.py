"""What is trained, and how often: every study, whole. An ablation is an argument, so a study is a dictionary.

All runs of a study learn from equally many samples, if not said otherwise. Minutes are no budget here: how
many samples they hold depends on the machine, and no such run could be made again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One network, trained one way."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of its builder
    against: str | None = None  # the variant that it is compared with
    share: float = 1.0  # of the training pictures, the first ones
    instances: str = "none"  # where the masks of things come from, as in `with_instances`
    samples: int | None = None  # in place of the study's


@dataclass(frozen=True)
class Study:
    """Which variants learn from how many samples. Every run is measured on val, `cris_2022`."""

    title: str
    samples: int
    variants: Mapping[str, Variant]
    data: tuple[str, ...] = ("refmini",)
    seeds: int = 3
    closely: bool = False  # also with the words of other pictures; of seed 0 `rislib.evaluation.dissect`, too


FIVE = {
    "cris": Variant("cris"),
    "lavt": Variant("lavt"),
    "magnet": Variant("magnet"),
    "cm_masksd": Variant("cm_masksd"),
    "mail": Variant("mail", instances="proposals"),
}
"""The five methods as they are by default."""

BARE = {"pyramid": (), "mask_grounding": 0.0, "cal": 0.0}  # MagNet without its parts
OFTEN = {"ratio": 0.4, "at_least_one": True}  # nearly three times as many words are asked for
PLAIN = {"lmvsd": 0.0, "vmlsd": 0.0}  # CM-MaskSD's main branch alone
PER_MASK = {"mask_tokens": "B", "outlines": True, "selection_loss": 0.1}  # MaIL; half as many tokens

STUDIES = {
    "five_minutes": Study(
        "Five methods, five minutes",
        0,
        {  # what five minutes held on two cores in earlier runs
            "cris": Variant("cris", samples=24_000),
            "lavt": Variant("lavt", samples=25_000),
            "magnet": Variant("magnet", samples=11_000),
            "cm_masksd": Variant("cm_masksd", samples=8_000),
            "cm_masksd plain": Variant("cm_masksd", PLAIN, samples=24_000),
            "mail": Variant("mail", samples=14_000, instances="proposals"),
            "mail per mask": Variant("mail", PER_MASK, samples=22_000, instances="proposals"),
        },
        closely=True,
    ),
    "plateau": Study(
        "Four times as long",
        96_000,
        {
            "cris": Variant("cris"),
            "lavt": Variant("lavt"),
            "mail per mask": Variant("mail", PER_MASK, instances="proposals"),
            "cm_masksd plain": Variant("cm_masksd", PLAIN),
            "magnet": Variant("magnet", samples=44_000),  # as far above its five minutes as the others
        },
        seeds=1,
    ),
    "equal_samples": Study(
        "Five methods, 5,000 samples each", 5000, FIVE, data=("refmini", "refmini+", "refminig")
    ),
    "cris_ablation": Study(
        "Parts of CRIS",
        6000,
        {
            "full": Variant("cris"),
            "inner_product": Variant("cris", {"kernel": "inner_product"}, "full"),  # as the paper writes it
            "no_decoder": Variant("cris", {"decoder_layers": 0}, "full"),
            "not_contrastive": Variant("cris", {"contrastive": False}, "full"),
            "from_scratch": Variant("cris", {"pretrained": False}, "full"),
        },
        seeds=5,
    ),
    "magnet_ablation": Study(
        "Parts of MagNet",
        9600,
        {
            "lavt": Variant("lavt"),
            "lavt+mg": Variant("lavt", {"mask_grounding": 0.1}, "lavt"),
            "lavt+mg clean": Variant(
                "lavt", {"mask_grounding": 0.1, "grounding": {"segmentation": "clean"}}, "lavt"
            ),
            "lavt+mg often": Variant("lavt", {"mask_grounding": 0.1, "grounding": OFTEN}, "lavt"),
            "lavt+mg blind": Variant(
                "lavt", {"mask_grounding": 0.1, "grounding": {**OFTEN, "picture": False}}, "lavt"
            ),
            "magnet": Variant("magnet", BARE, "lavt"),
            "magnet+mg": Variant("magnet", {**BARE, "mask_grounding": 1.0}, "magnet"),
            "magnet+cam": Variant("magnet", {"mask_grounding": 0.0, "cal": 0.0}, "magnet"),
            "magnet+cal": Variant("magnet", {**BARE, "cal": 0.5}, "magnet"),
            "magnet+all": Variant("magnet", {}, "magnet"),
            "cris": Variant("cris"),
            "cris+mg": Variant("cris", {"mask_grounding": 0.1}, "cris"),
        },
    ),
    "masksd_ablation": Study(
        "CM-MaskSD's distillation",
        5000,
        {
            "plain": Variant("cm_masksd", PLAIN),
            "lmvsd": Variant("cm_masksd", {"vmlsd": 0.0}, "plain"),
            "vmlsd": Variant("cm_masksd", {"lmvsd": 0.0}, "plain"),
            "both": Variant("cm_masksd", {}, "plain"),
            "both random": Variant("cm_masksd", {"guided": False}, "both"),
            "both V2": Variant("cm_masksd", {"wiring": "V2"}, "both"),
            "both flowing": Variant("cm_masksd", {"stop_gradient": False}, "both"),
            "plain 10 %": Variant("cm_masksd", PLAIN, "plain", share=0.1),
            "both 10 %": Variant("cm_masksd", {}, "plain 10 %", share=0.1),
            "plain N1": Variant("cm_masksd", {**PLAIN, "neck": "N1"}, "plain"),
            "plain N2": Variant("cm_masksd", {**PLAIN, "neck": "N2", "wiring": "V2"}, "plain"),
        },
    ),
    "masksd_longer": Study(
        "CM-MaskSD's distillation, five times as long",
        24_000,
        {"plain": Variant("cm_masksd", PLAIN), "both": Variant("cm_masksd", {}, "plain")},
        seeds=1,
    ),
    "masksd_grid": Study(
        "CM-MaskSD: K and alpha, LMVSD alone",
        2500,
        {
            f"K {k} % alpha {alpha} %": Variant(
                "cm_masksd", {"vmlsd": 0.0, "top_patches": k / 100, "masked_patches": alpha / 100}
            )
            for k in (10, 25, 50, 100)
            for alpha in (25, 50, 75, 100)
        },
        seeds=1,
    ),
    "mail_ablation": Study(
        "MaIL's masks",
        5000,
        {
            "none": Variant("mail", {"instances": 0}),
            "proposals": Variant("mail", {}, "none", instances="proposals"),
            "oracle": Variant("mail", {}, "proposals", instances="oracle"),
            "proposals no selection": Variant(
                "mail", {"selection": None}, "proposals", instances="proposals"
            ),
            "proposals from scratch": Variant(
                "mail", {"pretrained": False}, "proposals", instances="proposals"
            ),
            "none from scratch": Variant("mail", {"instances": 0, "pretrained": False}, "none"),
            "proposals tokens B": Variant("mail", {"mask_tokens": "B"}, "proposals", instances="proposals"),
            "proposals selection loss": Variant(
                "mail", {"selection_loss": 0.1}, "proposals", instances="proposals"
            ),
            "proposals outlines": Variant("mail", {"outlines": True}, "proposals", instances="proposals"),
            "proposals per mask": Variant("mail", PER_MASK, "proposals tokens B", instances="proposals"),
        },
    ),
}
