"""What a backbone is worth: patches + model → embeddings → probes → scores, written as results.json.

``embed`` is what ``timm-mvhybrid embed`` calls, ``load_backbone`` makes the model it takes, ``export_embeddings`` writes what
other programs read, ``write_overview`` is what ``timm-mvhybrid cohort`` calls, and
``evaluate_expression`` and its siblings are the tasks; a ``Task`` of your own takes one file (docs/extend/task.md). What they are made of takes NumPy arrays and is public, too:
ridge, linear and nearest-neighbour probes, metrics, folds, gene panels, retrieval, mixture embeddings, concordance.
scikit-learn, scanpy, anndata and scikit-survival are imported when they are called for.
"""

from ..cohorts.cohort import select_genes
from ..cohorts.labelled_images import open_images
from ..embed.backbone import Backbone, load_backbone
from ..embed.cohort_run import CohortOptions, CohortSummary, embed_slides
from ..embed.embedding_cache import EmbeddingOptions, embed_models
from ..embed.embedding_export import export_embeddings
from ..embed.embedding_store import check_output
from ..embed.embeddings import BatchReport, EmbeddingSummary, embed
from ..embed.engine_calls import EngineCalls, EngineReport
from ..embed.model_input import choose_device, num_available_workers
from ..embed.model_table import ModelRow, describe_models, models_table
from ..embed.overview_page import Overview, write_overview
from ..embed.slide_cohort import SlideRecord, read_records
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
from ..report import Metric, Result, ScoreSheet, read_result
from ..runtime.errors import EvaluationError
from ..runtime.stage import StageReport
from .arguments import BackboneOptions
from .classification import ClassificationOptions, evaluate_classification
from .combined_options import PatchTaskOptions, SlideTaskOptions
from .expression.options import ExpressionOptions, ProbeOptions
from .expression.task import evaluate_expression
from .retrieval import RetrievalOptions, evaluate_retrieval
from .slides import SlidesOptions, evaluate_slides
from .survival import SurvivalOptions, evaluate_survival
from .task import Progress, Task, register_task, registered_tasks

__all__ = [
    "AttentionOptions",
    "Backbone",
    "BackboneOptions",
    "BatchReport",
    "ClassificationOptions",
    "CohortOptions",
    "CohortSummary",
    "Concordance",
    "EmbeddingOptions",
    "EmbeddingSummary",
    "EngineCalls",
    "EngineReport",
    "EvaluationError",
    "ExpressionMetrics",
    "ExpressionOptions",
    "Fold",
    "Metric",
    "ModelRow",
    "Overview",
    "PatchTaskOptions",
    "ProbeOptions",
    "ProbeResult",
    "Progress",
    "PrototypeRetrieval",
    "Result",
    "RetrievalOptions",
    "RidgeFold",
    "ScoreSheet",
    "SlideRecord",
    "SlideTaskOptions",
    "SlidesOptions",
    "StageReport",
    "SurvivalOptions",
    "Task",
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
    "embed_models",
    "embed_slides",
    "evaluate_classification",
    "evaluate_expression",
    "evaluate_retrieval",
    "evaluate_slides",
    "evaluate_survival",
    "export_embeddings",
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
    "read_records",
    "read_result",
    "register_task",
    "registered_tasks",
    "ridge_folds",
    "ridge_probe",
    "select_genes",
    "slide_mixture_embedding",
    "study_folds",
    "write_overview",
]
