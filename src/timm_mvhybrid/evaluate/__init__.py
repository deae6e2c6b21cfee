"""What a backbone is worth: patches + model → embeddings → probes → scores, written as results.json.

`embed` is the library function behind `timm-mvhybrid embed`, `load_backbone` makes the model it takes, and
`evaluate_expression` and its siblings are the tasks. What they are made of takes NumPy arrays and is public, too:
ridge, linear and nearest-neighbour probes, metrics, folds, gene panels, retrieval, mixture embeddings, concordance.
scikit-learn, scanpy, anndata and scikit-survival are imported when they are called for.
"""

from ..cohorts.gene_panels import select_genes
from ..cohorts.labelled_images import open_images
from ..embed.backbone import Backbone, load_backbone
from ..embed.embedding_cache import EmbeddingOptions
from ..embed.embedding_store import check_output
from ..embed.embeddings import BatchReport, EmbeddingSummary, embed
from ..embed.model_input import choose_device
from ..embed.model_table import ModelRow, describe_models, models_table
from ..embed.patch_loader import num_available_workers
from ..probes.attention_mil import AttentionOptions, attention_mil
from ..probes.concordance import Concordance, concordance_index
from ..probes.expression_metrics import (
    ExpressionMetrics,
    drop_percent,
    drop_percentages,
    expression_metrics,
)
from ..probes.logistic import ProbeResult, linear_probe
from ..probes.mixture import mixture_prototypes, slide_mixture_embedding
from ..probes.neighbours import knn_probe
from ..probes.prototypes import PrototypeRetrieval, prototype_retrieval
from ..probes.resampling import bootstrap_interval, compare_paired
from ..probes.ridge import ridge_probe
from ..probes.ridge_folds import RidgeFold, ridge_folds
from ..probes.splits import Fold, patient_folds, random_folds, study_folds
from ..report.results import read_result
from ..runtime.errors import EvaluationError
from ..runtime.stage import StageReport
from .expression.run import ExpressionOptions, evaluate_expression
from .expression.score import ProbeOptions
from .patch_tasks.run import PatchTaskOptions, evaluate_classification, evaluate_retrieval
from .slide_tasks.classify import evaluate_slides
from .slide_tasks.options import SlideTaskOptions
from .slide_tasks.survive import evaluate_survival

__all__ = [
    "AttentionOptions",
    "Backbone",
    "BatchReport",
    "Concordance",
    "EmbeddingOptions",
    "EmbeddingSummary",
    "EvaluationError",
    "ExpressionMetrics",
    "ExpressionOptions",
    "Fold",
    "ModelRow",
    "PatchTaskOptions",
    "ProbeOptions",
    "ProbeResult",
    "PrototypeRetrieval",
    "RidgeFold",
    "SlideTaskOptions",
    "StageReport",
    "attention_mil",
    "bootstrap_interval",
    "check_output",
    "choose_device",
    "compare_paired",
    "concordance_index",
    "describe_models",
    "drop_percent",
    "drop_percentages",
    "embed",
    "evaluate_classification",
    "evaluate_expression",
    "evaluate_retrieval",
    "evaluate_slides",
    "evaluate_survival",
    "expression_metrics",
    "knn_probe",
    "linear_probe",
    "load_backbone",
    "mixture_prototypes",
    "models_table",
    "num_available_workers",
    "open_images",
    "patient_folds",
    "prototype_retrieval",
    "random_folds",
    "read_result",
    "ridge_folds",
    "ridge_probe",
    "select_genes",
    "slide_mixture_embedding",
    "study_folds",
]
