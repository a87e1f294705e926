"""How large are the published networks, and what do their parts add?

`python results/parameters.py` builds each at full size, without memory, and writes parameters.json.
"""

from __future__ import annotations

from pathlib import Path

import torch

from rislib.methods import build, part_options
from rislib.training import provenance, write_record

NETWORKS = {
    "cris_r50": ("cris", "r50", ()),
    "cris_r101": ("cris", "r101", ()),
    "lavt": ("lavt", "base", ()),
    "magnet": ("magnet", "base", ()),
    "cm_masksd_b16": ("cm_masksd", "b16", ()),
    "cm_masksd_b16 without distillation": ("cm_masksd", "b16", ("lmvsd", "vmlsd")),
    "mail_b32": ("mail", "b32", ()),
}

counts = {}
for name, (method, size, without) in NETWORKS.items():
    with torch.device("meta"):
        network = build(method, size, pretrained=False, **part_options(method, without=without))
    counts[name] = sum(p.numel() for p in network.parameters())
    print(f"{name:36} {counts[name]:12,}")
write_record(Path(__file__).with_suffix(".json"), {**counts, **provenance()})
