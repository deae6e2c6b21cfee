"""results.json of schema 1, a nested record for each task → the fields of the present schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..runtime.errors import EvaluationError

_Row = tuple[str, str, str, str, str, Any]
_SETTINGS = {
    "expression": ("panel", "panel_size", "panel_selected_on", "preset", "nan_policy"),
    "classification": ("classes", "layout"),
    "retrieval": ("layout",),
    "slides": ("positive_label", "negative_label"),
    "survival": ("time_unit",),
}
_METRICS = {
    "pcc": ("PCC", True),
    "pcc10": ("PCC-10", True),
    "mse": ("MSE", False),
    "mae": ("MAE", False),
    "r2": ("R²", True),
    "accuracy": ("Accuracy", True),
    "balanced_accuracy": ("Balanced accuracy", True),
    "quadratic_kappa": ("Quadratic kappa", True),
    "weighted_f1": ("Weighted F1", True),
    "auroc": ("AUROC", True),
    "concordance": ("Concordance", True),
}
_NOT_FACTS = {"name", "num_train", "num_test", "genes", "confusion", *_METRICS}


def from_schema_1(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Brings a result of schema 1 into the present form.

    Raises:
        EvaluationError: It lacks a field.
    """
    task = values["task"]
    if task not in _SETTINGS:
        raise EvaluationError(f"{where}: not a result of 'timm-mvhybrid evaluate'")
    try:
        entries = [(entry, _protocol(task, entry)) for entry in values["scores"]]
        rows = [row for entry, protocol in entries for row in _rows(task, entry, protocol)]
        return {
            "task": task,
            "dataset": values["dataset"],
            "settings": {name: values[name] for name in _SETTINGS[task]},
            "metrics": _metrics(rows),
            "models": values["models"],
            "folds": [fold for entry, protocol in entries for fold in _folds(task, entry, protocol)],
            "scores": _columns(rows),
            "summaries": [one for entry, protocol in entries for one in _summaries(task, entry, protocol)],
            "comparisons": values["comparisons"],
            "arrays": _ARRAYS[task](values),
            "provenance": values["provenance"],
            "notes": values["notes"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise EvaluationError(
            f"{where}: a field is missing or of another type ({error}); evaluate again"
        ) from error


def _protocol(task: str, entry: dict[str, Any]) -> str:
    protocol: str = {"retrieval": "prototypes", "slides": "patient", "survival": "patient"}.get(task, "")
    return protocol or str(entry["protocol" if task == "expression" else "probe"])


def _rows(task: str, entry: dict[str, Any], protocol: str) -> Iterator[_Row]:
    model = entry["model"]
    if task == "retrieval":
        yield model, protocol, "queries", "", "accuracy", entry["accuracy"]
        for k, value in entry["mean_precision"].items():
            yield model, protocol, "queries", "", f"precision@{k}", value
            for one in entry["classes"]:
                yield model, protocol, "queries", one["name"], f"precision@{k}", one["precision"][k]
        return
    for fold in entry["folds"]:
        for metric in _METRICS:
            if metric in fold:
                yield model, protocol, fold["name"], "", metric, fold[metric]
            for gene in fold.get("genes", ()):
                if metric in gene:
                    yield model, protocol, fold["name"], gene["gene"], metric, gene[metric]


def _folds(task: str, entry: dict[str, Any], protocol: str) -> Iterator[dict[str, Any]]:
    about = {"model": entry["model"], "protocol": protocol}
    if task == "retrieval":
        support, queries = (
            sum(one[name] for one in entry["classes"]) for name in ("num_support", "num_queries")
        )
        yield {**about, "name": "queries", "num_train": support, "num_test": queries, "facts": {}}
        return
    for fold in entry["folds"]:
        facts = {key: value for key, value in fold.items() if key not in _NOT_FACTS}
        yield {**about, **{key: fold[key] for key in ("name", "num_train", "num_test")}, "facts": facts}


def _summaries(task: str, entry: dict[str, Any], protocol: str) -> Iterator[dict[str, Any]]:
    about = {"model": entry["model"], "protocol": protocol}
    if task == "retrieval":
        numbers = {"accuracy": entry["accuracy"]}
        numbers |= {f"precision@{k}": value for k, value in entry["mean_precision"].items()}
        for metric, value in numbers.items():
            interval = entry["accuracy_interval"] if metric == "accuracy" else None
            one = {"metric": metric, "mean": value, "std": 0.0, "ddof": 0, "interval": interval}
            yield {**about, "num_folds": 1, **one}
        return
    for one in entry["summary"]:
        yield {**about, "num_folds": len(entry["folds"]), **one}


def _metrics(rows: list[_Row]) -> dict[str, Any]:
    names = dict.fromkeys(row[4] for row in rows)
    known = {name: _METRICS.get(name, (name, True)) for name in names}
    return {name: {"label": label, "higher": higher, "digits": 3} for name, (label, higher) in known.items()}


def _columns(rows: list[_Row]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for position, name in enumerate(("model", "protocol", "fold", "unit", "metric")):
        names: dict[str, int] = {}
        codes = [names.setdefault(row[position], len(names)) for row in rows]
        columns[name] = {"names": list(names), "codes": codes}
    return {**columns, "value": [row[5] for row in rows]}


def _classification(values: dict[str, Any]) -> dict[str, Any]:
    counts = []
    for entry in values["scores"]:
        folds = [fold["confusion"] for fold in entry["folds"]]
        total = [[sum(cells) for cells in zip(*lines, strict=True)] for lines in zip(*folds, strict=True)]
        counts.append({"model": entry["model"], "probe": entry["probe"], "counts": total})
    return {"confusion": counts}


def _retrieval(values: dict[str, Any]) -> dict[str, Any]:
    first = values["scores"][0]["classes"] if values["scores"] else []
    return {"classes": [{key: one[key] for key in ("name", "num_support", "num_queries")} for one in first]}


def _listed(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def collect(values: dict[str, Any]) -> dict[str, Any]:
        return {name: [{"model": entry["model"], **one} for entry in values["scores"] for one in entry[name]]}

    return collect


_ARRAYS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "expression": lambda values: {"maps": values["maps"], "studies": values["samples"]},
    "classification": _classification,
    "retrieval": _retrieval,
    "slides": _listed("slides"),
    "survival": _listed("patients"),
}
