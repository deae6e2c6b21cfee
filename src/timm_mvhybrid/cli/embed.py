"""``timm-mvhybrid embed``: patches + model → embedding h5."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from ..version import __version__
from .messages import say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embed:
    """Embed the patches of a slide, a folder or an h5 file into one h5 file."""

    input: Annotated[Positional[Path], arg(metavar="INPUT")]
    """Slide, folder of images, patch h5 (HEST 'img', CLAM 'imgs') or coordinate h5 (CLAM, TRIDENT 'coords')."""
    model: Annotated[str, arg(metavar="NAME")]
    """Any timm model; 'timm-mvhybrid models' lists ours."""
    output: Annotated[Path, arg(metavar="FILE.h5")]
    """File to write; complete or absent, never half."""
    overwrite: bool = False
    """Replace an existing output."""

    pretrained: bool = False
    """Take the weights that timm downloads."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE")] = None
    """Take the weights of this file (safetensors, or PyTorch tensors). Excludes --pretrained."""
    seed: int = 0
    """Seed of random weights, if neither is given."""

    resolution: Annotated[float, arg(metavar="UM_PER_PX")] = 0.5
    """Slides: wanted resolution in µm/px."""
    patch_size: Annotated[int, arg(metavar="PX")] = 256
    """Slides: side of the patches in px at that resolution."""
    overlap: Annotated[int, arg(metavar="PX")] = 0
    """Slides: px shared by neighbouring patches."""
    min_tissue: Annotated[float, arg(metavar="SHARE")] = 0.5
    """Slides: smallest share of tissue in a patch, 0 to 1."""
    slide_resolution: Annotated[float | None, arg(metavar="UM_PER_PX")] = None
    """Resolution of the slide itself in µm/px, if it states none or a wrong one."""
    slide: Annotated[Path | None, arg(metavar="FILE")] = None
    """Coordinate h5: its slide, unless one of the same name lies beside it."""
    edge: Literal["auto", "black", "white", "skip"] = "auto"
    """Coordinate h5: what patches get beyond the slide's edge, or skip to leave them out; auto is black, as TRIDENT and
    CLAM have it, for files that they wrote, and white for others."""

    input_size: Annotated[Literal["auto"] | int, arg(metavar="auto|PX")] = "auto"
    """Side in px at which patches enter the model; auto keeps their own where the model takes it."""
    global_pool: Literal["model", "token", "avg", "max", "token+avg"] = "model"
    """How features become one vector; model is what the model does by itself."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Autocast type; embeddings are stored as float32."""
    device: Annotated[str, arg(metavar="NAME")] = "auto"
    """auto (CUDA if there is any, otherwise CPU), cpu, cuda, cuda:1, mps."""
    batch_size: Annotated[int, arg(metavar="N")] = 64
    """Patches per batch."""
    num_workers: Annotated[Literal["auto"] | int, arg(metavar="auto|N")] = "auto"
    """Processes that read patches, at most one a core; 0 reads in the main process, auto takes one a core up to 8."""
    skip_corrupt: bool = False
    """Leave unreadable patches out, and report them, instead of stopping."""
    log: Annotated[Path | None, arg(metavar="FILE.jsonl")] = None
    """Append start, progress and end as JSON lines."""
    log_every: Annotated[int, arg(metavar="N")] = 10
    """Batches between two progress lines of the log."""

    def run(self) -> None:
        """Runs the command."""
        from ..data import TilingOptions, open_source
        from ..evaluate import (
            BatchReport,
            check_output,
            choose_device,
            embed,
            load_backbone,
            num_available_workers,
        )
        from .progress import RunDisplay, RunLog

        tiling = TilingOptions(
            resolution_um_per_px=self.resolution,
            patch_size_px=self.patch_size,
            overlap_px=self.overlap,
            min_tissue=self.min_tissue,
            slide_resolution_um_per_px=self.slide_resolution,
        )
        choose_device(self.device)
        check_output(self.output, overwrite=self.overwrite, source=self.input)
        log = RunLog(self.log, self.log_every)
        log.write("start", version=__version__, options=dataclasses.asdict(self))
        try:
            source = open_source(self.input, tiling=tiling, slide=self.slide, edge=self.edge)
            backbone = load_backbone(
                self.model, pretrained=self.pretrained, checkpoint=self.checkpoint, seed=self.seed
            )
            if backbone.weights == "random":
                say(
                    "warning: the weights are random, so the embeddings carry no meaning; "
                    "give --checkpoint FILE or --pretrained"
                )
            num_workers = num_available_workers() if self.num_workers == "auto" else self.num_workers
            with RunDisplay() as display:

                def report_batch(report: BatchReport) -> None:
                    display.update(report)
                    log.update(report)

                summary = embed(
                    source,
                    backbone,
                    self.output,
                    batch_size=self.batch_size,
                    device=self.device,
                    dtype=self.dtype,
                    num_workers=num_workers,
                    pool=self.global_pool,
                    input_size=self.input_size,
                    skip_corrupt=self.skip_corrupt,
                    overwrite=self.overwrite,
                    on_batch=report_batch,
                )
        except BaseException as error:
            log.fail(error)
            raise
        result = dataclasses.asdict(summary)
        log.write("done", **result)
        display.summarise(summary)
        if not sys.stdout.isatty():
            print(json.dumps(result, ensure_ascii=False))
