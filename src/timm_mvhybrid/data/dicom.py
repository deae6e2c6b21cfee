"""Slides of DICOM, which are several files each: which files belong together."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

DICOM_SUFFIX = ".dcm"
_SIGNATURE_PLACE, _SIGNATURE = 128, b"DICM"


def is_dicom(path: Path) -> bool:
    """Whether a file is one of DICOM, by its content."""
    try:
        with path.open("rb") as stream:
            stream.seek(_SIGNATURE_PLACE)
            return stream.read(len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """Lists the DICOM files directly in a folder, sorted; by their content where they have no suffix."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in (DICOM_SUFFIX, "") and not file.name.startswith(".") and is_dicom(file)
    )


def dicom_series(files: Iterable[Path]) -> dict[str, list[Path]]:
    """Sorts DICOM files by slide.

    Args:
        files: Of any number of slides.

    Returns:
        SeriesInstanceUID → files; those of which it cannot be told, by pydicom or by OpenSlide, are under "".
    """
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(_series_of(file), []).append(file)
    return found


def _series_of(file: Path) -> str:
    for read in (_by_pydicom, _by_openslide):
        try:
            return read(file)
        # either may be missing, and each raises its own errors on what it does not read
        except Exception:
            continue
    return ""


def _by_pydicom(file: Path) -> str:
    import pydicom

    return str(
        pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
    )


def _by_openslide(file: Path) -> str:
    import openslide

    with openslide.OpenSlide(str(file)) as slide:
        return str(slide.properties["dicom.SeriesInstanceUID"])
