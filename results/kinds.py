"""What do people say? The share of sentences that name a place, a colour, a size ...

`python results/kinds.py SENTENCES.txt` counts, in a file with a sentence a line, how many sentences have a
word of each kind (a sentence may have several, or none), and the same in RefMini's val split; prints and
records both. A rough rule, the same for both: words alone are looked at. The recorded file held all sentences
of RefCOCO's val, testA and testB splits.
"""

import json
import re
import sys
from pathlib import Path

from rislib.data import open_split
from rislib.training import provenance, write_record

WORDS = {
    "location": "left right top bottom middle center centre corner front back far near nearest closest edge "
    "end side upper lower above below behind",
    "colour": "red green blue yellow black white brown orange pink purple grey gray tan silver gold dark "
    "light",
    "size": "big bigger biggest small smaller smallest large larger largest tall taller tallest little tiny",
    "ordinal": "first second third fourth fifth 1st 2nd 3rd 4th 5th last",
    "clothing": "shirt hat jacket coat pants shorts dress tie jeans skirt sweater suit cap glasses wearing",
    "pattern": "striped stripes stripe plaid dotted dots spotted spots checkered checked",
}


def shares(sentences: list[str]) -> dict[str, float]:
    """Percent of the sentences that have a word of each kind."""
    spoken = [set(re.findall(r"[a-z0-9]+", sentence.lower())) for sentence in sentences]
    return {
        kind: round(100 * sum(not words.isdisjoint(said) for said in spoken) / len(spoken), 1)
        for kind, words in ((kind, set(words.split())) for kind, words in WORDS.items())
    }


sentences = Path(sys.argv[1]).read_text().splitlines()
refmini = [record.expression for record in open_split("refmini", "val").records]
record = {
    "refcoco": {"sentences": len(sentences), **shares(sentences)},
    "refmini val": {"sentences": len(refmini), **shares(refmini)},
    **provenance(),
}
write_record(Path(__file__).with_suffix(".json"), record)
print(json.dumps(record, indent=1))
