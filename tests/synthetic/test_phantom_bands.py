"""A phantom of bands: what its patches hold, that no band has more to see than another, and that colours tell nothing."""

import csv
import dataclasses
import json
import math
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest
from PIL import Image

from timm_mvhybrid.cli import main
from timm_mvhybrid.embed.colour_statistics import colour_statistics
from timm_mvhybrid.evaluate import EvaluationError
from timm_mvhybrid.synthetic import (
    MARK,
    PhantomOptions,
    draw_sample,
    frequency_bands,
    grating_energies,
    write_phantom,
)
from timm_mvhybrid.synthetic.frequency_bands import HIGHEST_CYCLES
from timm_mvhybrid.synthetic.genes import draw_counts, draw_panel
from timm_mvhybrid.synthetic.gratings import draw_alignment, draw_gratings
from timm_mvhybrid.synthetic.sample import cohort_genes, draw_study

EDGES = (1.0, 2.0, 4.0, 8.0, 16.0)
BANDS = frequency_bands(EDGES)
SMALL = PhantomOptions(bands=EDGES, num_studies=2, num_samples=2, num_spots=8, num_genes=12, seed=4)


def light(picture):
    """One grating picture as a grey image in which the density is that of the chart."""
    grey = 244 * np.exp(-0.5 * (1 + 0.1 * picture))
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize("side", [64, 173, 224])
def test_a_patch_holds_equal_energy_in_each_band_and_nothing_else(side):
    """Whole cycles are orthogonal in a patch of any size: the sum is exact but for the rounding of float32."""
    generator = np.random.default_rng(0)
    alignment = generator.standard_normal(4)
    picture = draw_gratings(alignment, BANDS, side, generator).astype(np.float64)
    power = np.abs(np.fft.fft2(picture)) ** 2 / picture.size**2
    y, x = (np.abs(axis) for axis in np.meshgrid(*[np.fft.fftfreq(side, 1 / side)] * 2, indexing="ij"))
    length = np.hypot(x, y)
    assert power[(length < 1) | (length >= 16)].sum() < 1e-10
    for band, value in zip(BANDS, np.tanh(0.6 * alignment), strict=True):
        ring = (length >= band.low) & (length < band.high)
        assert power[ring & (2 * y <= x)].sum() == pytest.approx((1 + value) / 2, abs=1e-5)
        assert power[ring & (2 * x <= y)].sum() == pytest.approx((1 - value) / 2, abs=1e-5)
        assert power[ring].sum() == pytest.approx(1, abs=1e-5)
        assert np.count_nonzero(power[ring] > 1e-9) == 4  # two gratings, each at k and −k


def test_gratings_lie_in_their_band_and_near_an_axis():
    for band in BANDS:
        x, y = band.modes.T
        assert len(x) > 0
        assert (band.low <= np.hypot(x, y)).all()
        assert (np.hypot(x, y) < band.high).all()
        assert (2 * np.abs(y) <= x).all()
    assert BANDS[0].modes.tolist() == [[1, 0]]
    assert sorted(BANDS[1].modes.tolist()) == [[2, -1], [2, 0], [2, 1], [3, -1], [3, 0], [3, 1]]
    assert BANDS[3].wavelengths_um == (7, 14)


def test_slides_keep_the_bands_apart():
    """What scanning adds: blur takes at most exp(−(2π f σ)²) of an energy, and noise and products of gratings little."""
    for study in range(2):
        sample = draw_sample(SMALL, study, 0)
        energies = grating_energies(sample.patches, BANDS).reshape(-1, 4, 2)
        density = -np.log(sample.patches.mean(axis=3) / 255)
        # sensor, JPEG and the gratings' products put at most a tenth elsewhere; 3 % at most were measured in 960 patches
        assert (energies.sum((1, 2)) > 0.9 * density.var((1, 2))).all()
        in_band = energies.sum(2)
        for number, band in enumerate(BANDS):
            kept = math.exp(-((2 * math.pi * band.high / 112 * sample.scanner.blur_um) ** 2))
            ratio = in_band[:, number] / in_band[:, 0]
            assert (ratio > 0.9 * kept).all()
            assert (ratio < 1.1).all()
        # blur, contrast and level act on both directions alike; noise of the sensor is a hundredth of the weaker grating
        found = np.log(energies[:, :, 0] / energies[:, :, 1]) / 1.2
        assert np.abs(found - sample.morphology).max() < 0.4
        assert all(np.corrcoef(a, b)[0, 1] > 0.98 for a, b in zip(found.T, sample.morphology.T, strict=True))


