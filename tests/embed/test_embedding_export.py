"""Exported embeddings, read by anndata, zarr and pyarrow alone, as people do who do not have this package."""

import json
import os
import sys

import h5py
import numpy as np
import pytest
from support.generated_patches import random_patches, write_hest, write_images
from support.generated_slides import write_slide

from timm_mvhybrid.data import DataError, TilingOptions, open_source
from timm_mvhybrid.embed.embedding_export import (
    check_export,
    choose_format,
    export_embeddings,
    export_folder,
    table_name,
    written_as,
)
from timm_mvhybrid.embed.embedding_store import EmbeddingWriter, read_patches
from timm_mvhybrid.evaluate import EvaluationError, embed, load_backbone
from timm_mvhybrid.runtime.errors import MissingPackageError, ParameterError


@pytest.fixture(scope="module")
def slide_h5(tmp_path_factory):
    """A slide of 0.5 µm/px, embedded at 1 µm/px in patches of 32 px that overlap by 8."""
    folder = tmp_path_factory.mktemp("embedded")
    write_slide(folder / "a.tif")
    options = TilingOptions(resolution_um_per_px=1.0, patch_size_px=32, overlap_px=8)
    source = open_source(folder / "a.tif", tiling=options)
    embed(source, load_backbone("test_vit12"), folder / "a.h5")
    return folder / "a.h5"


def content(file):
    with h5py.File(file) as stored:
        return stored["embeddings"][()], stored["coords"][()]


def write_rows(file, values, **attributes):
    with h5py.File(file, "w") as stored:
        stored["features"] = values
        num = values.shape[-2]
        stored["coords"] = np.stack([np.arange(num) * 512, np.zeros(num, int)], 1)
        stored["coords"].attrs.update(attributes)
    return file


def test_the_h5ad_is_an_anndata(slide_h5, tmp_path):
    anndata = pytest.importorskip("anndata")
    file = export_embeddings(slide_h5, "h5ad", tmp_path / "b.h5ad", slide_id="S1")
    embeddings, coords = content(slide_h5)
    found = anndata.read_h5ad(file)
    np.testing.assert_array_equal(found.X, embeddings)
    assert found.X.dtype == np.float32
    assert len(found) > 10
    assert list(found.obs) == ["slide_id", "tile_id", "x", "y"]
    np.testing.assert_array_equal(found.obs[["x", "y"]], coords)
    assert set(found.obs["slide_id"]) == {"S1"}
    # a patch of 32 px at 1 µm/px is 64 px wide at 0.5
    np.testing.assert_array_equal(found.obsm["spatial"], coords + 32.0)
    specification = found.uns["tile_spec"]
    assert (specification["width"], specification["stride_width"], specification["base_downsample"]) == (
        32,
        24,
        2,
    )
    assert specification["mpp"] == 1.0
    stated = json.loads(found.uns["timm_mvhybrid"])
    assert (stated["model"], stated["slide"], stated["slide_dimensions_px"]) == (
        "test_vit12",
        "a.tif",
        [1024, 768],
    )


def test_slides_are_joined_and_analysed_by_scanpy(slide_h5, tmp_path):
    scanpy = pytest.importorskip("scanpy")
    parts = {}
    for name in ("S1", "S2"):
        export_embeddings(slide_h5, "h5ad", tmp_path / f"{name}.h5ad")
        parts[name] = scanpy.read_h5ad(tmp_path / f"{name}.h5ad", backed="r").to_memory()
    joined = sys.modules["anndata"].concat(parts, index_unique="-", merge="same")
    assert joined.obs_names.is_unique
    assert joined.n_obs == 2 * len(parts["S1"])
    scanpy.pp.pca(joined, n_comps=2)
    assert np.isfinite(joined.obsm["X_pca"]).all()


def test_the_parquet_file_is_read_by_pyarrow(slide_h5, tmp_path):
    dataset = pytest.importorskip("pyarrow.dataset")
    for name in ("S1", "S2"):
        export_embeddings(slide_h5, "parquet", tmp_path / f"{name}.parquet", slide_id=name)
    embeddings, coords = content(slide_h5)
    found = dataset.dataset(tmp_path, format="parquet").to_table()
    assert found.column_names == ["slide_id", "tile_id", "x", "y", "features"]
    assert len(found) == 2 * len(embeddings)
    one = found.filter(dataset.field("slide_id") == "S2")
    features = one["features"].combine_chunks().flatten().to_numpy().reshape(-1, embeddings.shape[1])
    np.testing.assert_array_equal(features, embeddings)
    np.testing.assert_array_equal(np.stack([one["x"], one["y"]], 1), coords)
    schema = sys.modules["pyarrow.parquet"].read_schema(tmp_path / "S1.parquet")
    assert json.loads(schema.metadata[b"timm_mvhybrid"])["model"] == "test_vit12"


