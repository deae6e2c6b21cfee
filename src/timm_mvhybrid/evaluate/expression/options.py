"""Options of the expression task: which genes, which folds, which probe."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, get_args

from tyro.conf import Positional, arg

from ...cohorts.cohort import PanelMethod
from ...embed.embedding_cache import EmbeddingOptions
from ...probes.expression_metrics import NanPolicy
from ...probes.resampling import NUM_RESAMPLES
from ...probes.ridge import RidgePreset
from ...probes.ridge_folds import RidgeSolver
from ...probes.ridge_options import AlphaOption, ComponentsOption
from ...runtime.errors import check_seed
from ...runtime.option_words import word
from ..arguments import BackboneOptions

Panel = PanelMethod | Literal["task"] | Path


def _panel(text: str) -> Panel:
    known: Panel = text if text in (*get_args(PanelMethod), "task") else Path(text)  # type: ignore[assignment]
    return known


def _protocols(text: str) -> tuple[str, ...]:
    return () if text == "auto" else tuple(name.strip() for name in text.split(","))


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How expression is predicted and scored.

    Attributes:
        preset: Ridge regression by HEST's recipe, or the same with an intercept.
        num_components: Principal components; auto takes HEST's 256, or as many as the smallest train part and the
            embeddings allow; none takes embeddings as they are, as HEST does where its configuration file (and not an
            argument) has dimreduce: null.
        alpha: Ridge penalty: HEST's (recipe), chosen by nested cross-validation over studies (nested), or a number.
        solver: scikit-learn fold by fold (recipe), the same from sums shared by all folds (shared), without early
            stopping (exact), or shared where that comes to the recipe's numbers (auto).
        nan_policy: What becomes of genes that are constant in a fold; propagate is HEST's.
        num_folds: Random folds.
        ddof: Delta degrees of freedom of deviations over folds.
        num_resamples: Bootstrap resamples.
        seed: Seed of random folds, bootstrap and random weights.
        num_map_genes: Genes shown as maps.
        num_map_samples: Samples shown as maps.
    """

    preset: RidgePreset = "hest"
    num_components: ComponentsOption = "auto"
    alpha: AlphaOption = None
    solver: RidgeSolver = "auto"
    nan_policy: NanPolicy = "omit"
    num_folds: Annotated[int, arg(metavar="N")] = 10
    ddof: Literal[0, 1] = 0
    num_resamples: Annotated[int, arg(metavar="N")] = NUM_RESAMPLES
    seed: int = 0
    num_map_genes: Annotated[int, arg(name="map-genes", metavar="N")] = 4
    num_map_samples: Annotated[int, arg(name="map-samples", metavar="N")] = 4

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True, kw_only=True)
class ExpressionOptions:
    """The expression task.

    Attributes:
        task: Which of several tasks in the folder.
        studies: CSV with the columns sample_id, study and, if known, patient; needed to leave studies out.
        counts_layer: Where each h5ad keeps its raw counts: a layer, or raw; X by default.
        protocols: csv (the task's splits), random (k-fold over spots), loso (leave one study out), patient; auto takes
            what the data allow.
        panel: Genes: most variable (hvg), highest mean (mean), both (hmhvg), the task's own list (task), or a list.
        num_genes: Genes to select.
        select_on_all_samples: Select genes once on all samples, as HEST does, test parts included.
        n_top_per_slide: For hmhvg: most variable genes taken of each slide.
        gene_groups: Column of var in the h5ad files by whose groups of genes correlations are reported as well; auto takes
            band where all files have it with at most 24 groups, as those of a phantom do; none takes none.
        probe: Ridge probe and scores.
        embedding: How patches are embedded.
    """

    task: Annotated[str | None, arg(metavar="NAME")] = None
    studies: Annotated[Path | None, arg(metavar="FILE.csv")] = None
    counts_layer: Annotated[str | None, arg(metavar="NAME")] = None
    protocols: Annotated[
        tuple[str, ...], word("auto|NAME[,NAME...]", _protocols, lambda names: ",".join(names) or "auto")
    ] = ()
    panel: Annotated[Panel, word("hvg|mean|hmhvg|task|FILE.json", _panel)] = "hvg"
    num_genes: Annotated[int, arg(metavar="N")] = 50
    select_on_all_samples: bool = False
    n_top_per_slide: Annotated[int, arg(metavar="N")] = 2000
    gene_groups: Annotated[str, arg(metavar="auto|none|COLUMN")] = "auto"
    probe: Annotated[ProbeOptions, arg(name="")] = field(default_factory=ProbeOptions)
    embedding: Annotated[EmbeddingOptions, arg(name="")] = field(default_factory=EmbeddingOptions)


@dataclass(frozen=True, kw_only=True)
class ExpressionCommand:
    """Options of the command.

    Attributes:
        root: A task's folder (patches/, adata/, splits/), or the folder of several.
        models: Which models embed.
        options: Everything else.
    """

    root: Annotated[Positional[Path], arg(metavar="ROOT")]
    models: Annotated[BackboneOptions, arg(name="")]
    options: Annotated[ExpressionOptions, arg(name="")] = field(
        default_factory=lambda: ExpressionOptions(embedding=EmbeddingOptions(num_workers="auto"))
    )
