"""Results made readable: results.json → tables in Markdown and LaTeX, one HTML page with charts, comparisons."""

from .compare import compare_reports
from .presentation import Presentation, register_presentation
from .result import FoldRecord, Metric, Result, Summary, read_result, result_from_json
from .score_sheet import ScoreSheet
from .scores import Score
from .writer import check_report_folder, write_report

__all__ = [
    "FoldRecord",
    "Metric",
    "Presentation",
    "Result",
    "Score",
    "ScoreSheet",
    "Summary",
    "check_report_folder",
    "compare_reports",
    "read_result",
    "register_presentation",
    "result_from_json",
    "write_report",
]