def test_every_slide_has_the_same_alignments_in_every_band():
    generator = np.random.default_rng(0)
    positions = generator.uniform(72, 900, (40, 2))
    alignment = draw_alignment(positions, 4, generator)
    np.testing.assert_allclose(np.sort(alignment, axis=0), np.sort(alignment[:, :1], axis=0) * np.ones(4))
    np.testing.assert_allclose(alignment.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(alignment.std(0), 1)
    assert len(np.unique(alignment.argmax(0))) > 1 or len(np.unique(alignment.argmin(0))) > 1
    assert draw_alignment(positions[:1], 2, generator).tolist() == [[0, 0]]


def test_genes_of_the_bands_differ_in_their_band_alone():
    panel = cohort_genes(dataclasses.replace(SMALL, num_genes=30))
    assert panel.names[:2] == ("BAND1-01", "BAND1-02")
    assert panel.names[-1] == "NONE-06"
    by_band = np.arange(24).reshape(4, 6)
    for values in (panel.effects, panel.log_level, *panel.gradients):
        np.testing.assert_array_equal(values[by_band], values[by_band[:1]] * np.ones((4, 1)))
    assert (panel.effects[24:] == 0).all()
    assert (panel.effects[:24] != 0).all()
    level = draw_study(dataclasses.replace(SMALL, num_genes=30), 1).gene_level
    np.testing.assert_array_equal(level[by_band], level[by_band[:1]] * np.ones((4, 1)))
    np.testing.assert_array_equal(panel.facts["low_cycles_per_patch"][::6], [1, 2, 4, 8, np.nan])


def test_the_oracle_sees_every_band_alike():
    """Means of correlations over genes whose noise is independent: each scatters by at most 1/√(N G)."""
    # smooth fields of a slide are shared by its genes, and would be one draw for all of them
    options = dataclasses.replace(SMALL, num_genes=50, gradient=0)
    num_spots, num_genes = 2500, 10
    generator = np.random.default_rng(1)
    panel = draw_panel(options, generator)
    positions = np.stack(np.divmod(np.arange(num_spots), 50), axis=1) * 132.0 + 72
    alignment = draw_alignment(positions, 4, generator)
    counts = draw_counts(panel, alignment, positions, np.zeros(50), options, generator)
    y = np.log1p(counts)
    r = np.abs(np.corrcoef(alignment.T, y.T)[:4, 4:])
    own = np.array([r[band, band * num_genes : (band + 1) * num_genes].mean() for band in range(4)])
    # the difference of two such means, five deviations
    assert np.ptp(own) < 5 * math.sqrt(2 / (num_spots * num_genes))
    assert own.min() > 0.4
    assert r[:, 40:].max() < 5 / math.sqrt(num_spots)


def test_an_image_and_its_transpose_have_the_same_colours_and_opposite_alignments():
    """Why colours cannot tell an alignment, whatever the draw: it would have to differ between the two."""
    generator = np.random.default_rng(2)
    image = light(draw_gratings(generator.standard_normal(4), BANDS, 64, generator))
    transposed = np.ascontiguousarray(image.transpose(1, 0, 2))
    np.testing.assert_allclose(colour_statistics(image), colour_statistics(transposed), rtol=1e-5, atol=1e-7)
    energies, swapped = grating_energies(np.stack([image, transposed]), BANDS)
    np.testing.assert_allclose(energies.reshape(4, 2)[:, ::-1].ravel(), swapped, rtol=1e-9)


def test_colours_do_not_follow_the_alignment():
    generator = np.random.default_rng(3)
    num = 300
    alignment = generator.standard_normal((num, 4))
    images = np.stack([light(draw_gratings(one, BANDS, 64, generator)) for one in alignment])
    colours = np.stack([colour_statistics(image) for image in images]).astype(np.float64)
    varies = colours.std(0) > 1e-6
    assert varies.sum() > 5
    r = np.corrcoef(alignment.T, colours[:, varies].T)[:4, 4:]
    # 88 correlations of nothing: the chance that one exceeds five deviations is 5e-5
    assert np.abs(r).max() < 5 / math.sqrt(num)
    energies = np.log(grating_energies(images, BANDS))
    assert all(
        np.corrcoef(alignment[:, band], energies[:, 2 * band] - energies[:, 2 * band + 1])[0, 1] > 0.98
        for band in range(4)
    )


@pytest.mark.fixed_seed
def test_tissue_is_drawn_as_before():
    """Names are drawn last, so that they are others as soon as anything is drawn more, less or in another order."""
    options = PhantomOptions(num_spots=6, num_genes=12, seed=4)
    sample = draw_sample(options, 1, 1)
    assert sample.barcodes[:2] == ("AGATTCCTTCGGCCGA-1", "GAAGAGGCCGTCGATT-1")
    assert sample.counts[0].tolist() == [10, 2, 8, 92, 69, 15, 33, 5, 10, 0, 32, 23]
    assert sample.coords[-1].tolist() == [573, 221]
    assert sample.patches.mean() == pytest.approx(194.875, abs=0.05)
    # what files say of a cohort's options
    assert list(options.applied) == [
        "num_studies", "num_samples", "num_spots", "num_genes", "low_share", "high_share", "low_effect", "high_effect",
        "noise", "gradient", "study_effect", "dispersion", "dropout", "depth", "image_shift", "capture_um", "seed",
    ]  # fmt: skip


def test_a_sample_of_bands_depends_on_seed_and_place_alone():
    first = draw_sample(SMALL, 1, 1)
    again = draw_sample(dataclasses.replace(SMALL, num_studies=9, num_samples=5), 1, 1)
    np.testing.assert_array_equal(first.patches, again.patches)
    np.testing.assert_array_equal(first.counts, again.counts)
    other = draw_sample(dataclasses.replace(SMALL, seed=5), 1, 1)
    assert (other.counts != first.counts).any()
    # patches do not overlap, so that each shows its own gratings whole
    side = first.patch_size_slide_px
    gap = np.abs(first.coords[:, None] - first.coords[None]).max(2)
    assert gap[~np.eye(len(gap), dtype=bool)].min() >= side


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bands") / "cohort"
    command = [
        "phantom",
        "--output",
        str(folder),
        "--bands",
        "1,2,4,8,16",
        "--num-studies",
        "2",
        "--num-samples",
        "1",
    ]
    assert main([*command, "--num-spots", "5", "--num-genes", "10", "--band-share", "0.85"]) == 0
    return folder


def test_the_files_say_what_band_a_gene_is_of(cohort):
    data = anndata.read_h5ad(cohort / "PHANTOM/adata/GEN02-01.h5ad")
    assert data.var["band"].tolist() == [
        *["1-2 cycles"] * 2, *["2-4 cycles"] * 2, *["4-8 cycles"] * 2, *["8-16 cycles"] * 2, "none", "none"
    ]  # fmt: skip
    row = data.var.loc["BAND4-02"]
    assert (row["low_cycles_per_patch"], row["high_cycles_per_patch"]) == (8, 16)
    assert (row["shortest_wavelength_um"], row["longest_wavelength_um"]) == (7, 14)
    assert np.isnan(data.var.loc["NONE-01", "low_cycles_per_patch"])
    assert list(data.obsm["morphology"].columns) == [
        "alignment_1-2", "alignment_2-4", "alignment_4-8", "alignment_8-16"
    ]  # fmt: skip
    with (cohort / "PHANTOM/genes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["gene"] for row in rows] == list(data.var_names)
    assert [row["high_cycles_per_patch"] for row in rows[::2]] == ["2.0", "4.0", "8.0", "16.0", ""]
    assert len(json.loads((cohort / "PHANTOM/var_10genes.json").read_text())["genes"]) == 10
    options = json.loads((cohort / "options.json").read_text())
    assert options["bands"] == [1, 2, 4, 8, 16]
    assert "low_share" not in options
    readme = (cohort / "README.md").read_text()
    assert MARK in readme
    assert "gratings, not tissue" in readme
    assert "nuclei" not in readme


@pytest.mark.slow
def test_the_files_of_bands_do_not_depend_on_the_process_that_draws(tmp_path, cohort):
    options = PhantomOptions(
        bands=EDGES, num_studies=2, num_samples=1, num_spots=5, num_genes=10, band_share=0.85
    )
    write_phantom(tmp_path / "other", options, num_workers=2)
    names = sorted(str(path.relative_to(cohort)) for path in cohort.rglob("*") if path.is_file())
    assert names == sorted(
        str(path.relative_to(tmp_path / "other"))
        for path in (tmp_path / "other").rglob("*")
        if path.is_file()
    )
    for name in names:
        first, second = cohort / name, tmp_path / "other" / name
        if name.endswith(".tif"):
            with Image.open(first) as one, Image.open(second) as two:
                np.testing.assert_array_equal(np.asarray(one), np.asarray(two))
        elif name.endswith((".h5", ".h5ad")):
            assert _arrays(first) == _arrays(second)
        else:
            assert first.read_bytes() == second.read_bytes(), name


def _arrays(path: Path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: (
                found.update({name: repr(np.asarray(item[()]).tolist())})
                if isinstance(item, h5py.Dataset) and item.shape is not None
                else None
            )
        )
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"bands": (1.0,)},
            r"`bands` must be two or more edges in cycles per patch, not '1'; give such as 1,2,4",
        ),
        ({"bands": (1.0, math.inf)}, "two or more edges"),
        ({"bands": (4.0, 2.0)}, "`bands` must rise from edge to edge, and 4, 2 do not"),
        ({"bands": (2.0, 2.0)}, "must rise"),
        ({"bands": (-1.0, 0.5)}, "no grating of whole cycles per patch lies between -1 and 0.5"),
        (
            {"bands": (2.4, 2.9)},
            "no grating of whole cycles per patch lies between 2.4 and 2.9; widen the band",
        ),
        (
            {"bands": (1.0, 100.0)},
            rf"`bands` end at 100 cycles per patch, and the coarsest slides, of 0.65 µm per px, resolve {HIGHEST_CYCLES} ",
        ),
        (
            {"bands": EDGES, "num_genes": 4},
            "`num_genes` of 4 with a `band_share` of 0.8 leaves no gene for each of 4",
        ),
        ({"bands": EDGES, "band_contrast": 0.2}, r"`band_contrast` must be below 0.125 for 4 bands, not 0.2"),
        (
            {"bands": EDGES, "low_share": 0.1},
            "`low_share` is of tissue, and `bands` draw none; leave one of them out",
        ),
        ({"band_effect": 0.1}, "`band_effect` belongs to `bands`, and there are none"),
        ({"band_share": 2.0}, "`band_share` must lie between 0 and 1, not 2"),
    ],
)
def test_bands_that_cannot_be_drawn_are_refused(changes, message):
    with pytest.raises(EvaluationError, match=message):
        PhantomOptions(**changes)


def test_the_coarsest_slides_resolve_the_highest_frequency():
    options = PhantomOptions(bands=(80.0, float(HIGHEST_CYCLES)), image_shift=9, num_genes=2, band_share=1)
    for study in range(6):
        side = 112 / draw_study(options, study).scanner.um_per_px
        assert round(side) >= 2 * HIGHEST_CYCLES


def test_the_command_names_the_flag(tmp_path, capsys):
    command = ["phantom", "--output", str(tmp_path / "out")]
    assert main([*command, "--bands", "8,4"]) == 1
    assert "--bands must rise from edge to edge, and 8, 4 do not" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--bands", "low"])
    assert "none|CYCLES,CYCLES" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