def test_the_store_is_read_by_zarr_anndata_and_pyarrow(slide_h5, tmp_path):
    pytest.importorskip("spatialdata")
    import anndata
    import pyarrow.parquet
    import zarr

    store = export_embeddings(slide_h5, "zarr", tmp_path / "b.zarr", slide_id="S1")
    embeddings, coords = content(slide_h5)
    group = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(group["tables/test_vit12_tiles/X"][:], embeddings)
    specification = group.attrs["tile_spec"]["tiles"]
    assert (specification["width"], specification["stride_width"], specification["base_downsample"]) == (
        32,
        24,
        2,
    )
    assert group.attrs["slide_properties"] == {"mpp": 0.5}
    table = anndata.read_zarr(store / "tables" / "test_vit12_tiles")
    assert table.obs["tile_id"].tolist() == list(range(len(embeddings)))
    assert set(table.obs["slide_id"]) == {"S1"}
    assert set(table.obs["library_id"]) == {"tiles"}
    shapes = pyarrow.parquet.read_table(store / "shapes" / "tiles" / "shapes.parquet")
    np.testing.assert_array_equal(np.stack([shapes["x"], shapes["y"]], 1), coords)
    with pytest.raises(EvaluationError, match=r"b\.zarr: exists already; replace it with `overwrite=True`"):
        export_embeddings(slide_h5, "zarr", store)
    export_embeddings(slide_h5, "zarr", store, slide_id="S2", overwrite=True)
    assert set(anndata.read_zarr(store / "tables" / "test_vit12_tiles").obs["slide_id"]) == {"S2"}
    assert sorted(os.listdir(tmp_path)) == ["b.zarr"]


@pytest.mark.parametrize("format", ["h5ad", "parquet", "zarr"])
def test_files_of_more_than_one_part_keep_every_row(tmp_path, format):
    pytest.importorskip({"h5ad": "anndata", "parquet": "pyarrow", "zarr": "spatialdata"}[format])
    values = np.random.default_rng(0).normal(size=(2 * 4096 + 5, 3)).astype(np.float32)
    file = write_rows(tmp_path / "a.h5", values[None], patch_size=256, patch_size_level0=512)
    written = export_embeddings(file, format)
    assert written == tmp_path / f"a.{format}"
    if format == "h5ad":
        found = sys.modules["anndata"].read_h5ad(written).X
    elif format == "zarr":
        found = sys.modules["anndata"].read_zarr(written / "tables" / "unknown_tiles").X
    else:
        import pyarrow.parquet

        stored = pyarrow.parquet.ParquetFile(written)
        assert stored.num_row_groups == 3
        found = stored.read()["features"].combine_chunks().flatten().to_numpy().reshape(values.shape)
    np.testing.assert_array_equal(found, values)


def test_names_of_patches_go_along(tmp_path):
    anndata = pytest.importorskip("anndata")
    write_hest(tmp_path / "hest.h5", random_patches(3), list("abc"))
    write_images(tmp_path / "images", 3)
    backbone = load_backbone("test_vit12")
    found = {}
    for name in ("hest.h5", "images"):
        embed(open_source(tmp_path / name), backbone, tmp_path / "out.h5", overwrite=True)
        found[name] = anndata.read_h5ad(export_embeddings(tmp_path / "out.h5", "h5ad", overwrite=True))
    assert found["hest.h5"].obs["barcode"].tolist() == list("abc")
    assert len(set(found["images"].obs["path"])) == len(found["images"])
    assert "spatial" not in found["images"].obsm


def test_without_a_size_at_level_0_places_are_corners(tmp_path):
    anndata = pytest.importorskip("anndata")
    # CLAM's size is in px of a level that the file does not name
    file = write_rows(tmp_path / "a.h5", np.ones((4, 3), np.float32), patch_size=256)
    assert read_patches(file).patch_size_px is None
    found = anndata.read_h5ad(export_embeddings(file, "h5ad"))
    np.testing.assert_array_equal(found.obsm["spatial"], found.obs[["x", "y"]])
    assert "tile_spec" not in found.uns


def test_a_store_is_of_places(tmp_path):
    pytest.importorskip("spatialdata")
    file = write_rows(tmp_path / "a.h5", np.ones((4, 3), np.float32))
    with pytest.raises(
        DataError, match=r"a\.h5: states not how wide a patch is at level 0, .*`format='h5ad'`"
    ):
        export_embeddings(file, "zarr")
    with h5py.File(file, "a") as stored:
        del stored["coords"]
    with pytest.raises(DataError, match=r"a\.h5: states no coordinates"):
        export_embeddings(file, "zarr")
    assert os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize("format", ["h5ad", "parquet", "zarr"])
