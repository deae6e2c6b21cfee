"""Features, assignments and losses of a step → numbers that tell whether a run is healthy."""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def rankme(features: Tensor, epsilon: float = 1e-7) -> float:
    """Computes the effective rank of features, exp of the entropy of their singular values.

    p_k = σ_k / Σ σ + ε and RankMe = exp(−Σ p_k log p_k): 1 if all features lie on a line through the origin, at most
    min(N, D). Features are not centred.

    Source: RankMe, arXiv 2210.02885, equations 1 and 2; computed in float64 whatever the features' dtype.

    Args:
        features: (N, D), N at least 1; values for different N do not compare where N is near D or below.
        epsilon: ε, added to each fraction.

    Returns:
        The rank; NaN if a feature is not finite, 0 if all are zero.
    """
    values = features.detach().double()
    if not torch.isfinite(values).all():
        return math.nan
    singular = torch.linalg.svdvals(values)
    total = singular.sum()
    if total == 0:
        return 0.0
    fractions = singular / total + epsilon
    return float(torch.exp(-(fractions * fractions.log()).sum()))


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Computes how far features spread over the sphere: 0 if all are equal, 1 if they are spread evenly.

    The standard deviation of each dimension of the L2-normalised features over the images, averaged over the
    dimensions, times √D.

    Source: SimSiam, arXiv 2011.10566, section 4.1, where 1/√D is the value without collapse.

    Args:
        features: (N, D), N at least 1.
    """
    values = torch.nn.functional.normalize(features.detach().double(), dim=1)
    return float(values.std(dim=0, correction=0).mean()) * math.sqrt(values.shape[1])


@torch.no_grad()
def teacher_entropy(probabilities: Tensor) -> float:
    """Computes the mean entropy of the teacher's targets: 0 for one prototype each, 1 for the uniform distribution.

    Args:
        probabilities: (N, K), rows summing to 1.

    Returns:
        The mean over the rows of the entropy divided by log K.
    """
    values = probabilities.detach().float()
    return float(torch.special.entr(values).sum(dim=1).double().mean()) / math.log(max(values.shape[1], 2))


@torch.no_grad()
def prototype_usage(probabilities: Tensor) -> float:
    """Computes over how many prototypes the images spread, as a fraction of all: exp of the mean target's entropy over K.

    Bounded by N / K for sharp targets, so that it compares between steps of equal batches only.

    Args:
        probabilities: (N, K), rows summing to 1.

    Returns:
        From 1 / K, if all images share one prototype, to 1.
    """
    mean = probabilities.detach().mean(dim=0, dtype=torch.float64)
    return float(torch.special.entr(mean).sum().exp()) / mean.shape[0]


class CollapseAlarm:
    """Notices features that stay collapsed over several checks.

    Args:
        min_feature_std: Smallest healthy ``feature_std``.
        min_rankme: Smallest healthy ``rankme``.
        num_checks: Checks in a row below a limit until it speaks, at least 1.
    """

    def __init__(
        self, *, min_feature_std: float = 0.01, min_rankme: float = 2.0, num_checks: int = 5
    ) -> None:
        self.min_feature_std = min_feature_std
        self.min_rankme = min_rankme
        self.num_checks = num_checks
        self._num_low = 0

    def check(self, step: int, *, feature_std: float, rankme: float) -> str | None:
        """Takes the values of a check.

        Returns:
            A warning at the check that fills the row, once for each collapse; otherwise None.
        """
        if feature_std >= self.min_feature_std and rankme >= self.min_rankme:
            self._num_low = 0
            return None
        self._num_low += 1
        if self._num_low != self.num_checks:
            return None
        return (
            f"step {step}: the features have collapsed: standard deviation {feature_std:.3g} (limit "
            f"{self.min_feature_std:g}), RankMe {rankme:.3g} (limit {self.min_rankme:g}) over {self.num_checks} checks; "
            "try a lower learning rate, a longer warm-up or a larger loss.regularizer_weight"
        )


class FeatureWindow:
    """Keeps the features of the last images, because one batch alone is too small to tell a rank.

    Args:
        num_rows: Features to keep.
    """

    def __init__(self, num_rows: int = 2048) -> None:
        self.num_rows = num_rows
        self._parts: list[Tensor] = []

    def add(self, features: Tensor) -> None:
        """Adds the features of a step; the oldest leave.

        Args:
            features: (N, D).
        """
        # a copy, because a view would keep the whole tensor that it looks into
        self._parts.append(features.detach()[-self.num_rows :].clone())
        surplus = sum(len(part) for part in self._parts) - self.num_rows
        while surplus > 0:
            removed = min(surplus, len(self._parts[0]))
            self._parts[0] = self._parts[0][removed:]
            if not len(self._parts[0]):
                self._parts.pop(0)
            surplus -= removed

    def summary(self) -> dict[str, float]:
        """Measures the features that are kept."""
        if not self._parts:
            return {}
        features = torch.cat([part.float() for part in self._parts])
        return {"feature_std": feature_std(features), "rankme": rankme(features)}
