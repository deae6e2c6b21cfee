"""Features + measured expression → a predictor that says how sure it is: scikit-learn's conventions, NumPy alone to use."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..probes.arrays import check_choice, check_rows, labels_vector
from ..probes.conformal import Calibration, conformal_width, grouped_quantiles
from ..probes.reliability import GeneReliability, gene_reliability
from ..probes.ridge_model import RidgeModel, ridge_models
from ..probes.ridge_options import Alpha, Components
from ..probes.splits import Fold
from ..runtime.errors import check_seed
from ..runtime.extras import require
from ..runtime.provenance import Provenance
from .arrays import feature_matrix, target_matrix
from .cohort_checks import check_patients, check_studies, components_of, gene_names
from .errors import PredictorError, as_predictor_errors, not_fitted
from .prediction import EncoderRecord, Prediction
from .predictor_files import load_predictor, save_predictor


class ExpressionPredictor:
    """Predicts gene expression from features of patches, with intervals, reliability and a distance.

    Features are standardised, projected on their principal components, and regressed on by ridge with an intercept,
    exactly. Every study is left out once: how its spots are then predicted gives each gene's correlation, the residuals
    from which the intervals follow, and the distances at which a patch counts as far from the training data.

    Args:
        alpha: Ridge penalty: a number; ``nested``, chosen by leaving out one study at a time, again within each fold
            (three studies or more); None, HEST's 100 / (components · genes).
        num_components: Principal components; ``auto`` takes 256, or as many as the smallest train part and the features
            allow; None keeps all.
        level: Coverage that intervals aim at, above 0 and below 1.
        calibration: ``pooled``: residuals of all left-out studies, each study weighing the same; ``hierarchical``: wider,
            with a guarantee for few studies. See ``conformal_width``.
        far_level: Fraction of the patches of left-out studies that count as near, above 0 and below 1.
        num_resamples: Bootstrap resamples of each gene's interval.
        seed: Seed of the bootstrap.

    Attributes:
        genes_: Gene names, in the order of the columns.
        n_features_in_: Length of a feature vector.
        studies_: Names of the studies, sorted.
        alpha_: Penalty of the fit on all studies.
        num_components_: Principal components.
        model_: The fit on all studies, a ``RidgeModel``.
        reliability_: For each gene its correlation in left-out studies, with interval; ``reliability_.predictable``.
        residual_quantiles_: Quantiles of absolute residuals of left-out studies, (201, genes), at 0, 0.5 %, ..., 100 %.
        far_distance_: Distance that the fraction ``far_level`` of the patches of left-out studies stays within.
        encoder_: The model whose features these are, an ``EncoderRecord``; None where the caller did not say.
        provenance_: Data, options and versions of the command that fitted it; None where a program did.

    Example:
        ```python
        predictor = ExpressionPredictor(alpha=1.0)
        predictor.fit(features, np.log1p(counts), studies=studies, genes=genes)
        predicted = predictor.predict(new_features)  # mean, lower, upper, distance, far
        ```
    """

    genes_: tuple[str, ...]
    n_features_in_: int
    studies_: tuple[str, ...]
    alpha_: float
    num_components_: int
    model_: RidgeModel
    reliability_: GeneReliability
    residual_quantiles_: NDArray[np.float32]
    far_distance_: float
    encoder_: EncoderRecord | None
    provenance_: Provenance | None

    def __init__(
        self,
        *,
        alpha: Alpha = "nested",
        num_components: Components = "auto",
        level: float = 0.8,
        calibration: Calibration = "pooled",
        far_level: float = 0.95,
        num_resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        self.alpha = alpha
        self.num_components = num_components
        self.level = level
        self.calibration = calibration
        self.far_level = far_level
        self.num_resamples = num_resamples
        self.seed = seed

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({values})"

    def __sklearn_tags__(self) -> Any:
        """Tells scikit-learn what kind of estimator this is."""
        utils = require("sklearn.utils")
        return utils.Tags(
            estimator_type="regressor",
            target_tags=utils.TargetTags(required=True, multi_output=True),
            transformer_tags=None,
            classifier_tags=None,
            regressor_tags=utils.RegressorTags(),
        )

    def __sklearn_is_fitted__(self) -> bool:
        """Tells scikit-learn whether it is fitted."""
        return hasattr(self, "model_")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Lists the parameters, as scikit-learn's estimators do.

        Args:
            deep: Without effect, because no parameter is an estimator.
        """
        names = inspect.signature(ExpressionPredictor.__init__).parameters
        return {name: getattr(self, name) for name in names if name != "self"}

    def set_params(self, **params: Any) -> ExpressionPredictor:
        """Sets parameters by name, as scikit-learn's estimators do.

        Raises:
            PredictorError: A name is unknown.
        """
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise PredictorError(
                    f"`{name}` is not a parameter of {type(self).__name__}; there are {', '.join(known)}"
                )
            setattr(self, name, value)
        return self

    def check_params(self) -> None:
        """Refuses parameters that cannot be, as ``fit`` does first.

        Raises:
            PredictorError: A parameter has a value that it cannot have.
        """
        with as_predictor_errors():
            check_choice("calibration", self.calibration, Calibration)
        check_seed(self.seed)
        if isinstance(self.alpha, str) and self.alpha != "nested":
            raise PredictorError(f"`alpha` is {self.alpha!r}; give a number, 'nested', or None for HEST's")
        if isinstance(self.alpha, int | float) and not 0 <= self.alpha < np.inf:
            raise PredictorError(f"`alpha` is {self.alpha}; it must be 0 or above, and finite")
        for name in ("level", "far_level"):
            if not 0 < getattr(self, name) < 1:
                raise PredictorError(f"`{name}` must lie between 0 and 1, not {getattr(self, name)}")

    def fit(
        self,
        features: ArrayLike,
        expression: ArrayLike,
        *,
        studies: ArrayLike,
        genes: Sequence[str] | None = None,
        patients: ArrayLike | None = None,
        encoder: EncoderRecord | None = None,
        provenance: Provenance | None = None,
    ) -> ExpressionPredictor:
        """Fits on all spots, and on all but one study at a time for what it says of itself.

        Args:
            features: Embeddings, (N, D); used as float32.
            expression: Targets, (N, genes), predicted as they are: give log1p of raw counts, as the command does.
            studies: The study of each spot, (N,); two studies at least.
            genes: Name of each column; None takes the columns of a data frame, otherwise ``gene_0``, ``gene_1``, ...
            patients: The patient of each spot, (N,), to make sure that none is in two studies.
            encoder: The model whose features these are, which ``save`` keeps.
            provenance: Where the data are from, which ``save`` keeps.

        Returns:
            The predictor itself.

        Raises:
            PredictorError: Shapes do not fit, values are not finite, names occur twice, there are fewer than two studies
                (three for ``alpha='nested'``) or fewer spots than components, or a patient is in two studies.
        """
        with as_predictor_errors():
            self.check_params()
            X = feature_matrix(features)
            y = target_matrix(expression)
            num_spots = check_rows(features=X, expression=y)
            names = gene_names(genes, expression, y.shape[1])
            study_of = labels_vector("studies", studies, num_spots)
            folds = check_studies(study_of, self.alpha)
            if patients is not None:
                check_patients(labels_vector("patients", patients, num_spots), study_of)
            num_components = components_of(
                self.num_components, X.shape[1], min(len(fold.train) for fold in folds)
            )
            everything = Fold(np.arange(num_spots), np.arange(0), "all studies")
            *left_out, fitted = ridge_models(
                X, y, [*folds, everything], num_components, alpha=self.alpha, groups=study_of
            )
            predicted, distance = np.empty_like(y), np.empty(num_spots)
            for fold, model in zip(folds, left_out, strict=True):
                predicted[fold.test], distance[fold.test] = model.apply(X[fold.test])
            quantiles = grouped_quantiles(np.abs(predicted - y), study_of)
            near = grouped_quantiles(distance, study_of)
            reliability = gene_reliability(
                y, predicted, folds, num_resamples=self.num_resamples, seed=self.seed
            )
        self.genes_ = names
        self.n_features_in_ = X.shape[1]
        self.studies_ = reliability.studies
        self.alpha_ = fitted.alpha
        self.num_components_ = len(fitted.components)
        self.model_ = fitted
        self.reliability_ = reliability
        self.residual_quantiles_ = quantiles.astype(np.float32)
        self.far_distance_ = float(conformal_width(near, self.far_level, len(folds))[0])
        self.encoder_ = encoder
        self.provenance_ = provenance
        return self

    def predict(self, features: ArrayLike, *, level: float | None = None) -> Prediction:
        """Predicts expression with bounds, and says how far each patch lies from the training data.

        The interval is the prediction ± the half width of its gene: a quantile of the absolute residuals of left-out
        studies. Bounds are not cut off at 0, below which log1p counts do not go.

        Args:
            features: Embeddings, (patches, D), of the model and patches that it was fitted on.
            level: Coverage that intervals aim at; None takes the parameter's.

        Returns:
            The prediction.

        Raises:
            PredictorError: It is not fitted, the features are not finite, of another length, or there are none.
        """
        if not hasattr(self, "model_"):
            raise not_fitted(type(self).__name__)
        with as_predictor_errors():
            X = feature_matrix(features)
            if X.shape[1] != self.n_features_in_:
                raise PredictorError(
                    f"X has {X.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} features as "
                    "input; embed with the model that it was fitted on"
                )
            width = self.half_width(level).astype(np.float32)
            predicted, distance = self.model_.apply(X)
        mean = predicted.astype(np.float32)
        relative = (distance / self.far_distance_).astype(np.float32)
        return Prediction(
            mean=mean, lower=mean - width, upper=mean + width, distance=relative, far=relative > 1
        )

    def half_width(self, level: float | None = None) -> NDArray[np.float64]:
        """Looks up the half width of every gene's interval.

        Args:
            level: As in ``predict``.

        Returns:
            (genes,); infinite where ``calibration='hierarchical'`` cannot promise the level with so few studies.

        Raises:
            PredictorError: It is not fitted, or the level does not lie between 0 and 1.
        """
        if not hasattr(self, "model_"):
            raise not_fitted(type(self).__name__)
        with as_predictor_errors():
            return conformal_width(
                self.residual_quantiles_,
                self.level if level is None else level,
                len(self.studies_),
                self.calibration,
            )

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes a folder: ``predictor.json``, ``predictor.safetensors`` and a card; complete or absent.

        Args:
            folder: The folder to write.
            overwrite: Whether an earlier predictor may be replaced.

        Raises:
            PredictorError: It is not fitted, or the folder may not be replaced.
            OutputError: The disk does not take it.
        """
        save_predictor(self, folder, overwrite=overwrite)

    @classmethod
    def load(cls, source: str | Path) -> ExpressionPredictor:
        """Reads and verifies what ``save`` wrote.

        Args:
            source: The folder, or ``hf-hub:ORG/NAME``, with ``@REVISION`` for a branch, tag or commit.

        Returns:
            The predictor, which predicts the same to the bit.

        Raises:
            PredictorError: A file is missing, damaged, changed, of a newer format, or does not fit the others.
            HubError: It cannot be downloaded.
        """
        return load_predictor(source, cls)
