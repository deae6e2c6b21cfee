"""What a phantom draws: shapes, fields, and genes that follow morphology of known spatial frequency."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from timm_mvhybrid.evaluate import EvaluationError
from timm_mvhybrid.synthetic import FACTORS, HIGH_FREQUENCY, PhantomOptions, draw_sample
from timm_mvhybrid.synthetic.cells import Blobs, rasterise
from timm_mvhybrid.synthetic.genes import draw_counts, draw_panel
from timm_mvhybrid.synthetic.random_fields import fibres, grain, smooth_field
from timm_mvhybrid.synthetic.sample import stain
from timm_mvhybrid.synthetic.tissue import FIELDS, GLASS, LUMEN, grow_tissue

PX_PER_UM = 2.0


def discs(*places, radius=10.0):
    x, y = (np.array(values, dtype=float) for values in zip(*places, strict=True))
    size = np.full(len(x), radius)
    return Blobs.make(x, y, size, size, 0 * x, 0.0, np.random.default_rng(0))


def test_a_disc_covers_its_area():
    cover = rasterise(discs((30.3, 29.6)), (60, 60))
    assert cover.alpha.sum() == pytest.approx(np.pi * 100, rel=0.02)
    assert cover.alpha.min() >= 0
    assert cover.alpha.max() == 1


def test_the_later_of_two_shapes_lies_on_top():
    cover = rasterise(discs((30, 30), (36, 30)), (60, 60))
    assert len(np.unique(cover.pixel)) == len(cover.pixel)
    assert cover.owner[cover.pixel == 30 * 60 + 33] == 1


def test_shapes_across_the_border_are_cut():
    cover = rasterise(discs((0, 0), (59, 30)), (60, 60))
    assert cover.alpha[cover.owner == 0].sum() == pytest.approx(np.pi * 25, rel=0.15)
    assert cover.pixel.max() < 3600
    # nothing comes back on the other side
    assert (cover.pixel[cover.owner == 1] % 60).min() > 40


def test_smooth_fields_keep_a_mean_of_their_own():
    generator = np.random.default_rng(0)
    fields = np.stack([smooth_field((40, 40), 12.0, generator) for _ in range(200)])
    assert fields.std() == pytest.approx(1, abs=0.06)
    assert fields.mean((1, 2)).std() > 0.3
    assert np.corrcoef(fields[:, 20, 20], fields[:, 20, 22])[0, 1] > 0.97


def test_grain_has_no_coarse_part():
    noise = grain((300, 300), 0.8, 2.0, np.random.default_rng(0))
    assert noise.std() == pytest.approx(1, abs=1e-5)
    assert gaussian_filter(noise, 8).std() < 0.02


def test_fibres_follow_their_direction():
    level = np.ones((200, 200), np.float32)
    strands = fibres(level, 0 * level, 12.0, 1.0, np.random.default_rng(0))
    # cosine of twice the angle is 1: the strands run along x
    assert np.abs(np.diff(strands, axis=1)).mean() < 0.3 * np.abs(np.diff(strands, axis=0)).mean()


def stained(field: str, mean: float) -> np.ndarray:
    """Both stains of one section, drawn from the same randomness whatever the mean of one field."""
    generator = np.random.default_rng(3)
    means = dict.fromkeys(FIELDS, 0.0) | {field: mean}
    tissue = grow_tissue((500, 600), PX_PER_UM, means, generator)
    haematoxylin, eosin, _ = stain(tissue, generator)
    return haematoxylin + eosin


@pytest.mark.fixed_seed  # how many nuclei one section holds, and so how much a field changes, is a matter of the draw
@pytest.mark.parametrize("factor", FACTORS)
def test_only_low_frequencies_survive_blurring(factor):
    change = stained(factor, 1.0) - stained(factor, -1.0)
    coarse = gaussian_filter(change, 4.0 * PX_PER_UM)
    assert change.std() > 0.02
    left = np.sqrt((coarse**2).mean())
    # measured after blurring by 4 µm: 0.003 to 0.015 for the high ones, 0.09 to 0.3 for the low ones
    if factor in HIGH_FREQUENCY:
        assert left < {"chromatin": 0.008, "nucleoli": 0.006, "mitoses": 0.025}[factor]
        assert (coarse**2).sum() < 0.08 * (change**2).sum()
    else:
        assert left > 0.05


def test_fields_raise_the_morphology_that_they_are_named_after():
    options = PhantomOptions(num_spots=12, image_shift=0)
    sample = draw_sample(options, 0, 0)
    assert sample.morphology.shape == (12, len(FACTORS))
    assert np.abs(sample.morphology).max() <= 3
    assert (sample.morphology.std(0) > 0.05).all()


def test_tissue_has_glands_with_a_lumen_and_a_border_of_glass():
    tissue = grow_tissue((600, 600), PX_PER_UM, dict.fromkeys(FIELDS, 0.0), np.random.default_rng(1))
    assert (tissue.label[0] == GLASS).all()
    assert (tissue.label[150:-150, 150:-150] != GLASS).all()
    lumen = tissue.label == LUMEN
    assert 0.01 < lumen.mean() < 0.4
    assert (tissue.gland_of[lumen] >= 0).all()


def counts_of(options: PhantomOptions, num_spots: int = 4000):
    generator = np.random.default_rng(0)
    panel = draw_panel(options, generator)
    morphology = generator.standard_normal((num_spots, len(FACTORS)))
    positions = generator.uniform(0, 800, (num_spots, 2))
    counts = draw_counts(panel, morphology, positions, np.zeros(options.num_genes), options, generator)
    return panel, morphology, counts


PLAIN = PhantomOptions(num_genes=20, noise=0, gradient=0, dispersion=0, dropout=0, depth=100)


def test_genes_follow_their_drivers_with_the_stated_effect():
    panel, morphology, counts = counts_of(PLAIN)
    design = np.c_[np.ones(len(morphology)), morphology]
    slopes = np.linalg.lstsq(design, np.log1p(counts), rcond=None)[0][1:]
    assert np.abs(slopes - panel.loadings).max() < 0.04
    assert panel.bands == ("low",) * 8 + ("high",) * 8 + ("none",) * 4
    for gene, (name, band, driver) in enumerate(zip(panel.names, panel.bands, panel.drivers, strict=True)):
        assert name.startswith(f"{band}-{driver}".upper().rstrip("-"))
        assert (panel.effects[gene] == 0) == (band == "none")
    assert len(set(panel.names)) == 20


def test_shares_and_effects_are_adjustable():
    options = replace(PLAIN, low_share=0.0, high_share=1.0, high_effect=0.2)
    panel, _, _ = counts_of(options, 2)
    assert set(panel.bands) == {"high"}
    assert 0.13 < np.abs(panel.effects).min() <= np.abs(panel.effects).max() < 0.27


def test_dispersion_and_dropout_do_what_they_say():
    still = replace(PLAIN, low_effect=0, high_effect=0)
    _, _, counts = counts_of(still)
    # without either the counts are log-normal in depth (0.2) and Poisson: variance = μ + (e^0.04 − 1) μ²
    mean, variance = counts.mean(0), counts.var(0)
    size = np.exp(0.04) - 1
    np.testing.assert_allclose(variance, mean + size * mean**2, rtol=0.25)
    _, _, spread = counts_of(replace(still, dispersion=0.5))
    np.testing.assert_allclose(spread.var(0) / spread.mean(0) ** 2, 0.5 + size, rtol=0.3)
    _, _, lost = counts_of(replace(still, dropout=0.3))
    assert (lost == 0).mean() == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_studies": 0}, "`num_studies` must be at least 1, not 0"),
        ({"dropout": 1.5}, "`dropout` must lie between 0 and 1, not 1.5"),
        ({"low_share": 0.7, "high_share": 0.6}, "add up to at most 1, not 1.3"),
        ({"noise": -1}, "`noise` must be at least 0, not -1"),
        ({"depth": 0}, "`depth` must be above 0, not 0"),
        ({"study_effect": float("nan")}, "`study_effect` must be at least 0, not nan"),
        ({"seed": -1}, "`seed` must be at least 0, not -1"),
    ],
)
def test_options_outside_their_range_are_refused(changes, message):
    with pytest.raises(EvaluationError, match=message):
        PhantomOptions(**changes)
