"""A predictor's folder as a kind of folder that the Hub takes."""

from __future__ import annotations

from pathlib import Path

from ..export.publish import FolderKind
from ..export.verify import Verified
from ..runtime.digest import file_sha256
from .errors import PredictorError
from .expression_predictor import ExpressionPredictor
from .predictor_files import ARRAYS_FILE, CARD_FILE, DESCRIPTION_FILE, FILES


def verify_predictor(folder: Path, remedy: str) -> Verified:
    """Loads a predictor's folder as a user would.

    Args:
        folder: What ``save`` wrote, or the Hub gave back.
        remedy: What to do if it fails, half a sentence.

    Raises:
        PredictorError: A file is missing, damaged, changed, or does not fit the others.
    """
    predictor = ExpressionPredictor.load(folder)
    if not (folder / CARD_FILE).is_file():
        raise PredictorError(f"{folder / CARD_FILE}: missing; {remedy}")
    encoder = predictor.encoder_
    return Verified(
        folder=folder,
        model="unknown" if encoder is None else encoder.name,
        tag="",
        sha256=file_sha256(folder / ARRAYS_FILE),
        metadata={},
    )


PREDICTOR = FolderKind(
    noun="Predictor", config_file=DESCRIPTION_FILE, files=lambda folder: FILES, verify=verify_predictor
)
"""What ``publish`` needs to know of such a folder."""
