"""How the page of a fine-tuning run looks: what the encoder tells of expression, how far it moved, and the losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from ..report import Presentation, Result
from ..report.page import figure, section
from ..report.step_curves import step_curves
from ..report.table import Table, number_cell, text_cell

TASK = "finetune"
FEATURES = {
    "frozen": "frozen encoder",
    "class": "class token",
    "st": "ST token",
    "class_st": "class and ST token",
    "head": "heads of the run",
}
"""What expression is told from: name in the log → label."""
_DRIFT = {
    "class_cosine": "class token, cosine",
    "class_cka": "class token, CKA",
    "patch_cosine": "patch tokens, cosine",
    "patch_cka": "patch tokens, CKA",
}
_ALIGNMENT = {
    "pathway_pearson": "pathway scores, Pearson's r",
    "retrieval_at_1": "retrieval@1",
    "retrieval_at_5": "retrieval@5",
    "retrieval_chance_at_1": "retrieval@1 by guessing",
}
_LABELS = {"contrast": "contrast (InfoNCE)", "ln_batch": "ln(batch): what guessing has"}

Curves = Mapping[str, Mapping[str, float]]
"""Metric → step, as text, → value; of ``arrays["probe"]`` and ``arrays["loss"]``."""


class FinetunePresentation(Presentation):
    """The page of a run of MINT or STAMP."""

    name = TASK
    title = "Molecular fine-tuning"
    setting = "Panel"
    protocols: ClassVar[Mapping[str, str]] = {"all": "mean over panels"}

    def caption(self, result: Result) -> str:
        """Says what the first table shows."""
        return (
            "Pearson's r of measured and predicted expression of held-out patches, mean over genes, then over samples: "
            f"before and after fine-tuning, at step {result.settings['step']} of {result.settings['num_steps']}. A ridge "
            "regression on these features is fitted on patches of training samples."
        )

    def tables(self, result: Result) -> list[Table]:
        """Makes the tables of drift, alignment and losses."""
        probe: Any = result.arrays["probe"]
        losses: Any = result.arrays["loss"]
        found = [
            _table(
                "drift",
                "Similarity",
                "Features of held-out patches beside those of the frozen encoder.",
                _DRIFT,
                probe,
            ),
            _table(
                "alignment",
                "Measure",
                "Images and pathway scores of held-out patches; retrieval among all.",
                _ALIGNMENT,
                probe,
            ),
            _table(
                "losses",
                "Loss",
                "Losses of training, each times its weight"
                + (
                    "; a contrast that stays at ln(batch) has learned nothing."
                    if "contrast" in losses
                    else "."
                ),
                {name: _LABELS.get(name, name.replace("_", " ")) for name in losses},
                losses,
            ),
        ]
        return [table for table in found if table.rows]

    def sections(self, result: Result) -> list[str]:
        """Draws expression, drift, alignment and losses over the steps."""
        probe: Any = result.arrays["probe"]
        losses: Any = result.arrays["loss"]
        names = {name: _LABELS.get(name, name.replace("_", " ")) for name in losses}
        contrast = {name: label for name, label in names.items() if name in _LABELS}
        charts = [
            (
                "Expression over the run",
                {f"expression_{n}": label for n, label in FEATURES.items()},
                probe,
                "Pearson's r",
            ),
            ("Drift from the frozen encoder", _DRIFT, probe, "similarity"),
            ("Alignment with pathways", _ALIGNMENT, probe, "r, or fraction found"),
            ("Contrast", contrast if len(contrast) > 1 else {}, losses, "nats"),
            ("Losses", {name: label for name, label in names.items() if name != "ln_batch"}, losses, "loss"),
        ]
        found = []
        for title, labels, curves, unit in charts:
            drawn = step_curves(title, _labelled(labels, curves), unit)
            if drawn is not None:
                found.append(section(title, figure(title.lower().replace(" ", "-"), drawn)))
        return found


def _labelled(labels: Mapping[str, str], curves: Curves) -> dict[str, dict[int, float]]:
    return {
        label: {int(step): value for step, value in curves[name].items() if value is not None}
        for name, label in labels.items()
        if name in curves
    }


def _table(name: str, head: str, caption: str, labels: Mapping[str, str], curves: Curves) -> Table:
    """Makes a table of the first, the best known and the last value of curves."""
    rows = []
    for label, points in _labelled(labels, curves).items():
        if points:
            first, last = min(points), max(points)
            rows.append(
                (
                    text_cell(label),
                    number_cell(points[first]),
                    number_cell(points[last]),
                    number_cell(last, 0),
                )
            )
    return Table(name=name, caption=caption, columns=(head, "First", "Last", "Step"), rows=tuple(rows))
