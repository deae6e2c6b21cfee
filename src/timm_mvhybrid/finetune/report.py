"""Folder of a run of MINT or STAMP → a result, and one page of what the run did to its encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..export.training_checkpoint import ENCODER_FILE, run_config
from ..report import Metric, Result, ScoreSheet, register_presentation, write_report
from ..runtime.digest import file_sha256
from ..runtime.errors import EvaluationError
from ..runtime.provenance import ModelRecord
from ..training.metrics_log import read_lines
from ..training.run_directory import RunDirectory
from .presentation import FEATURES, TASK, FinetunePresentation

METRICS = {
    "before": Metric(label="r before"),
    "after": Metric(label="r after"),
    "gain": Metric(label="gain on frozen"),
}
_EXPRESSION = re.compile(rf"(?:(?P<panel>.+)/)?expression_(?P<features>{'|'.join(FEATURES)})")

register_presentation(FinetunePresentation())


def report_run(run: str | Path, output: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Writes the report of a run, which may still be going on.

    Args:
        run: Folder of the run.
        output: Folder to write; ``report`` in the run's by default.
        overwrite: Whether an earlier report may be replaced.

    Returns:
        The page.

    Raises:
        EvaluationError: It is not such a run, nothing was measured yet, or a report is there already.
        PretrainError: Its log is damaged.
        OutputError: The disk does not take the report.
    """
    run = Path(run)
    return write_report(result_of_run(run), run / "report" if output is None else output, overwrite=overwrite)


def result_of_run(run: str | Path) -> Result:
    """Reads what a run wrote down of itself.

    Args:
        run: Its folder.

    Returns:
        Scores of expression by features and panel; ``arrays`` holds ``probe`` and ``loss``, metric → step → value.

    Raises:
        EvaluationError: It is not a run of MINT or STAMP, or nothing was measured yet.
        PretrainError: Its log is damaged.
    """
    directory = RunDirectory(run)
    config = run_config(directory.path)
    resolved = config.get("resolved", {})
    if resolved.get("method") not in ("mint", "stamp"):
        raise EvaluationError(
            f"{run}: is not the folder of a run of MINT or STAMP; name the folder that was the `output` of a run"
        )
    lines = read_lines(directory.metrics)
    probe, loss = (_curves(lines, prefix) for prefix in ("probe/", "loss/"))
    if not loss:
        raise EvaluationError(f"{directory.metrics}: holds no step yet; wait for the run's first lines")
    step = max(line["step"] for line in lines)
    sheet = ScoreSheet(METRICS)
    for name, points in probe.items():
        match = _EXPRESSION.fullmatch(name)
        if match is None:
            continue
        frozen = probe.get(
            f"{match['panel']}/expression_frozen" if match["panel"] else "expression_frozen", {}
        )
        last = max(points, key=int)
        sheet.add(
            FEATURES[match["features"]],
            match["panel"] or "all",
            "validation",
            {
                "before": points.get("0", float("nan")),
                "after": points[last],
                "gain": points[last] - frozen.get(last, float("nan")),
            },
            num_train=resolved.get("num_samples", 0),
            num_test=resolved.get("num_validation_patches", 0),
        )
    notes = _notes(resolved, config, step, bool(probe))
    return sheet.result(
        task=TASK,
        dataset=config["data"].get("name") or ", ".join(resolved["panels"]),
        models=_models(directory.path, config, resolved),
        settings={"method": resolved["method"], "step": step, "num_steps": config["num_steps"]},
        arrays={"probe": probe, "loss": loss},
        options=_without_places(config),
        data={file.name: file_sha256(file) for file in (directory.config, directory.metrics)},
        notes=notes,
        compared=(),
    )


def _curves(lines: list[dict[str, Any]], prefix: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        for name, value in line.items():
            if name.startswith(prefix) and isinstance(value, int | float):
                found.setdefault(name.removeprefix(prefix), {})[str(line["step"])] = float(value)
    return found


def _models(run: Path, config: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[ModelRecord]:
    model = config["model"]
    encoder = run / ENCODER_FILE
    given = (
        "pretrained" if model["pretrained"] else Path(model["weights"]).name if model["weights"] else "random"
    )
    dim = int(resolved.get("embed_dim", 0))
    return [
        ModelRecord(
            label="frozen",
            name=model["name"],
            weights=given,
            weights_sha256=str(resolved.get("base_sha256") or "unknown"),
            embedding_dim=dim,
        ),
        ModelRecord(
            label="fine-tuned",
            name=model["name"],
            weights=ENCODER_FILE if encoder.is_file() else "not finished",
            weights_sha256=file_sha256(encoder) if encoder.is_file() else "unknown",
            embedding_dim=dim,
        ),
    ]


def _notes(resolved: Mapping[str, Any], config: Mapping[str, Any], step: int, measured: bool) -> list[str]:
    held_out = resolved["held_out"]
    notes = []
    if step < config["num_steps"]:
        notes.append(f"The run is at step {step} of {config['num_steps']}.")
    if measured:
        notes.append(
            f"Held out by {held_out['by']}: {held_out['num_groups']}, with {resolved['num_validation_patches']} measured "
            "patches; genes, statistics and the ridge regression come from training samples alone."
        )
    else:
        notes.append("Nothing was held out, so nothing was measured of the encoder.")
    notes += [
        f"Panel {name}: {panel['num_genes']} genes in {panel['unit']}, {panel['num_training_patches']} training patches."
        for name, panel in resolved["panels"].items()
    ]
    if "pathways" in resolved:
        pathways = resolved["pathways"]
        notes.append(f"{pathways['num_sets']} gene sets, scored by {pathways['method']}.")
    return notes


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """Cuts paths to their names: where things lie is this machine's business."""
    data = {**config["data"], "sources": [Path(source).name for source in config["data"]["sources"]]}
    data["hold_out"] = len(data.get("hold_out", ()))
    found = {**config, "data": data, "output": Path(str(config["output"])).name}
    for section, name in (("data", "pathways"), ("model", "weights")):
        value = found[section].get(name)
        if value:
            found[section] = {**found[section], name: Path(value).name}
    return found
