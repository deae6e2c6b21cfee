"""``timm-mvhybrid tile``: slides → a patch store that pretraining reads."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from rich.console import Console
from tyro.conf import Positional, arg

from ..data import TiledSlide, TilingOptions, tile_slides
from .messages import report, say


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """Cut slides into a store of patches for pretraining; slides that are done are kept, so that it can go on later."""

    when_interrupted: ClassVar[str] = "slides that were finished are kept; run it again to go on"

    slides: Annotated[Positional[tuple[Path, ...]], arg(metavar="SLIDE")]
    """Slides; their names without suffix must differ."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder of the store: a patch h5 and a thumbnail with the tiles drawn for each slide, and manifest.json."""
    overwrite: bool = False
    """Cut anew what is there."""

    tiling: Annotated[TilingOptions, arg(name="")] = field(default_factory=TilingOptions)
    compression: Literal["none", "lzf", "gzip"] = "none"
    """Of the pixels: none reads ten times as fast as gzip, which halves the file."""
    thumbnail_size_px: Annotated[int, arg(name="thumbnail-size", metavar="PX")] = 1024
    """Longer side of the thumbnails in px."""
    num_workers: Annotated[int, arg(metavar="N")] = 0
    """Processes, each with a slide of its own; 0 cuts in the main process."""

    def run(self) -> int:
        """Runs the command.

        Returns:
            0, or 1 if a slide failed.
        """
        console = Console(stderr=True)
        num_done = 0

        def show(slide: TiledSlide) -> None:
            nonlocal num_done
            num_done += 1
            if slide.status == "failed":
                say(f"error: {slide.message}")
                return
            if slide.message:
                say(f"warning: {slide.message}")
            if console.is_terminal:
                console.print(
                    f"{num_done}/{len(self.slides)} {slide.output.name}: {slide.num_patches} patches, "
                    f"{slide.status}, {slide.seconds:.1f} s",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        summary = tile_slides(
            self.slides,
            self.output,
            self.tiling,
            compression=self.compression,
            thumbnail_size_px=self.thumbnail_size_px,
            num_workers=self.num_workers,
            overwrite=self.overwrite,
            on_slide=show,
        )
        states = [slide.status for slide in summary.slides]
        report(
            {
                "manifest": str(summary.manifest),
                "num_patches": summary.num_patches,
                "num_tiled": states.count("tiled"),
                "num_kept": states.count("kept"),
                "num_failed": states.count("failed"),
            }
        )
        return 1 if summary.failed else 0
