"""The MV_Hybrid paper's published numbers, as reference columns: never data of ours, and never a target of a test."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

_KEYS = {"pcc": "PCC", "pcc10": "PCC-10", "mse": "MSE", "mae": "MAE"}
_PROTOCOLS = {"random": "random10", "loso": "loso8"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One model of the paper.

    Args:
        label: Such as `paper: MV_Hybrid`.
        values: (protocol, metric) → mean and standard deviation over folds.
        drops: metric → drop in percent from random folds to left-out studies, as reported.
        source: The table, and what it was measured on.
    """

    label: str
    values: dict[tuple[str, str], tuple[float, float]]
    drops: dict[str, float]
    source: str


def published(panel: str, protocol: str) -> list[Published]:
    """Looks up the paper's table for a setting.

    Args:
        panel: `hvg` or `hmhvg`; others were not published.
        protocol: `csv` for HEST's benchmark, `random` or `loso` for the extended data.
    """
    tables: dict[str, Any] = json.loads(
        (files(__package__) / "paper_tables.json").read_text(encoding="utf-8")
    )
    columns = []
    if protocol == "csv" and panel == "hvg":
        table = tables["hest_benchmark"]
        source = f"MV_Hybrid paper ({tables['sources']['README']}), HEST benchmark: {table['protocol']}"
        for model, row in table["rows"].items():
            values = {("csv", name): _pair(row[key]) for name, key in _KEYS.items()}
            columns.append(Published(label=f"paper: {model}", values=values, drops={}, source=source))
    elif protocol in _PROTOCOLS and panel in ("hvg", "hmhvg"):
        data = tables["hest_extended_data"]
        source = (
            f"MV_Hybrid paper ({tables['sources']['README']}), {panel.upper()}: {data['n_genes']} genes, {data['n_samples']} samples of "
            f"{data['n_studies']} studies, {', '.join(data['oncotree'])}"
        )
        for model, row in tables[f"hest_extended_{panel.upper()}200"]["rows"].items():
            values = {
                (ours, name): _pair(row[theirs][key])
                for ours, theirs in _PROTOCOLS.items()
                for name, key in _KEYS.items()
            }
            drops = {name: float(row["drop_percent_reported"][key]) for name, key in _KEYS.items()}
            columns.append(Published(label=f"paper: {model}", values=values, drops=drops, source=source))
    return columns


def _pair(value: dict[str, float]) -> tuple[float, float]:
    return float(value["mean"]), float(value["std"])
