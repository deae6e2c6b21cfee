"""From a trained checkpoint to the Hub, under the name of the place that they go to; all of it lives in `export`."""

from .export import (
    ExportError,
    ExportSummary,
    PublishSummary,
    Verified,
    export,
    organization,
    publish,
    set_organization,
    verify,
)

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
