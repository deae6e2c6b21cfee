"""``timm-mvhybrid predict``: slides + predictor → expression on the tissue of each, with intervals, and a page."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from ..predict import ExpressionPredictor, PredictedSlide, SlideOptions, predict_slides
from .messages import report, say, worded
from .progress import RunDisplay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predict:
    """Predict gene expression on slides: for each an h5ad and a page; slides that are done are kept."""

    when_interrupted: ClassVar[str] = "slides that were finished are kept; run it again to go on"

    slides: Annotated[Positional[tuple[Path, ...]], arg(metavar="SLIDE")]
    """Slides; their names without suffix must differ."""
    predictor: Annotated[str, arg(metavar="DIR|hf-hub:ORG/NAME@REVISION")]
    """What 'timm-mvhybrid fit' wrote, or 'timm-mvhybrid publish' published."""
    output: Annotated[Path, arg(metavar="DIR")]
    """Folder to write NAME.h5ad and NAME.html of each slide to; each complete or absent, never half."""
    overwrite: bool = False
    """Replace what was predicted by another predictor or with other options."""
    checkpoint: Annotated[Path | None, arg(metavar="FILE|DIR")] = None
    """Weights that the predictor was fitted on, where they came from a file or an exported folder."""
    options: Annotated[SlideOptions, arg(name="")] = field(default_factory=SlideOptions)

    def run(self) -> int:
        """Runs the command.

        Returns:
            0, or 1 if a slide failed.
        """
        predictor = ExpressionPredictor.load(self.predictor)
        with RunDisplay() as display:

            def show(slide: PredictedSlide) -> None:
                if display.console.is_terminal and slide.status != "failed":
                    display.console.print(worded(_line(slide)), markup=False, highlight=False, soft_wrap=True)

            outcomes = predict_slides(
                self.slides,
                predictor,
                self.output,
                self.options,
                checkpoint=self.checkpoint,
                overwrite=self.overwrite,
                on_slide=show,
                on_batch=lambda name, batch: display.update(batch, name),
            )
        failed = [slide for slide in outcomes if slide.status == "failed"]
        for slide in failed:
            say(f"error: {slide.message}")
        states = [slide.status for slide in outcomes]
        report(
            {
                "output": str(self.output),
                "num_patches": sum(slide.num_patches for slide in outcomes),
                "num_far": sum(slide.num_far for slide in outcomes),
                "num_predicted": states.count("predicted"),
                "num_kept": states.count("kept"),
                "num_failed": len(failed),
            }
        )
        return 1 if failed else 0


def _line(slide: PredictedSlide) -> str:
    far = f", {slide.num_far} far from the training data" if slide.num_far else ""
    cached = "" if slide.was_embedded or slide.status == "kept" else ", embeddings from the cache"
    return f"{slide.output}: {slide.num_patches} patches{far}, {slide.status}{cached}, {slide.seconds:.1f} s"
