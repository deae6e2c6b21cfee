"""AnnData → HDF5, in a form that every anndata since 0.8 reads, and without what anndata says of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import h5py

from .extras import require


@contextmanager
def quiet_anndata() -> Iterator[None]:
    """Silences anndata's warnings about files that are checked here."""
    with warnings.catch_warnings():
        # it warns of older file versions and of names that it would rather have different
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def write_anndata(file: h5py.File, data: Any) -> None:
    """Writes an AnnData into an empty, open HDF5 file, in a form that every anndata since 0.8 reads.

    pandas 3 gives strings a type of their own, which anndata from 0.11 on stores as ``nullable-string-array``, a form
    that older releases refuse; the same strings as objects become ``string-array``. So in the frames of ``data`` (obs,
    var, obsm, varm, uns) strings become objects, and texts of obs and var categories.
    """
    try:
        from anndata.io import write_elem
    except ImportError:  # before 0.11
        from anndata.experimental import write_elem
    with quiet_anndata():
        # as writing does by itself, but before the categories, too, become objects
        data.strings_to_categoricals()
        for frame in _frames([data.obs, data.var, data.obsm, data.varm, data.uns]):
            _turn_strings_into_objects(frame)
        write_elem(file, "/", data)
    if data.raw is None and "raw" in file:
        # written as nothing, which older releases do not know
        del file["raw"]


def _frames(values: Iterable[Any]) -> Iterator[Any]:
    """Yields the data frames among values and in the mappings among them."""
    for value in values:
        if isinstance(value, Mapping):
            yield from _frames(value.values())
        elif isinstance(value, require("pandas").DataFrame):
            yield value


def _turn_strings_into_objects(frame: Any) -> None:
    pandas = require("pandas")

    def is_string(values: Any) -> bool:
        return isinstance(values.dtype, pandas.StringDtype)

    if is_string(frame.index):
        frame.index = frame.index.astype(object)
    for name, column in frame.items():
        if is_string(column):
            frame[name] = column.astype(object)
        elif isinstance(column.dtype, pandas.CategoricalDtype) and is_string(column.cat.categories):
            frame[name] = column.cat.rename_categories(column.cat.categories.astype(object))
