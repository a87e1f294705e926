"""How much cheaper is a second expression about a picture than the first?

`python results/second_expression.py RUN` prints and records it: medians over 40 pictures, asked in turn,
from the picture in memory to the mask at its own size.
"""

import json
import sys
import time
from pathlib import Path
from statistics import median

from rislib.data.refmini import paint, sample_scene
from rislib.predict import Predictor
from rislib.training import provenance, write_record


def seconds(action) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


predictor = Predictor.from_run(sys.argv[1])
first, second = [], []
for i in range(50):
    picture = paint(sample_scene(f"timing/{i}"), 128).image
    looking = seconds(lambda picture=picture: predictor.set_image(picture))
    first.append(looking + seconds(lambda: predictor.segment("the girl in the red hat")))
    second.append(seconds(lambda: predictor.segment("the big dog left of the car")))
first, second = first[10:], second[10:]  # the first pictures warm the caches

record = {
    "first_ms": round(1e3 * median(first), 2),
    "second_ms": round(1e3 * median(second), 2),
    "second_of_first": round(median(b / a for a, b in zip(first, second, strict=True)), 3),
    **provenance(),
}
write_record(Path(__file__).with_suffix(".json"), record)
print(json.dumps(record, indent=1))
