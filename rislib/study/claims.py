"""What the papers claim, the test of it in the mini world, and what the papers printed.

A claim is tested by a difference between two variants of a study. It *holds here* or is *contradicted here*
if Student's interval over the seeds leaves no doubt about the sign; otherwise it is *not shown here*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rislib.evaluation import Difference, compare_pictures, compare_seeds


@dataclass(frozen=True)
class Claim:
    """That `first` is better than `second`, two variants of one study."""

    paper: str
    says: str
    study: str
    first: str
    second: str
    differs: str  # how our test differs from the paper's setting
    metric: Literal["oIoU", "mIoU"] = "oIoU"
    data: str = "refmini"


CLAIMS = (
    Claim(
        "CRIS",
        "A vision-language decoder helps: +3.65 to +4.56 mIoU.",
        "cris_ablation",
        "full",
        "no_decoder",
        "Ours is trained without its two layers, contrast on; theirs adds one, without contrast.",
        "mIoU",
    ),
    Claim(
        "CRIS",
        "Text-to-pixel contrast helps: +1.98 to +3.43 mIoU.",
        "cris_ablation",
        "full",
        "not_contrastive",
        "As theirs: a classifier that never sees the sentence again.",
        "mIoU",
    ),
    Claim(
        "CRIS",
        "What CLIP learned of whole pictures carries over to pixels.",
        "cris_ablation",
        "full",
        "from_scratch",
        "Our CLIP was pretrained on the same world, with captions and lies.",
        "mIoU",
    ),
    Claim(
        "MagNet",
        "Guessing hidden words from the mask (mask grounding) helps.",
        "magnet_ablation",
        "magnet+mg",
        "magnet",
        "Three words a sentence, few of them idle; five minutes, not 40 epochs.",
    ),
    Claim(
        "MagNet",
        "Mask grounding helps other methods: LAVT.",
        "magnet_ablation",
        "lavt+mg",
        "lavt",
        "As above.",
    ),
    Claim(
        "MagNet",
        "Mask grounding helps other methods: CRIS.",
        "magnet_ablation",
        "cris+mg",
        "cris",
        "As above; and on CRIS the head learns names, but no colours (3 % right).",
    ),
    Claim(
        "MagNet",
        "Its alignment of words with maps of several sizes (CAM) helps.",
        "magnet_ablation",
        "magnet+cam",
        "magnet",
        "Without the other two parts.",
    ),
    Claim(
        "MagNet",
        "Its alignment loss (CAL) helps.",
        "magnet_ablation",
        "magnet+cal",
        "magnet",
        "Its exact form is not public: ours is a reading.",
    ),
    Claim(
        "MagNet",
        "Better than LAVT: +2.5 oIoU on RefCOCO val.",
        "magnet_ablation",
        "magnet+all",
        "lavt",
        "Equal samples; MagNet's step takes 2.6 times as long.",
    ),
    Claim(
        "CM-MaskSD",
        "Distillation from hidden patches (LMVSD) helps.",
        "masksd_ablation",
        "lmvsd",
        "plain",
        "Small pictures of few things; neck N1+ is ours.",
    ),
    Claim(
        "CM-MaskSD",
        "Distillation from hidden words (VMLSD) helps.",
        "masksd_ablation",
        "vmlsd",
        "plain",
        "As above.",
    ),
    Claim("CM-MaskSD", "Both together help.", "masksd_ablation", "both", "plain", "As above."),
    Claim(
        "CM-MaskSD",
        "Both together help, after five times as many samples.",
        "masksd_longer",
        "both",
        "plain",
        "The paper trains for epochs: 24,000 samples are one of ours.",
    ),
    Claim(
        "CM-MaskSD",
        "They help in the time that they cost, too.",
        "five_minutes",
        "cm_masksd",
        "cm_masksd plain",
        "The paper compares at equal epochs. A step takes three times as long here.",
    ),
    Claim(
        "CM-MaskSD",
        "It matters that what is hidden is what the other side points at.",
        "masksd_ablation",
        "both",
        "both random",
        "Small pictures of few things; neck N1+ is ours.",
    ),
    Claim(
        "CM-MaskSD",
        "The teacher's gradient is stopped.",
        "masksd_ablation",
        "both",
        "both flowing",
        "Not a number of the paper: its figure draws it.",
    ),
    Claim(
        "MaIL",
        "Instance masks, a third modality, help.",
        "mail_ablation",
        "proposals",
        "none",
        "Our segmenter has seen no picture of any split; COCO's have.",
    ),
    Claim(
        "MaIL",
        "So does selecting among them.",
        "mail_ablation",
        "proposals",
        "proposals no selection",
        "The block's inside is not public: ours is a reading.",
    ),
    Claim(
        "MaIL",
        "One pretrained encoder for all helps: against none.",
        "mail_ablation",
        "proposals",
        "proposals from scratch",
        "Ours learned from a CLIP as teacher, not from ViLT's two questions.",
    ),
    Claim(
        "MaIL",
        "One encoder is better than two that meet late: LAVT.",
        "equal_samples",
        "mail",
        "lavt",
        "Two methods, not two encoders: everything else differs, too.",
    ),
)

PUBLISHED = {
    "CRIS (R101)": {"mIoU": "70.47 73.18 66.10 62.27 68.08 53.68 59.87 60.36"},
    "LAVT": {
        "oIoU": "72.73 75.82 68.79 62.14 68.38 55.10 61.24 62.09",
        "mIoU": "74.46 76.89 70.94 65.81 70.97 59.23 63.34 63.62",
    },
    "MagNet": {
        "oIoU": "75.24 78.24 71.05 66.16 71.32 58.14 65.36 66.03",
        "mIoU": "77.43* 79.43* 74.11* 70.10* 74.50* 63.59* 68.53* 69.15*",
    },
    "CM-MaskSD": {
        "oIoU": "72.18* 75.21* 67.91* 64.47* 69.29** 56.55* 62.67** 62.69**",
        "mIoU": "74.89* 77.54* 71.28* 67.47* 71.80* 59.91* 66.53* 66.63*",
    },
    "MaIL": {"oIoU": "70.13* 71.71* 66.92** 62.23** 65.92** 56.06* 62.45** 62.87*"},
}
"""RefCOCO val, testA, testB; RefCOCO+ val, testA, testB; G-Ref (UMD) val, test, in percent.

