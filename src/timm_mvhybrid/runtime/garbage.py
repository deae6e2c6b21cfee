"""Python's garbage collection, while large packages are imported."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Iterator[None]:
    """Collects no garbage within the block.

    Importing torch and timm makes a million objects that stay, and the collector would look at them again and again: about
    a fifth of the time. Afterwards it works as before, or does not, if it did not.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
