"""Every h5ad of ours stores its strings as anndata 0.8 to 0.10 read them, under each pandas."""

import anndata
import h5py
import numpy as np
import pandas
import pytest
from support.hest_tasks import sample_arrays

from timm_mvhybrid.cohorts.hest_writer import write_sample
from timm_mvhybrid.runtime.anndata_file import write_anndata
from timm_mvhybrid.synthetic import PhantomOptions, write_phantom


@pytest.fixture(autouse=True)
def strings_as_in_pandas_3(request):
    """Gives strings a type of their own under pandas 2.3 too."""
    if int(pandas.__version__.split(".")[0]) >= 3:
        yield
        return
    with pandas.option_context("future.infer_string", True):
        yield


def encodings(path):
    """Encodings of everything in a file, by name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item.attrs.get("encoding-type")}))
    return found


def test_strings_have_a_type_of_their_own_here():
    assert isinstance(pandas.DataFrame(index=["a"]).index.dtype, pandas.StringDtype)


def test_samples(tmp_path):
    _, path = write_sample(tmp_path, "A", **sample_arrays(0))
    found = encodings(path)
    assert found["obs/_index"] == found["var/_index"] == "string-array"
    assert "nullable-string-array" not in found.values()


def test_phantoms(tmp_path):
    write_phantom(
        tmp_path / "cohort", PhantomOptions(num_studies=1, num_samples=1, num_spots=6, num_genes=12)
    )
    (path,) = (tmp_path / "cohort").rglob("*.h5ad")
    found = encodings(path)
    assert found["obs/_index"] == found["var/_index"] == found["obsm/morphology/_index"] == "string-array"
    assert "nullable-string-array" not in found.values()


def test_frames_of_every_place(tmp_path):
    spots, genes = ["a", "b", "c"], ["g", "h"]
    data = anndata.AnnData(
        np.ones((3, 2), np.float32),
        obs=pandas.DataFrame(
            {"unique": ["x", "y", "z"], "repeated": ["x", "x", "y"], "number": 1}, index=spots
        ),
        var=pandas.DataFrame({"name": ["x", "y"]}, index=genes),
        obsm={"frame": pandas.DataFrame({"name": ["x", "y", "z"]}, index=spots), "array": np.ones((3, 2))},
        varm={"frame": pandas.DataFrame({"name": ["x", "y"]}, index=genes)},
    )
    data.obs["category"] = pandas.Categorical(["x", "y", "y"])
    data.uns["frame"] = pandas.DataFrame({"name": ["x", "y"]}, index=["k", "l"])
    data.uns["nested"] = {"frame": data.uns["frame"], "text": "x"}
    path = tmp_path / "any.h5ad"
    with h5py.File(path, "w") as file:
        write_anndata(file, data)
    assert "nullable-string-array" not in encodings(path).values()
    again = anndata.read_h5ad(path)
    assert list(again.obs_names) == spots
    assert list(again.obs["category"]) == ["x", "y", "y"]
    assert list(again.obsm["frame"]["name"]) == ["x", "y", "z"]
    assert list(again.uns["nested"]["frame"]["name"]) == ["x", "y"]
