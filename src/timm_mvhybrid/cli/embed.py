"""``timm-mvhybrid embed``: patches + model → embedding h5."""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..data import TilingOptions, open_source
from ..embed.embedding_export import EmbeddingFormat, check_export, check_packages, choose_format, written_as
from ..embed.embeddings import BatchReport, ForwardOptions, embed
from ..embed.model_input import choose_device
from ..version import __version__
from .progress import RunDisplay, RunLog
from .weights import WeightOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed the patches of a slide, a folder or an h5 file into one file."""

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """Slide, folder of images, patch h5 (HEST 'img', CLAM 'imgs') or coordinate h5 (CLAM, TRIDENT 'coords')."""
    model: Annotated[str, arg(metavar="NAME")]
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="FILE.h5")]
    """File to write; complete or absent, never half."""
    format: EmbeddingFormat = "auto"
    """What is written: h5, which our other commands read; h5ad for scanpy; zarr, a SpatialData store for lazyslide;
    parquet. auto goes by the output's suffix."""
    overwrite: bool = False
    """Replace an existing output."""
    skip_corrupt: bool = False
    """Leave unreadable patches out, and report them, instead of stopping."""

    weights: Annotated[WeightOptions, arg(name="")] = field(default_factory=WeightOptions)
    tiling: Annotated[TilingOptions, arg(name="")] = field(default_factory=TilingOptions)
    slide: Annotated[Path | None, arg(metavar="FILE")] = None
    """Coordinate h5: its slide, unless one of the same name lies beside it."""
    edge: Literal["auto", "black", "white", "skip"] = "auto"
    """Coordinate h5: what patches get beyond the slide's edge, or skip to leave them out; auto is black, as TRIDENT and
    CLAM have it, for files that they wrote, and white for others."""
    forward: Annotated[ForwardOptions, arg(name="")] = field(
        default_factory=lambda: ForwardOptions(num_workers="auto")
    )

    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    """Append start, progress and end as JSON lines."""
    log_every: Annotated[int, arg(metavar="N")] = 10
    """Batches between two progress lines of the log."""

    def run(self) -> None:
        """Runs the command."""
        choose_device(self.forward.device)
        check_export(self.output, overwrite=self.overwrite, source=self.input)
        check_packages(choose_format(self.output, self.format))
        log = RunLog(self.log, self.log_every)
        log.write("start", version=__version__, options=dataclasses.asdict(self))
        try:
            source = open_source(self.input, tiling=self.tiling, slide=self.slide, edge=self.edge)
            backbone = self.weights.load(self.model)
            with (
                RunDisplay() as display,
                written_as(self.output, self.format, overwrite=self.overwrite) as file,
            ):

                def report_batch(report: BatchReport) -> None:
                    display.update(report)
                    log.update(report)

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
