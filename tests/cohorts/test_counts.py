import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from timm_mvhybrid.cohorts.counts import read_counts
from timm_mvhybrid.data import DataError
from timm_mvhybrid.runtime.anndata_file import quiet_anndata

COUNTS = np.array([[0, 3, 1], [7, 0, 0], [2, 2, 2048], [0, 0, 5]])
LOGS = np.log1p(COUNTS).astype(np.float32)
SPOTS, GENES = list("abcd"), ["A", "B", "C"]


def write(file, X=None, layers=None, raw=None, genes=GENES, spots=SPOTS, **parts):
    with quiet_anndata():
        data = anndata.AnnData(
            X,
            obs=pd.DataFrame(index=pd.Index(spots, dtype=object)),
            var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
            layers=layers,
            **parts,
        )
        if raw is not None:
            data.raw = raw
        data.write_h5ad(file)
    return file


def as_raw(values, genes):
    return anndata.AnnData(
        values,
        obs=pd.DataFrame(index=pd.Index(SPOTS, dtype=object)),
        var=pd.DataFrame(index=pd.Index(genes, dtype=object)),
    )


@pytest.mark.parametrize(
    "convert",
    [
        *(
            lambda counts, dtype=dtype: counts.astype(dtype)
            for dtype in ("f2", "f4", "f8", "i2", "u2", "i8", "u8")
        ),
        sparse.csr_matrix,
        sparse.csc_matrix,
        lambda counts: sparse.csr_matrix(counts.astype(np.float32)),
        lambda counts: sparse.csc_matrix(counts.astype(np.uint16)),
    ],
    ids=["f2", "f4", "f8", "i2", "u2", "i8", "u8", "csr", "csc", "csr f4", "csc u2"],
)
def test_counts_of_every_type_and_layout_are_read_as_float64(tmp_path, convert):
    found = read_counts(write(tmp_path / "a.h5ad", convert(COUNTS)))
    assert found.values.dtype == np.float64
    assert found.values.format == "csr"
    np.testing.assert_array_equal(found.values.toarray(), COUNTS)
    assert (found.barcodes, found.genes) == (tuple(SPOTS), tuple(GENES))
    assert found.spatial is None


def test_presence_counts_as_one(tmp_path):
    found = read_counts(write(tmp_path / "a.h5ad", COUNTS > 0))
    np.testing.assert_array_equal(found.values.toarray(), COUNTS > 0)


def test_a_file_that_was_opened_backed_and_chunked_is_read(tmp_path):
    file = write(tmp_path / "a.h5ad", sparse.csr_matrix(COUNTS))
    with quiet_anndata():
        backed = anndata.read_h5ad(file, backed="r")
        backed.copy(tmp_path / "b.h5ad").file.close()
        backed.file.close()
    np.testing.assert_array_equal(read_counts(tmp_path / "b.h5ad").values.toarray(), COUNTS)


def test_layers_and_raw_are_taken_by_name(tmp_path):
    file = write(
        tmp_path / "a.h5ad",
        LOGS,
        layers={"counts": COUNTS, "logs": LOGS},
        raw=as_raw(np.concatenate([COUNTS, COUNTS[:, :1]], axis=1), [*GENES, "D"]),
    )
    np.testing.assert_array_equal(read_counts(file, "counts").values.toarray(), COUNTS)
    found = read_counts(file, "raw")
    assert found.genes == (*GENES, "D")
    np.testing.assert_array_equal(found.values.toarray()[:, 3], COUNTS[:, 0])


@pytest.mark.parametrize(
    ("parts", "layer", "message"),
    [
        ({"layers": {"spliced": COUNTS, "logs": LOGS}}, None, "has no X, .*; counts are in layer 'spliced': take them by `OPTION='spliced'`$"),
        ({"raw": COUNTS}, None, "has no X, .*; counts are in raw: take them by `OPTION='raw'`$"),
        ({"layers": {"logs": LOGS}}, None, r"has no X, .*; the file has no counts elsewhere \(logs\); write raw"),
        ({}, None, "has no X, .*it has neither a layer nor raw"),
        ({"X": LOGS, "layers": {"counts": COUNTS}}, None, "barcode 'a', gene 'B' has the value .* in X, which is not a count; counts are in layer 'counts': .*`OPTION='counts'`$"),
        ({"X": COUNTS}, "counts", "has no layer 'counts'; counts are in X: leave `OPTION` out$"),
        ({"X": LOGS, "layers": {"umi": COUNTS}, "raw": COUNTS}, "counts", "has no layer 'counts'; counts are in layer 'umi', raw: take them by `OPTION='umi'`$"),
        ({"X": COUNTS}, "raw", "has no raw; counts are in X"),
        ({"X": LOGS, "layers": {"raw": COUNTS}, "raw": COUNTS}, "raw", "has both raw and a layer of that name; rename"),
    ],
)  # fmt: skip
def test_where_counts_are_missing_the_error_says_where_they_are_and_what_takes_them(
    tmp_path, parts, layer, message
):
    parts = {**parts, "raw": as_raw(parts["raw"], GENES)} if "raw" in parts else parts
    file = write(tmp_path / "a.h5ad", **parts)
    with pytest.raises(DataError, match=rf"^{file}: {message}"):
        read_counts(file, layer, option="OPTION")


