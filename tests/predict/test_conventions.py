"""The predictor under scikit-learn's own checks, as far as they fit what needs studies and gives intervals."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted

from timm_mvhybrid.predict import ExpressionPredictor, PredictorError
from timm_mvhybrid.runtime.errors import ParameterError


class Regressor(ExpressionPredictor):
    """What the checks call: three studies dealt out by row, and the mean alone."""

    def fit(self, X, y):
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None")
        self.num_axes_ = np.ndim(np.asarray(y))
        return super().fit(X, y, studies=np.arange(len(np.asarray(y))) % 3)

    def predict(self, X):
        mean = super().predict(X).mean
        return mean[:, 0] if self.num_axes_ == 1 else mean

    def score(self, X, y):
        return r2_score(y, self.predict(X))


EXPECTED = {
    "check_regressor_multioutput": "predictions are float32, which is what files hold",
    "check_fit2d_1sample": "the message is of studies: one spot is one study",
}


def test_scikit_learns_own_checks():
    pytest.importorskip("sklearn", minversion="1.6")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = check_estimator(
            Regressor(alpha=1.0, num_resamples=10),
            expected_failed_checks=EXPECTED,
            on_skip=None,
            on_fail=None,
        )
    assert len(done) > 40
    assert {one["check_name"] for one in done if one["status"] == "xfail"} <= set(EXPECTED)
    failed = {one["check_name"]: str(one["exception"]) for one in done if one["status"] == "failed"}
    assert failed == {}


def small(num_spots=30, dim=4, num_genes=2):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(num_spots, dim))
    return X, X @ rng.normal(size=(dim, num_genes)), np.repeat(["a", "b", "c"], num_spots // 3)


def test_parameters_are_set_listed_and_cloned():
    predictor = ExpressionPredictor(alpha=2.0, level=0.9)
    assert predictor.get_params()["alpha"] == 2.0
    assert predictor.set_params(level=0.7, num_components=3) is predictor
    X, y, studies = small()
    predictor.fit(X, y, studies=studies)
    copied = clone(predictor)
    assert copied.get_params() == predictor.get_params()
    assert not hasattr(copied, "model_")
    assert repr(copied).startswith("ExpressionPredictor(alpha=2.0, num_components=3, level=0.7,")
    with pytest.raises(
        PredictorError, match="`alpah` is not a parameter of ExpressionPredictor; there are alpha,"
    ):
        predictor.set_params(alpah=1)


@pytest.mark.parametrize(
    "use", [lambda one: one.predict([[0.0]]), lambda one: one.half_width(), lambda one: one.save("x")]
)
def test_what_is_not_fitted_says_so(use):
    with pytest.raises(NotFittedError, match="this ExpressionPredictor is not fitted yet; call `fit` first"):
        use(ExpressionPredictor())
    with pytest.raises(PredictorError):
        use(ExpressionPredictor())


def test_a_fit_is_known_to_scikit_learn():
    X, y, studies = small()
    predictor = ExpressionPredictor(alpha=1.0)
    with pytest.raises(NotFittedError):
        check_is_fitted(predictor)
    assert predictor.fit(X, y, studies=studies) is predictor
    check_is_fitted(predictor)
    assert (predictor.n_features_in_, predictor.genes_, predictor.studies_) == (
        4,
        ("gene_0", "gene_1"),
        ("a", "b", "c"),
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"alpha": "cv"}, "`alpha` is 'cv'; give a number, 'nested', or None"),
        ({"alpha": -1.0}, "`alpha` is -1.0; it must be 0 or above"),
        ({"alpha": float("nan")}, "`alpha` is nan"),
        ({"level": 1.0}, "`level` must lie between 0 and 1, not 1.0"),
        ({"calibration": "split"}, "`calibration` is 'split'; choose from pooled, hierarchical"),
        ({"num_components": 5}, "`num_components` is 5, and 20 training spots × 4 features allow 1 to 4"),
        ({"num_components": 0}, "`num_components` is 0"),
        ({"num_components": "all"}, "`num_components` is 'all'"),
        ({"seed": -1}, "`seed` is -1"),
    ],
)
def test_parameters_that_cannot_be(params, message):
    X, y, studies = small()
    with pytest.raises((PredictorError, ParameterError), match=message):
        ExpressionPredictor(**{"alpha": 1.0, **params}).fit(X, y, studies=studies)


def test_bad_arrays_are_refused_in_one_sentence():
    X, y, studies = small()
    predictor = ExpressionPredictor(alpha=1.0)
    holes = np.where(np.arange(30)[:, None] == 7, np.nan, y)
    for change, message in [
        ({"features": X.T}, "different numbers of rows: features 4, expression 30"),
        ({"features": np.where(np.eye(30, 4) == 1, np.inf, X)}, "features: row 0 holds NaN or infinity"),
        ({"features": np.ones((30, 4))}, "no feature varies"),
        ({"expression": holes}, "expression: row 7 holds NaN or infinity"),
        ({"studies": studies[:-1]}, "studies: must be 30 labels"),
        ({"studies": ["a"] * 30}, "leaving one study out takes at least two studies, and there is 'a' only"),
        ({"genes": ["A"]}, "genes: 1 names for 2 columns"),
        ({"genes": ["A", "A"]}, "genes: 'A' occurs more than once"),
        ({"patients": ["p"] * 30}, "patients: 'p' has spots in the studies 'a' and 'b'"),
    ]:
        given = {"features": X, "expression": y, "studies": studies, **change}
        with pytest.raises(PredictorError, match=message):
            predictor.fit(given.pop("features"), given.pop("expression"), **given)
    with pytest.raises(
        PredictorError, match=r"`alpha='nested'` needs at least three studies.*there are 2 \(a, b\)"
    ):
        ExpressionPredictor().fit(X[:20], y[:20], studies=studies[:20])
    predictor.fit(X, y, studies=studies)
    with pytest.raises(PredictorError, match="X has 3 features, but ExpressionPredictor is expecting 4"):
        predictor.predict(X[:, :3])
    with pytest.raises(PredictorError, match="`level` must lie between 0 and 1, not 2"):
        predictor.predict(X, level=2)
