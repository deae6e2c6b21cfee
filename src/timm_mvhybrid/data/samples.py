"""Several sources as one: index over all → patch, its name, and a fingerprint of the whole."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..runtime.errors import DataError
from .coordinate_h5 import CoordinateH5Source
from .remote_path import size_of
from .slide_source import SlidePatches
from .source import PatchSource

# each open h5 file costs a descriptor, of which systems grant 1024; slides cost more of them, and memory
_MAX_OPEN_FILES = 256
_MAX_OPEN_SLIDES = 32


@dataclass(frozen=True, kw_only=True)
class CorruptSample:
    """A sample that could not be read and was replaced.

    Args:
        index: Of the sample, over all sources.
        name: Its file and its place there.
        message: Why it could not be read.
    """

    index: int
    name: str
    message: str


class Samples:
    """Sources one after the other, each with a weight.

    The least recently used of the open sources are closed, so that samples can be drawn at random from thousands of
    files.

    Args:
        sources: The sources.
        weights: How often a sample of each source is drawn, relative to samples of weight 1; 1 by default.
        names: What messages and the fingerprint call the sources; the last part of their paths by default.

    Raises:
        DataError: If there is no source, or a weight is not above 0.
    """

    def __init__(
        self,
        sources: Sequence[PatchSource],
        *,
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if not sources:
            raise DataError("there is no source to draw samples from")
        self.sources = tuple(sources)
        self.weights = tuple(map(float, weights)) if weights is not None else (1.0,) * len(self.sources)
        self.names = tuple(names) if names is not None else tuple(source.path.name for source in self.sources)
        if len(self.weights) != len(self.sources) or len(self.names) != len(self.sources):
            raise DataError(
                f"{len(self.sources)} sources need as many weights and names, "
                f"not {len(self.weights)} and {len(self.names)}"
            )
        for name, weight in zip(self.names, self.weights, strict=True):
            if not 0 < weight < float("inf"):
                raise DataError(f"{name}: the weight must be a number above 0, not {weight}")
        self.sizes = tuple(len(source) for source in self.sources)
        self._ends: NDArray[np.int64] = np.cumsum(self.sizes)
        self._open_files: OrderedDict[int, None] = OrderedDict()
        self._open_slides: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        """Returns the number of samples of all sources."""
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Finds the number of a sample's source, and its index there; raises IndexError outside of all."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        return number, index - int(self._ends[number]) + self.sizes[number]

    def __getitem__(self, index: int) -> Image.Image | NDArray[np.uint8]:
        """Reads one sample, as an RGB image or as (H, W, 3) uint8."""
        number, inner = self.locate(index)
        self._keep_open(number)
        return self.sources[number][inner]

    def name(self, index: int) -> str:
        """Names one sample for messages, by its file and its place there."""
        number, inner = self.locate(index)
        return self.sources[number].name(inner)

    def close(self) -> None:
        """Closes every source; the next read opens it again."""
        for source in self.sources:
            source.close()
        self._open_files.clear()
        self._open_slides.clear()

    def _keep_open(self, number: int) -> None:
        """Marks a source as the one used last, and closes the ones used longest ago."""
        is_slide = isinstance(self.sources[number], SlidePatches)
        opened = self._open_slides if is_slide else self._open_files
        limit = _MAX_OPEN_SLIDES if is_slide else _MAX_OPEN_FILES
        opened[number] = None
        opened.move_to_end(number)
        while len(opened) > limit:
            oldest, _ = opened.popitem(last=False)
            self.sources[oldest].close()

    def fingerprint(self) -> str:
        """Identifies the samples, their order and their weights, for a resumed run to compare; 32 hexadecimal digits.

        Names, numbers, coordinates, barcodes and file sizes count; pixels and the folders of the sources do not, so
        that data may be moved, and nothing large is read.
        """
        found = hashlib.sha256()
        for source, name, weight in zip(self.sources, self.names, self.weights, strict=True):
            facts = {
                "kind": type(source).__name__,
                "name": name,
                "weight": weight,
                "length": len(source),
                "bytes": size_of(source.path),
                "resolution": source.resolution_um_per_px,
                "patch_size": source.patch_size_px,
            }
            if isinstance(source, CoordinateH5Source):
                facts["edge"] = source.edge
            found.update(json.dumps(facts, sort_keys=True).encode())
            if source.coords is not None:
                found.update(np.ascontiguousarray(source.coords).tobytes())
            for texts in (source.barcodes, source.paths):
                found.update("\0".join(texts or ()).encode("utf-8", "surrogateescape"))
        return found.hexdigest()[:32]
