"""Files, folders, slides → a few images, and each model's input of them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from ..data import TilingOptions, open_source
from ..data.folder import IMAGE_SUFFIXES, read_image
from ..data.source import source_digest
from ..runtime.digest import file_sha256
from ..runtime.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The images of an analysis.

    Attributes:
        names: Their names.
        images: RGB, in their own sizes.
        digests: File → SHA-256.
    """

    names: tuple[str, ...]
    images: tuple[Image.Image, ...]
    digests: dict[str, str]

    def input_of(self, model: Any, size_px: int | None = None) -> Tensor:
        """Prepares them for a model: resized to its input size, or to ``size_px``, and normalised as it wants."""
        config = resolve_data_config({}, model=model)
        if size_px is not None:
            config["input_size"] = (config["input_size"][0], size_px, size_px)
        transform = create_transform(**{**config, "crop_pct": 1.0})
        return torch.stack([transform(image) for image in self.images])


def read_pictures(paths: Sequence[Path], num_images: int) -> Pictures:
    """Reads images evenly from all that is given.

    Args:
        paths: Image files, folders of images, slides, patch h5, coordinate h5.
        num_images: How many to take, at least 1; fewer where there are fewer.

    Raises:
        DataError: A path cannot be read, or there is no image.
    """
    names: list[str] = []
    images: list[Image.Image] = []
    digests: dict[str, str] = {}
    for number, path in enumerate(paths):
        # the first ones take what does not divide
        wanted = num_images // len(paths) + (number < num_images % len(paths))
        if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES) and not _is_slide(path):
            found, total = [(path.name, read_image(path))], 1
            digests[path.name] = file_sha256(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                source: Any = open_source(path, tiling=TilingOptions())
            total = len(source)
            chosen = sorted({index * total // wanted for index in range(wanted)}) if wanted else []
            found = [(f"{path.name}:{index}", _rgb(source[index])) for index in chosen]
            digests[path.name] = source_digest(source)
            source.close()
        for name, image in found[: max(wanted, 0)]:
            names.append(name)
            images.append(image)
    if not images:
        raise DataError(f"{', '.join(map(str, paths))}: no image was taken; give images, a folder or a slide")
    return Pictures(names=tuple(names), images=tuple(images), digests=digests)


def _is_slide(path: Path) -> bool:
    """Whether a TIFF is a whole slide, which is cut into patches, not read as one image."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        open_source(path)
    except DataError:
        return False
    return True


def _rgb(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else Image.fromarray(image)
