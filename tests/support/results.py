"""Results of every task with known numbers, for the tests of the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from timm_mvhybrid.evaluate.classification import METRICS as CLASSIFICATION_METRICS
from timm_mvhybrid.evaluate.expression.maps import ExpressionMap
from timm_mvhybrid.evaluate.expression.task import METRICS as EXPRESSION_METRICS
from timm_mvhybrid.evaluate.slides import METRICS as SLIDES_METRICS
from timm_mvhybrid.evaluate.survival import METRICS as SURVIVAL_METRICS
from timm_mvhybrid.report import Metric, Result, Score, ScoreSheet
from timm_mvhybrid.runtime.provenance import ModelRecord, Provenance


def provenance(**changes: Any) -> Provenance:
    values: dict[str, Any] = {
        "created": "2026-01-02T03:04:05Z",
        "seed": 0,
        "options": {"alpha": None, "models": ["a"]},
        "versions": {"torch": "2.6.0", "numpy": "2.0"},
        "data": {"patches/S1.h5": "ab" * 32},
        "generated": False,
        "platform": "Linux x86_64",
    }
    return Provenance(**(values | changes))


def model(label: str, weights: str = "model.safetensors") -> ModelRecord:
    return ModelRecord(
        label=label,
        name=label,
        weights=weights,
        weights_sha256="0123456789abcdef" * 4,
        embedding_dim=384,
        num_patches=480,
        num_cached=0,
        seconds=12.0,
        data_wait_share=0.02,
    )


def with_scores(result: Result, change: Callable[[Score], Score | None]) -> Result:
    """Changes the table of scores; a score for which there is None is taken out."""
    scores = tuple(new for score in result.scores if (new := change(score)) is not None)
    return dataclasses.replace(result, scores=scores)


def _sheet(metrics: dict[str, Metric]) -> ScoreSheet:
    return ScoreSheet(metrics, num_resamples=100)


def _made(sheet: ScoreSheet, task: str, dataset: str, labels: tuple[str, ...], **values: Any) -> Result:
    changed = {name: values.pop(name) for name in ("provenance", "notes") if name in values}
    models = [model(label) for label in labels]
    result = sheet.result(task=task, dataset=dataset, models=models, options={}, data={}, **values)
    return dataclasses.replace(result, **({"provenance": provenance()} | changed))


def expression(
    labels: tuple[str, ...] = ("mvhybrid", "vit12"), num_genes: int = 20, num_folds: int = 4, **changes: Any
) -> Result:
    generator = np.random.default_rng(0)
    genes = [f"GENE{index}" for index in range(num_genes)]
    sheet = _sheet(EXPRESSION_METRICS)
    # model by model, so that the first is the same whatever models follow
    noise = {
        (label, protocol, fold): 0.2 * generator.standard_normal(num_genes)
        for label in labels
        for protocol in ("random", "loso")
        for fold in range(num_folds)
    }
    for protocol, start, step in (("random", 0.45, 0.02), ("loso", 0.3, 0.1)):
        for place, label in enumerate(labels):
            for fold in range(num_folds):
                pcc = np.clip(start - step * place + noise[label, protocol, fold], -0.9, 0.95)
                per_gene = {"pcc": pcc, "mse": 1.5 - pcc, "mae": 1 - pcc / 2, "r2": pcc / 2}
                means = {name: float(values.mean()) for name, values in per_gene.items()}
                sheet.add(
                    label,
                    protocol,
                    str(fold),
                    {"pcc": means.pop("pcc"), "pcc10": float(np.sort(pcc)[-10:].mean()), **means},
                    num_train=420,
                    num_test=60,
                    units={
                        name: dict(zip(genes, values.tolist(), strict=True))
                        for name, values in per_gene.items()
                    },
                    test_samples=["S1"],
                    num_components=256,
                    alpha=0.0123,
                    num_constant=0,
                )
    maps = []
    for label in labels:
        row, column = np.divmod(np.arange(60), 8)
        x, y = 200.0 * column + 100.0 * (row % 2), 173.2 * row
        for gene in genes[:3]:
            measured = 2 + np.sin(x / 400 + len(gene)) + 0.2 * generator.standard_normal(60)
            predicted = 2 + 0.5 * (measured - 2) + 0.2 * generator.standard_normal(60)
            for protocol in ("random", "loso"):
                maps.append(
                    ExpressionMap(
                        model=label,
                        protocol=protocol,
                        sample_id="S1",
                        gene=gene,
                        x=tuple(x.tolist()),
                        y=tuple(y.tolist()),
                        measured=tuple(measured.tolist()),
                        predicted=tuple(predicted.tolist()),
                    )
                )
    settings: dict[str, Any] = {
        "panel": "hvg",
        "panel_size": num_genes,
        "panel_selected_on": "training folds",
        "preset": "hest",
        "nan_policy": "omit",
    }
    settings |= {name: changes.pop(name) for name in list(changes) if name in settings}
    return _made(
        sheet,
        "expression",
        changes.pop("dataset", "COHORT"),
        labels,
        settings=settings,
        arrays={"maps": maps, "studies": {"S1": "A"}},
        notes=("GENE7 is constant in fold 2.",),
        compared=("pcc",),
        **changes,
    )


def classification(label: str = "vit12") -> Result:
    sheet = _sheet(CLASSIFICATION_METRICS)
    values = dict(zip(CLASSIFICATION_METRICS, (0.8, 0.79, 0.7, 0.8, math.nan), strict=True))
    for probe in ("linear", "knn"):
        sheet.add(label, probe, "test", values, num_train=100, num_test=30)
    counts = [[8, 2, 0], [1, 9, 0], [0, 3, 7]]
    return _made(
        sheet,
        "classification",
        "MHIST",
        (label,),
        settings={"classes": ["adenoma", "HP & SSA", "normal"], "layout": "folders"},
        arrays={
            "confusion": [{"model": label, "probe": probe, "counts": counts} for probe in ("linear", "knn")]
        },
    )


def retrieval(label: str = "vit12") -> Result:
    top = {"ADI": 1.0, "LYM": 0.8, "TUM": 0.6}
    sheet = _sheet(
        {"accuracy": Metric(label="Accuracy")}
        | {f"precision@{k}": Metric(label=f"precision@{k}") for k in (1, 5)}
    )
    sheet.add(
        label,
        "prototypes",
        "0",
        {"accuracy": 0.75, "precision@1": 0.8, "precision@5": 0.7},
        num_train=60,
        num_test=120,
        units={"precision@1": top, "precision@5": {name: value - 0.1 for name, value in top.items()}},
    )
    classes = [{"name": name, "num_support": 20, "num_queries": 40} for name in top]
    return _made(
        sheet, "retrieval", "NCT", (label,), settings={"layout": "folders"}, arrays={"classes": classes}
    )


def slides(label: str = "vit12") -> Result:
    generator = np.random.default_rng(1)
    sheet = _sheet(SLIDES_METRICS)
    for fold, auroc, balanced in (("0", 0.8, 0.7), ("1", 0.7, 0.6)):
        sheet.add(
            label, "patient", fold, {"auroc": auroc, "balanced_accuracy": balanced}, num_train=30, num_test=10
        )
    scored = [
        {
            "model": label,
            "fold": "0",
            "slide_id": f"s{index}",
            "patient": f"p{index}",
            "positive": index % 3 == 0,
            "score": float(np.clip(0.3 + 0.3 * (index % 3 == 0) + 0.2 * generator.standard_normal(), 0, 1)),
        }
        for index in range(40)
    ]
    return _made(
        sheet,
        "slides",
        "TCGA",
        (label,),
        settings={"positive_label": "MSI", "negative_label": "MSS"},
        arrays={"slides": scored},
    )


def survival(label: str = "vit12") -> Result:
    generator = np.random.default_rng(2)
    patients = [
        {
            "model": label,
            "patient": f"p{index}",
            "fold": "0",
            "time": float(generator.exponential(20 if index % 2 else 40)),
            "event": bool(generator.uniform() < 0.7),
            "risk": float(index % 2),
            "high_risk": bool(index % 2),
        }
        for index in range(40)
    ]
    sheet = _sheet(SURVIVAL_METRICS)
    for fold, concordance in (("0", 0.65), ("1", 0.6)):
        sheet.add(label, "patient", fold, {"concordance": concordance}, num_train=30, num_test=10)
    return _made(
        sheet, "survival", "TCGA", (label,), settings={"time_unit": "months"}, arrays={"patients": patients}
    )


ALL_TASKS = (expression, classification, retrieval, slides, survival)
