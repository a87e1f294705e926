"""How good are the masks that MaIL chooses among, and how good could its answers be?

`python results/proposals.py` (after `python -m rislib propose refmini`) asks, for each split: how many of all
things does some proposal meet ("AR@0.5": with an IoU of one half), and if for each sentence the best proposal
were the answer, what would oIoU and mIoU be? The segmenter has seen none of these pictures.
"""

import json
from pathlib import Path

import numpy as np

from rislib.data import open_split, recall, with_instances
from rislib.data.instances import best_overlaps
from rislib.training import provenance

record = {}
for split in ("train", "val", "testA", "testB"):
    samples = with_instances(open_split("refmini", split), "proposals")[:4000]
    areas, ious = [], []
    for i in range(len(samples)):
        sample = samples[i]
        found = sample.instances  # (N, H, W) bool
        best = np.zeros_like(sample.mask)
        if len(found):
            overlaps = [best_overlaps(sample.mask[None], mask[None])[0] for mask in found]
            best = found[int(np.argmax(overlaps))]
        common, either = (best & sample.mask).sum(), (best | sample.mask).sum()
        areas.append((common, either))
        ious.append(common / either)
    common, either = np.sum(areas, axis=0)
    record[split] = {
        **recall(samples, (0.5, 0.75, 0.9)),
        "best proposal": {
            "oIoU": round(100 * float(common / either), 2),
            "mIoU": round(100 * float(np.mean(ious)), 2),
        },
        "n": len(samples),
    }
    print(split, record[split], flush=True)
Path(__file__).with_suffix(".json").write_text(json.dumps({**record, **provenance()}, indent=1) + "\n")
