"""One slide + predictor → its files: checks, cache, prediction; what several slides share is made once."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import save

from ..data import DataError, SlideSource, slides_by_name, source_digest
from ..data.slide_files import slide_fingerprint
from ..embed.backbone import Backbone
from ..embed.embedding_cache import cache_file, embed_into_cache, transform_of, weights_digest
from ..embed.embedding_store import read_batches
from ..embed.embeddings import BatchReport
from ..embed.model_input import choose_device
from ..runtime.atomic_file import claimed, make_folder
from ..runtime.codec import dump
from ..runtime.errors import OutputError, TimmMVHybridError
from ..runtime.extras import require
from ..version import __version__
from .encoder import check_weights, embedding_options, encoder_of, load_encoder_of
from .errors import PredictorError
from .expression_predictor import ExpressionPredictor
from .predictor_files import arrays_of
from .slide_files import SlideFiles, complete_record, write_slide
from .slide_options import SlideOptions, tissue_patches
from .slide_prediction import SlidePrediction, genes_to_show, picture_of, predict_batches
from .spatialdata_output import require_spatialdata

OnBatch = Callable[[str, BatchReport], None] | None


@dataclass(frozen=True, kw_only=True)
class PredictedSlide:
    """The outcome for one slide.

    Attributes:
        slide: The slide.
        output: Its h5ad; the page and other files lie beside it.
        status: "predicted" now, "kept" from an earlier run with the same predictor and options, or "failed".
        num_patches: Patches that were predicted; 0 if it failed.
        num_far: Those far from the training data.
        was_embedded: Whether embeddings were computed; False if all came from the cache.
        seconds: Time it took.
        message: Why it failed; empty otherwise.
    """

    slide: Path
    output: Path
    status: Literal["predicted", "kept", "failed"]
    num_patches: int = 0
    num_far: int = 0
    was_embedded: bool = False
    seconds: float = 0.0
    message: str = ""


@dataclass
class SlideRun:
    """What all slides share; the model is built for the first slide that needs it."""

    predictor: ExpressionPredictor
    folder: Path
    options: SlideOptions
    checkpoint: str | Path | None
    overwrite: bool
    given: Backbone | None

    @staticmethod
    def of(
        predictor: ExpressionPredictor | str | Path,
        output: str | Path,
        options: SlideOptions | None,
        backbone: Backbone | None,
        checkpoint: str | Path | None,
        overwrite: bool,
        slides: Sequence[str | Path],
    ) -> SlideRun:
        """Checks everything that can be checked before a slide is opened."""
        slides_by_name(slides, ".h5ad")
        options = options or SlideOptions()
        choose_device(options.device)
        require("anndata")
        if options.spatialdata:
            require_spatialdata()
        loaded = (
            predictor if isinstance(predictor, ExpressionPredictor) else ExpressionPredictor.load(predictor)
        )
        record = encoder_of(loaded)
        options.tiling(record)
        genes_to_show(loaded, options.show_genes, 1)
        if backbone is not None:
            check_weights(record, backbone)
        folder = Path(output)
        make_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise OutputError(
                f"{folder}: cannot be written; choose another place, or ask for permission to write there"
            )
        return SlideRun(loaded, folder, options, checkpoint, overwrite, backbone)

    @cached_property
    def backbone(self) -> Backbone:
        """The predictor's model."""
        return load_encoder_of(self.predictor, self.checkpoint) if self.given is None else self.given

    @cached_property
    def digest(self) -> str:
        """What identifies the predictor."""
        return predictor_digest(self.predictor)

    def load_if_needed(self, slides: Sequence[str | Path]) -> None:
        """Builds the model unless all slides are complete; what is wrong with it is the same for all."""

        def is_complete(slide: Path) -> bool:
            try:
                files, record = self.files(slide), self.record(slide)
                return complete_record(files, record, self.options, overwrite=self.overwrite) is not None
            except TimmMVHybridError:
                # it is reported in its turn
                return True

        if not all(is_complete(slide) for slide in map(Path, slides)):
            _ = self.backbone

    def files(self, slide: Path) -> SlideFiles:
        """Names the files of a slide."""
        return SlideFiles.of(self.folder, slide.stem)

    def predict(self, slide: Path, on_batch: OnBatch) -> PredictedSlide:
        """Predicts one slide, or finds that it was predicted before."""
        start = time.monotonic()
        files, record = self.files(slide), self.record(slide)
        before = complete_record(files, record, self.options, overwrite=self.overwrite)
        if before is not None:
            return PredictedSlide(
                slide=slide,
                output=files.h5ad,
                status="kept",
                num_patches=int(before.get("num_patches", 0)),
                num_far=int(before.get("num_far", 0)),
            )
        with claimed(files.h5ad):
            files.remove_leftovers()
            source = tissue_patches(
                slide, self.options.tiling(encoder_of(self.predictor)), enlarge=self.options.enlarge
            )
            embeddings, was_embedded = self.embed(source, on_batch)
            prediction = predict_batches(
                self.predictor, read_batches(embeddings), len(source), self.options.level
            )
            num_patches, num_far = len(source), int(prediction.far.sum())
            scale = source.patch_size_level0 / source.patch_size_px
            found = SlidePrediction(
                name=slide.stem,
                coords=source.coords,
                patch_size_level0=source.patch_size_level0,
                stride_level0=scale * (self.options.stride_px or source.patch_size_px),
                dimensions_px=source.slide.dimensions,
                um_per_px=source.resolution_um_per_px / scale,
                picture=picture_of(source),
                predictor=self.predictor,
                prediction=prediction,
                record={**record, "num_patches": num_patches, "num_far": num_far},
            )
            write_slide(found, files, self.options)
        return PredictedSlide(
            slide=slide,
            output=files.h5ad,
            status="predicted",
            num_patches=num_patches,
            num_far=num_far,
            was_embedded=was_embedded,
            seconds=time.monotonic() - start,
        )

    def embed(self, source: SlideSource, on_batch: OnBatch) -> tuple[Path, bool]:
        """Embeds a slide's patches unless the cache has them; returns the cache's file and whether it was written now."""
        record = encoder_of(self.predictor)
        options = embedding_options(
            record,
            batch_size=self.options.batch_size,
            device=self.options.device,
            num_workers=self.options.num_reading,
            cache=self.options.cache,
        )
        transform = transform_of(self.backbone, source, options)
        if record.transform and transform != record.transform:
            raise PredictorError(
                f"patches would be embedded with {transform}, and the predictor was fitted on {record.transform}; fit it again "
                "with this version of timm"
            )
        name = source.path.stem
        file = cache_file(
            options.folder,
            self.backbone.name,
            weights_digest(self.backbone),
            transform,
            name,
            source_digest(source),
        )
        report = None if on_batch is None else lambda batch: on_batch(name, batch)
        return file, embed_into_cache(source, self.backbone, file, options, on_batch=report) is not None

    def record(self, slide: Path) -> dict[str, Any]:
        """Says what a prediction depends on."""
        encoder = encoder_of(self.predictor)
        try:
            fingerprint = slide_fingerprint(slide)
        except OSError as error:
            raise DataError(f"{slide}: {error.strerror or error}; give a slide") from error
        return {
            "slide": slide.name,
            "slide_fingerprint": fingerprint,
            "predictor_sha256": self.digest,
            "model": encoder.name,
            "weights": encoder.weights,
            "weights_sha256": encoder.weights_sha256,
            "options": self.options.results(),
            "timm_mvhybrid_version": __version__,
        }


def predictor_digest(predictor: ExpressionPredictor) -> str:
    """Identifies a predictor by all that its predictions and their reliability depend on; SHA-256 in hex."""
    stated = {
        "genes": predictor.genes_,
        "studies": predictor.studies_,
        "parameters": predictor.get_params(),
        "encoder": predictor.encoder_,
    }
    found = hashlib.sha256(dump(stated).encode())
    found.update(save(arrays_of(predictor)))
    return found.hexdigest()
