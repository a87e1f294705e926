"""The README's opening picture: `python results/hero.py RUN`.

Eight expressions of RefMini val, of eight pictures, drawn by lot and not by success.
"""

import sys
from pathlib import Path

from rislib.data import open_split
from rislib.demo import one_per_picture
from rislib.predict import Predictor
from rislib.viz import hero

chosen = one_per_picture(open_split("refmini", "val"), 8, seed=0)

predictor = Predictor.from_run(sys.argv[1])
masks = []
for sample in chosen:
    predictor.set_image(sample.image)
    masks.append(predictor.segment(sample.expression).mask)
hero(chosen, masks, columns=4, width=10).savefig(Path(__file__).with_suffix(".png"), dpi=150)
