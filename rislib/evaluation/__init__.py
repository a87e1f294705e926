"""How good is a method? Counts (`metrics`), what is counted (`protocols`), and the whole run (`report`).

Is one better than another (`compare`)? What goes wrong (`anatomy`), how do answers react to small edits
(`edits`), what does a threshold do (`thresholds`)? And of a network trained with mask grounding: which
hidden words does it guess (`words`)?"""

from rislib.evaluation.anatomy import (
    ERRORS,
    confusions,
    count_errors,
    dissect,
    find_errors,
    gallery,
    name_error,
)
from rislib.evaluation.compare import Difference, compare_pictures, compare_seeds, mean_interval
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
    "Difference",
    "Protocol",
    "Report",
    "Scores",
    "answers",
    "at",
    "blinded",
    "bought",
    "compare_pictures",
    "compare_seeds",
    "confusions",
    "count_errors",
    "dissect",
    "evaluate",
    "find_errors",
    "gallery",
    "hidden_words",
    "intersection_and_union",
    "mean_interval",
    "name_error",
    "predict_masks",
    "reactions",
    "remembered",
    "score_maps",
    "shuffled",
    "sweep",
    "target_mask",
]
