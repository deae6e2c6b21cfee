"""What names the slides of a cohort → the slides: files, folders, patterns, URLs, coordinate h5, or a table of them."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import DataError
from ..runtime.urls import without_credentials
from .csv_table import read_csv
from .dicom import dicom_series, is_dicom
from .level_image import ZARR_SUFFIX
from .remote_path import AnyPath, RemotePath, as_path, ask_together, is_url
from .slide import SLIDE_FOLDER_SUFFIXES, SLIDE_SUFFIXES, is_slide_folder
from .source import H5_SUFFIXES
from .streamed import check_streamed
from .tar import TAR_SUFFIX

_TABLE_SUFFIX = ".csv"
_COLUMNS = ("slide", "path", "um_per_px", "coords", "slide_id")
# TRIDENT's ending of coordinate files
_COORDINATES = "_patches"


@dataclass(frozen=True, kw_only=True)
class SlideInput:
    """One slide of a cohort, before it is opened.

    Attributes:
        slide_id: Names it and its outputs; a file name without separators.
        path: The slide, or a file of patches or coordinates, whose kind its content says; a tar or a zarr store may be on
            another machine.
        coords: A coordinate h5 of the slide; None cuts it, or takes the patches of the file.
        um_per_px: Resolution of the slide's largest level in µm/px; None takes what the slide states.
    """

    slide_id: str
    path: AnyPath
    coords: Path | None = None
    um_per_px: float | None = None


def list_slides(inputs: Sequence[str | AnyPath]) -> list[SlideInput]:
    """Lists the slides that a user names, each once.

    Args:
        inputs: Slides, patch h5 or coordinate h5 files; folders, of which the slides and h5 files directly in them are
            taken, unless a folder is a slide itself (DICOM, OME-Zarr); patterns such as ``slides/**/*.svs``; or CSV tables with a column ``slide`` and, where wanted,
            ``path``, ``um_per_px``, ``coords`` and ``slide_id``. Relative paths of a table begin at its folder. The id is
            the file's name without suffix, of coordinate files without TRIDENT's ``_patches``, unless a table states it.
            Tars and zarr stores, also those of a table, may be URLs such as ``s3://bucket/slide.zarr``; so may folders of
            them and patterns, except on web servers, which list no files.

    Returns:
        The slides, in the order given; those of a folder or pattern sorted by path.

    Raises:
        DataError: Something does not exist, or names no slide, cannot be streamed, or two different slides have one id.
        MissingPackageError: What reads from other machines is not installed.
        RemoteError: Another machine does not answer.
    """
    if not inputs:
        raise DataError("no slide given")
    found: dict[str, tuple[SlideInput, str]] = {}
    for one in inputs:
        given = without_credentials(str(one))
        for slide in _slides_at(as_path(one)) if is_url(one) else _slides_of(str(one)):
            _check_id(slide, given)
            # names of files that differ in case alone are one name on some systems
            key = slide.slide_id.casefold()
            other, where = found.setdefault(key, (slide, given))
            if other is not slide and not _is_same(other, slide):
                raise DataError(
                    f"{_named(other, where)} and {_named(slide, given)} would both become {slide.slide_id}.h5; give one of "
                    "them another name in the column 'slide_id' of a CSV, or embed them into different folders"
                )
    slides = [slide for slide, _ in found.values()]
    ask_together(check_streamed, [slide.path for slide in slides if isinstance(slide.path, RemotePath)])
    return slides


def _slides_at(path: AnyPath) -> Iterator[SlideInput]:
    """Lists the slides of a URL: a tar or store, or a folder or pattern of them."""
    assert isinstance(path, RemotePath)
    streamed = (TAR_SUFFIX, ZARR_SUFFIX)
    is_pattern = glob.has_magic(str(path))
    if is_pattern and path.is_web:
        raise DataError(f"{path}: a web server lists no files; name each in a CSV with the column 'slide'")
    if is_pattern:
        files = [file for file in path.glob_itself() if file.suffix.lower() in streamed]
    elif path.suffix.lower() not in streamed and path.is_dir() and not is_slide_folder(path):
        files = [file for file in path.iterdir() if file.suffix.lower() in streamed]
    else:
        files = [path]
    if not files:
        raise DataError(
            f"{path}: names no tar ({TAR_SUFFIX}) and no zarr store ({ZARR_SUFFIX}), which are what can be streamed"
        )
    for file in files:
        yield SlideInput(slide_id=_id_of(file), path=file)


def _slides_of(given: str) -> Iterator[SlideInput]:
    path = Path(given)
    if is_slide_folder(path):
        yield SlideInput(slide_id=_id_of(path), path=path)
    elif path.is_dir():
        yield from _slides_in(path)
    elif path.suffix.lower() == _TABLE_SUFFIX:
        yield from _slides_of_table(path)
    elif path.exists():
        yield SlideInput(slide_id=_id_of(path), path=path)
    elif glob.has_magic(given):
        matched = sorted(map(Path, glob.glob(given, recursive=True)))
        files = [file for file in matched if file.is_file() or is_slide_folder(file)]
        if not files:
            raise DataError(f"{given}: no file matches this pattern; check it with 'ls'")
        yield from _each_once(files)
    else:
        raise DataError(f"{given}: there is no such file or folder; give slides, folders, patterns or a CSV")


def slides_directly_in(folder: Path) -> list[SlideInput]:
    """Lists the slides that lie directly in a folder, folders of DICOM and OME-Zarr among them; none is no error."""
    files = [
        file
        for file in sorted(folder.iterdir())
        if not file.name.startswith(".")
        and (is_slide_folder(file) if file.is_dir() else file.suffix.lower() in SLIDE_SUFFIXES)
    ]
    return list(_each_once(files))


def _slides_in(folder: Path) -> Iterator[SlideInput]:
    suffixes = (*SLIDE_SUFFIXES, *H5_SUFFIXES)
    files = sorted(
        file
        for file in folder.iterdir()
        if not file.name.startswith(".")
        and (is_slide_folder(file) if file.is_dir() else file.suffix.lower() in suffixes)
    )
    if not files:
        raise DataError(
            f"{folder}: holds no slide ({' '.join(SLIDE_SUFFIXES)}) and no h5 file; give a pattern such as "
            f"'{folder}/**/*{SLIDE_SUFFIXES[0]}' where they lie deeper"
        )
    yield from _each_once(files)


def _each_once(files: Sequence[Path]) -> Iterator[SlideInput]:
    """Takes the files of a slide of DICOM for one slide, named by its series, and every other file for its own."""
    series = dicom_series(file for file in files if not file.is_dir() and is_dicom(file))
    names = {file: name for name, members in series.items() if name and len(members) > 1 for file in members}
    for file in files:
        if file not in names:
            yield SlideInput(slide_id=_id_of(file), path=file)
        elif file == series[names[file]][0]:
            yield SlideInput(slide_id=names[file], path=file)


def _slides_of_table(table: Path) -> Iterator[SlideInput]:
    rows = read_csv(table, ("slide",))
    if not rows:
        raise DataError(f"{table}: names no slide")
    unknown = [name for name in rows[0] if name not in _COLUMNS]
    # a misspelt column would be left out in silence
    if unknown:
        raise DataError(f"{table}: has the column '{unknown[0]}'; known are {', '.join(_COLUMNS)}")
    for row in rows:
        name = row["slide"]
        named = row.get("path") or name
        path = as_path(named) if is_url(named) else table.parent / named
        if is_url(row.get("coords")):
            raise DataError(
                f"{table}: slide '{without_credentials(name)}': coordinates cannot be streamed; download "
                f"{without_credentials(row['coords'])} first, and give the copy"
            )
        coords = table.parent / row["coords"] if row.get("coords") else None
        for file in (path, coords):
            # those on other machines are asked for together, later
            if isinstance(file, Path) and not file.exists():
                raise DataError(
                    f"{table}: slide '{name}': {file} does not exist; paths begin at the table's folder"
                )
        yield SlideInput(
            slide_id=row.get("slide_id") or _id_of(as_path(name)),
            path=path,
            coords=coords,
            um_per_px=_resolution(table, without_credentials(name), row.get("um_per_px", "")),
        )


def _resolution(table: Path, name: str, text: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise DataError(
            f"{table}: slide '{name}': um_per_px is '{text}'; it must be above 0, or empty for the slide's own"
        )
    return value


def _id_of(path: AnyPath) -> str:
    """Takes the suffix off; that of a bare name, such as ``case 1.2``, is part of it."""
    suffix = path.suffix.lower()
    if isinstance(path, RemotePath):
        return path.stem if suffix in (TAR_SUFFIX, ZARR_SUFFIX) else path.name
    if suffix in H5_SUFFIXES:
        return path.stem.removesuffix(_COORDINATES) or path.stem
    known = suffix in (*SLIDE_SUFFIXES, *SLIDE_FOLDER_SUFFIXES)
    return path.stem if known or (path.exists() and not path.is_dir()) else path.name


def _check_id(slide: SlideInput, given: str) -> None:
    name = slide.slide_id
    if not name.strip() or name.startswith(".") or any(c in "/\\:\0" or not c.isprintable() for c in name):
        raise DataError(
            f"{given}: the id '{name}' of {slide.path} cannot name a file; give another in the column 'slide_id' of a CSV"
        )


def _is_same(one: SlideInput, other: SlideInput) -> bool:
    """Says whether a slide was given twice, as by a folder and by its name."""

    def facts(slide: SlideInput) -> tuple[object, ...]:
        coords = None if slide.coords is None else slide.coords.resolve()
        return slide.slide_id, slide.path.resolve(), coords, slide.um_per_px

    return facts(one) == facts(other)


def _named(slide: SlideInput, given: str) -> str:
    return f"{slide.path} ({given})" if given != str(slide.path) else given
