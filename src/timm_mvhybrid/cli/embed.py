"""``timm-mvhybrid embed``: patches + model → embedding h5; of one source into a file, of many slides into a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..data import TilingOptions, list_slides, open_source
from ..data.source import H5_SUFFIXES
from ..embed.cohort_run import CohortOptions, CohortSummary, embed_slides
from ..embed.embedding_export import (
    SUFFIXES,
    EmbeddingFormat,
    check_export,
    check_packages,
    choose_format,
    export_folder,
    written_as,
)
from ..embed.embeddings import BatchReport, ForwardOptions, embed
from ..embed.engine_calls import EngineCalls, EngineReport
from ..embed.model_input import choose_device
from ..embed.slide_cohort import SlideRecord
from ..runtime.ranks import Ranks
from ..runtime.urls import without_credentials
from ..training.stop_signal import EXIT_CODE, StopSignal
from ..version import __version__
from .cohort_display import CohortDisplay
from .flags import UsageError
from .messages import report, say, status
from .progress import RunDisplay, RunLog
from .weights import WeightOptions

SOME_FAILED = 3
"""Exit code where slides failed and the others are done."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed the patches of a slide, a folder or an h5 file into one h5 file, or many slides into a folder."""

    input: Annotated[Positional[tuple[str, ...]], arg(metavar="INPUT")]
    """Into a file: one slide, folder of images, patch h5 (HEST 'img', CLAM 'imgs') or coordinate h5 (CLAM, TRIDENT
    'coords'). Into a folder: slides, h5 files, folders of them, patterns ('slides/**/*.svs'), or a CSV
    (slide[,path,um_per_px,coords,slide_id]). Tars of images and zarr stores may be URLs (s3://, https://)."""
    model: Annotated[str, arg(metavar="NAME")]
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="FILE.h5|DIR")]
    """File to write, complete or absent, never half; or a folder, for <slide_id>.h5 of each slide and cohort.jsonl. Run
    again, a folder gets what is missing or changed."""
    format: EmbeddingFormat = "auto"
    """What is written: h5, which our other commands read; h5ad for scanpy; zarr, a SpatialData store for lazyslide;
    parquet. auto goes by the output's suffix. A folder keeps its h5 files and gets the others beside them."""
    overwrite: bool = False
    """Replace an existing output; in a folder, embed all slides anew."""
    skip_corrupt: bool = False
    """Leave unreadable patches out, and report them, instead of stopping (a folder: instead of failing their slide)."""

    weights: Annotated[WeightOptions, arg(name="")] = field(default_factory=WeightOptions)
    tiling: Annotated[TilingOptions, arg(name="")] = field(default_factory=TilingOptions)
    slide: Annotated[Path | None, arg(metavar="FILE|DIR")] = None
    """Coordinate h5: its slide, or the folder of slides, unless one of the same name lies beside it."""
    edge: Literal["auto", "black", "white", "skip"] = "auto"
    """Coordinate h5: what patches get beyond the slide's edge, or skip to leave them out; auto is black, as TRIDENT and
    CLAM have it, for files that they wrote, and white for others."""
    forward: Annotated[ForwardOptions, arg(name="")] = field(
        default_factory=lambda: ForwardOptions(num_workers="auto")
    )
    cohort: Annotated[CohortOptions, arg(name="")] = field(default_factory=CohortOptions)

    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    """Append start, progress and end as JSON lines."""
    log_every: Annotated[int, arg(metavar="N")] = 10
    """Batches between two progress lines of the log."""

    @property
    def when_interrupted(self) -> str:
        """What became of the output."""
        if self._is_one_file:
            return "no output was written"
        return "slides that were finished are kept; run it again to go on"

    @property
    def _is_one_file(self) -> bool:
        if self.output.suffix.lower() in SUFFIXES:
            return True
        is_named_so = self.output.suffix.lower() in H5_SUFFIXES or self.output.is_file()
        return is_named_so and not self.output.is_dir()

    def run(self) -> int | None:
        """Runs the command.

        Returns:
            None; of a folder 3 if slides failed, 75 if it was stopped by a signal before all were tried.
        """
        if not self._is_one_file:
            return self._into_folder()
        choose_device(self.forward.device)
        if len(self.input) != 1:
            raise UsageError(
                f"{self.output} is one file, and takes one INPUT, not {len(self.input)}; give a folder as `output`"
            )
        self._into_file(self.input[0])
        return None

    def _into_file(self, path: str) -> None:
        check_export(self.output, overwrite=self.overwrite, source=path)
        check_packages(choose_format(self.output, self.format))
        log = self._log()
        try:
            source = open_source(path, tiling=self.tiling, slide=self.slide, edge=self.edge)
            backbone = self.weights.load(self.model)
            with (
                RunDisplay() as display,
                written_as(self.output, self.format, overwrite=self.overwrite) as file,
            ):

                def report_batch(batch: BatchReport) -> None:
                    display.update(batch)
                    log.update(batch)

                summary = embed(
                    source,
                    backbone,
                    file,
                    **self.forward.arguments(),
                    skip_corrupt=self.skip_corrupt,
                    overwrite=self.overwrite,
                    on_batch=report_batch,
                )
        except BaseException as error:
            log.fail(error)
            raise
        # the h5 of another format is gone
        summary = dataclasses.replace(summary, output=str(self.output))
        result = dataclasses.asdict(summary)
        log.write("done", **result)
        display.summarise(summary)
        if not sys.stdout.isatty():
            print(json.dumps(result, ensure_ascii=False))

    def _into_folder(self) -> int | None:
        is_first = Ranks.from_environment().is_first
        format = "h5" if self.format == "auto" else self.format
        check_packages(format)
        log = self._log()
        try:
            slides = list_slides(self.input)
            if self.cohort.engine == "local":
                choose_device(Ranks.from_environment().own_device(self.forward.device))
            backbone = self.weights.load(self.model)
            with CohortDisplay(len(slides), quiet=not is_first) as display, StopSignal() as signal:

                def report_batch(batch: EngineReport) -> None:
                    display.update(batch)
                    log.update(batch)

                def report_slide(record: SlideRecord) -> None:
                    display.end(record)
                    log.write("slide", **dataclasses.asdict(record))

                summary = embed_slides(
                    slides,
                    backbone,
                    self.output,
                    tiling=self.tiling,
                    place=self.slide,
                    edge=self.edge,
                    forward=self.forward,
                    options=self.cohort,
                    skip_corrupt=self.skip_corrupt,
                    overwrite=self.overwrite,
                    calls=EngineCalls(
                        on_slide=report_slide,
                        on_batch=report_batch,
                        stopping=lambda: signal.name is not None,
                    ),
                    on_warning=lambda sentence: say(f"warning: {sentence}"),
                )
            if format != "h5" and is_first and not summary.stopped:
                with status("exporting") as update:
                    export_folder(
                        self.output,
                        format,
                        on_file=lambda num, total: update(f"exporting: {num} of {total} slides"),
                    )
        except BaseException as error:
            log.fail(error)
            raise
        log.write("done", **dataclasses.asdict(summary))
        if is_first:
            _say_how_it_ended(summary)
        if summary.stopped:
            return EXIT_CODE
        return SOME_FAILED if summary.failed else None

    def _log(self) -> RunLog:
        log = RunLog(self.log, self.log_every)
        options = dataclasses.asdict(self) | {"input": [without_credentials(one) for one in self.input]}
        log.write("start", version=__version__, options=options)
        return log


def _say_how_it_ended(summary: CohortSummary) -> None:
    """Names the slides that have no file with the cause and what to do, and prints the numbers."""
    for kind, records in (("empty", summary.empty), ("failed", summary.failed)):
        for record in records:
            say(f"{kind}: {record.slide_id}: {record.error}")
    if summary.stopped:
        say("stopped by a signal; slides that were finished are kept, run it again to go on")
    elif summary.num_left:
        say(
            f"{summary.num_left} of {summary.num_slides} slides are left to other processes that are at them; run it again to "
            "see that they are done"
        )
    numbers = dataclasses.asdict(dataclasses.replace(summary, empty=(), failed=()))
    numbers |= {"num_empty": len(summary.empty), "num_failed": len(summary.failed)}
    report({name: value for name, value in numbers.items() if name not in ("empty", "failed")})
