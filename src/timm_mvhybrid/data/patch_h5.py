"""Patch h5: HEST's ``img``, ``coords``, ``barcode`` or CLAM's older ``imgs``, ``coords`` → patches in file order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import DataError, PatchError
from .h5_file import H5File, attributes, find_dataset, number, read_barcodes, read_coords


class PatchH5Source:
    """Patches stored as pixels in an h5 file.

    HEST writes ``img`` (N, H, W, 3) uint8, ``coords`` (N, 2) at level 0 and ``barcode`` (N, 1); CLAM's older versions
    write ``imgs``, and ``coords`` in pixels of the level the patches were cut from, which become level-0 pixels here by
    their attributes ``downsample``, ``level_dim`` and ``downsampled_level_dim``.

    Args:
        path: The file.

    Raises:
        DataError: If datasets are missing, empty or of the wrong shape or type, or a barcode occurs twice.
    """

    paths = None

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = H5File(path)
        images = find_dataset(self._file, "img", "imgs")
        if images is None:
            raise DataError(f"{self.path}: no dataset 'img' or 'imgs'")
        self._dataset = images.name.lstrip("/")
        where = f"{self.path}: dataset '{self._dataset}'"
        if images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"{where} must have the shape (N, H, W, 3), not {images.shape}")
        if images.dtype != np.uint8:
            raise DataError(f"{where} must be uint8, not {images.dtype}")
        if len(images) == 0:
            raise DataError(f"{where} is empty")
        self._length, height, width = images.shape[:3]
        self.patch_size_px: int | None = height if height == width else None
        coords = find_dataset(self._file, "coords")
        barcodes = find_dataset(self._file, "barcode", "barcodes")
        values = attributes(self._file, images, coords)
        self.coords: NDArray[np.int64] | None = None
        if coords is not None:
            self.coords = read_coords(self._file, coords, self._length)
            if self._dataset == "imgs":
                factor = number(self._file, values, "downsample") or 1.0
                full, reduced = values.get("level_dim"), values.get("downsampled_level_dim")
                if full is not None and reduced is not None:
                    factor *= round(float(np.ravel(full)[0]) / float(np.ravel(reduced)[0]))
                self.coords = np.round(self.coords * factor).astype(np.int64)
        self.barcodes: list[str] | None = None
        if barcodes is not None:
            self.barcodes = read_barcodes(self._file, barcodes, self._length)
        # HEST states the source's pixel size and how much coarser the patches are
        pixel_size = number(self._file, values, "pixel_size")
        downsample = number(self._file, values, "downsample")
        self.resolution_um_per_px: float | None = None
        if pixel_size is not None and downsample is not None:
            self.resolution_um_per_px = pixel_size * downsample
        self.patch_size_level0: float | None = None
        if self._dataset == "img" and self.patch_size_px is not None and downsample is not None:
            self.patch_size_level0 = self.patch_size_px * downsample
        self._file.close()

    def __len__(self) -> int:
        """Returns the number of patches."""
        return int(self._length)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        """Reads one patch, (H, W, 3) uint8 RGB, or raises ``PatchError`` if the file is damaged there."""
        try:
            patch: NDArray[np.uint8] = self._file.handle[self._dataset][index]
        except (OSError, KeyError, RuntimeError) as error:
            raise PatchError(f"{self.name(index)}: unreadable ({error})") from error
        return patch

    def name(self, index: int) -> str:
        """Names one patch for messages, by the file, its index and, where known, its barcode."""
        barcode = f" ({self.barcodes[index]})" if self.barcodes is not None else ""
        return f"{self.path} patch {index}{barcode}"

    def close(self) -> None:
        """Closes the file; the next read opens it again."""
        self._file.close()
