"""What can go wrong with a predictor: cause → one line that names it and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..runtime.errors import EvaluationError, MissingPackageError
from ..runtime.extras import require


class PredictorError(EvaluationError, ValueError):
    """A predictor cannot be fitted, read or used; the message is one line for the user."""


@contextmanager
def as_predictor_errors(where: str = "") -> Iterator[None]:
    """Turns errors of the probes into those of a predictor, which scikit-learn's users catch as ValueError.

    Raises:
        PredictorError: The block raised an EvaluationError.
    """
    try:
        yield
    except PredictorError:
        raise
    except EvaluationError as error:
        raise PredictorError(f"{where}{error}") from error


def not_fitted(kind: str) -> EvaluationError:
    """Makes the error of what is used before it is fitted: scikit-learn's too, where that is installed."""
    try:
        theirs: type[Exception] = require("sklearn.exceptions").NotFittedError
    except MissingPackageError:
        theirs = PredictorError
    bases = (PredictorError,) if theirs is PredictorError else (PredictorError, theirs)
    found: EvaluationError = type("NotFittedError", bases, {})(
        f"this {kind} is not fitted yet; call `fit` first, or `load` one"
    )
    return found
