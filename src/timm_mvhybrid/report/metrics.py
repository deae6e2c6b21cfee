"""What metrics and protocols are called, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is shown.

    Args:
        label: Its name in tables.
        higher: Whether higher is better.
        digits: Decimals.
    """

    label: str
    higher: bool = True
    digits: int = 3


_METRICS = {
    "pcc": Metric(label="PCC"),
    "pcc10": Metric(label="PCC-10"),
    "mse": Metric(label="MSE", higher=False),
    "mae": Metric(label="MAE", higher=False),
    "r2": Metric(label="R²"),
    "accuracy": Metric(label="Accuracy"),
    "balanced_accuracy": Metric(label="Balanced accuracy"),
    "quadratic_kappa": Metric(label="Quadratic kappa"),
    "weighted_f1": Metric(label="Weighted F1"),
    "auroc": Metric(label="AUROC"),
    "concordance": Metric(label="Concordance"),
}

EXPRESSION_METRICS = ("pcc", "pcc10", "mse", "mae")
"""Those of the paper's tables, in their order."""

_PROTOCOLS = {
    "csv": "given splits",
    "random": "random",
    "loso": "LOSO",
    "patient": "leave one patient out",
    "linear": "linear",
    "knn": "kNN",
}


def metric(name: str) -> Metric:
    """Looks up a metric.

    Args:
        name: As in results.json.

    Returns:
        How it is shown; a metric without an entry is shown by its own name, higher being better.
    """
    return _METRICS.get(name, Metric(label=name.replace("_", " ")))


def protocol_label(name: str) -> str:
    """Looks up what a protocol is called.

    Args:
        name: As in results.json.

    Returns:
        The label.
    """
    return _PROTOCOLS.get(name, name)
