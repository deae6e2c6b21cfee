"""Options that the tasks of ``timm-mvhybrid evaluate`` share, and what they print."""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.console import Console
from tyro.conf import arg

from ..version import __version__
from .messages import say
from .progress import RunDisplay, RunLog

if TYPE_CHECKING:
    from ..evaluate import Backbone, BatchReport, EmbeddingOptions, StageReport
    from ..report.results import Result


@dataclasses.dataclass(frozen=True)
class Reporters:
    """Tells display and log alike where a run stands.

    Args:
        display: The bar.
        log: The JSON lines.
    """

    display: RunDisplay
    log: RunLog

    def batch(self, source: str, report: BatchReport) -> None:
        """Passes a batch of a source on."""
        self.display.update(report, source)
        self.log.update(report, source)

    def stage(self, report: StageReport) -> None:
        """Passes a stage of scoring on."""
        self.display.advance(report)
        self.log.advance(report)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Where results go."""

    output: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder for results.json, tables and the page; outputs/<task>-<data> by default."""
    overwrite: bool = False
    """Replace an earlier report in that folder."""
    seed: int = 0
    """Seed of random folds, bootstrap and random weights."""
    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    """Append start, progress and end as JSON lines."""
    log_every: Annotated[int, arg(metavar="N")] = 10
    """Batches between two progress lines of the log."""

    def run(self) -> None:
        """Runs the command: checks first, then the task with its bar and log, then the report."""
        from ..report import check_report_folder, write_report
        from ..runtime.claim import claimed
        from ..runtime.ranks import Ranks

        folder = self.output or Path("outputs", f"{type(self).__name__.lower()}-{self.data().resolve().stem}")
        check_report_folder(folder, overwrite=self.overwrite)
        is_first = Ranks.from_environment().is_first
        log = RunLog(self.log if is_first else None, self.log_every)
        with claimed(folder / "results.json") if is_first else nullcontext():
            log.write("start", version=__version__, options=dataclasses.asdict(self))
            try:
                with RunDisplay(None if is_first else Console(quiet=True)) as display:
                    result = self.evaluate(Reporters(display, log))
                if result is None:
                    return
                page = write_report(result, folder, overwrite=self.overwrite)
            except BaseException as error:
                log.fail(error)
                raise
        log.write("done", page=page, scores=_means(result))
        self._tell(result, page)

    def data(self) -> Path:
        """Names the data."""
        raise NotImplementedError

    def evaluate(self, reporters: Reporters) -> Result | None:
        """Runs the task; the result is None on ranks other than the first."""
        raise NotImplementedError

    def _tell(self, result: Result, page: Path) -> None:
        for note in result.notes:
            say(f"note: {note}")
        if sys.stdout.isatty():
            print(f"wrote {page}")
        else:
            print(json.dumps({"page": str(page), "task": result.task, "scores": _means(result)}))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelOptions(OutputOptions):
    """Which models embed, and how."""

    model: Annotated[str, arg(metavar="NAME[,NAME...]")]
    """Timm models, separated by commas; the first is the one that others are compared with."""
    pretrained: bool = False
    """Take the weights that timm downloads, for models without a checkpoint."""
    checkpoint: Annotated[str, arg(metavar="FILE[,FILE...]")] = ""
    """One file of weights for each model, separated by commas; leave one empty to take none."""
    cache: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where embeddings are kept; timm_mvhybrid/embeddings in the user's cache folder by default."""
    batch_size: Annotated[int, arg(metavar="N")] = 64
    """Patches per batch."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (CUDA if there is any, otherwise CPU), cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type; embeddings are stored as float32."""
    num_workers: Annotated[Literal["auto"] | int, arg(metavar="auto|N")] = "auto"
    """Processes that read patches, at most one a core; 0 reads in the main process."""
    input_size: Annotated[Literal["auto"] | int, arg(metavar="auto|PX")] = "auto"
    """Side in px at which patches enter the model."""
    global_pool: Literal["model", "token", "avg", "max", "token+avg"] = "model"
    """How features become one vector; model is what the model does by itself."""

    def backbones(self) -> list[Backbone]:
        """Builds the models."""
        from ..evaluate import EvaluationError, load_backbone

        names = [name.strip() for name in self.model.split(",") if name.strip()]
        files = (
            [file.strip() for file in self.checkpoint.split(",")] if self.checkpoint else [""] * len(names)
        )
        if len(files) != len(names):
            raise EvaluationError(
                f"--checkpoint names {len(files)} files for {len(names)} models; leave one empty for a model without"
            )
        models = [
            load_backbone(
                name, pretrained=self.pretrained and not file, checkpoint=file or None, seed=self.seed
            )
            for name, file in zip(names, files, strict=True)
        ]
        random = [backbone.name for backbone in models if backbone.weights == "random"]
        if random:
            say(
                f"warning: the weights of {', '.join(random)} are random; give --checkpoint FILE or --pretrained"
            )
        return models

    def embedding(self) -> EmbeddingOptions:
        """Collects how patches are embedded."""
        from ..evaluate import EmbeddingOptions, choose_device, num_available_workers
        from ..runtime.ranks import Ranks

        # before models are built, and also where all embeddings are in the cache
        choose_device(Ranks.from_environment().own_device(self.device))
        return EmbeddingOptions(
            cache=self.cache,
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            num_workers=num_available_workers() if self.num_workers == "auto" else self.num_workers,
            pool=self.global_pool,
            input_size=self.input_size,
        )


def _means(result: Any) -> list[dict[str, Any]]:
    """Cuts scores to what fits a line: labels and means."""
    rows = []
    for score in result.scores:
        row = {key: getattr(score, key) for key in ("model", "protocol", "probe") if hasattr(score, key)}
        if hasattr(score, "accuracy"):
            row |= {
                "accuracy": score.accuracy,
                **{f"precision@{k}": v for k, v in score.mean_precision.items()},
            }
        # NaN is no JSON
        row |= {
            one.metric: one.mean if one.mean == one.mean else None for one in getattr(score, "summary", ())
        }
        rows.append(row)
    return rows
