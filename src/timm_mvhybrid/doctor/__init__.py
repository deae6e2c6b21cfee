"""This installation → what it holds, what of it works, and what to do where it does not."""

from .examination import Diagnosis, diagnose
from .remedies import COMPLAINTS, Remedy

__all__ = ["COMPLAINTS", "Diagnosis", "Remedy", "diagnose"]
