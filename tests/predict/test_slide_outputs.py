"""The files of a slide's prediction: what they hold, and that the tools they are for take them."""

import itertools
import json
import uuid

import h5py
import numpy as np
import pytest
from support.predictors import GENES, slide_prediction

from timm_mvhybrid.predict.anndata_output import read_record, write_prediction
from timm_mvhybrid.predict.geojson_output import geojson_lines
from timm_mvhybrid.predict.slide_files import SlideFiles, write_slide
from timm_mvhybrid.predict.slide_options import SlideOptions
from timm_mvhybrid.predict.slide_prediction import genes_to_show, predict_batches
from timm_mvhybrid.runtime.errors import EvaluationError, OutputError

anndata = pytest.importorskip("anndata")


@pytest.fixture(scope="module")
def found():
    return slide_prediction()


@pytest.fixture(scope="module")
def h5ad(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("predicted") / "a slide.h5ad"
    with h5py.File(path, "w") as file:
        write_prediction(file, found)
    return path


def test_the_h5ad_holds_predictions_bounds_places_and_reliability(found, h5ad):
    data = anndata.read_h5ad(h5ad)
    assert data.X.dtype == np.float32
    np.testing.assert_array_equal(data.X, found.prediction.mean)
    np.testing.assert_array_equal(data.layers["lower"], found.prediction.lower)
    np.testing.assert_array_equal(data.layers["upper"], found.prediction.upper)
    assert list(data.obs_names[:2]) == ["8x16", "40x16"]
    np.testing.assert_array_equal(data.obs[["x", "y"]], found.coords)
    np.testing.assert_array_equal(data.obs["distance"], found.prediction.distance)
    assert data.obs["far"].dtype == bool
    assert data.obs["far"].tolist() == [True] * 6 + [False] * 30
    assert list(data.var_names) == list(GENES)
    reliability = found.predictor.reliability_
    np.testing.assert_array_equal(data.var["r"], reliability.r)
    np.testing.assert_array_equal(data.var["predictable"], reliability.lower > 0)
    assert not data.var.loc["NOISE", "predictable"]
    # the middle of a patch is half its side from the corner
    np.testing.assert_array_equal(data.obsm["spatial"], found.coords + 32)
    assert read_record(h5ad) == found.record


def test_pictures_and_scale_factors_fit_the_places(found, h5ad):
    spatial = anndata.read_h5ad(h5ad).uns["spatial"]["a slide"]
    factors = spatial["scalefactors"]
    for kind in ("hires", "lowres"):
        height, width = spatial["images"][kind].shape[:2]
        scale = factors[f"tissue_{kind}_scalef"]
        assert width == pytest.approx(scale * found.dimensions_px[0], abs=0.5)
        assert height == pytest.approx(scale * found.dimensions_px[1], abs=0.5)
    assert factors["spot_diameter_fullres"] == 32


@pytest.mark.filterwarnings("ignore")
def test_scanpy_plots_it_unchanged(found, h5ad):
    scanpy = pytest.importorskip("scanpy")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    data = scanpy.read_h5ad(h5ad)
    axes = scanpy.pl.spatial(data, color=["ERBB2", "far"], layer="lower", show=False)
    try:
        (circles,) = [
            one for one in axes[0].collections if len(one.get_offsets()) or len(one.get_paths()) > 1
        ]
        (picture,) = axes[0].images
        scale = data.uns["spatial"]["a slide"]["scalefactors"]["tissue_hires_scalef"]
        boxes = np.array([path.get_extents().bounds for path in circles.get_paths()])
        # circles as wide as patches are apart, at their middles, in px of the picture below
        np.testing.assert_allclose(boxes[:, 2], 32 * scale, rtol=1e-6)
        lower = found.prediction.lower[:, 1]
        order = np.argsort(lower, kind="stable")  # scanpy draws the largest values last, on top
        np.testing.assert_array_equal(circles.get_array(), lower[order])
        middles = (found.coords + 32)[order] * scale
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:] / 2, middles, rtol=0, atol=1e-6)
        assert picture.get_array().shape[:2] == found.picture.shape[:2]
    finally:
        pyplot.close("all")


@pytest.mark.filterwarnings("ignore")
def test_squidpy_plots_it_unchanged(h5ad):
    squidpy = pytest.importorskip("squidpy")
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    try:
        axes = squidpy.pl.spatial_scatter(
            anndata.read_h5ad(h5ad), color="ERBB2", shape="square", return_ax=True
        )
        assert axes.images
        assert axes.collections
    finally:
        pyplot.close("all")


