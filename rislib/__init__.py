"""Referring image segmentation from the papers.

Read `rislib.nouns` first: five words run through everything. Then follow one batch:
`data` (samples) -> `encoders` (pretrained towers) -> `methods` (one paper, one file) ->
`training`, `evaluation` (a number with its protocol) -> `predict`, `viz`, `cli`.
"""

__version__ = "0.1.0"
