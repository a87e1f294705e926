"""How good is a method? Counts (`metrics`), what is counted (`protocols`), and the whole run (`report`).

Of a network trained with mask grounding, also which hidden words it guesses (`words`)."""

from rislib.evaluation.metrics import Scores, intersection_and_union
from rislib.evaluation.protocols import (
    CRIS_2022,
    LAVT_2022,
    PROTOCOLS,
    Protocol,
    predict_masks,
    score_maps,
    target_mask,
)
from rislib.evaluation.report import Report, blinded, evaluate, shuffled
from rislib.evaluation.words import hidden_words

__all__ = [
    "CRIS_2022",
    "LAVT_2022",
    "PROTOCOLS",
    "Protocol",
    "Report",
    "Scores",
    "blinded",
    "evaluate",
    "hidden_words",
    "intersection_and_union",
    "predict_masks",
    "score_maps",
    "shuffled",
    "target_mask",
]
