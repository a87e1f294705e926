"""The README's opening picture: `python results/hero.py RUN`.

Eight expressions of RefMini val that turn on a colour, of eight pictures, drawn by lot.
"""

import random
import sys
from pathlib import Path

from rislib.data import open_split
from rislib.predict import Predictor
from rislib.viz import hero

samples = open_split("refmini", "val")
of_colour = [i for i, record in enumerate(samples.records) if record.kind == "colour"]
random.Random(0).shuffle(of_colour)
first_of_picture = {samples.records[i].image_id: i for i in reversed(of_colour)}
chosen = [samples[i] for i in of_colour if first_of_picture[samples.records[i].image_id] == i][:8]

predictor = Predictor.from_run(sys.argv[1])
masks = []
for sample in chosen:
    predictor.set_image(sample.image)
    masks.append(predictor.segment(sample.expression).mask)
hero(chosen, masks, columns=4, width=10).savefig(Path(__file__).with_suffix(".png"), dpi=150)
