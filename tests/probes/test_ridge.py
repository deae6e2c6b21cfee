from functools import cache

import numpy as np
import pytest
from scipy.sparse.linalg import lsqr
from support.bounds import gamma, rounded_otherwise
from support.evaluation_goldens import inputs, reference

from timm_mvhybrid.evaluate import (
    EvaluationError,
    Fold,
    expression_metrics,
    random_folds,
    ridge_folds,
    ridge_probe,
    study_folds,
)
from timm_mvhybrid.probes.ridge_folds import deterministic_pca
from timm_mvhybrid.probes.ridge_statistics import diagonal_lsqr

GOLDENS = ["ridge_pca_coveigh", "ridge_pca_randomized", "ridge_pca_full", "ridge_raw"]
PER_GENE = {"pcc_per_gene": "pearson", "mse_per_gene": "l2_errors", "r2_per_gene": "r2"}
TOLERANCE = 1e-4  # of the recipe's LSQR


def golden(name):
    data, expected = inputs(name), reference()[name]
    y_train, y_test = (np.log1p(data[f"counts_{part}"].astype(np.float64)) for part in ("train", "test"))
    return data["X_train"], y_train, data["X_test"], y_test, expected


def values(metrics):
    """Every metric of a table, by name."""
    return {name: getattr(metrics, name) for name in (*PER_GENE, "pcc", "pcc10", "mse", "mae")}


@cache
def amplification(name, preset="hest", pca_solver="auto"):
    """How far the recipe's numbers go, at most, when its features are rounded otherwise, by metric.

    LSQR stops early, without PCA in float32, and where features are nearly collinear it amplifies rounding a lot. What
    another CPU rounds otherwise is amplified as what is rounded otherwise here.
    """
    X_train, y_train, X_test, y_test, expected = golden(name)
    found = []
    for seed in range(5):
        X, other = (rounded_otherwise(x, np.random.default_rng(seed)) for x in (X_train, X_test))
        prediction = ridge_probe(X, y_train, other, preset, expected["latent_dim"], pca_solver=pca_solver)
        found.append(values(expression_metrics(y_test, prediction)) | {"mean": prediction.mean(axis=0)})
    stacked = {metric: np.stack([one[metric] for one in found]) for metric in found[0]}
    return {metric: np.ptp(x, axis=0).max() for metric, x in stacked.items()}


def assert_rounded(found, expected, spread):
    """Asserts that two results differ by rounding: of float32 itself, and of features, as amplified.

    ``spread`` is from one rounding of each feature. The recipe rounds more often, in sums over spots and features:
    as much again, in both results, and three times that for chance.
    """
    np.testing.assert_allclose(found, expected, rtol=gamma(16, np.float32), atol=6 * spread)


def stopping_error(X_train, y_train, X_test, num_components, alpha):
    """The most by which two predictions of the recipe may differ, of which each stops where LSQR's rule lets it.

    It stops at ‖Aᵀr‖ ≤ tolerance ‖A‖ ‖r‖, A with the penalty's rows, so that x is within
    tolerance ‖A‖ ‖b‖ / (σ² + α) of the solution, σ the least singular value (Paige and Saunders 1982, 6).
    The components are those of a float32 matrix, turned by at most n u σ₁² / gap (Davis and Kahan 1970).
    """
    A, B = X_train.astype(np.float64), X_test.astype(np.float64)
    centre, scale = A.mean(axis=0), A.std(axis=0)
    A, B = (A - centre) / scale, (B - centre) / scale
    squares = np.linalg.svd(A, compute_uv=False) ** 2
    kept, gap = squares[:num_components], squares[num_components - 1] - squares[num_components]
    reach = np.linalg.norm(B, axis=1).max() * np.linalg.norm(y_train, axis=0).max()
    stopped = TOLERANCE * np.sqrt(kept.sum() + num_components * alpha) / (kept[-1] + alpha)
    turned = gamma(len(A), np.float32) * squares[0] / gap / np.sqrt(kept[-1])
    return 2 * reach * (stopped + turned)


