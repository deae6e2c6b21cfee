"""What every analysis is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from ..runtime.errors import ParameterError
from ..training.settings import JsonObject
from .pictures import Pictures, read_pictures
from .subjects import Subject, check_labels, find_subject

Advance = Callable[[str, int, int], None]
"""What is done, how many of its parts are done, and of how many."""


def silent(stage: str, done: int, total: int) -> None:
    """Reports to nobody."""


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """Models and images.

    Attributes:
        models: Names (random weights), NAME=CHECKPOINT, folders of exports or runs, local-dir: and hf-hub: addresses.
        images: Image files, folders of images, slides or patch h5; patches are taken evenly from all.
        num_images: Images to take.
        seeds: Number of random weights of each architecture, from seed 0 on.
        model_args: Further arguments of models given by name, JSON.
        image_size_px: Side of the images that enter, px; by default what each model was made for.
    """

    models: Annotated[Positional[tuple[str, ...]], arg(metavar="MODEL")]
    images: Annotated[tuple[Path, ...], arg(metavar="FILE")]
    num_images: Annotated[int, arg(metavar="N")] = 16
    seeds: Annotated[int, arg(metavar="N")] = 3
    model_args: Annotated[JsonObject, arg(metavar="JSON")] = field(default_factory=dict)
    image_size_px: Annotated[int | None, arg(name="image-size", metavar="PX")] = None

    def __post_init__(self) -> None:
        for name in ("num_images", "seeds"):
            if getattr(self, name) < 1:
                raise ParameterError(f"`{name}` is {getattr(self, name)}; it must be at least 1")

    def open(self) -> tuple[list[Subject], Pictures]:
        """Understands the models and reads the images, before long work.

        Raises:
            EvaluationError: A model is not one.
            DataError: An image cannot be read.
        """
        subjects = [find_subject(given, self.model_args) for given in self.models]
        check_labels(subjects)
        return subjects, read_pictures(self.images, self.num_images)

    @property
    def size(self) -> dict[str, Any]:
        """What models are told of the images' size."""
        return {} if self.image_size_px is None else {"img_size": self.image_size_px}
