"""The package's models → one row each: size, layout, input, embedding, weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from rich import box
from rich.table import Table

from ..models import ALL_MODEL_NAMES, PUBLISHED_SETS, TEST_MODEL_NAMES


@dataclass(frozen=True, kw_only=True)
class ModelRow:
    """One model.

    Attributes:
        name: Its timm name.
        num_parameters: Number of parameters, without a classifier.
        layout: Its blocks in words.
        input_size_px: Height and width it was made for, in pixels.
        embedding_dim: Length of an embedding.
        weights: Where its weights are published.
    """

    name: str
    num_parameters: int
    layout: str
    input_size_px: tuple[int, int]
    embedding_dim: int
    weights: str


def describe_models(*, include_test_models: bool = False) -> list[ModelRow]:
    """Describes the models of this package without allocating their weights.

    Args:
        include_test_models: Whether the models for tests are listed.

    Returns:
        One row per model, in the package's order.
    """
    rows = []
    for name in ALL_MODEL_NAMES:
        if name in TEST_MODEL_NAMES and not include_test_models:
            continue
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0)
        config = model.pretrained_cfg
        published = f"{name}.{config.get('tag')}" in PUBLISHED_SETS
        rows.append(
            ModelRow(
                name=name,
                num_parameters=sum(parameter.numel() for parameter in model.parameters()),
                layout=model.layout(),
                input_size_px=(int(config["input_size"][1]), int(config["input_size"][2])),
                embedding_dim=int(model.num_features),
                weights=str(config["hf_hub_id"]) if published else "none published",
            )
        )
    return rows


def models_table(rows: Sequence[ModelRow]) -> Table:
    """Lays descriptions out for a terminal.

    Args:
        rows: What ``describe_models`` returned.

    Returns:
        A table for rich's consoles.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("params\n(M)", justify="right")
    table.add_column("layout")
    table.add_column("input\n(px)", justify="right")
    table.add_column("embed\ndim", justify="right")
    table.add_column("weights")
    for row in rows:
        height, width = row.input_size_px
        table.add_row(
            row.name,
            f"{row.num_parameters / 1e6:.1f}",
            row.layout,
            str(height) if height == width else f"{height} × {width}",
            str(row.embedding_dim),
            row.weights,
        )
    return table
