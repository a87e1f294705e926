"""Where does CLIP look, before it ever saw a mask?

`python results/pointing.py WEIGHTS [SPLIT]`: for each sentence of RefMini, the dense feature nearest to it.
How often does its cell lie on the thing, that is, does the thing cover 30 % of the cell or more? "chance" is
a cell by lot. `WEIGHTS` is such a file as data/weights/clip-rn.safetensors. Prints and records the shares in
percent, by kind.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from rislib.data import make_batch, open_split
from rislib.encoders import shipped_file
from rislib.encoders.clip import clip_rn_mini, load_weights
from rislib.encoders.tokenizers import ClipTokenizer
from rislib.methods import cris_mini
from rislib.training import provenance

weights, split = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "val"
tokenizer = ClipTokenizer(32, shipped_file("vocab/refmini.txt"), trim=True)
preprocessing = cris_mini(pretrained=False).preprocessing
clip = clip_rn_mini(tokenizer.vocab_size)
load_weights(clip, weights)
clip.eval()

samples = open_split("refmini", split)
found = defaultdict(list)
for start in tqdm(range(0, len(samples), 64)):
    asked = [samples[i] for i in range(start, min(start + 64, len(samples)))]
    batch = make_batch(asked, preprocessing, tokenizer)
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
    "split": split,
    "n": len(found["all"]),
    **provenance(),
}
Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
print(json.dumps(record, indent=1))