@pytest.mark.filterwarnings("ignore")
def test_the_spatialdata_store_has_squares_their_table_and_the_picture(found, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    files = SlideFiles.of(tmp_path, "a slide")
    write_slide(found, files, SlideOptions(spatialdata=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a slide.h5ad",
        "a slide.html",
        "a slide.zarr",
    ]
    store = spatialdata.read_zarr(files.store)
    bounds = store.shapes["patches"].bounds.to_numpy()
    np.testing.assert_array_equal(bounds[:, :2], found.coords + 16)
    np.testing.assert_array_equal(bounds[:, 2:], found.coords + 48)
    table = store.tables["expression"]
    assert list(table.obs["patch"]) == list(store.shapes["patches"].index)
    np.testing.assert_array_equal(table.X, found.prediction.mean)
    extent = spatialdata.get_extent(store["slide"])
    assert extent["x"] == pytest.approx((0, found.dimensions_px[0]))
    assert extent["y"] == pytest.approx((0, found.dimensions_px[1]))


def test_geojson_has_a_tile_for_each_patch(found):
    columns = np.array([1, 3])
    parts = list(geojson_lines(found, columns))
    content = json.loads(b"".join(parts), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["type"] == "FeatureCollection"
    assert len(content["features"]) == len(found.coords)
    # one part a patch: nothing is collected
    assert len(parts) == len(found.coords) + 2
    for row, feature in enumerate(content["features"]):
        assert feature["type"] == "Feature"
        uuid.UUID(feature["id"])
        (ring,) = feature["geometry"]["coordinates"]
        assert feature["geometry"]["type"] == "Polygon"
        assert ring[0] == ring[-1]
        assert len(ring) == 5
        # of the size of the step, around the middle of the patch
        left, top = found.coords[row] + 16
        assert {tuple(point) for point in ring} == {
            (left + dx, top + dy) for dx, dy in itertools.product((0, 32), (0, 32))
        }
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in itertools.pairwise(ring)) / 2
        assert area == 32 * 32, "an outer ring goes around counterclockwise"
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["name"] == found.patch_names[row]
        assert properties["classification"]["name"].startswith("Far") == found.prediction.far[row]
        assert set(properties["measurements"]) == {
            "Distance to training data",
            *(name + suffix for name in ("ERBB2", "NOISE") for suffix in ("", " lower", " upper")),
        }
        assert properties["measurements"]["ERBB2 upper"] == pytest.approx(
            found.prediction.upper[row, 1], rel=1e-5, abs=1e-6
        )
    assert len({feature["id"] for feature in content["features"]}) == len(found.coords)


def test_bounds_that_promise_nothing_are_left_out_of_geojson(found):
    from dataclasses import replace

    endless = replace(
        found,
        prediction=replace(found.prediction, upper=np.full_like(found.prediction.upper, np.inf)),
    )
    content = json.loads(b"".join(geojson_lines(endless, np.array([0]))))
    assert "WEAK upper" not in content["features"][0]["properties"]["measurements"]
    assert "WEAK lower" in content["features"][0]["properties"]["measurements"]


def test_a_disk_that_refuses_one_file_gets_none(found, tmp_path, monkeypatch):
    from timm_mvhybrid.runtime.atomic_file import OutputFile

    settle = OutputFile.settle

    def refuse(self):
        if self.path.suffix == ".geojson":
            raise OutputError("full")
        settle(self)

    monkeypatch.setattr(OutputFile, "settle", refuse)
    with pytest.raises(OutputError, match="full"):
        write_slide(found, SlideFiles.of(tmp_path, "a slide"), SlideOptions(geojson=True))
    assert list(tmp_path.iterdir()) == []


def test_what_no_longer_fits_goes(found, tmp_path):
    files = SlideFiles.of(tmp_path, "a slide")
    write_slide(found, files, SlideOptions(geojson=True))
    assert files.geojson.exists()
    write_slide(found, files, SlideOptions())
    assert not files.geojson.exists()


def test_genes_are_those_asked_for_or_the_most_reliable(found):
    predictor = found.predictor
    assert genes_to_show(predictor, ("NOISE", "WEAK", "NOISE"), 1).tolist() == [3, 0]
    assert genes_to_show(predictor, (), 2).tolist() == np.argsort(-predictor.reliability_.r)[:2].tolist()
    with pytest.raises(
        EvaluationError, match="`show_genes`: the predictor does not predict 'TP53'; it predicts WEAK"
    ):
        genes_to_show(predictor, ("TP53",), 1)


@pytest.mark.parametrize("sizes", [(10, 10), (10, 30)])
def test_embeddings_of_other_patches_are_noticed(found, sizes):
    batches = [np.zeros((size, 16), np.float32) for size in sizes]
    with pytest.raises(EvaluationError, match="embeddings of 36 patches"):
        predict_batches(found.predictor, batches, 36)


@pytest.mark.parametrize("sizes", [(36,), (10, 26), (1, 34, 1)])
def test_batches_are_predicted_as_all_at_once(found, sizes):
    features = np.random.default_rng(3).normal(size=(36, 16)).astype(np.float32)
    expected = found.predictor.predict(features, level=0.5)
    batches = np.split(features, np.cumsum(sizes)[:-1])
    predicted = predict_batches(found.predictor, batches, 36, level=0.5)
    for name in ("mean", "lower", "upper", "distance"):
        # matrix products of other sizes round differently: 16 products of size 1
        np.testing.assert_allclose(getattr(predicted, name), getattr(expected, name), atol=1e-5)
    np.testing.assert_array_equal(predicted.far, expected.far)
