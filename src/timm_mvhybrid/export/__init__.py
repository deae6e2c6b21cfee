"""From a trained checkpoint to the Hub: checkpoint → exported folder → published, downloaded and verified repository."""

from ..weights.organization import organization, set_organization
from .errors import ExportError
from .export import ExportSummary, export
from .publish import PublishSummary, publish
from .verify import Verified, verify

__all__ = [
    "ExportError",
    "ExportSummary",
    "PublishSummary",
    "Verified",
    "export",
    "organization",
    "publish",
    "set_organization",
    "verify",
]