def draw_factors(num=120, dim=20, genes=4, factors=6):
    """Features that few factors explain, so that the principal components stand apart, and targets."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(num, factors))
    loadings = np.linalg.qr(rng.normal(size=(dim, factors)))[0]
    X = (3 * scores @ loadings.T + 0.1 * rng.normal(size=(num, dim)) + 1).astype(np.float32)
    return X, scores @ rng.normal(size=(factors, genes)) + 0.1 * rng.normal(size=(num, genes))


def draw(num=120, dim=20, genes=3, seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(num, dim)) * np.linspace(0.5, 3, dim) + 1).astype(np.float32)
    return X, X @ rng.normal(size=(dim, genes)) + rng.normal(size=(num, genes)) + 2


@pytest.mark.parametrize("name", GOLDENS)
def test_ridge_probe_gives_the_numbers_of_hests_code(name):
    X_train, y_train, X_test, y_test, expected = golden(name)
    prediction = ridge_probe(X_train, y_train, X_test, num_components=expected["latent_dim"])
    wanted = {metric: expected[key] for metric, key in PER_GENE.items()}
    wanted |= {"pcc": expected["pearson_mean"]}
    wanted |= {metric: expected["derived_stem"][metric] for metric in ("pcc10", "mse", "mae")}
    for metric, found in values(expression_metrics(y_test, prediction)).items():
        assert_rounded(found, wanted[metric], amplification(name)[metric])


def test_an_intercept_changes_errors_a_lot_and_correlations_hardly():
    X_train, y_train, X_test, y_test, expected = golden("ridge_pca_coveigh")
    metrics = expression_metrics(y_test, ridge_probe(X_train, y_train, X_test, "intercept", 32))
    control = expected["controls"]["with_intercept"]
    # by centred targets, where the recipe's LSQR stops elsewhere
    assert metrics.mse == pytest.approx(control["mse"], rel=TOLERANCE)
    assert metrics.pcc == pytest.approx(control["pearson_mean"], rel=TOLERANCE)
    assert metrics.mse < 0.25 * expected["derived_stem"]["mse"]


def test_hests_recipe_amplifies_rounding_of_collinear_features():
    # a rounding of float32 is 6e-8: where features are collinear it comes out a thousand times as large
    assert 1e-4 < amplification("ridge_pca_full")["pcc_per_gene"] < 2e-2
    assert amplification("ridge_pca_coveigh")["pcc_per_gene"] < 1e-5


@pytest.mark.parametrize("name", GOLDENS)
@pytest.mark.parametrize("preset", ["hest", "intercept"])
def test_sums_over_spots_give_what_the_recipe_gives(name, preset):
    X_train, y_train, X_test, y_test, expected = golden(name)
    X, y = np.concatenate([X_train, X_test]), np.concatenate([y_train, y_test])
    fold = Fold(np.arange(len(y_train)), np.arange(len(y_train), len(y)))
    components = expected["latent_dim"]
    # sums over spots lead to the exact decomposition
    recipe = ridge_probe(X_train, y_train, X_test, preset, components, pca_solver="full")
    shared, exact = (
        ridge_folds(X, y, [fold], preset, components, solver=solver)[0].prediction
        for solver in ("shared", "exact")
    )
    by_recipe, by_sums, without_stopping = (
        expression_metrics(y_test, one).pcc_per_gene for one in (recipe, shared, exact)
    )
    spread = amplification(name, preset, "full")
    assert_rounded(by_sums, by_recipe, spread["pcc_per_gene"])
    assert_rounded(shared.mean(axis=0), recipe.mean(axis=0), spread["mean"])
    # what stopping early changes
    np.testing.assert_allclose(without_stopping, by_recipe, rtol=0, atol=1e-2 + 3 * spread["pcc_per_gene"])


@pytest.mark.parametrize("solver", ["recipe", "shared"])
@pytest.mark.parametrize(("protocol", "labels"), [("random10", "random_fold"), ("loso8", "study")])
def test_folds_give_the_numbers_of_hests_code(protocol, labels, solver):
    data, expected = inputs("loso"), reference()["loso"][protocol]
    y = np.log1p(data["counts"].astype(np.float64))
    folds = study_folds(data[labels])
    found = ridge_folds(data["X"], y, folds, num_components=32, solver=solver)
    for fold, one, wanted in zip(folds, found, expected["folds"], strict=True):
        metrics = expression_metrics(y[fold.test], one.prediction)
        for name, value in wanted.items():
            assert getattr(metrics, name) == pytest.approx(value, rel=1e-5)


def test_early_stopping_is_that_of_scipys_lsqr():
    rng = np.random.default_rng(3)
    sigma = np.geomspace(30, 10, 40)
    basis = np.linalg.qr(rng.normal(size=(90, 40)))[0]
    targets = rng.normal(size=(90, 6)) * 10.0 ** np.arange(-3, 3)
    inside = basis.T @ targets
    outside = np.linalg.norm(targets - basis @ inside, axis=0)
    found = diagonal_lsqr(sigma, inside, outside, 0.3, 1e-4, 1000)
    exact = sigma[:, None] * inside / (sigma**2 + 0.09)[:, None]
    for column in range(6):
        expected = lsqr(basis * sigma, targets[:, column], damp=0.3, atol=1e-4, btol=1e-4)[0]
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(found[:, column] - expected) < 1e-8 * scale
        assert np.linalg.norm(exact[:, column] - expected) > 1e-5 * scale


def test_a_target_of_zeros_is_predicted_as_zero():
    X, y = draw()
    y[:, 1] = 0
    for solver in ("recipe", "shared", "exact"):
        prediction = ridge_folds(X, y, random_folds(120, 3), num_components=5, solver=solver)[0].prediction
        assert (prediction[:, 1] == 0).all()
        assert np.ptp(prediction[:, 0]) > 1


def test_exact_solver_solves_the_normal_equations():
    X, y = draw()
    folds = random_folds(len(X), 4)
    for preset, components in (("hest", 7), ("intercept", 7), ("intercept", None), ("hest", None)):
        found = ridge_folds(X, y, folds, preset, components, alpha=2.5, solver="exact")
        for (train, test), one in zip(folds, found, strict=True):
            A, B, mean = X[train].astype(np.float64), X[test].astype(np.float64), 0.0
            if components:
                centre, scale = A.mean(axis=0), A.std(axis=0)
                A, B = (A - centre) / scale, (B - centre) / scale
                rotation = np.linalg.svd(A, full_matrices=False)[2][:components].T
                A, B = A @ rotation, B @ rotation
            target = y[train]
            if preset == "intercept":
                mean, shift = target.mean(axis=0), A.mean(axis=0)
                A, B, target = A - shift, B - shift, target - mean
            weights = np.linalg.solve(A.T @ A + 2.5 * np.eye(A.shape[1]), A.T @ target)
            np.testing.assert_allclose(one.prediction, B @ weights + mean, rtol=1e-8, atol=1e-8)


def test_constant_features_have_no_say():
    X, y = draw()
    wider = np.concatenate([X, np.full((len(X), 1), 3.3, np.float32)], axis=1)
    folds = random_folds(len(X), 3)
    for plain, padded in zip(
        ridge_folds(X, y, folds, num_components=8, solver="shared"),
        ridge_folds(wider, y, folds, num_components=8, solver="shared"),
        strict=True,
    ):
        np.testing.assert_allclose(padded.prediction, plain.prediction, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.7])
@pytest.mark.parametrize("num_components", [5, 8])
def test_features_that_vary_only_where_a_fold_is_tested_have_no_say(value, num_components):
    X, y = draw()
    groups = np.arange(len(X)) % 3
    switched_on = np.where(groups == 0, X[:, 0], np.float32(value))
    wider = np.concatenate([X, switched_on[:, None]], axis=1)
    (fold,) = (one for one in study_folds(groups) if (groups[one.test] == 0).all())
    for solver in ("shared", "exact"):
        (plain,) = ridge_folds(X, y, [fold], num_components=num_components, solver=solver)
        # the other folds cut the spots into parts, whose statistics are joined
        padded = ridge_folds(wider, y, study_folds(groups), num_components=num_components, solver=solver)
        (found,) = (
            one.prediction
            for other, one in zip(study_folds(groups), padded, strict=True)
            if np.array_equal(other.test, fold.test)
        )
        np.testing.assert_allclose(found, plain.prediction, rtol=1e-6, atol=1e-6)


def test_features_that_vary_little_around_far_values_keep_their_digits():
    rng = np.random.default_rng(0)
    groups = np.arange(120) % 3
    fine = rng.normal(size=120)
    # float32 has steps of 6e-5 at 1000; group 0 is where the others are tested
    X = (np.where(groups == 0, 0.0, 1000.0) + fine).astype(np.float32)[:, None]
    y = np.asarray(X[:, 0] - np.where(groups == 0, 0.0, 1000.0), dtype=np.float64)[:, None]
    (fold,) = (one for one in study_folds(groups) if (groups[one.test] == 0).all())
    (found,) = ridge_folds(X, y, [fold], num_components=1, alpha=0.0, solver="exact", preset="intercept")
    # the slope is 1 and the line passes through 1000 and 0: variance 1 of squares of 1e6 leaves ten digits
    np.testing.assert_allclose(found.prediction, X[fold.test].astype(np.float64) - 1000.0, rtol=1e-9)


def test_each_fold_predicts_its_own_genes():
    X, y = draw_factors()
    folds = random_folds(len(X), 2)
    columns = [np.array([0, 2]), np.array([3])]
    for solver in ("shared", "recipe"):
        found = ridge_folds(X, y, folds, num_components=6, solver=solver, columns=columns)
        for fold, chosen, one in zip(folds, columns, found, strict=True):
            part = X[fold.train], y[fold.train][:, chosen], X[fold.test]
            bound = stopping_error(*part, num_components=6, alpha=one.alpha)
            assert bound < 0.01 * np.std(y)
            alone = ridge_probe(*part, num_components=6)
            np.testing.assert_allclose(one.prediction, alone, rtol=0, atol=bound)
            assert one.alpha == pytest.approx(100 / (6 * len(chosen)))


def test_nested_choice_of_alpha_is_that_of_a_plain_loop_and_never_sees_the_test_part():
    X, y = draw(num=90, dim=30, genes=2)
    y = y + 20 * np.random.default_rng(1).normal(size=y.shape)
    groups = np.arange(90) % 5
    folds = study_folds(groups)
    found = ridge_folds(X, y, folds, num_components=25, alpha="nested", groups=groups)
    for fold, one in zip(folds, found, strict=True):
        error = dict.fromkeys([10.0**power for power in range(-3, 7)], 0.0)
        for inner in set(groups[fold.train]):
            fit, held = fold.train[groups[fold.train] != inner], fold.train[groups[fold.train] == inner]
            for alpha in error:
                guess = ridge_folds(X, y, [Fold(fit, held)], num_components=25, alpha=alpha, solver="exact")
                error[alpha] += np.square(guess[0].prediction - y[held]).sum()
        assert one.alpha == min(error, key=error.get)
        assert one.alpha > 1
    spoiled = y.copy()
    spoiled[folds[0].test] = 1e3
    again = ridge_folds(X, spoiled, folds[:1], num_components=25, alpha="nested", groups=groups)
    np.testing.assert_allclose(again[0].prediction, found[0].prediction)


def test_a_choice_of_solver_follows_scikit_learns_choice_of_decomposition():
    from sklearn.decomposition import PCA

    for num, dim, components in (
        (300, 280, 200),
        (360, 520, 64),
        (520, 48, 32),
        (700, 80, 20),
        (700, 80, 70),
        (40, 600, 35),
    ):
        pca = PCA(components).fit(np.random.default_rng(0).normal(size=(num, dim)))
        assert deterministic_pca(num, dim, components) == (pca._fit_svd_solver != "randomized"), (num, dim)


@pytest.mark.parametrize("preset", ["hest", "intercept"])
def test_without_pca_the_default_solver_is_the_recipe_in_float32(preset):
    X_train, y_train, X_test, y_test, _ = golden("ridge_raw")
    X, y = np.concatenate([X_train, X_test]), np.concatenate([y_train, y_test])
    fold = Fold(np.arange(len(y_train)), np.arange(len(y_train), len(y)))
    (found,) = ridge_folds(X, y, [fold], preset, None)
    assert found.solver == "recipe"
    np.testing.assert_array_equal(found.prediction, ridge_probe(X_train, y_train, X_test, preset, None))
    # as it is with PCA, where sums over spots come to the same
    assert ridge_folds(X, y, [fold], preset, 32)[0].solver == "shared"


def test_fewer_spots_than_components_is_an_error_that_says_how_many_to_take():
    X, y = draw(num=30)
    with pytest.raises(EvaluationError, match=r"256 principal components of 30 .* take at most 20"):
        ridge_probe(X, y, X)
    with pytest.raises(EvaluationError, match="take at most 15"):
        ridge_folds(X, y, random_folds(30, 2), num_components=16)


def test_embeddings_with_nan_are_refused_by_row():
    X, y = draw()
    X[7, 3] = np.nan
    for call in (
        lambda: ridge_probe(X, y, X, num_components=4),
        lambda: ridge_folds(X, y, random_folds(120, 2)),
    ):
        with pytest.raises(EvaluationError, match="row 7, column 3 is nan"):
            call()
    with pytest.raises(EvaluationError, match="y_train: row 2"):
        ridge_probe(X[10:], np.where(np.arange(110) == 2, np.inf, 1.0), X[10:], num_components=4)


def test_unknown_names_and_shapes_that_do_not_fit_are_errors():
    X, y = draw()
    with pytest.raises(EvaluationError, match="`preset` is 'hst'"):
        ridge_probe(X, y, X, "hst")
    with pytest.raises(EvaluationError, match="X_train 120, y_train 119"):
        ridge_probe(X, y[1:], X)
    with pytest.raises(EvaluationError, match="20 features, X_test 19"):
        ridge_probe(X, y, X[:, 1:])
    with pytest.raises(EvaluationError, match="`solver` is 'svd'"):
        ridge_folds(X, y, random_folds(120), solver="svd")
    with pytest.raises(EvaluationError, match="needs groups"):
        ridge_folds(X, y, random_folds(120), alpha="nested", num_components=4)
    with pytest.raises(EvaluationError, match="at least two groups"):
        ridge_folds(X, y, random_folds(120), alpha="nested", groups=np.zeros(120), num_components=4)


def test_one_target_gives_one_vector():
    X, y = draw()
    assert ridge_probe(X, y[:, 0], X[:5], num_components=4).shape == (5,)
