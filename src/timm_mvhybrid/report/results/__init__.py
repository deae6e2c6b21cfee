"""What an evaluation found: frozen dataclasses, one for each task ↔ results.json.

Numbers that do not exist (the correlation of a constant gene, the AUROC of a fold with one class) are NaN here and
null in the file.
"""

from .base import SCHEMA_VERSION, Result
from .expression import (
    ExpressionDrop,
    ExpressionFold,
    ExpressionMap,
    ExpressionResult,
    ExpressionScores,
    GeneScore,
)
from .patches import (
    ClassificationFold,
    ClassificationResult,
    ClassificationScores,
    ClassRetrieval,
    RetrievalResult,
    RetrievalScores,
)
from .reader import read_result, result_from_json
from .slides import (
    PatientRisk,
    SlideFold,
    SlideScore,
    SlideScores,
    SlidesResult,
    SurvivalFold,
    SurvivalResult,
    SurvivalScores,
)

__all__ = [
    "SCHEMA_VERSION",
    "ClassRetrieval",
    "ClassificationFold",
    "ClassificationResult",
    "ClassificationScores",
    "ExpressionDrop",
    "ExpressionFold",
    "ExpressionMap",
    "ExpressionResult",
    "ExpressionScores",
    "GeneScore",
    "PatientRisk",
    "Result",
    "RetrievalResult",
    "RetrievalScores",
    "SlideFold",
    "SlideScore",
    "SlideScores",
    "SlidesResult",
    "SurvivalFold",
    "SurvivalResult",
    "SurvivalScores",
    "read_result",
    "result_from_json",
]
