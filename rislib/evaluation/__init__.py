"""How good is a method? Counts (`metrics`), what is counted (`protocols`), and the whole run (`report`).

What goes wrong (`anatomy`), how answers react to small edits (`edits`), what a threshold does (`thresholds`);
of a network trained with mask grounding, also which hidden words it guesses (`words`)."""

from rislib.evaluation.anatomy import (
    ERRORS,
    confusions,
    count_errors,
    dissect,
    find_errors,
    gallery,
    name_error,
)
from rislib.evaluation.edits import reactions, remembered
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
from rislib.evaluation.report import Report, answers, blinded, evaluate, shuffled
from rislib.evaluation.thresholds import at, bought, sweep
from rislib.evaluation.words import hidden_words

__all__ = [
    "CRIS_2022",
    "ERRORS",
    "LAVT_2022",
    "PROTOCOLS",
    "Protocol",
    "Report",
    "Scores",
    "answers",
    "at",
    "blinded",
    "bought",
    "confusions",
    "count_errors",
    "dissect",
    "evaluate",
    "find_errors",
    "gallery",
    "hidden_words",
    "intersection_and_union",
    "name_error",
    "predict_masks",
    "reactions",
    "remembered",
    "score_maps",
    "shuffled",
    "sweep",
    "target_mask",
]
