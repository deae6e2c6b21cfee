import sys

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from timm_mvhybrid.evaluate import expression_metrics
from timm_mvhybrid.predict import ExpressionPredictor, Prediction
from timm_mvhybrid.probes.resampling import correlation_interval
from timm_mvhybrid.synthetic import PhantomOptions, draw_sample
from timm_mvhybrid.synthetic.genes import draw_counts
from timm_mvhybrid.synthetic.sample import cohort_genes, draw_study

GENES = ["ACTB", "CD3E", "KRT5"]
STUDIES = np.repeat(list("abcd"), [30, 20, 40, 10])


def cohort(num_spots=100, dim=12, seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(num_spots, dim)) @ rng.normal(size=(dim, dim)) + 20).astype(np.float32)
    y = (X - 20) @ rng.normal(size=(dim, 3)) * [0.3, 0.1, 0] + rng.normal(size=(num_spots, 3)) + 2
    return X, y


def reference(alpha, num_components):
    return make_pipeline(StandardScaler(), PCA(num_components, svd_solver="full"), Ridge(alpha))


def test_everything_it_says_follows_from_leaving_studies_out():
    """The whole of it again with scikit-learn: the fit, residuals, widths, correlations."""
    X, y = cohort()
    predictor = ExpressionPredictor(alpha=5.0, num_components=7, level=0.7, num_resamples=200, seed=9)
    predictor.fit(X, y, studies=STUDIES, genes=GENES)
    new, _ = cohort(seed=1)
    found = predictor.predict(new)
    expected = reference(5.0, 7).fit(X.astype(np.float64), y).predict(new.astype(np.float64))
    np.testing.assert_allclose(found.mean, expected, rtol=1e-5, atol=1e-6)

    left_out = np.empty_like(y)
    for study in "abcd":
        own = STUDIES == study
        fitted = reference(5.0, 7).fit(X[~own].astype(np.float64), y[~own])
        left_out[own] = fitted.predict(X[own].astype(np.float64))
    residuals = np.abs(left_out - y)
    for gene in range(3):
        values = np.sort(residuals[:, gene])
        reached = [np.mean([(residuals[STUDIES == s, gene] <= v).mean() for s in "abcd"]) for v in values]
        width = values[np.flatnonzero(np.array(reached) >= 0.7 - 1e-12)[0]]
        np.testing.assert_allclose(found.upper[:, gene] - found.mean[:, gene], width, rtol=1e-4)
        np.testing.assert_allclose(found.mean[:, gene] - found.lower[:, gene], width, rtol=1e-4)
        r = [expression_metrics(y[STUDIES == s, gene], left_out[STUDIES == s, gene]).pcc for s in "abcd"]
        num_spots = [(STUDIES == s).sum() for s in "abcd"]
        interval = correlation_interval(r, num_spots, num_resamples=200, seed=9)
        told = predictor.reliability_
        np.testing.assert_allclose(
            [told.r[gene], told.lower[gene], told.upper[gene]],
            [np.mean(r), interval.low, interval.high],
            rtol=1e-6,
        )
    assert predictor.reliability_.predictable.tolist() == [True, True, False]


def test_shapes_and_types_of_a_prediction():
    X, y = cohort()
    found = ExpressionPredictor(alpha=1.0).fit(X, y, studies=STUDIES).predict(X[:5])
    assert isinstance(found, Prediction)
    for name, shape in {"mean": (5, 3), "lower": (5, 3), "upper": (5, 3), "distance": (5,)}.items():
        array = getattr(found, name)
        assert (array.shape, array.dtype) == (shape, np.float32)
    assert (found.far.shape, found.far.dtype) == ((5,), bool)
    assert (found.lower < found.mean).all()
    assert (found.mean < found.upper).all()
    np.testing.assert_array_equal(found.far, found.distance > 1)


def test_names_come_from_a_data_frame():
    pandas = pytest.importorskip("pandas")
    X, y = cohort()
    predictor = ExpressionPredictor(alpha=1.0)
    predictor.fit(X, pandas.DataFrame(y, columns=GENES), studies=pandas.Series(STUDIES))
    assert predictor.genes_ == tuple(GENES)


def test_patches_count_as_far_beyond_95_percent_of_left_out_ones():
    """Each study shifted against the others; one of four is farther from them than they are from each other."""
    X, y = cohort(400)
    studies = np.repeat(list("abcd"), 100)
    X += 0.5 * np.repeat([0, 1, 2, 6], 100)[:, None].astype(np.float32)
    predictor = ExpressionPredictor(alpha=1.0, num_components=8).fit(X, y, studies=studies)
    distances = np.empty(400)
    for study in "abcd":
        own = studies == study
        others = ExpressionPredictor(alpha=1.0, num_components=8).fit(X[~own], y[~own], studies=studies[~own])
        distances[own] = others.model_.apply(X[own])[1]
    # studies of one size pool their rows
    expected = np.quantile(distances, 0.95, method="inverted_cdf")
    np.testing.assert_allclose(predictor.far_distance_, expected, rtol=1e-9)
    assert predictor.predict(X[:100]).far.mean() < 0.1
    assert predictor.predict(X[:100] + 100).far.all()


