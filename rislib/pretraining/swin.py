"""What is in the picture? Swin learns to say which things and colours a scene holds, and which go together.

A picture has several labels, and each is a question of its own: binary cross entropy. A network could know
all names and all colours of a scene without knowing what is red, so the labels bind them: "red", "car" and
"red car" are three. Where things are is not asked: a map of features says so by itself.

Asked twice, since what reads this network afterwards are its maps: the mean of the last map answers (as Swin
was pretrained on ImageNet's classes), and so does the best cell of each coarse map (as in `clip`). A label
that only some cells can know is thus learned where its thing is. All classifiers are thrown away.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rislib.data.batches import make_batch
from rislib.data.refmini import CATEGORIES, COLOURS, PATTERNS, Thing, sample_scene
from rislib.data.refmini.forms import clothes_of
from rislib.data.refmini.scene import MODELS
from rislib.data.transforms import Stretch
from rislib.encoders.swin import MEAN, STD, SwinEncoder
from rislib.nouns import Batch, Preprocessing
from rislib.pretraining.learner import Learner
from rislib.pretraining.scenes import Scenes, as_seen, with_few_things
from rislib.training import Recipe

SIZE = 96  # side of the pictures, pixels
LOCAL = (2, 3)  # stages whose cells answer: 6 x 6 and 3 x 3 of them; those of finer maps see too little
GARMENTS = ("shirt", "trousers", "skirt", "hat")

# Every label there is, by kind. Some are never true (brown hats; big buses, for want of room): no harm done.
LABELS = {
    "name": tuple(dict.fromkeys((*CATEGORIES, *MODELS))),
    "colour": COLOURS,
    "coloured thing": tuple(f"{c} {name}" for name, model in MODELS.items() for c in model.colours),
    "patterned thing": tuple(f"{p} {name}" for name, model in MODELS.items() for p in model.patterns[1:]),
    "sized thing": tuple(f"{size} {name}" for name in MODELS for size in ("small", "big")),
    "clothes": tuple(f"{look} {garment}" for garment in GARMENTS for look in (*COLOURS, *PATTERNS[1:])),
}
INDEX = {label: i for i, label in enumerate(label for kind in LABELS.values() for label in kind)}


def labels_of(thing: Thing) -> set[str]:
    """All labels that are true of it."""
    labels = {thing.category, thing.name}
    labels |= {f"{look} {garment}" for garment, look in clothes_of(thing) if look}
    if thing.colour is not None:
        labels |= {thing.colour, f"{thing.colour} {thing.name}"}
    if thing.pattern != "plain":
        labels.add(f"{thing.pattern} {thing.name}")
    if thing.size != "medium":
        labels.add(f"{thing.size} {thing.name}")
    return labels


def labelled(seed: str) -> tuple[np.ndarray, list[str]]:
    """A painted scene and its labels, a line each."""
    scene = with_few_things(sample_scene(seed), random.Random(f"label/{seed}"))
    labels = set().union(*map(labels_of, scene.things))
    return as_seen(scene, Stretch, SIZE), ["\n".join(sorted(labels))]


class Presence(Learner):
    """A Swin with classifiers. A sample's expression holds the labels of its picture, a line each.

    Tried for 900 steps, by the mean average precision of names: a rate of 5e-4 gives 41, 1e-3 gives 41, 2e-3
    only 23. For 300 steps at 2e-3: 22, without the cells' answers 13, with those of stage 1 as well 18.
    """

    recipe = Recipe(learning_rate=5e-4, weight_decay=0.05, warmup=0.05, batch_size=32, clip_norm=1.0)
    draw = staticmethod(labelled)

    def __init__(self, encoder: SwinEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.preprocessing = Preprocessing(SIZE, "stretch", MEAN, STD)
        self.whole = _classifier(encoder.widths[-1])
        self.cells = nn.ModuleDict({str(i): _classifier(encoder.widths[i]) for i in LOCAL})

    def tokenize(self, expressions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B label lists -> which labels are there (B, K), 0 or 1, and that all of them are asked for."""
        present = torch.zeros(len(expressions), len(INDEX), dtype=torch.int64)
        for row, labels in zip(present, expressions, strict=True):
            row[[INDEX[label] for label in labels.split("\n")]] = 1
        return present, torch.ones_like(present, dtype=torch.bool)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """B pictures -> logits (B, K) of each read-out: the whole picture's, and those of its best cells."""
        answers = {}
        x = self.encoder.embed(image)
        for i in range(len(self.encoder.widths)):
            x = self.encoder.stage(i, self.encoder.downsample(i - 1, x) if i else x)  # (B, h, w, C_i)
            if str(i) in self.cells:
                by_cell = self.cells[str(i)](x).flatten(1, 2).float()  # (B, h*w, K)
                answers[f"local_{i}"] = by_cell.logsumexp(dim=1) - math.log(by_cell.shape[1])
        return {"global": self.whole(x.mean(dim=(1, 2))).float(), **answers}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        present = batch.tokens.float()
        return {
            name: F.binary_cross_entropy_with_logits(logits, present)
            for name, logits in self(batch.image).items()
        }

    @torch.inference_mode()
    def measure(self, samples: Scenes) -> dict:
        """Mean average precision in percent, by kind of label, of each read-out and of guessing."""
        self.eval()
        device = next(self.parameters()).device
        answers, present = [], []
        for start in range(0, len(samples), 64):
            chosen = [samples[i] for i in range(start, min(start + 64, len(samples)))]
            batch = make_batch(chosen, self.preprocessing, self.tokenize)
            answers.append(self(batch.image.to(device)))
            present.append(batch.tokens)
        present = torch.cat(present).bool()
        found = {name: torch.cat([a[name] for a in answers]).cpu() for name in answers[0]}
        precisions = {name: average_precision(logits, present) for name, logits in found.items()}
        precisions["guessing"] = present.float().mean(dim=0).masked_fill(~present.any(dim=0), torch.nan)
        columns = {kind: [INDEX[label] for label in labels] for kind, labels in LABELS.items()}
        return {
            "mean_average_precision_percent": {
                name: {kind: round(100 * p[c].nanmean().item(), 2) for kind, c in columns.items()}
                for name, p in precisions.items()
            }
        }


def average_precision(scores: Tensor, present: Tensor) -> Tensor:
    """scores (N, K), present (N, K) bool -> (K,): the mean, over the present, of the precision down to each.

    NaN where a label is never present.
    """
    hits = present.gather(0, scores.argsort(dim=0, descending=True)).float()  # (N, K), the surest first
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)[:, None]
    return (precision * hits).sum(0) / hits.sum(0)


def _classifier(width: int) -> nn.Sequential:
    linear = nn.Linear(width, len(INDEX))
    nn.init.constant_(linear.bias, -3.0)  # most labels are absent: not worth the first steps
    return nn.Sequential(nn.LayerNorm(width), linear)
