"""Results of evaluations ↔ the run whose weights they are of, and the rows of its model card."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..report.result import RESULTS_OF_RUN, Result, read_result
from ..runtime.atomic_file import write_file, writing
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A result of a downstream evaluation, as the model card shows it.

    Attributes:
        metric: What was measured.
        value: The result.
        dataset: On what.
        protocol: How: split, probe, pooling, number of folds; None where it is not recorded.
        interval: Lower end, upper end and confidence; None where there is none.
        data: Digest of the input files, hexadecimal; None where it is not recorded.
    """

    metric: str
    value: float
    dataset: str
    protocol: str | None = None
    interval: tuple[float, float, float] | None = None
    data: str | None = None


def weights_of_run(run: Path) -> dict[str, Path]:
    """Lists the weights that a run left: SHA-256 of each safetensors file → the file."""
    return {file_sha256(file): file for file in sorted(run.glob("*.safetensors"))}


def check_run(run: Path, weights: Sequence[str]) -> None:
    """Refuses weights (SHA-256) that are not of a run, and a run that could not keep results, before time is spent.

    Raises:
        EvaluationError: None of them is the run's.
        OutputError: The run's folder takes no results.
    """
    known = weights_of_run(run)
    if not known:
        raise EvaluationError(
            f"{run}: is not the folder of a run that left weights, such as teacher.safetensors; name the run whose "
            "weights are evaluated"
        )
    if not known.keys() & set(weights):
        names = ", ".join(str(file) for file in known.values())
        raise EvaluationError(f"{run}: none of the models has this run's weights; give {names} as checkpoint")
    with writing(run / RESULTS_OF_RUN):
        (run / RESULTS_OF_RUN).mkdir(exist_ok=True)


def record_result(run: Path, result: Result) -> Path:
    """Keeps a result with the run whose weights it is of; it replaces one of the same task, data and settings.

    Raises:
        EvaluationError: No model of the result has the run's weights.
        OutputError: The disk does not take it.
    """
    known = weights_of_run(run)
    if not any(model.weights_sha256 in known for model in result.models):
        raise EvaluationError(
            f"{run}: no model of the result has this run's weights; the report is written all the same"
        )
    identity = f"{result.provenance.data_digest} {sorted(result.settings.items())} {result.provenance.seed}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "_", f"{result.task}-{result.dataset}-{digest}.json")
    path = run / RESULTS_OF_RUN / name
    with writing(path):
        path.parent.mkdir(exist_ok=True)
    write_file(path, result.to_json())
    return path


def rows_of_card(result: Result, weights: Collection[str]) -> list[Evaluation]:
    """Takes what a result says of certain weights (SHA-256): one row for each protocol and metric."""
    labels = {model.label for model in result.models if model.weights_sha256 in weights}
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in result.settings.items())
    rows = []
    for one in result.summaries:
        if one.model not in labels:
            continue
        folds = f", {one.num_folds} folds" if one.num_folds > 1 else ""
        about = f"; {settings}" if settings else ""
        generated = "generated data; " if result.provenance.generated else ""
        rows.append(
            Evaluation(
                metric=one.metric,
                value=one.mean,
                dataset=result.dataset,
                protocol=f"{generated}{result.task}, {one.protocol}{folds}{about}",
                interval=None
                if one.interval is None
                else (one.interval.low, one.interval.high, one.interval.level),
                data=result.provenance.data_digest,
            )
        )
    return rows


def read_rows(paths: Sequence[Path], weights: Collection[str]) -> list[Evaluation]:
    """Reads results, or folders of reports, that are named for a card of certain weights (SHA-256).

    Raises:
        EvaluationError: A file is not a result, or is of other weights.
    """
    rows = []
    for path in paths:
        result = read_result(path)
        found = rows_of_card(result, weights)
        if not found:
            have = ", ".join(f"{model.label} {model.weights_sha256[:12]}" for model in result.models)
            raise EvaluationError(
                f"{path}: is of other weights ({have}) than those that are exported "
                f"({', '.join(sorted(one[:12] for one in weights))}); leave it out, or evaluate these"
            )
        rows += found
    return rows
