"""Many pretraining runs as one: variants × seeds → pretraining, export, evaluation → one comparison.

A study is a YAML file. Its cells are whole or absent, go on where they stopped, and of one seed see the same images and
crops, which is checked step by step.
"""

from .cell_record import CellRecord, read_record
from .checking import CheckedStudy, check_study
from .errors import StudyError
from .estimate import StudyEstimate, estimate_study
from .page import write_page
from .ready_studies import read_ready, ready_studies
from .running import StudyOutcome, run_study
from .study_file import Cell, Study, read_study

__all__ = [
    "Cell",
    "CellRecord",
    "CheckedStudy",
    "Study",
    "StudyError",
    "StudyEstimate",
    "StudyOutcome",
    "check_study",
    "estimate_study",
    "read_ready",
    "read_record",
    "read_study",
    "ready_studies",
    "run_study",
    "write_page",
]
