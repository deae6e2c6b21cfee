"""Where pixels come from: one small protocol over slides, folders and h5 files.

slide | folder of images | patch h5 | coordinate h5 + slide → patches (uint8 RGB) with their coordinates

`open_source` tells the kinds apart. The slide libraries are imported when a slide is opened, never before.
"""

from .coordinate_h5 import CoordinateH5Source
from .errors import DataError, PatchError
from .folder import FolderSource
from .patch_h5 import PatchH5Source
from .slide import Slide, SlideSource
from .source import PatchSource, open_source
from .tissue import TilingOptions

__all__ = [
    "CoordinateH5Source",
    "DataError",
    "FolderSource",
    "PatchError",
    "PatchH5Source",
    "PatchSource",
    "Slide",
    "SlideSource",
    "TilingOptions",
    "open_source",
]
