"""Results of every task with known numbers, for the tests of the report."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from timm_mvhybrid.probes.resampling import Interval, MetricSummary, PairedComparison
from timm_mvhybrid.report import results as r
from timm_mvhybrid.runtime.provenance import ModelRecord, Provenance

METRICS = ("pcc", "pcc10", "mse", "mae", "r2")


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


def summary(name: str, values: list[float], interval: bool = True) -> MetricSummary:
    between = Interval(low=min(values), high=max(values), level=0.95, num_resamples=1000, over="folds")
    return MetricSummary(
        metric=name,
        mean=float(np.mean(values)),
        std=float(np.std(values)),
        ddof=0,
        interval=between if interval and len(values) > 1 else None,
    )


def _gene_fold(name: str, genes: list[str], level: float, generator: np.random.Generator) -> r.ExpressionFold:
    pcc = np.clip(level + 0.2 * generator.standard_normal(len(genes)), -0.9, 0.95)
    scores = tuple(
        r.GeneScore(
            gene=gene, pcc=float(value), mse=float(1.5 - value), mae=float(1 - value / 2), r2=float(value) / 2
        )
        for gene, value in zip(genes, pcc, strict=True)
    )
    return r.ExpressionFold(
        name=name,
        num_train=420,
        num_test=60,
        test_samples=("S1",),
        num_components=256,
        alpha=0.0123,
        pcc=float(pcc.mean()),
        pcc10=float(np.sort(pcc)[-10:].mean()),
        mse=float(1.5 - pcc.mean()),
        mae=float(1 - pcc.mean() / 2),
        r2=float(pcc.mean() / 2),
        num_constant=0,
        genes=scores,
    )


def expression(
    labels: tuple[str, ...] = ("mvhybrid", "vit12"), num_genes: int = 20, num_folds: int = 4, **changes: Any
) -> r.ExpressionResult:
    generator = np.random.default_rng(0)
    genes = [f"GENE{index}" for index in range(num_genes)]
    scores, drops, maps = [], [], []
    for place, label in enumerate(labels):
        means: dict[tuple[str, str], float] = {}
        for protocol, level in (("random", 0.45 - 0.02 * place), ("loso", 0.3 - 0.1 * place)):
            folds = tuple(_gene_fold(str(fold), genes, level, generator) for fold in range(num_folds))
            summaries = tuple(summary(name, [getattr(fold, name) for fold in folds]) for name in METRICS)
            means |= {(protocol, one.metric): one.mean for one in summaries}
            scores.append(r.ExpressionScores(model=label, protocol=protocol, folds=folds, summary=summaries))
        for name in METRICS[:4]:
            random, loso = means["random", name], means["loso", name]
            change = (random - loso if name.startswith("pcc") else loso - random) / random
            drops.append(
                r.ExpressionDrop(model=label, metric=name, random=random, loso=loso, percent=100 * change)
            )
        row, column = np.divmod(np.arange(60), 8)
        x, y = 200.0 * column + 100.0 * (row % 2), 173.2 * row
        for gene in genes[:3]:
            measured = 2 + np.sin(x / 400 + len(gene)) + 0.2 * generator.standard_normal(60)
            predicted = 2 + 0.5 * (measured - 2) + 0.2 * generator.standard_normal(60)
            for protocol in ("random", "loso"):
                maps.append(
                    r.ExpressionMap(
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
    comparisons = tuple(
        PairedComparison(
            metric="pcc",
            protocol="loso",
            model=label,
            baseline=labels[0],
            difference=-0.1,
            interval=None,
            p_value=0.125,
            smallest_p_value=0.125,
            num_folds=num_folds,
            share_better=0.25,
        )
        for label in labels[1:]
    )
    values: dict[str, Any] = {
        "dataset": "COHORT",
        "models": tuple(model(label) for label in labels),
        "comparisons": comparisons,
        "provenance": provenance(),
        "notes": ("GENE7 is constant in fold 2.",),
        "panel": "hvg",
        "panel_size": num_genes,
        "panel_selected_on": "training folds",
        "preset": "hest",
        "nan_policy": "omit",
        "scores": tuple(scores),
        "drops": tuple(drops),
        "maps": tuple(maps),
        "samples": {"S1": "A"},
    }
    return r.ExpressionResult(**(values | changes))


def classification(label: str = "vit12") -> r.ClassificationResult:
    fold = r.ClassificationFold(
        name="test",
        num_train=100,
        num_test=30,
        accuracy=0.8,
        balanced_accuracy=0.79,
        quadratic_kappa=0.7,
        weighted_f1=0.8,
        auroc=math.nan,
        confusion=((8, 2, 0), (1, 9, 0), (0, 3, 7)),
    )
    names = ("accuracy", "balanced_accuracy", "quadratic_kappa", "weighted_f1", "auroc")
    scores = tuple(
        r.ClassificationScores(
            model=label,
            probe=probe,
            folds=(fold,),
            summary=tuple(summary(name, [getattr(fold, name)]) for name in names),
        )
        for probe in ("linear", "knn")
    )
    return r.ClassificationResult(
        dataset="MHIST",
        models=(model(label),),
        comparisons=(),
        provenance=provenance(),
        notes=(),
        classes=("adenoma", "HP & SSA", "normal"),
        layout="folders",
        scores=scores,
    )


def retrieval(label: str = "vit12") -> r.RetrievalResult:
    classes = tuple(
        r.ClassRetrieval(name=name, num_support=20, num_queries=40, precision={"1": top, "5": top - 0.1})
        for name, top in (("ADI", 1.0), ("LYM", 0.8), ("TUM", 0.6))
    )
    scores = r.RetrievalScores(
        model=label,
        accuracy=0.75,
        accuracy_interval=None,
        mean_precision={"1": 0.8, "5": 0.7},
        classes=classes,
    )
    return r.RetrievalResult(
        dataset="NCT",
        models=(model(label),),
        comparisons=(),
        provenance=provenance(),
        notes=(),
        layout="folders",
        scores=(scores,),
    )


def slides(label: str = "vit12") -> r.SlidesResult:
    generator = np.random.default_rng(1)
    fold = r.SlideFold(name="0", num_train=30, num_test=10, auroc=0.8, balanced_accuracy=0.7)
    scored = tuple(
        r.SlideScore(
            slide_id=f"s{index}",
            patient=f"p{index}",
            fold="0",
            positive=index % 3 == 0,
            score=float(np.clip(0.3 + 0.3 * (index % 3 == 0) + 0.2 * generator.standard_normal(), 0, 1)),
        )
        for index in range(40)
    )
    scores = r.SlideScores(
        model=label,
        folds=(fold,),
        summary=(summary("auroc", [0.8, 0.7]), summary("balanced_accuracy", [0.7, 0.6])),
        slides=scored,
    )
    return r.SlidesResult(
        dataset="TCGA",
        models=(model(label),),
        comparisons=(),
        provenance=provenance(),
        notes=(),
        positive_label="MSI",
        negative_label="MSS",
        scores=(scores,),
    )


def survival(label: str = "vit12") -> r.SurvivalResult:
    generator = np.random.default_rng(2)
    patients = tuple(
        r.PatientRisk(
            patient=f"p{index}",
            fold="0",
            time=float(generator.exponential(20 if index % 2 else 40)),
            event=bool(generator.uniform() < 0.7),
            risk=float(index % 2),
            high_risk=bool(index % 2),
        )
        for index in range(40)
    )
    fold = r.SurvivalFold(
        name="0", num_train=30, num_test=10, concordance=0.65, concordant=20, discordant=10, tied_risk=0
    )
    scores = r.SurvivalScores(
        model=label,
        folds=(fold,),
        summary=(summary("concordance", [0.65, 0.6]),),
        patients=patients,
        log_rank_p_value=0.013,
    )
    return r.SurvivalResult(
        dataset="TCGA",
        models=(model(label),),
        comparisons=(),
        provenance=provenance(),
        notes=(),
        time_unit="months",
        scores=(scores,),
    )


ALL_TASKS = (expression, classification, retrieval, slides, survival)
