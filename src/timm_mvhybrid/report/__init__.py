"""Results made readable: results.json → tables in Markdown and LaTeX, one HTML page with charts, comparisons."""

from .compare import compare_reports
from .writer import check_report_folder, write_report

__all__ = ["check_report_folder", "compare_reports", "write_report"]
