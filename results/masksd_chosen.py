"""Which patches does the sentence choose, while CM-MaskSD learns?

`python results/masksd_chosen.py` trains it (both branches, seed 0) and asks before, during and after: of what
is to be segmented in the first 1,200 samples of val, how much lies under the K patches that are most like the
sentence? Patches by lot would cover "chance". And which words does the picture choose? "words" holds, by
kind, the K that it may mask; "all_words" what there is to choose from. All in percent.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import torch
from torch.nn import functional as F

from rislib.data import RefDataset, make_batch, open_split
from rislib.data.refmini import CATEGORIES, COLOURS
from rislib.methods import CMMaskSD, cm_masksd_mini
from rislib.methods.cm_masksd import rate_patches
from rislib.training import fit, mini_recipe, provenance, write_record

KINDS = {"colour": COLOURS, "name": CATEGORIES, "place": ("left", "right", "top", "bottom", "middle")}


@torch.inference_mode()
def look(network: CMMaskSD, samples: RefDataset) -> dict:
    """Of all masks, the percentage under the chosen patches; the kinds of chosen words, in percent."""
    covered, words, chosen_words = [], Counter(), Counter()
    for start in range(0, len(samples), 60):
        batch = make_batch(
            [samples[i] for i in range(start, start + 60)], network.preprocessing, network.tokenize
        )
        picture = network.encode_image(batch.image)
        reading = network.read(picture, batch.tokens, batch.token_mask)
        chosen = network.lmvsd.best(*rate_patches(picture, reading))  # (B, h*w)
        area = F.adaptive_avg_pool2d(batch.mask, picture.dense.shape[2:]).flatten(1)  # (B, h*w)
        covered += ((area * chosen).sum(1) / area.sum(1)).tolist()
        best = network.vmlsd.best(*network.rate_words(picture, reading, batch))  # (B, L)
        for tokens, picks in zip(batch.tokens, best, strict=True):
            for token, pick in zip(tokens.tolist(), picks.tolist(), strict=True):
                kind = kind_of(network.tokenizer.decode([token]))
                words[kind] += token not in (0, network.tokenizer.sot, network.tokenizer.eot)
                chosen_words[kind] += pick
    return {
        "percent_of_mask_chosen": round(100 * sum(covered) / len(covered), 2),
        "words": {kind: share(chosen_words, kind) for kind in (*KINDS, "other")},
        "all_words": {kind: share(words, kind) for kind in (*KINDS, "other")},
    }


def kind_of(word: str) -> str:
    return next((kind for kind, words in KINDS.items() if word in words), "other")


def share(counts: Counter, kind: str) -> float:
    return round(100 * counts[kind] / counts.total(), 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=6000)
    parser.add_argument("--asked", type=int, default=1200)
    given = parser.parse_args()
    torch.manual_seed(0)
    network, val = cm_masksd_mini(), open_split("refmini", "val")[: given.asked]
    seen = [look(network.eval(), val)]
    with tempfile.TemporaryDirectory() as folder:
        fit(
            network,
            open_split("refmini", "train"),
            mini_recipe("cm_masksd"),
            out=folder,
            seed=0,
            samples_budget=given.samples,
            channels_last=True,
            progress=False,
            validate=lambda network: seen.append(look(network, val)) or {},
            validations=6,
        )
    record = {
        "samples": [round(given.samples * i / 6) for i in range(7)],
        "chance": 100 * network.lmvsd.top,
        **{name: [one[name] for one in seen] for name in ("percent_of_mask_chosen", "words")},
        "all_words": seen[0]["all_words"],
        "n": given.asked,
        **provenance(),
    }
    write_record(Path(__file__).with_suffix(".json"), record)
    print(json.dumps(record, indent=1))
