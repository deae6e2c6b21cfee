"""Risks, times and events → concordance index."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ..runtime.extras import require
from .arrays import binary_vector, check_rows, finite_matrix


@dataclass(frozen=True, kw_only=True)
class Concordance:
    """How well risks order patients; ``float(...)`` gives the index.

    Attributes:
        concordance: Fraction of comparable pairs in the right order, ties of risk counted half; NaN without such pairs.
        concordant: Pairs in the right order.
        discordant: Pairs in the wrong order.
        tied_risk: Pairs of equal risk.
        tied_time: Comparable pairs with an event at the same time.
    """

    concordance: float
    concordant: int
    discordant: int
    tied_risk: int
    tied_time: int

    def __float__(self) -> float:
        """Returns the index."""
        return self.concordance


def concordance_index(
    event: ArrayLike, time: ArrayLike, risk: ArrayLike, *, tied_tol: float = 1e-8
) -> Concordance:
    """Counts pairs of patients whose risks have the order of their times, by scikit-survival.

    Args:
        event: Whether the event was observed, (N,) bool or 0 and 1.
        time: Time to event or to the end of observation, (N,).
        risk: Higher means earlier, (N,).
        tied_tol: Risks that differ by no more are equal.

    Raises:
        EvaluationError: If lengths differ, values are not finite, events are not coded as stated, or scikit-survival is
            not installed.
    """
    events = binary_vector("event", event, one="observed", zero="censored")
    times, risks = (
        finite_matrix(name, values, np.float64)[:, 0] for name, values in (("time", time), ("risk", risk))
    )
    check_rows(event=events, time=times, risk=risks)
    metrics, exceptions = require("sksurv.metrics"), require("sksurv.exceptions")
    nothing = Concordance(concordance=math.nan, concordant=0, discordant=0, tied_risk=0, tied_time=0)
    if len(times) < 2 or not events.any():
        return nothing
    try:
        index, concordant, discordant, tied_risk, tied_time = metrics.concordance_index_censored(
            events, times, risks, tied_tol=tied_tol
        )
    except exceptions.NoComparablePairException:
        return nothing
    return Concordance(
        concordance=float(index),
        concordant=int(concordant),
        discordant=int(discordant),
        tied_risk=int(tied_risk),
        tied_time=int(tied_time),
    )