@pytest.mark.parametrize("value", [0.5, -1.0, np.nan, np.inf, 1e-3])
@pytest.mark.parametrize("convert", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_what_is_not_a_count_is_named_by_spot_and_gene(tmp_path, value, convert):
    spoilt = COUNTS.astype(np.float32)
    spoilt[2, 1] = value
    file = write(tmp_path / "a.h5ad", convert(spoilt))
    with pytest.raises(
        DataError, match=rf"^{file}: barcode 'c', gene 'B' has the value {np.float64(np.float32(value))} in X"
    ):
        read_counts(file)


def test_half_precision_is_refused_where_it_rounds_counts(tmp_path):
    # 2049 has no half-precision number of its own, so whatever stands at 2050 may have been 2049 or 2051
    file = write(tmp_path / "a.h5ad", np.where(COUNTS == 2048, 2050, COUNTS).astype(np.float16))
    with pytest.raises(
        DataError, match=rf"^{file}: X is in half precision .* above 2048, and has 2050; write"
    ):
        read_counts(file)


def test_numbers_of_other_kinds_are_refused(tmp_path):
    file = write(tmp_path / "a.h5ad", COUNTS.astype(np.complex64))
    with pytest.raises(
        DataError, match=rf"^{file}: X holds complex64, 2-dimensional; counts are a table of numbers"
    ):
        read_counts(file)


@pytest.mark.parametrize("shape", [(0, 3), (4, 0)])
def test_samples_without_spots_or_genes_are_refused(tmp_path, shape):
    file = write(
        tmp_path / "a.h5ad", np.zeros(shape, np.float32), genes=GENES[: shape[1]], spots=SPOTS[: shape[0]]
    )
    with pytest.raises(
        DataError, match=rf"^{file}: X holds no counts \({shape[0]} spots × {shape[1]} genes\)"
    ):
        read_counts(file)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"genes": ["A", "B", "A"]}, r"gene 'A' occurs more than once; make the names unique \(AnnData.var_names_make"),
        ({"spots": list("abca")}, "barcode 'a' occurs more than once; name each spot once"),
    ],
)  # fmt: skip
def test_names_that_occur_twice_are_named_with_a_remedy(tmp_path, names, message):
    file = write(tmp_path / "a.h5ad", COUNTS, **names)
    with pytest.raises(DataError, match=rf"^{file}: {message}"):
        read_counts(file)


def test_the_remedy_for_genes_that_occur_twice_works(tmp_path):
    file = write(tmp_path / "a.h5ad", COUNTS, genes=["A", "B", "A"])
    with quiet_anndata():
        data = anndata.read_h5ad(file)
        data.var_names_make_unique()
        data.write_h5ad(file)
    assert read_counts(file).genes == ("A", "B", "A-1")


def test_entries_of_one_place_are_added_up(tmp_path):
    file = write(tmp_path / "a.h5ad", sparse.csr_matrix(COUNTS.astype(np.float32)))
    with h5py.File(file, "r+") as stream:
        # the second entry of the first spot now has the place of the first
        stream["X/indices"][1] = stream["X/indices"][0]
    assert read_counts(file).values.toarray()[0].tolist() == [0, 4, 0]


def test_centres_are_read_and_checked(tmp_path):
    file = write(tmp_path / "a.h5ad", COUNTS, obsm={"spatial": np.arange(12).reshape(4, 3)})
    np.testing.assert_array_equal(read_counts(file).spatial, np.arange(12).reshape(4, 3)[:, :2])
    np.testing.assert_array_equal(read_counts(file).rows([2, 0]).spatial, [[6, 7], [0, 1]])
    file = write(tmp_path / "b.h5ad", COUNTS, obsm={"spatial": np.zeros((4, 1))})
    with pytest.raises(DataError, match=rf"^{file}: obsm\['spatial'\] must hold x and y of each spot"):
        read_counts(file)


def test_a_table_is_read_and_has_no_layers(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("spot,A,B\nx,1,0\ny,16777217,2\n")
    found = read_counts(file)
    assert (found.barcodes, found.genes) == (("x", "y"), ("A", "B"))
    # the first whole number that float32 has not
    assert found.values.toarray().tolist() == [[1, 0], [16777217, 2]]
    with pytest.raises(DataError, match=rf"^{file}: a CSV has no layer 'counts'; leave `OPTION` out"):
        read_counts(file, "counts", option="OPTION")
    file.write_text("spot,A,B\nx,1,0.25\n")
    with pytest.raises(DataError, match=r"barcode 'x', gene 'B' has the value 0\.25 in the table"):
        read_counts(file)
    file.write_text("spot,A,B\n")
    with pytest.raises(DataError, match=r"the table holds no counts \(0 spots × 2 genes\)"):
        read_counts(file)


def test_files_that_are_no_h5ad_are_named(tmp_path):
    (tmp_path / "a.h5ad").write_bytes(b"nothing")
    for name in ("a.h5ad", "absent.h5ad"):
        with pytest.raises(DataError, match=rf"{name}: cannot be read as an h5ad file .*again$"):
            read_counts(tmp_path / name)
