"""Where does CLIP look, before it ever saw a mask?

`python results/pointing.py data/weights/clip-rn.safetensors --out pointing.json`: for each sentence of
RefMini, the dense feature nearest to it. How often does its cell lie on the thing, that is, does the thing
cover 30 % of the cell or more? "chance" is a cell by lot. Prints and records the shares in percent, by kind.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from rislib.data import make_batch, open_split
from rislib.encoders import load_weights
from rislib.pretraining import BUILDERS
from rislib.training import provenance, write_record

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="Of a CLIP; the file's name says which.")
parser.add_argument("--split", default="val")
parser.add_argument("--out", required=True, help="JSON, beside this script.")
given = parser.parse_args()
learner = BUILDERS[given.weights.stem]()
clip, tokenizer = learner.encoder.eval(), learner.tokenizer
load_weights(clip, given.weights)

samples = open_split("refmini", given.split)
found = defaultdict(list)
for start in tqdm(range(0, len(samples), 64)):
    asked = [samples[i] for i in range(start, min(start + 64, len(samples)))]
    batch = make_batch(asked, learner.preprocessing, tokenizer)
    with torch.inference_mode():
        cells = F.normalize(clip.encode_image(batch.image).dense, dim=1)  # (B, C, h, w)
        words = F.normalize(clip.encode_text(batch.tokens).sentence, dim=1)  # (B, C)
        best = torch.einsum("bchw,bc->bhw", cells, words).flatten(1).argmax(1)
    on_thing = F.adaptive_avg_pool2d(batch.mask, cells.shape[2:]).flatten(1) > 0.3  # (B, h*w)
    for sample, hits, cell in zip(asked, on_thing, best, strict=True):
        for name in ("all", sample.kind):
            found[name].append(hits[cell].item())
        found["chance"].append(hits.float().mean().item())

record = {
    **{name: round(100 * float(np.mean(values)), 1) for name, values in sorted(found.items())},
    "split": given.split,
    "n": len(found["all"]),
    **provenance(),
}
write_record(Path(__file__).with_name(given.out), record)
print(json.dumps(record, indent=1))
