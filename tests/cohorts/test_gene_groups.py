"""Which group a gene is of, from a column of var in the samples' h5ad files."""

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

from timm_mvhybrid.cohorts.gene_groups import MOST_GROUPS, read_gene_groups
from timm_mvhybrid.data import DataError


def h5ad(path, genes, **columns):
    data = anndata.AnnData(
        np.ones((2, len(genes)), np.float32),
        var=pd.DataFrame(columns, index=list(genes)),
        obs=pd.DataFrame(index=["a", "b"]),
    )
    data.write_h5ad(path)
    return path


def test_groups_are_those_of_all_files_in_the_order_of_the_first(tmp_path):
    first = h5ad(
        tmp_path / "1.h5ad", "CBA", kind=pd.Categorical(["z", "y", None], categories=["y", "z", "unused"])
    )
    second = h5ad(tmp_path / "2.h5ad", "ABD", kind=["x", "y", " "])
    assert read_gene_groups([first, second], "kind") == {"C": "z", "B": "y", "A": "x"}
    assert list(read_gene_groups([first, second], "kind")) == ["C", "B", "A"]


def test_numbers_are_groups_too(tmp_path):
    assert read_gene_groups([h5ad(tmp_path / "1.h5ad", "AB", module=[1, 2])], "module") == {
        "A": "1",
        "B": "2",
    }


def test_band_is_taken_where_every_file_has_it(tmp_path):
    first = h5ad(tmp_path / "1.h5ad", "AB", band=["low", "high"])
    without = h5ad(tmp_path / "2.h5ad", "AB", other=["low", "high"])
    assert read_gene_groups([first], None) == {"A": "low", "B": "high"}
    assert read_gene_groups([first, without], None) == {}
    many = [f"G{index}" for index in range(MOST_GROUPS + 1)]
    cytogenetic = h5ad(tmp_path / "3.h5ad", many, band=[f"1p{index}" for index in range(len(many))])
    assert read_gene_groups([cytogenetic], None) == {}
    with pytest.raises(
        DataError, match=r"3\.h5ad: var\['band'\] has 25 groups, more than the 24 that can be shown"
    ):
        read_gene_groups([cytogenetic], "band")


def test_what_is_wrong_is_named(tmp_path):
    first = h5ad(tmp_path / "1.h5ad", "AB", kind=["x", "y"])
    second = h5ad(tmp_path / "2.h5ad", "AB", kind=["x", "z"])
    with pytest.raises(DataError, match=r"2\.h5ad: gene 'B' has 'z' in var\['kind'\], and 'y' in 1\.h5ad"):
        read_gene_groups([first, second], "kind")
    with pytest.raises(DataError, match=r"1\.h5ad: var has no column 'sort'; it has kind"):
        read_gene_groups([first], "sort")
    with pytest.raises(DataError, match=r"holds no group of any gene; name another column"):
        read_gene_groups([h5ad(tmp_path / "3.h5ad", "AB", kind=["", None])], "kind")
    (tmp_path / "4.h5ad").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"4\.h5ad: cannot be read as an h5ad file"):
        read_gene_groups([tmp_path / "4.h5ad"], "kind")


def test_files_are_closed_again(tmp_path):
    file = h5ad(tmp_path / "1.h5ad", "AB", kind=["x", "y"])
    read_gene_groups([file], "kind")
    # HDF5 refuses to open a file for writing that is still open for reading
    with h5py.File(file, "r+") as opened:
        opened.attrs["written"] = True
    with h5py.File(file) as opened:
        assert opened.attrs["written"]
    assert read_gene_groups([file], "kind") == {"A": "x", "B": "y"}
