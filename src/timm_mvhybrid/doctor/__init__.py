"""This installation → what it holds, what of it works, and what to do where it does not."""

from .examination import COMPLAINTS, Diagnosis, Remedy, diagnose

__all__ = ["COMPLAINTS", "Diagnosis", "Remedy", "diagnose"]