def test_levels_and_calibrations_widen_intervals():
    X, y = cohort()
    predictor = ExpressionPredictor(alpha=1.0).fit(X, y, studies=STUDIES)
    widths = [predictor.half_width(level) for level in (0.5, 0.8, 0.95)]
    assert (np.diff(widths, axis=0) > 0).all()
    np.testing.assert_array_equal(predictor.half_width(), widths[1])
    predictor.set_params(calibration="hierarchical")
    # four studies: 0.8 · 5 / 4 is exactly 1, the largest residual; more cannot be promised
    np.testing.assert_array_equal(predictor.half_width(0.8), predictor.residual_quantiles_[-1])
    assert np.isinf(predictor.half_width(0.85)).all()
    assert np.isinf(predictor.predict(X[:2], level=0.85).upper).all()


def test_rows_do_not_depend_on_each_other():
    X, y = cohort()
    predictor = ExpressionPredictor(alpha=1.0).fit(X, y, studies=STUDIES)
    many, one = predictor.predict(X), predictor.predict(X[40:41])
    for name in ("mean", "lower", "upper", "distance"):
        np.testing.assert_allclose(getattr(one, name)[0], getattr(many, name)[40], rtol=1e-5, atol=1e-6)


def test_using_one_takes_numpy_alone(monkeypatch, tmp_path):
    X, y = cohort()
    ExpressionPredictor(alpha=1.0).fit(X, y, studies=STUDIES).save(tmp_path / "predictor")
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("sklearn", "scipy", "pandas", "anndata")
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("sklearn", "scipy", "pandas", "anndata"):
        monkeypatch.setitem(sys.modules, name, None)
    assert ExpressionPredictor.load(tmp_path / "predictor").predict(X).mean.shape == y.shape


def drawn_studies(options, studies, seed, num_spots=60):
    """Features that see a phantom's morphology through noise, its log1p counts, and the study of each spot."""
    rng = np.random.default_rng(seed)
    view = np.random.default_rng(options.seed).normal(size=(7, 30))
    features, targets = [], []
    for study in studies:
        morphology = rng.normal(size=(num_spots, 7)) + 0.3 * rng.normal(size=7)
        positions = rng.uniform(0, 1500, (num_spots, 2))
        level = draw_study(options, study).gene_level
        counts = draw_counts(cohort_genes(options), morphology, positions, level, options, rng)
        features.append(morphology @ view + 2 * rng.normal(size=(num_spots, 30)))
        targets.append(np.log1p(counts))
    return np.concatenate(features), np.concatenate(targets), np.repeat(studies, num_spots)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_cover_new_studies_of_a_phantom_s_genes(seed):
    """Nominal 80 % on eight studies: 80 ± 5 % of the spots of new ones, averaged over genes."""
    options = PhantomOptions(seed=seed)
    X, y, studies = drawn_studies(options, range(8), seed)
    predictor = ExpressionPredictor(alpha=100.0, num_resamples=2).fit(X, y, studies=studies)
    X, y, _ = drawn_studies(options, range(8, 40), seed + 100)
    found = predictor.predict(X)
    assert 0.75 <= np.mean((found.lower <= y) & (y <= found.upper)) <= 0.85
    assert found.far.mean() < 0.1
    predictor.set_params(calibration="hierarchical")
    found = predictor.predict(X)
    assert np.mean((found.lower <= y) & (y <= found.upper)) >= 0.8


def mean_colours(patches):
    """Means and deviations of the channels of each patch: features that a stain shifts."""
    pixels = patches.reshape(len(patches), -1, 3).astype(np.float64)
    darkest = np.quantile(pixels[:, ::7], [0.1, 0.5], axis=1).transpose(1, 0, 2).reshape(len(patches), -1)
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1), darkest], axis=1)


def test_the_distance_says_where_a_shifted_stain_breaks_intervals():
    """A phantom's pictures: eight studies, four new ones, and four whose stains differ far more than those of the eight."""

    def draw(studies, **changes):
        options = PhantomOptions(num_spots=9, num_genes=60, depth=40, study_effect=0.1, seed=3, **changes)
        samples = [draw_sample(options, study, 0) for study in studies]
        X = np.concatenate([mean_colours(sample.patches) for sample in samples])
        return X, np.log1p(np.concatenate([sample.counts for sample in samples])), np.repeat(studies, 9)

    X, y, studies = draw(range(8))
    predictor = ExpressionPredictor(alpha=1.0, num_resamples=2).fit(X, y, studies=studies)
    coverage, far = {}, {}
    for name, shift in (("plain", 1.0), ("shifted", 6.0)):
        X, y, _ = draw(range(8, 12), image_shift=shift)
        found = predictor.predict(X)
        coverage[name] = np.mean((found.lower <= y) & (y <= found.upper))
        far[name] = found.far.mean()
    assert 0.7 <= coverage["plain"] <= 0.9
    assert coverage["shifted"] < 0.6
    assert far["plain"] < 0.2
    assert far["shifted"] > 0.4
