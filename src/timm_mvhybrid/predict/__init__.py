"""From measured expression to that of new slides: fit a predictor, and predict with intervals and reliability.

``ExpressionPredictor`` takes features and targets as NumPy arrays; to use one that was fitted takes NumPy alone.
"""

from ..probes.reliability import GeneReliability
from .errors import PredictorError
from .expression_predictor import ExpressionPredictor
from .fitting import FitSummary, fit_expression
from .options import FitOptions
from .prediction import EncoderRecord, Prediction
from .slide_options import SlideOptions
from .slide_run import PredictedSlide
from .slides import predict_slide, predict_slides

__all__ = [
    "EncoderRecord",
    "ExpressionPredictor",
    "FitOptions",
    "FitSummary",
    "GeneReliability",
    "PredictedSlide",
    "Prediction",
    "PredictorError",
    "SlideOptions",
    "fit_expression",
    "predict_slide",
    "predict_slides",
]
