"""From measured expression to that of new slides: fit a predictor, and predict with intervals and reliability.

``ExpressionPredictor`` takes features and targets as NumPy arrays; to use one that was fitted takes NumPy alone.
"""

from ..probes.conformal import Calibration
from ..probes.reliability import GeneReliability
from .errors import PredictorError
from .expression_predictor import ExpressionPredictor
from .prediction import EncoderRecord, Prediction
from .slide_options import SlideOptions
from .slides import PredictedSlide, predict_slide, predict_slides

__all__ = [
    "Calibration",
    "EncoderRecord",
    "ExpressionPredictor",
    "GeneReliability",
    "PredictedSlide",
    "Prediction",
    "PredictorError",
    "SlideOptions",
    "predict_slide",
    "predict_slides",
]
