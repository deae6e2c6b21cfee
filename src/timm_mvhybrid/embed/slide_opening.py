"""One slide of a cohort: found, told from what it was before, and cut; done by readers, so that no device waits for it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..data import CoordinateH5Source, Edge, PatchSource, SlideInput, TilingOptions, open_source
from ..data.remote_path import AnyPath
from ..data.slide_files import slide_fingerprint, slide_stamp
from ..runtime.errors import NoResolutionError, NoTissueError, TimmMVHybridError, one_sentence
from ..runtime.urls import without_credentials


@dataclass(frozen=True, kw_only=True)
class SlideOpening:
    """What a reader is asked.

    Attributes:
        slide: The slide.
        tiling: How it is cut.
        place: Of a coordinate h5 that is given alone: its slide, or the folder of slides; None looks beside it.
        edge: As for ``open_source``.
        known: Digests ``slide`` and ``coords`` of what is embedded already; empty asks for the slide in any case.
    """

    slide: SlideInput
    tiling: TilingOptions
    place: Path | None = None
    edge: Edge = "auto"
    known: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class OpenedSlide:
    """What a reader found.

    Attributes:
        state: "open", "unchanged" if it is what is known, "empty" without tissue, or "failed".
        source: Its patches; None unless it is open.
        path: The slide, absolute.
        coords: The coordinate h5, absolute; empty without one.
        digests: Fingerprints ``slide`` and, with a coordinate h5, ``coords``.
        stamp: As in ``SlideRecord``.
        error: Why it is not open.
        warnings: What was noticed.
    """

    state: Literal["open", "unchanged", "empty", "failed"]
    source: PatchSource | None = None
    path: str
    coords: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    stamp: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()


def stamp_of(path: AnyPath, coords: AnyPath | None) -> str:
    """Notes sizes and times of change of a slide and its coordinates, see ``slide_stamp``; empty where one has none.

    Raises:
        RemoteError: Another machine does not answer.
    """
    parts = [slide_stamp(file) for file in (path, coords) if file is not None]
    return ", ".join(parts) if all(parts) else ""


def open_slide_of_cohort(asked: SlideOpening) -> OpenedSlide:
    """Opens a slide, unless it is what is known already; whatever goes wrong is part of the answer."""
    slide = asked.slide
    first = slide.path if slide.coords is None else slide.coords
    path, coords = str(slide.path.absolute()), "" if slide.coords is None else str(slide.coords.absolute())
    digests: dict[str, str] = {}
    stamp = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        source: PatchSource | None = None
        state: Literal["open", "unchanged", "empty", "failed"] = "open"
        error = ""
        try:
            # before the content is read, so that a change meanwhile is noticed by the next run
            stamp = stamp_of(slide.path, slide.coords)
            digests["slide" if slide.coords is None else "coords"] = slide_fingerprint(first)
            if digests == asked.known:
                # without coordinates that is all, and looking for tissue takes long
                state = "unchanged"
            else:
                place = asked.place if slide.coords is None else slide.path
                source = open_source(first, tiling=asked.tiling, slide=place, edge=asked.edge)
                if isinstance(source, CoordinateH5Source):
                    path, coords = str(source.slide.path.absolute()), str(first.absolute())
                    stamp = stamp_of(source.slide.path, first)
                    digests = {
                        "slide": slide_fingerprint(source.slide.path),
                        "coords": slide_fingerprint(first),
                    }
                if digests == asked.known:
                    state, source = "unchanged", None
        except NoTissueError as empty:
            state, error = "empty", one_sentence(empty)
        except NoResolutionError as missing:
            # the option is for all slides
            state = "failed"
            error = f"{one_sentence(missing)}, or for this slide alone in the column 'um_per_px' of a CSV"
        except (TimmMVHybridError, OSError) as known:
            state, error = "failed", one_sentence(known)
        # libraries raise whatever they meet in a damaged file
        except Exception as unknown:
            reason = " ".join(str(unknown).split())
            state = "failed"
            error = f"{slide.path}: cannot be read ({type(unknown).__name__}: {without_credentials(reason)}); open it in a viewer, or copy it anew"
    return OpenedSlide(
        state=state,
        source=source,
        path=path,
        coords=coords,
        digests=digests,
        stamp=stamp,
        error=error,
        warnings=tuple(dict.fromkeys(" ".join(str(one.message).split()) for one in caught)),
    )
