"""What a backbone is worth: patches + model → embeddings.

`embed` is the library function behind `timm-mvhybrid embed`; `load_backbone` makes the model it takes.
"""

from .backbone import Backbone, load_backbone
from .embedding_store import check_output
from .embeddings import BatchReport, EmbeddingSummary, embed
from .errors import EvaluationError
from .model_table import ModelRow, describe_models, models_table
from .patch_loader import num_available_workers
from .progress import RunDisplay, RunLog

__all__ = [
    "Backbone",
    "BatchReport",
    "EmbeddingSummary",
    "EvaluationError",
    "ModelRow",
    "RunDisplay",
    "RunLog",
    "check_output",
    "describe_models",
    "embed",
    "load_backbone",
    "models_table",
    "num_available_workers",
]
