"""The studies behind the tables: what is trained (`plan`), and doing it (`run`).

`python -m rislib study run NAME` does the runs that `results/NAME.json` lacks.
"""

from rislib.study.plan import STUDIES, Study, Variant
from rislib.study.run import run_study

__all__ = ["STUDIES", "Study", "Variant", "run_study"]
