"""Slides → predictions: the same embeddings as `embed`'s, cached; resumed; refused where they would not be right."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from support.exports import exported
from support.generated_slides import write_slide
from support.predictors import MODEL, PATCH_PX, fitted_predictor

from timm_mvhybrid.data import DataError, SlideSource, TilingOptions
from timm_mvhybrid.embed.backbone import load_backbone
from timm_mvhybrid.embed.embedding_store import read_embeddings
from timm_mvhybrid.embed.embeddings import embed
from timm_mvhybrid.predict import (
    ExpressionPredictor,
    PredictorError,
    SlideOptions,
    predict_slide,
    predict_slides,
)
from timm_mvhybrid.runtime.errors import OutputError, ParameterError

anndata = pytest.importorskip("anndata")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with a predictor, another one on the same features, and a slide."""
    folder = tmp_path_factory.mktemp("shared")
    fitted_predictor(folder).save(folder / "predictor")
    fitted_predictor(folder, seed=1).save(folder / "another")
    write_slide(folder / "slide.tif")
    return folder


def options(folder: Path, **changes) -> SlideOptions:
    return SlideOptions(**{"cache": folder / "cache", "num_workers": 0, "device": "cpu", **changes})


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("stride", [None, 48])
def test_embeddings_and_predictions_are_those_of_embed_and_predict(shared, tmp_path, stride):
    outcome = predict_slide(
        shared / "slide.tif", shared / "predictor", tmp_path / "out", options(tmp_path, stride_px=stride)
    )
    tiling = TilingOptions(patch_size_px=PATCH_PX, overlap_px=0 if stride is None else PATCH_PX - stride)
    source = SlideSource(shared / "slide.tif", tiling)
    embed(source, load_backbone(MODEL), tmp_path / "slide.h5", device="cpu")
    expected = read_embeddings(tmp_path / "slide.h5").embeddings
    (cached,) = (tmp_path / "cache").rglob("*.h5")
    np.testing.assert_array_equal(read_embeddings(cached).embeddings, expected)
    predicted = ExpressionPredictor.load(shared / "predictor").predict(expected)
    data = anndata.read_h5ad(outcome.output)
    np.testing.assert_array_equal(data.X, predicted.mean)
    np.testing.assert_array_equal(data.layers["upper"], predicted.upper)
    np.testing.assert_array_equal(data.obs["far"], predicted.far)
    np.testing.assert_array_equal(data.obs[["x", "y"]], source.coords)
    assert outcome.status == "predicted"
    assert outcome.was_embedded
    assert (outcome.num_patches, outcome.num_far) == (len(source), int(predicted.far.sum()))
    spatial = data.uns["spatial"]["slide"]
    assert spatial["scalefactors"]["spot_diameter_fullres"] == (stride or PATCH_PX)
    assert names(tmp_path / "out") == ["slide.h5ad", "slide.html"]


def test_a_second_predictor_or_run_does_not_embed_again(shared, tmp_path, monkeypatch):
    first = predict_slide(shared / "slide.tif", shared / "predictor", tmp_path / "a", options(tmp_path))
    monkeypatch.setattr(
        "timm_mvhybrid.embed.source_embedding.pooled_features", lambda *_: pytest.fail("embeds again")
    )
    second = predict_slide(shared / "slide.tif", shared / "another", tmp_path / "b", options(tmp_path))
    assert (first.was_embedded, second.was_embedded) == (True, False)
    a, b = (anndata.read_h5ad(one.output).X for one in (first, second))
    assert not np.array_equal(a, b)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    again = predict_slide(shared / "slide.tif", shared / "predictor", tmp_path / "a", options(tmp_path))
    assert (again.status, again.num_patches, again.num_far) == ("kept", first.num_patches, first.num_far)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()} == before
    # what is asked for later is added
    more = predict_slide(
        shared / "slide.tif", shared / "predictor", tmp_path / "a", options(tmp_path, geojson=True)
    )
    assert more.status == "predicted"
    assert names(tmp_path / "a") == ["slide.geojson", "slide.h5ad", "slide.html"]


def test_what_another_predictor_or_other_options_wrote_is_not_replaced(shared, tmp_path):
    def run(predictor="predictor", overwrite=False, **changes):
        return predict_slide(
            shared / "slide.tif",
            shared / predictor,
            tmp_path / "out",
            options(tmp_path, **changes),
            overwrite=overwrite,
        )

    run()
    with pytest.raises(
        DataError, match=r"slide.h5ad: was predicted with `predictor_sha256='\w+'` instead of"
    ):
        run("another")
    with pytest.raises(
        DataError, match=r"was predicted with `stride_px=None` instead of 32.*`overwrite=True`"
    ):
        run(stride_px=32)
    assert run("another", overwrite=True).status == "predicted"
    assert run("another").status == "kept"
    (tmp_path / "out" / "slide.h5ad").write_bytes(b"no h5ad")
    with pytest.raises(DataError, match=r"slide.h5ad: exists, and is not a prediction of this command"):
        run()


