"""Slides → a patch store: one patch h5 per slide, thumbnails, a manifest and a log."""

from __future__ import annotations

import dataclasses
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

from ..runtime.atomic_file import write_file
from ..runtime.claim import claimed
from ..runtime.errors import DataError, OutputError, TimmMVHybridError, writing
from ..runtime.line_file import LineFile
from .slide_source import SlideSource
from .tile_file import Compression, tile_file_matches, write_thumbnail, write_tile_file
from .tissue import TilingOptions

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
    with writing(folder / THUMBNAIL_FOLDER):
        (folder / THUMBNAIL_FOLDER).mkdir(parents=True, exist_ok=True)
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
