"""Baselines: models without weights that embed as others do, and features of where spots lie."""

import numpy as np
import pytest
import torch
from PIL import Image

from timm_mvhybrid.data import open_source
from timm_mvhybrid.embed.backbone import load_backbone
from timm_mvhybrid.embed.baselines import BASELINES, COLOUR, MEAN, POSITION, position_features
from timm_mvhybrid.embed.colour_statistics import colour_statistics
from timm_mvhybrid.embed.embedding_store import read_embeddings
from timm_mvhybrid.embed.embeddings import embed
from timm_mvhybrid.embed.pooling import embedding_dim, pooled_features
from timm_mvhybrid.runtime.errors import EvaluationError, ParameterError


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (48, 48, 3), dtype=np.uint8) for _ in range(3)]
    for folder in ("images", "out"):
        (tmp_path / folder).mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images", pixels


def test_colours_are_those_of_the_pixels_whatever_the_options(images, tmp_path):
    folder, pixels = images
    expected = np.stack([colour_statistics(image) for image in pixels])
    backbone = load_backbone(COLOUR)
    for options in ({}, {"pool": "avg"}, {"pool": "token"}, {"dtype": "bfloat16", "batch_size": 2}):
        embed(
            open_source(folder), backbone, tmp_path / "out" / "e.h5", input_size=48, overwrite=True, **options
        )
        np.testing.assert_array_equal(read_embeddings(tmp_path / "out" / "e.h5").embeddings, expected)


def test_the_mean_sees_nothing(images):
    found = pooled_features(load_backbone(MEAN).model, torch.rand(3, 3, 48, 48), "model")
    assert found.shape == (3, embedding_dim(load_backbone(MEAN).model, "model"))
    assert (found == found[0]).all()


def test_every_baseline_is_deterministic_and_without_weights():
    for name in BASELINES:
        backbone = load_backbone(name, seed=7)
        assert (backbone.name, backbone.weights) == (name, "none")
        assert not backbone.model.state_dict()


def test_what_is_refused(images, tmp_path):
    with pytest.raises(
        EvaluationError, match="unknown baseline 'baseline:color'; choose from baseline:colour, "
    ):
        load_backbone("baseline:color")
    with pytest.raises(ParameterError, match="baseline:colour has no weights"):
        load_backbone(COLOUR, checkpoint="x.pth")
    with pytest.raises(
        EvaluationError, match=r"baseline:position is made of coordinates.* only `evaluate expression`"
    ):
        embed(open_source(images[0]), load_backbone(POSITION), tmp_path / "out" / "e.h5")


class Places:
    """Patches of which only the places are known, or not even these."""

    def __init__(self, coords, length=None):
        self.coords, self.length = coords, len(coords) if length is None else length

    def __len__(self):
        return self.length


def test_positions_fit_a_surface_to_each_sample_and_tell_nothing_of_others():
    rng = np.random.default_rng(0)
    coords = {name: rng.uniform(5000, 9000, (40, 2)) for name in "abc"}
    found = position_features({name: Places(one) for name, one in coords.items()})
    for number, name in enumerate(coords):
        own = np.zeros(30, bool)
        own[10 * number : 10 * number + 10] = True
        assert found[name].shape == (40, 30)
        assert (found[name][:, ~own] == 0).all()
        x, y = ((coords[name] - 7000) / 2000).T
        surface = 2 + x - 3 * x * y + 0.5 * y**3 - x**2 * y
        solution = np.linalg.lstsq(found[name][:, own].astype(float), surface, rcond=None)[0]
        # features are rounded to float32, 6e-8 of values up to 1, and the surface has ten terms of single digits
        np.testing.assert_allclose(found[name][:, own] @ solution, surface, atol=1e-4)
        assert np.abs(found[name]).max() <= 1 + 1e-6


def test_positions_do_not_depend_on_the_unit_and_widths_are_bounded():
    places = np.array([[0, 0], [10, 4], [3, 2]])
    one, other = (position_features({"a": Places(found)})["a"] for found in (places, places * 250.0 - 70))
    np.testing.assert_allclose(one, other, atol=1e-6)
    for number, columns in ((102, 10), (103, 3), (341, 3), (342, 1)):
        many = {str(sample): Places(np.eye(2)) for sample in range(number)}
        assert position_features(many)["0"].shape == (2, number * columns)
    assert np.isfinite(position_features({"one spot": Places(np.array([[3, 3]]))})["one spot"]).all()
    unknown = position_features({"a": Places(None, 4)})["a"]
    assert (unknown == unknown[0]).all()