def test_what_fails_leaves_nothing(tmp_path, format):
    pytest.importorskip({"h5ad": "anndata", "parquet": "pyarrow", "zarr": "spatialdata"}[format])
    values = np.ones((5000, 3), np.float32)
    values[4500, 1] = np.nan
    file = write_rows(tmp_path / "a.h5", values, patch_size=256, patch_size_level0=512)
    with pytest.raises(DataError, match=r"a\.h5: patch 4500 holds NaN"):
        export_embeddings(file, format)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_outputs_that_are_refused(tmp_path):
    file = write_rows(tmp_path / "a.h5", np.ones((4, 3), np.float32))
    (tmp_path / "b.h5ad").write_text("old")
    (tmp_path / "mine.zarr").mkdir()
    for arguments, kind, message in [
        (("csv",), ParameterError, "`format` is 'csv'; choose from h5ad, parquet, zarr"),
        (
            ("h5ad", tmp_path / "b.h5ad"),
            EvaluationError,
            r"b\.h5ad: exists already; replace it with `overwrite",
        ),
        (("h5ad", tmp_path / "no" / "b.h5ad"), EvaluationError, "does not exist; create it first"),
        (("h5ad", tmp_path / "b.h5"), ParameterError, r"b\.h5: .* than `format='h5ad'`; name it b\.h5ad"),
        (("parquet", tmp_path / "b.h5ad"), ParameterError, r"name it b\.parquet"),
    ]:
        with pytest.raises(kind, match=message):
            export_embeddings(file, *arguments)
    assert (tmp_path / "b.h5ad").read_text() == "old"
    with pytest.raises(EvaluationError, match=r"mine\.zarr: is a folder that is no zarr store"):
        check_export(tmp_path / "mine.zarr", overwrite=True)
    (tmp_path / "c.h5ad").hardlink_to(file)
    with pytest.raises(EvaluationError, match="is the input itself"):
        export_embeddings(file, "h5ad", tmp_path / "c.h5ad", overwrite=True)


def test_a_missing_package_is_said_with_its_extra(slide_h5, tmp_path, monkeypatch):
    for format, module, extra in [
        ("h5ad", "anndata", "evaluate"),
        ("parquet", "pyarrow.parquet", "evaluate"),
        ("zarr", "spatialdata", "spatialdata"),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            MissingPackageError, match=rf"is not installed; pip install 'timm-mvhybrid\[{extra}\]'"
        ):
            export_embeddings(slide_h5, format, tmp_path / f"b.{format}")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("output", "format", "chosen"),
    [
        ("a.h5", "auto", "h5"),
        ("a.features", "auto", "h5"),
        ("a.H5AD", "auto", "h5ad"),
        ("a.zarr", "auto", "zarr"),
        ("a.parquet", "parquet", "parquet"),
        ("a", "h5", "h5"),
    ],
)
def test_the_format_follows_the_suffix(output, format, chosen):
    assert choose_format(output, format) == chosen


def test_an_h5_under_another_formats_suffix_is_refused():
    with pytest.raises(ParameterError, match=r"than `format='h5'`; name it a\.h5"):
        choose_format("a.h5ad", "h5")


def test_the_hidden_h5_is_gone_whatever_happens(tmp_path):
    pytest.importorskip("anndata")
    (tmp_path / ".b.h5ad.01234567.tmp").mkdir()  # of a killed process

    def write(error=None):
        with written_as(tmp_path / "b.h5ad") as file, EmbeddingWriter(file) as writer:
            writer.append(np.ones((2, 3), np.float32), [0, 1])
            writer.finish()
            if error is not None:
                raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert os.listdir(tmp_path) == []
    write()
    assert os.listdir(tmp_path) == ["b.h5ad"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("mvhybrid_small_patch16_256", "mvhybrid_small_patch16_256_tiles"),
        ("hf-hub:someone/a model", "a_model_tiles"),
        ("local-dir:/", "features_tiles"),
        ("__x", "x_tiles"),
    ],
)
def test_tables_are_named_as_spatialdata_allows(model, name):
    assert table_name(model) == name


def test_a_folder_gets_what_is_missing_or_older(slide_h5, tmp_path):
    anndata = pytest.importorskip("anndata")
    for name in ("a", "b.1"):
        (tmp_path / f"{name}.h5").write_bytes(slide_h5.read_bytes())
    seen = []
    export_folder(tmp_path, "h5ad", on_file=lambda *done: seen.append(done))
    assert seen == [(1, 2), (2, 2)]
    assert sorted(os.listdir(tmp_path)) == ["a.h5", "a.h5ad", "b.1.h5", "b.1.h5ad"]
    assert set(anndata.read_h5ad(tmp_path / "b.1.h5ad").obs["slide_id"]) == {"b.1"}
    before = {name: (tmp_path / f"{name}.h5ad").stat().st_ino for name in ("a", "b.1")}
    late = (tmp_path / "a.h5ad").stat().st_mtime_ns + 1_000_000_000
    os.utime(tmp_path / "a.h5", ns=(late, late))
    export_folder(tmp_path, "h5ad")
    assert (tmp_path / "a.h5ad").stat().st_ino != before["a"]
    assert (tmp_path / "b.1.h5ad").stat().st_ino == before["b.1"]
