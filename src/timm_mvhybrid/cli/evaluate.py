"""``timm-mvhybrid evaluate``: data + backbones → a folder with scores and report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional, arg, subcommand

from .evaluate_options import ModelOptions, OutputOptions, Reporters

if TYPE_CHECKING:
    from ..report.results import Result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expression(ModelOptions):
    """Predict gene expression from patches, on data in the HEST layout."""

    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    """A task's folder (patches/, adata/, splits/), or the folder of several."""
    task: Annotated[str | None, arg(metavar="NAME")] = None
    """Which of several tasks."""
    studies: Annotated[Path | None, arg(metavar="FILE.csv")] = None
    """Columns sample_id, study and, if known, patient; needed to leave studies out."""
    counts_layer: Annotated[str | None, arg(metavar="NAME")] = None
    """Where each h5ad keeps its raw counts: a layer, or raw; X by default."""
    protocols: Annotated[str, arg(metavar="auto|NAME[,NAME...]")] = "auto"
    """csv (the task's splits), random (k-fold over spots), loso (leave one study out), patient; auto takes what the data allow."""
    panel: Annotated[str, arg(metavar="hvg|mean|hmhvg|task|FILE.json")] = "hvg"
    """Genes: most variable, highest mean, both, the task's own list, or a list."""
    num_genes: Annotated[int, arg(metavar="N")] = 50
    """Genes to select."""
    select_on_all_samples: bool = False
    """Select genes once on all samples, as HEST does, test parts included."""
    preset: Literal["hest", "intercept"] = "hest"
    """Ridge regression by HEST's recipe, or the same with an intercept."""
    num_components: Annotated[Literal["none"] | int, arg(metavar="none|N")] = 256
    """Principal components; none takes embeddings as they are, as HEST does where its configuration file (and not an
    argument) has dimreduce: null."""
    alpha: Annotated[Literal["recipe", "nested"] | float, arg(metavar="recipe|nested|VALUE")] = "recipe"
    """Ridge penalty: HEST's, chosen by nested cross-validation over studies, or a number."""
    solver: Literal["auto", "recipe", "shared", "exact"] = "auto"
    """scikit-learn fold by fold (recipe), the same from sums shared by all folds (shared), or without early stopping (exact)."""
    num_folds: Annotated[int, arg(metavar="N")] = 10
    """Random folds."""
    nan_policy: Literal["omit", "propagate", "zero"] = "omit"
    """What becomes of genes that are constant in a fold; propagate is HEST's."""
    ddof: Literal[0, 1] = 0
    """Delta degrees of freedom of deviations over folds."""
    map_genes: Annotated[int, arg(metavar="N")] = 4
    """Genes shown as maps."""
    map_samples: Annotated[int, arg(metavar="N")] = 4
    """Samples shown as maps."""

    def data(self) -> Path:
        """Names the data."""
        return self.root

    def evaluate(self, reporters: Reporters) -> Result | None:
        """Runs the task."""
        from ..evaluate import ExpressionOptions, ProbeOptions, evaluate_expression

        options = ExpressionOptions(
            task=self.task,
            studies=self.studies,
            counts_layer=self.counts_layer,
            protocols=() if self.protocols == "auto" else tuple(self.protocols.split(",")),
            panel=self.panel if self.panel in ("hvg", "mean", "hmhvg", "task") else Path(self.panel),  # type: ignore[arg-type]
            num_genes=self.num_genes,
            select_on_all_samples=self.select_on_all_samples,
            probe=ProbeOptions(
                preset=self.preset,
                num_components=None if self.num_components == "none" else self.num_components,
                alpha=None if self.alpha == "recipe" else self.alpha,
                solver=self.solver,
                nan_policy=self.nan_policy,
                num_folds=self.num_folds,
                ddof=self.ddof,
                seed=self.seed,
                num_map_genes=self.map_genes,
                num_map_samples=self.map_samples,
            ),
            embedding=self.embedding(),
        )
        return evaluate_expression(
            self.root, self.backbones(), options, on_batch=reporters.batch, on_stage=reporters.stage
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Patches(ModelOptions):
    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    """Folder of classes, table (path, label[, split][, patient]), or MHIST or UniToPatho as distributed."""
    layout: Literal["auto", "folders", "csv", "mhist", "unitopatho"] = "auto"
    """How the images lie; auto tells it from the files."""
    num_folds: Annotated[int, arg(metavar="N")] = 5
    """Folds where the data are not split; retrieval queries the first."""

    def data(self) -> Path:
        """Names the data."""
        return self.root


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(_Patches):
    """Classify images by linear and nearest-neighbour probes."""

    num_neighbours: Annotated[int, arg(metavar="N")] = 20
    """Neighbours of the kNN probe."""

    def evaluate(self, reporters: Reporters) -> Result | None:
        """Runs the task."""
        from ..evaluate import PatchTaskOptions, evaluate_classification

        options = PatchTaskOptions(
            layout=self.layout,
            num_neighbours=self.num_neighbours,
            num_folds=self.num_folds,
            seed=self.seed,
            embedding=self.embedding(),
        )
        return evaluate_classification(
            self.root, self.backbones(), options, on_batch=reporters.batch, on_stage=reporters.stage
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Retrieval(_Patches):
    """Retrieve images of a class by its prototype."""

    def evaluate(self, reporters: Reporters) -> Result | None:
        """Runs the task."""
        from ..evaluate import PatchTaskOptions, evaluate_retrieval

        options = PatchTaskOptions(
            layout=self.layout, num_folds=self.num_folds, seed=self.seed, embedding=self.embedding()
        )
        return evaluate_retrieval(self.root, self.backbones(), options, on_batch=reporters.batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slides(OutputOptions):
    """Classify slides by attention over their patch embeddings, such as MSI against MSS."""

    bags: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")]
    """Folders of <slide_id>.h5 with features (CLAM's feat_dir, TRIDENT) or embeddings (timm-mvhybrid embed), one for each
    model."""
    labels: Annotated[Path, arg(metavar="FILE.csv")]
    """Columns slide_id, patient (or case_id) and label."""
    positive: Annotated[str | None, arg(metavar="LABEL")] = None
    """The label counted as positive; the rarer one by default."""
    num_folds: Annotated[int, arg(metavar="N")] = 5
    """Folds over patients."""
    num_epochs: Annotated[int, arg(metavar="N")] = 20
    """Passes over the training slides."""

    def data(self) -> Path:
        """Names the data."""
        return self.labels

    def evaluate(self, reporters: Reporters) -> Result | None:
        """Runs the task."""
        from ..evaluate import AttentionOptions, SlideTaskOptions, evaluate_slides

        options = SlideTaskOptions(
            positive_label=self.positive,
            num_folds=self.num_folds,
            attention=AttentionOptions(num_epochs=self.num_epochs, seed=self.seed),
            seed=self.seed,
        )
        return evaluate_slides(self.bags, self.labels, options, on_stage=reporters.stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survival(OutputOptions):
    """Predict survival from slides: mixture embedding and a linear Cox model."""

    bags: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR...")]
    """Folders of <slide_id>.h5, one for each model, as for slides."""
    follow_up: Annotated[Path, arg(metavar="FILE.csv")]
    """Columns slide_id, patient (or case_id), time and event (1 or true: observed, 0 or false: censored)."""
    time_unit: Annotated[str, arg(metavar="NAME")] = ""
    """Unit of the times, for the report."""
    num_folds: Annotated[int, arg(metavar="N")] = 5
    """Folds over patients."""
    num_prototypes: Annotated[int, arg(metavar="N")] = 16
    """Components of the mixture."""
    cox_alpha: Annotated[float, arg(metavar="VALUE")] = 1.0
    """Ridge penalty of the Cox model."""

    def data(self) -> Path:
        """Names the data."""
        return self.follow_up

    def evaluate(self, reporters: Reporters) -> Result | None:
        """Runs the task."""
        from ..evaluate import SlideTaskOptions, evaluate_survival

        options = SlideTaskOptions(
            num_folds=self.num_folds,
            num_prototypes=self.num_prototypes,
            cox_alpha=self.cox_alpha,
            time_unit=self.time_unit,
            seed=self.seed,
        )
        return evaluate_survival(self.bags, self.follow_up, options, on_stage=reporters.stage)


Task = (
    Annotated[Expression, subcommand("expression")]
    | Annotated[Classification, subcommand("classification")]
    | Annotated[Retrieval, subcommand("retrieval")]
    | Annotated[Slides, subcommand("slides")]
    | Annotated[Survival, subcommand("survival")]
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Say what backbones are worth: expression, classification, retrieval, slides, survival."""

    task: Annotated[Task, tyro.conf.arg(name="")]

    # embeddings that are done lie in the cache
    when_interrupted = "run it again, and it goes on from the embeddings that are done"

    def run(self) -> None:
        """Runs the command."""
        self.task.run()
