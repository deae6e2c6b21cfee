"""Where pixels come from: one small protocol for slides, folders, tars and h5 files.

slide | folder of images | tars | patch h5 | coordinate h5 + slide → patches (uint8 RGB) with their coordinates

``open_source`` recognises the kind; ``open_samples`` joins several by a manifest; ``tile_slides`` cuts slides into
patch h5 files. The slide libraries are imported when a slide is opened, never before.
"""

from ..runtime.errors import DataError, PatchError, SlideChoiceError
from .coordinate_h5 import CoordinateH5Source, Edge
from .csv_table import read_csv
from .folder import FolderSource
from .manifest import SourceEntry, open_samples, read_manifest
from .patch_h5 import PatchH5Source
from .plain_image import open_slide
from .samples import Samples
from .slide import Slide
from .slide_list import SlideInput, list_slides
from .slide_source import SlideSource
from .source import PatchSource, open_source, source_digest
from .tar import TarSource
from .tile_store import TiledSlide, TilingSummary, slides_by_name, tile_slides
from .tissue import TilingOptions

__all__ = [
    "CoordinateH5Source",
    "DataError",
    "Edge",
    "FolderSource",
    "PatchError",
    "PatchH5Source",
    "PatchSource",
    "Samples",
    "Slide",
    "SlideChoiceError",
    "SlideInput",
    "SlideSource",
    "SourceEntry",
    "TarSource",
    "TiledSlide",
    "TilingOptions",
    "TilingSummary",
    "list_slides",
    "open_samples",
    "open_slide",
    "open_source",
    "read_csv",
    "read_manifest",
    "slides_by_name",
    "source_digest",
    "tile_slides",
]
