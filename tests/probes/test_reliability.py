import numpy as np
import pytest
from scipy.stats import pearsonr

from timm_mvhybrid.evaluate import study_folds
from timm_mvhybrid.probes.reliability import gene_reliability
from timm_mvhybrid.probes.resampling import correlation_interval
from timm_mvhybrid.runtime.errors import EvaluationError


def test_correlations_are_within_studies_and_averaged_over_them():
    rng = np.random.default_rng(0)
    studies = np.repeat(list("cab"), [5, 9, 7])
    y = rng.normal(size=(21, 4))
    predicted = y + rng.normal(size=(21, 4)) * [0.1, 1, 10, 1]
    # a level of each study that would decide a correlation over all spots
    predicted += 100 * (studies == "a")[:, None]
    found = gene_reliability(y, predicted, study_folds(studies), num_resamples=300, seed=3)
    expected = np.array(
        [[pearsonr(y[studies == s, g], predicted[studies == s, g])[0] for g in range(4)] for s in "abc"]
    )
    assert found.studies == ("a", "b", "c")
    np.testing.assert_allclose(found.by_study, expected, rtol=1e-9)
    np.testing.assert_allclose(found.r, expected.mean(axis=0), rtol=1e-9)
    for gene in range(4):
        interval = correlation_interval(expected[:, gene], [9, 7, 5], num_resamples=300, seed=3)
        np.testing.assert_allclose(
            [found.lower[gene], found.upper[gene]], [interval.low, interval.high], rtol=1e-9
        )
    np.testing.assert_array_equal(found.predictable, found.lower > 0)
    assert found.predictable[0]


def test_genes_that_are_constant_have_no_correlation_there():
    rng = np.random.default_rng(1)
    studies = np.repeat(list("abc"), 6)
    y = rng.normal(size=(18, 3))
    predicted = y.copy()
    y[studies == "a", 0] = 2.0
    y[studies != "a", 1] = 2.0
    y[:, 2] = 2.0
    found = gene_reliability(y, predicted, study_folds(studies), num_resamples=50)
    np.testing.assert_allclose(found.r, [1, 1, np.nan], rtol=1e-12)
    assert np.isnan(found.by_study[0, 0])
    # one study has no interval over studies, however well it is predicted
    np.testing.assert_array_equal(found.predictable, [True, False, False])
    assert np.isnan(found.lower[1:]).all()
    assert np.isnan(found.upper[1:]).all()


@pytest.mark.parametrize("num_studies", [2, 3, 8])
def test_noise_is_seldom_called_predictable(num_studies):
    rng = np.random.default_rng(2)
    studies = np.repeat(np.arange(num_studies), 60)
    y, predicted = rng.normal(size=(2, len(studies), 800))
    found = gene_reliability(y, predicted, study_folds(studies), num_resamples=400)
    # at most 2.5 % of 800 by the normal distribution, and four binomial deviations
    assert found.predictable.mean() <= 0.025 + 4 * np.sqrt(0.025 * 0.975 / 800)
    predicted += 0.5 * y
    assert gene_reliability(y, predicted, study_folds(studies), num_resamples=400).predictable.mean() > 0.95


def test_tables_of_different_shapes_are_refused():
    with pytest.raises(EvaluationError, match="different numbers of rows"):
        gene_reliability(np.ones((4, 1)), np.ones((3, 1)), study_folds([0, 0, 1, 1]))