KILLED = """
import os, signal, sys
from pathlib import Path
from timm_mvhybrid.predict import SlideOptions, predict_slide, slide_files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

on_batch = None
if sys.argv[1] == "embedding":
    on_batch = die
else:
    slide_files.slide_page = die
options = SlideOptions(cache=Path("cache"), num_workers=0, device="cpu", batch_size=4, geojson=True)
predict_slide("slide.tif", "predictor", "out", options, on_batch=on_batch)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("where", ["embedding", "writing"])
def test_a_killed_run_is_finished_by_the_same_command(shared, tmp_path, where):
    for name in ("slide.tif", "predictor"):
        (tmp_path / name).symlink_to(shared / name)
    done = subprocess.run([sys.executable, "-c", KILLED, where], cwd=tmp_path, check=False)
    assert done.returncode == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in names(tmp_path)), "killed before anything was written"
    assert not any((tmp_path / "out").glob("slide.*"))
    wanted = options(tmp_path, batch_size=4, geojson=True)
    outcome = predict_slide(tmp_path / "slide.tif", tmp_path / "predictor", tmp_path / "out", wanted)
    assert outcome.status == "predicted"
    assert outcome.was_embedded == (where == "embedding")
    assert names(tmp_path / "out") == ["slide.geojson", "slide.h5ad", "slide.html"]
    assert len(names(tmp_path / "cache")) == 1


@pytest.mark.parametrize(
    ("um_per_px", "side_level0", "problem"),
    [
        (0.5, 64, ""),
        (0.4955, 64, ""),  # within 1 %: read as it is
        (0.25, 128, ""),  # finer: resampled
        (0.508, 64 * 0.5 / 0.508, ""),  # up to 2 % coarser: resampled
        (0.52, 0, "0.52 µm/px, 4% coarser than the 0.5 µm/px that the predictor was fitted at"),
        (None, 0, "the slide states no usable resolution; give it with `slide_resolution_um_per_px`"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*coarser than the requested")
def test_the_resolution_is_the_predictors_or_the_slide_is_refused(
    shared, tmp_path, um_per_px, side_level0, problem
):
    write_slide(tmp_path / "a.tif", um_per_px=um_per_px)

    def run(**changes):
        return predict_slide(
            tmp_path / "a.tif", shared / "predictor", tmp_path / "out", options(tmp_path, **changes)
        )

    if problem:
        with pytest.raises(DataError, match=problem.replace("(", r"\(")):
            run()
        assert names(tmp_path) == ["a.tif"]
        assert run(**({"enlarge": True} if um_per_px else {"slide_resolution_um_per_px": 0.5})).num_patches
        return
    data = anndata.read_h5ad(run().output)
    middles = data.obsm["spatial"] - data.obs[["x", "y"]].to_numpy()
    np.testing.assert_allclose(middles, side_level0 / 2, rtol=1e-4)


def test_other_weights_are_refused(shared, tmp_path):
    file = tmp_path / "mine.safetensors"
    save_file(load_backbone(MODEL, seed=5).model.state_dict(), file)
    save_file(load_backbone(MODEL, seed=6).model.state_dict(), tmp_path / "other.safetensors")
    backbone = load_backbone(MODEL, checkpoint=file)
    predictor = fitted_predictor(tmp_path, backbone=backbone)

    def run(**given):
        return predict_slide(shared / "slide.tif", predictor, tmp_path / "out", options(tmp_path), **given)

    with pytest.raises(PredictorError, match=r"the file mine.safetensors \(sha256 .*`checkpoint=FILE`"):
        run()
    with pytest.raises(
        PredictorError, match=r"other.safetensors: the weights of test_vit12 have the sha256 .{13}, and"
    ):
        run(checkpoint=tmp_path / "other.safetensors")
    with pytest.raises(PredictorError, match="have the sha256"):
        run(backbone=load_backbone(MODEL))
    with pytest.raises(PredictorError, match="was fitted on features of test_vit12, not of test_mvhybrid"):
        run(backbone=load_backbone("test_mvhybrid"))
    assert list((tmp_path / "out").iterdir()) == []
    assert run(checkpoint=file).status == "predicted"
    # complete: nobody asks for the weights
    assert run().status == "kept"


def test_random_weights_are_drawn_again_and_checked(shared, tmp_path):
    predictor = ExpressionPredictor.load(shared / "predictor")
    changed = fitted_predictor(tmp_path, seed=2)
    object.__setattr__(changed.encoder_, "seed", 1)
    with pytest.raises(PredictorError, match="have the sha256"):
        predict_slide(shared / "slide.tif", changed, tmp_path / "out", options(tmp_path))
    assert predict_slide(shared / "slide.tif", predictor, tmp_path / "out", options(tmp_path)).num_patches


def test_another_transform_is_refused(shared, tmp_path):
    predictor = fitted_predictor(tmp_path, seed=3)
    predictor.encoder_.transform["mean"] = [0.0, 0.0, 0.0]
    with pytest.raises(PredictorError, match="and the predictor was fitted on"):
        predict_slide(shared / "slide.tif", predictor, tmp_path / "out", options(tmp_path))


def test_a_slide_that_fails_is_reported_and_the_others_are_predicted(shared, tmp_path):
    write_slide(tmp_path / "blank.tif", tissue=None)
    (tmp_path / "notes.svs").write_text("no slide")
    slides = [tmp_path / "blank.tif", tmp_path / "absent.svs", tmp_path / "notes.svs", shared / "slide.tif"]
    seen = []
    outcomes = predict_slides(
        slides, shared / "predictor", tmp_path / "out", options(tmp_path), on_slide=seen.append
    )
    assert list(outcomes) == seen
    assert [outcome.status for outcome in outcomes] == ["failed"] * 3 + ["predicted"]
    for outcome, message in zip(
        outcomes, ("no tissue found", "No such file", "cannot be opened as a slide"), strict=False
    ):
        assert str(outcome.slide) in outcome.message
        assert message in outcome.message
    assert names(tmp_path / "out") == ["slide.h5ad", "slide.html"]


def test_what_can_be_known_before_is_said_before(shared, tmp_path, monkeypatch):
    monkeypatch.setattr("timm_mvhybrid.predict.slide_run.load_encoder_of", lambda *_: pytest.fail("too late"))

    def run(slides=("slide.tif",), output="out", predictor="predictor", **changes):
        predict_slides(
            [shared / name for name in slides],
            shared / predictor,
            tmp_path / output,
            options(tmp_path, **changes),
        )

    with pytest.raises(DataError, match=r"a/x.svs and .*b/x.tif would both become x.h5ad"):
        run(("a/x.svs", "b/x.tif"))
    with pytest.raises(DataError, match="no slide given"):
        run(())
    with pytest.raises(
        ParameterError, match="`stride_px` is 65 px; it must be from 1 to the predictor's patch size of 64 px"
    ):
        run(stride_px=65)
    with pytest.raises(ParameterError, match="`level` must lie between 0 and 1"):
        run(level=1.0)
    with pytest.raises(DataError, match="`min_tissue` must lie between 0 and 1"):
        run(min_tissue=2)
    with pytest.raises(PredictorError, match="no such folder"):
        run(predictor="absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file: cannot be written"):
        run(output="file")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(shared, tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="out: cannot be written"):
        predict_slide(shared / "slide.tif", shared / "predictor", tmp_path / "out", options(tmp_path))


def test_a_predictor_without_a_model_or_patches_is_refused(shared, tmp_path):
    predictor = ExpressionPredictor.load(shared / "predictor")
    object.__setattr__(predictor.encoder_, "patch_size_px", None)
    with pytest.raises(PredictorError, match="does not say the size and resolution of its patches"):
        predict_slide(shared / "slide.tif", predictor, tmp_path / "out")
    predictor.encoder_ = None
    with pytest.raises(PredictorError, match="does not say which model"):
        predict_slide(shared / "slide.tif", predictor, tmp_path / "out")


def test_bounds_aim_at_the_level_that_is_asked_for(shared, tmp_path):
    found = {}
    for level in (None, 0.5):
        outcome = predict_slide(
            shared / "slide.tif",
            shared / "predictor",
            tmp_path / f"out {level}",
            options(tmp_path, level=level),
        )
        data = anndata.read_h5ad(outcome.output)
        found[level] = (data.layers["upper"] - data.X).mean(axis=0)
    half_width = ExpressionPredictor.load(shared / "predictor").half_width
    # float32 rounds a sum of size 4 by 2^-22
    np.testing.assert_allclose(found[None], half_width(), atol=1e-6)
    np.testing.assert_allclose(found[0.5], half_width(0.5), atol=1e-6)


def test_an_exported_folder_may_lie_elsewhere_today(shared, tmp_path):
    folder, _ = exported(tmp_path / "then", MODEL)
    backbone = load_backbone(f"local-dir:{folder}", pretrained=True)
    # as the command records it
    predictor = fitted_predictor(tmp_path, backbone=backbone, name=f"local-dir:{MODEL}")
    moved = folder.rename(tmp_path / "today")

    def run(**given):
        return predict_slide(shared / "slide.tif", predictor, tmp_path / "out", options(tmp_path), **given)

    with pytest.raises(
        PredictorError, match=r"fitted on the folder test_vit12 \(sha256 .*`checkpoint=FOLDER`"
    ):
        run()
    other, _ = exported(tmp_path / "other", MODEL, seed=2)
    with pytest.raises(PredictorError, match="have the sha256"):
        run(checkpoint=other)
    assert run(checkpoint=moved).status == "predicted"
