import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from timm_mvhybrid.evaluate import Fold, ridge_folds, study_folds
from timm_mvhybrid.probes.ridge_model import ridge_models
from timm_mvhybrid.runtime.errors import EvaluationError


def data(num=200, dim=24, num_genes=5, seed=0):
    """Features as a backbone gives them: correlated, off zero, one of them constant."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(num, 8)) @ rng.normal(size=(8, dim)) + 0.3 * rng.normal(size=(num, dim)) + 30
    X[:, 3] = 7
    y = rng.normal(size=(num, num_genes)) + 0.2 * X[:, :num_genes] + 5
    return X.astype(np.float32), y


def everything(num):
    return [Fold(np.arange(num), np.arange(0))]


@pytest.mark.parametrize("num_components", [1, 6, 23, None])
@pytest.mark.parametrize("alpha", [1e-3, 1.0, 1e4])
def test_predictions_are_those_of_scikit_learn(num_components, alpha):
    X, y = data()
    (model,) = ridge_models(X, y, everything(len(X)), num_components, alpha=alpha)
    reference = make_pipeline(
        StandardScaler(), PCA(num_components, svd_solver="full"), Ridge(alpha=alpha, solver="cholesky")
    ).fit(X.astype(np.float64), y)
    new, _ = data(seed=1)
    np.testing.assert_allclose(model.apply(new)[0], reference.predict(new.astype(np.float64)), rtol=1e-5)
    steps = dict(reference.steps)
    np.testing.assert_allclose(model.mean, steps["standardscaler"].mean_, rtol=1e-12)
    np.testing.assert_allclose(model.intercept, steps["ridge"].intercept_, rtol=1e-12)
    signs = np.sign((model.components * steps["pca"].components_).sum(axis=1))
    if num_components in (1, 6):  # the smallest components may turn among themselves
        np.testing.assert_allclose(model.components * signs[:, None], steps["pca"].components_, atol=1e-6)


def test_the_penalty_is_chosen_as_the_folds_choose_it():
    X, y = data(num=60)
    studies = np.repeat(list("abcde"), 12)
    folds = study_folds(studies)
    models = ridge_models(X, y, folds, 10, alpha="nested", groups=studies)
    expected = ridge_folds(X, y, folds, "intercept", 10, alpha="nested", solver="exact", groups=studies)
    for model, fold, other in zip(models, folds, expected, strict=True):
        assert model.alpha == other.alpha
        np.testing.assert_allclose(model.apply(X[fold.test])[0], other.prediction, rtol=1e-9)


def test_hest_s_penalty_by_default():
    X, y = data()
    (model,) = ridge_models(X, y, everything(len(X)), 6)
    assert model.alpha == 100 / (6 * 5)


@pytest.mark.parametrize("num_components", [20, 6])
def test_the_distance_is_that_of_mahalanobis_under_probabilistic_pca(num_components):
    X, y = data()
    (model,) = ridge_models(X, y, everything(len(X)), num_components, alpha=1.0)
    leading = model.components[: len(model.variances)]
    outside = np.eye(X.shape[1]) - leading.T @ leading
    covariance = leading.T @ np.diag(model.variances) @ leading + model.residual_variance * outside
    new, _ = data(seed=1)
    standard = StandardScaler().fit(X.astype(np.float64)).transform(new.astype(np.float64))
    expected = np.sqrt(np.einsum("nd,nd->n", standard, np.linalg.solve(covariance, standard.T).T))
    np.testing.assert_allclose(model.apply(new)[1], expected, rtol=1e-6)
    explained = np.cumsum(PCA().fit(StandardScaler().fit_transform(X)).explained_variance_ratio_)
    assert len(model.variances) == min(num_components, np.searchsorted(explained, 0.5) + 1)


def test_what_training_features_never_had_counts_as_far():
    rng = np.random.default_rng(4)
    flat = rng.normal(size=(100, 3)) @ rng.normal(size=(3, 10))  # three of ten dimensions
    (model,) = ridge_models(flat, flat[:, :1], everything(100), 3, alpha=1.0)
    normal = np.linalg.svd(flat / flat.std(axis=0))[2][-1] * flat.std(axis=0)
    inside, outside = (
        model.apply(flat[:1].astype(np.float32))[1],
        model.apply((flat[:1] + 3 * normal).astype(np.float32))[1],
    )
    # a step of 3 along a direction of no variance; float32 rounds both distances
    added = (outside**2 - inside**2).item()
    np.testing.assert_allclose(added, 9 / model.residual_variance, rtol=1e-4)


def test_training_data_that_cannot_be_fitted():
    X, y = data()
    with pytest.raises(EvaluationError, match="no feature varies"):
        ridge_models(np.ones_like(X), y, everything(len(X)), 4)
    with pytest.raises(EvaluationError, match="30 principal components of 200 training spots × 24 features"):
        ridge_models(X, y, everything(len(X)), 30)
    with pytest.raises(EvaluationError, match="needs at least two groups to train on"):
        ridge_models(
            X,
            y,
            study_folds(np.repeat(["a", "b"], 100)),
            4,
            alpha="nested",
            groups=np.repeat(["a", "b"], 100),
        )
