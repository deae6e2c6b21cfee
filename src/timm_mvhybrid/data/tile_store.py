"""Slides → a patch store: one patch h5 per slide, thumbnails with the tiles drawn, a manifest and a log."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..runtime.atomic_file import claimed, make_folder, write_file
from ..runtime.errors import DataError, OutputError, TimmMVHybridError, check_space
from ..runtime.h5_output import H5Output
from ..runtime.line_file import LineFile
from ..version import __version__
from .h5_file import H5File
from .image_dataset import write_images
from .patch_h5 import PatchH5Source
from .slide_files import slide_fingerprint
from .slide_source import SlideSource
from .tile_drawing import tint_tiles
from .tissue import TilingOptions

Compression = Literal["none", "lzf", "gzip"]


def tile_file_matches(path: Path, slide: Path, options: TilingOptions) -> int:
    """Returns how many patches a file holds; raises DataError unless it was cut from the slide, with the options."""
    remedy = "choose another `output`, or cut it again with `overwrite=True`"
    file = H5File(path)
    try:
        stated = file.handle.attrs.get("tiling")
        fingerprint = file.handle.attrs.get("slide_fingerprint")
    finally:
        file.close()
    if not isinstance(stated, str) or fingerprint is None:
        raise DataError(f"{path}: exists and was not written by 'tile'; {remedy}")
    written, wanted = json.loads(stated), dataclasses.asdict(options)
    different = [
        f"`{name}={written.get(name)!r}` instead of {value!r}"
        for name, value in wanted.items()
        if written.get(name) != value
    ]
    if different:
        raise DataError(f"{path}: was cut with {', '.join(different)}; {remedy}")
    if fingerprint != slide_fingerprint(slide):
        raise DataError(f"{path}: was cut from another file than {slide}; {remedy}")
    source = PatchH5Source(path)
    source.close()
    return len(source)


def write_tile_file(
    source: SlideSource, path: Path, options: TilingOptions, compression: Compression = "none"
) -> None:
    """Cuts a slide into a patch h5 in HEST's layout.

    ``img`` (N, H, W, 3) uint8 holds one patch per chunk, so that any patch is read by itself, and ``coords`` (N, 2)
    int64 the top-left corners in level-0 pixels. The attributes of ``img`` are HEST's: ``patch_size_src`` in level-0
    pixels, ``patch_size_target``, ``downsample`` and ``pixel_size`` in µm per level-0 pixel. Without compression a file
    is read ten times faster than with "gzip" and is about twice as large; "lzf" is in between.

    Raises:
        PatchError: If a region of the slide is unreadable.
        OutputError: If the disk does not take the file; without compression that is known before a patch is cut.
    """
    native = source.slide.resolution_um_per_px
    side = source.patch_size_px
    if compression == "none":
        check_space(path, len(source) * side * side * 3)
    with H5Output(path) as output:
        images = write_images(
            output.file,
            source,
            (side, side),
            compression=None if compression == "none" else compression,
            check=output.check,
        )
        images.attrs.update(
            {
                "patch_size_src": source.patch_size_level0,
                "patch_size_target": side,
                "downsample": source.patch_size_level0 / side,
                "pixel_size": native,
            }
        )
        output.file["coords"] = source.coords
        output.file.attrs.update(
            {
                "tiling": json.dumps(dataclasses.asdict(options)),
                "slide": source.path.name,
                "slide_fingerprint": slide_fingerprint(source.path),
                "timm_mvhybrid": __version__,
            }
        )
        output.finish()


def write_thumbnail(source: SlideSource, path: Path, size_px: int) -> None:
    """Draws the slide with its tiles tinted, ``size_px`` on its longer side, as a PNG."""
    downsample = max(max(source.slide.dimensions) / size_px, 1.0)
    picture = Image.fromarray(source.slide.thumbnail(downsample))
    tint_tiles(picture, source.coords, source.patch_size_level0, source.slide.dimensions)
    content = io.BytesIO()
    picture.save(content, "PNG")
    write_file(path, content.getvalue())
    source.close()


MANIFEST_NAME = "manifest.json"
LOG_NAME = "tiling.jsonl"
THUMBNAIL_FOLDER = "thumbnails"


@dataclass(frozen=True, kw_only=True)
class TiledSlide:
    """The outcome for one slide.

    Attributes:
        slide: The slide.
        output: Its patch h5.
        status: "tiled" now, "kept" from an earlier run with the same options, or "failed".
        num_patches: Patches in the file; 0 if it failed.
        seconds: Time it took.
        message: Why it failed, or the warnings; empty otherwise.
    """

    slide: Path
    output: Path
    status: Literal["tiled", "kept", "failed"]
    num_patches: int
    seconds: float
    message: str


@dataclass(frozen=True, kw_only=True)
class TilingSummary:
    """What a run of ``tile_slides`` did.

    Attributes:
        manifest: The store's manifest, for pretraining.
        slides: One entry a slide, in the order they were given.
    """

    manifest: Path
    slides: tuple[TiledSlide, ...]

    @property
    def failed(self) -> tuple[TiledSlide, ...]:
        """The slides that failed."""
        return tuple(slide for slide in self.slides if slide.status == "failed")

    @property
    def num_patches(self) -> int:
        """Patches of all slides together."""
        return sum(slide.num_patches for slide in self.slides)


def tile_slides(
    slides: Sequence[str | Path],
    output: str | Path,
    options: TilingOptions | None = None,
    *,
    compression: Compression = "none",
    thumbnail_size_px: int = 1024,
    num_workers: int = 0,
    overwrite: bool = False,
    on_slide: Callable[[TiledSlide], None] | None = None,
) -> TilingSummary:
    """Cuts slides into a patch store that pretraining reads fast.

    The store holds ``SLIDE.h5`` for each slide, ``thumbnails/SLIDE.png`` with the tiles drawn, ``manifest.json`` (all
    slides of the store, also of earlier runs) and ``tiling.jsonl`` (one line a slide and run). Slides that an earlier
    run finished with the same options are kept, so an interrupted run continues where it stopped. A slide that fails is
    reported, and the others are still cut.

    Args:
        slides: The slides; their names without suffix must differ.
        output: Folder of the store; made if absent.
        options: Resolution, patch size, overlap and smallest fraction of tissue.
        compression: Of the pixels: "none", "lzf" or "gzip".
        thumbnail_size_px: Longer side of the thumbnails in pixels.
        num_workers: Processes, each with a slide of its own; 0 cuts in this one.
        overwrite: Cut existing files again.
        on_slide: Called after each slide, in the order they finish.

    Returns:
        The outcome for each slide; look at ``failed``.

    Raises:
        DataError: If no slide is given, or two have the same name.
        OutputError: If the store's folder, manifest or log cannot be written; a patch file that cannot be written fails
            its slide.
    """
    options = options or TilingOptions()
    folder = Path(output)
    outputs = {slide: folder / f"{name}.h5" for name, slide in slides_by_name(slides, ".h5").items()}
    tile = partial(
        _tile,
        options=options,
        compression=compression,
        thumbnail_size_px=thumbnail_size_px,
        overwrite=overwrite,
    )
    finished: dict[Path, TiledSlide] = {}
    make_folder(folder / THUMBNAIL_FOLDER)
    for result in _run(tile, outputs, num_workers):
        finished[result.slide] = result
        if result.status != "failed":
            _add_to_manifest(folder / MANIFEST_NAME, result.output)
        # on a full disk, what failed the slide is the error to report
        with suppress(OutputError) if result.status == "failed" else nullcontext():
            _log(folder / LOG_NAME, result)
        if on_slide is not None:
            on_slide(result)
    return TilingSummary(manifest=folder / MANIFEST_NAME, slides=tuple(finished[slide] for slide in outputs))


def slides_by_name(slides: Sequence[str | Path], suffix: str) -> dict[str, Path]:
    """Names slides without their suffixes, as their outputs in one folder are named.

    Args:
        slides: The slides.
        suffix: Of the outputs, for messages.

    Raises:
        DataError: There is no slide, or two have the same name.
    """
    if not slides:
        raise DataError("no slide given")
    named: dict[str, Path] = {}
    for slide in map(Path, slides):
        other = named.setdefault(slide.stem, slide)
        if other is not slide:
            raise DataError(
                f"{other} and {slide} would both become {slide.stem}{suffix}; write them into different folders"
            )
    return named


def _run(
    tile: Callable[[Path, Path], TiledSlide], outputs: dict[Path, Path], num_workers: int
) -> Iterator[TiledSlide]:
    if num_workers < 1:
        yield from starmap(tile, outputs.items())
        return
    # spawned, because a fork would inherit torch's threads and locks
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(outputs)), mp_context=context) as pool:
        futures = {pool.submit(tile, *paths): paths for paths in outputs.items()}
        try:
            for future in as_completed(futures):
                try:
                    yield future.result()
                except BrokenProcessPool:
                    message = "a worker process died (out of memory?); run again to continue"
                    yield _failed(*futures[future], 0.0, message)
        except BaseException:
            # an interrupted run must not cut the slides that are still waiting
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _failed(slide: Path, output: Path, seconds: float, message: str) -> TiledSlide:
    return TiledSlide(
        slide=slide, output=output, status="failed", num_patches=0, seconds=seconds, message=message
    )


def _tile(
    slide: Path,
    output: Path,
    *,
    options: TilingOptions,
    compression: Compression,
    thumbnail_size_px: int,
    overwrite: bool,
) -> TiledSlide:
    """Cuts one slide, or finds that it was cut before."""
    start = time.monotonic()
    status: Literal["tiled", "kept"] = "tiled"
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            if output.exists() and not overwrite:
                status, num_patches = "kept", tile_file_matches(output, slide, options)
            else:
                # another run may fill the same store, with other slides
                with claimed(output):
                    source = SlideSource(slide, options)
                    # the patch file comes last, because it is what says that the slide is done
                    picture = output.parent / THUMBNAIL_FOLDER / f"{slide.stem}.png"
                    write_thumbnail(source, picture, thumbnail_size_px)
                    write_tile_file(source, output, options, compression)
                    source.close()
                num_patches = len(source)
    except TimmMVHybridError as error:
        return _failed(slide, output, time.monotonic() - start, str(error))
    # from libraries that read foreign files
    except (ValueError, OSError, RuntimeError) as error:
        return _failed(slide, output, time.monotonic() - start, f"{slide}: {error}")
    return TiledSlide(
        slide=slide,
        output=output,
        status=status,
        num_patches=num_patches,
        seconds=time.monotonic() - start,
        message="; ".join(dict.fromkeys(str(item.message) for item in caught)),
    )


def _add_to_manifest(manifest: Path, patches: Path) -> None:
    """Adds a patch file to the manifest; existing entries, and those that other runs add meanwhile, stay."""
    with claimed(manifest, wait=True):
        content: dict[str, list[dict[str, Any]]] = {"sources": []}
        if manifest.exists():
            try:
                content = json.loads(manifest.read_text(encoding="utf-8"))
                paths = [entry["path"] for entry in content["sources"]]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(f"{manifest}: not a manifest ({error}); remove it, and tile again") from error
            if patches.name in paths:
                return
        content["sources"].append({"path": patches.name, "weight": 1.0})
        content["sources"].sort(key=lambda entry: entry["path"])
        write_file(manifest, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _log(path: Path, result: TiledSlide) -> None:
    line = {
        **dataclasses.asdict(result),
        "slide": str(result.slide),
        "output": result.output.name,
        "seconds": round(result.seconds, 3),
    }
    with LineFile(path) as file:
        file.write(json.dumps(line, ensure_ascii=False))
