"""How good are the masks that MaIL chooses among, and how good could its answers be?

`python results/proposals.py` (after `python -m rislib propose refmini`) asks, for each split: how many of all
things does some proposal meet ("AR@0.5": with an IoU of one half), and if for each sentence the best proposal
were the answer, what would oIoU and mIoU be? The segmenter has seen none of these pictures.
"""

from pathlib import Path

import numpy as np

from rislib.data import open_split, recall, with_instances
from rislib.data.instances import best_overlaps
from rislib.evaluation import Scores
from rislib.training import provenance, write_record

record = {}
for split in ("train", "val", "testA", "testB"):
    samples = with_instances(open_split("refmini", split), "proposals")[:4000]
    scores = Scores()
    for sample in samples:
        overlaps = best_overlaps(sample.instances, sample.mask[None])  # (N,), each proposal's IoU
        best = sample.instances[overlaps.argmax()] if len(overlaps) else np.zeros_like(sample.mask)
        scores.add(best, sample.mask, image_id=sample.image_id)
    record[split] = {
        **recall(samples, (0.5, 0.75, 0.9)),
        "best proposal": {
            "oIoU": round(scores.overall_iou(), 2),
            "mIoU": round(scores.mean_iou(), 2),
        },
        "n": len(samples),
    }
    print(split, record[split], flush=True)
write_record(Path(__file__).with_suffix(".json"), {**record, **provenance()})
