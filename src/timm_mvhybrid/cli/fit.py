"""``timm-mvhybrid fit``: measured expression + a backbone → a predictor of expression."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ..embed.embeddings import BatchReport
from ..export.output_folder import check_folder
from ..predict.fitting import FitSummary, fit_expression
from ..predict.options import FitOptions
from ..predict.predictor_files import FILES
from ..runtime.codec import encode
from ..runtime.ranks import Ranks
from ..version import __version__
from .messages import report
from .progress import RunDisplay, RunLog
from .weights import WeightOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Fit a predictor of gene expression on samples in the HEST layout, and say how far to trust it."""

    target: Annotated[Positional[Literal["expression"]], arg(metavar="expression")]
    """What is predicted: log1p counts of genes."""
    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    """A task's folder (patches/, adata/), or the folder of several."""
    model: Annotated[str, arg(metavar="NAME")]
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder of the predictor to write; complete or absent, never half."""
    overwrite: bool = False
    """Replace an earlier predictor."""
    weights: Annotated[WeightOptions, arg(name="")] = field(default_factory=WeightOptions)
    options: Annotated[FitOptions, arg(name="")]

    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    """Append start, progress and end as JSON lines."""
    log_every: Annotated[int, arg(metavar="N")] = 10
    """Batches between two progress lines of the log."""

    # embeddings that are done lie in the cache
    when_interrupted: ClassVar[str] = "run it again, and it goes on from the embeddings that are done"

    def run(self) -> None:
        """Runs the command."""
        check_folder(self.output.absolute(), overwrite=self.overwrite, known_files=FILES)
        is_first = Ranks.from_environment().is_first
        log = RunLog(self.log if is_first else None, self.log_every)
        log.write("start", version=__version__, options=encode(self, path=str))
        try:
            with RunDisplay(None if is_first else Console(quiet=True)) as display:

                def report_batch(source: str, batch: BatchReport) -> None:
                    display.update(batch, source)
                    log.update(batch, source)

                predictor = fit_expression(
                    self.root,
                    self.weights.load(self.model),
                    self.options,
                    weights_seed=self.weights.seed,
                    on_batch=report_batch,
                )
            if predictor is None:
                return
            predictor.save(self.output, overwrite=self.overwrite)
        except BaseException as error:
            log.fail(error)
            raise
        summary = dataclasses.asdict(FitSummary.of(predictor, self.output))
        log.write("done", **summary)
        report(summary)
