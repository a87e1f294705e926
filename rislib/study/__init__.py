"""The studies behind the tables: what is trained (`plan`), doing it (`run`), and what came of it (`report`).

`python -m rislib study run NAME` does the runs that `results/NAME.json` lacks; `study report` makes every
table and figure anew, from `results/` alone. What the papers claim stands in `claims`, each with its test.
"""

from rislib.study.figures import draw_report
from rislib.study.plan import STUDIES, Study, Variant
from rislib.study.report import table, write_report
from rislib.study.run import run_study

__all__ = ["STUDIES", "Study", "Variant", "draw_report", "run_study", "table", "write_report"]
