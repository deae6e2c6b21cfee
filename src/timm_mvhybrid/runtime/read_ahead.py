"""An iterator whose next item is made in a thread while the present one is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

_T = TypeVar("_T")
_END: Any = object()


def read_ahead(items: Iterable[_T]) -> Iterator[_T]:
    """Yields the items in their order, one of them made in advance.

    Worth it where making one leaves the interpreter to others, as reading and unpacking by HDF5 does. An error is raised
    where its item would have been. Two items are held at a time.

    Args:
        items: Used by one thread at a time, not always the same one.
    """
    iterator = iter(items)

    def following() -> _T:
        return cast(_T, next(iterator, _END))

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(following)
        while (item := coming.result()) is not _END:
            coming = pool.submit(following)
            yield item
