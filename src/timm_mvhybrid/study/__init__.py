"""Many pretraining runs as one: variants × seeds → pretraining, export, evaluation → one comparison.

A study is a YAML file. Its cells are whole or absent, go on where they stopped, and of one seed see the same images and
crops, which is checked step by step.

:func:`.checking.check_study`, :func:`.estimate.estimate_study`, :func:`.running.run_study` and :func:`.page.write_page` need
the extra ``pretrain`` and are imported from their modules.
"""

from .cell_record import CellRecord, read_record
from .errors import StudyError
from .shipped import read_ready, ready_studies
from .study_file import Cell, Study, read_study

__all__ = [
    "Cell",
    "CellRecord",
    "Study",
    "StudyError",
    "read_ready",
    "read_record",
    "read_study",
    "ready_studies",
]
