"""Slides + predictor → for each slide an h5ad, a page, and what else is asked for; slides that are done are kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..embed.backbone import Backbone
from ..runtime.errors import TimmMVHybridError
from .errors import PredictorError
from .expression_predictor import ExpressionPredictor
from .slide_options import SlideOptions
from .slide_run import OnBatch, PredictedSlide, SlideRun


def predict_slide(
    slide: str | Path,
    predictor: ExpressionPredictor | str | Path,
    output: str | Path,
    options: SlideOptions | None = None,
    *,
    backbone: Backbone | None = None,
    checkpoint: str | Path | None = None,
    overwrite: bool = False,
    on_batch: OnBatch = None,
) -> PredictedSlide:
    """Predicts the expression of one slide's tissue and writes ``NAME.h5ad``, ``NAME.html`` and what else is asked for.

    Args:
        slide: Anything OpenSlide or tiffslide opens.
        predictor: A fitted predictor, its folder, or ``hf-hub:ORG/NAME@REVISION``.
        output: Folder to write; made if absent.
        options: How the slide is cut, embedded and shown.
        backbone: The predictor's model, where it is loaded already.
        checkpoint: File of its weights, or exported folder, where they came from one.
        overwrite: Replace what was predicted with another predictor or other options.
        on_batch: Called with the slide's name after every batch that is embedded.

    Returns:
        What was done.

    Raises:
        PredictorError: The weights are not those that the predictor was fitted on, or it cannot be read.
        DataError: The slide cannot be opened, states no resolution, is too coarse or holds no tissue; or there are outputs
            of another predictor or other options.
        EvaluationError: The model or device cannot do what is asked.
        OutputError: The folder, a file or the cache cannot be written.

    Example:
        ```python
        from timm_mvhybrid.predict import SlideOptions, predict_slide

        predict_slide("slide.svs", "predictor/", "maps/", SlideOptions(stride_px=112, geojson=True))
        ```
    """
    run = SlideRun.of(predictor, output, options, backbone, checkpoint, overwrite, [slide])
    return run.predict(Path(slide), on_batch)


def predict_slides(
    slides: Sequence[str | Path],
    predictor: ExpressionPredictor | str | Path,
    output: str | Path,
    options: SlideOptions | None = None,
    *,
    backbone: Backbone | None = None,
    checkpoint: str | Path | None = None,
    overwrite: bool = False,
    on_slide: Callable[[PredictedSlide], None] | None = None,
    on_batch: OnBatch = None,
) -> tuple[PredictedSlide, ...]:
    """Predicts several slides as ``predict_slide``; one that fails is reported, and the others are still predicted.

    Slides whose outputs are complete, by the same predictor and options, are kept, so an interrupted run goes on where it
    stopped.

    Args:
        slides: The slides; their names without suffix must differ.
        predictor: As in ``predict_slide``.
        output: As in ``predict_slide``.
        options: As in ``predict_slide``.
        backbone: As in ``predict_slide``.
        checkpoint: As in ``predict_slide``.
        overwrite: As in ``predict_slide``.
        on_slide: Called after each slide.
        on_batch: As in ``predict_slide``.

    Returns:
        The outcome for each slide, in their order.

    Raises:
        PredictorError: As in ``predict_slide``.
        DataError: No slide is given, or two have the same name.
        EvaluationError: As in ``predict_slide``.
        OutputError: The folder cannot be written.
    """
    run = SlideRun.of(predictor, output, options, backbone, checkpoint, overwrite, slides)
    outcomes = []
    run.load_if_needed(slides)
    for slide in map(Path, slides):
        start = time.monotonic()
        try:
            outcome = run.predict(slide, on_batch)
        except PredictorError:
            # it is the same for all slides
            raise
        # the second are from libraries that read foreign files
        except (TimmMVHybridError, ValueError, OSError, RuntimeError) as error:
            outcome = PredictedSlide(
                slide=slide,
                output=run.files(slide).h5ad,
                status="failed",
                seconds=time.monotonic() - start,
                message=str(error) if isinstance(error, TimmMVHybridError) else f"{slide}: {error}",
            )
        outcomes.append(outcome)
        if on_slide is not None:
            on_slide(outcome)
    return tuple(outcomes)