*: as another publication's table gives it. **: from memory, unchecked.
CRIS cuts the probability at 0.35 and compares at the picture's size; LAVT and MagNet take the likelier class
and compare at 480 x 480. What CM-MaskSD and MaIL did is not known.
"""


def differences(
    claim: Claim, runs: Sequence[Mapping[str, Any]]
) -> tuple[Difference | None, Difference | None, int]:
    """The difference over seeds, over pictures, and how many seeds both variants have; None: none yet."""
    first, second = (
        {r["seed"]: r for r in runs if (r["variant"], r["data"]) == (variant, claim.data)}
        for variant in (claim.first, claim.second)
    )
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return None, None, 0
    by_seeds = compare_seeds(*([part[seed][claim.metric] for seed in shared] for part in (first, second)))
    pairs = [(first[seed], second[seed]) for seed in shared]
    if not all("by_picture" in run for pair in pairs for run in pair):  # an interval around another mean
        return by_seeds, None, len(shared)
    sums = ([run["by_picture"] for run in runs] for runs in zip(*pairs, strict=True))
    return by_seeds, compare_pictures(*sums, claim.metric), len(shared)


def verdict(by_seeds: Difference | None, seeds: int) -> str:
    """What the seeds say. One alone is never enough."""
    if by_seeds is None:
        return "not tested yet"
    if seeds < 2:
        return "one seed decides nothing"
    if not by_seeds.decided:
        return "not shown here"
    return "**holds here**" if by_seeds.points > 0 else "**contradicted here**"
