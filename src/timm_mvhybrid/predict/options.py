"""Options of a fit: which data, which genes, which regression, which intervals."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from ..cohorts.cohort import PanelMethod
from ..embed.embedding_cache import EmbeddingOptions
from ..probes.conformal import Calibration
from ..probes.resampling import NUM_RESAMPLES
from ..probes.ridge_options import AlphaOption, ComponentsOption
from ..runtime.errors import check_seed

Panel = PanelMethod | Literal["task"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a predictor is fitted.

    Attributes:
        studies: CSV with the columns sample_id, study and, if known, patient; one study at a time is left out.
        genes: Genes to predict, in place of a panel: JSON {"genes": [...]}, or .txt with one gene in each line.
        panel: Genes selected on all samples: most variable (hvg), highest mean (mean), both (hmhvg), or the task's own
            list (task).
        num_genes: Genes to select.
        n_top_per_slide: For hmhvg: most variable genes taken of each slide.
        task: Which of several tasks in the folder.
        counts_layer: Where each h5ad keeps its raw counts: a layer, or raw; X by default.
        alpha: Ridge penalty: chosen by leaving out one study at a time (nested), HEST's (recipe), or a number.
        num_components: Principal components; auto takes 256, or as many as the smallest train part and the embeddings
            allow; none keeps all.
        level: Coverage (0 to 1) that intervals aim at.
        calibration: Residuals of left-out studies, each study weighing the same (pooled), or wider, with a guarantee for
            few studies (hierarchical).
        far_level: Fraction (0 to 1) of the patches of left-out studies that count as near to the training data.
        num_resamples: Bootstrap resamples of each gene's correlation.
        bootstrap_seed: Seed of the bootstrap.
        embedding: How patches are embedded.
    """

    studies: Annotated[Path, arg(metavar="FILE.csv")]
    genes: Annotated[Path | None, arg(metavar="FILE")] = None
    panel: Panel = "hvg"
    num_genes: Annotated[int, arg(metavar="N")] = 50
    n_top_per_slide: Annotated[int, arg(metavar="N")] = 2000
    task: Annotated[str | None, arg(metavar="NAME")] = None
    counts_layer: Annotated[str | None, arg(metavar="NAME")] = None
    alpha: AlphaOption = "nested"
    num_components: ComponentsOption = "auto"
    level: Annotated[float, arg(metavar="FRACTION")] = 0.8
    calibration: Calibration = "pooled"
    far_level: Annotated[float, arg(metavar="FRACTION")] = 0.95
    num_resamples: Annotated[int, arg(metavar="N")] = NUM_RESAMPLES
    bootstrap_seed: int = 0
    embedding: Annotated[EmbeddingOptions, arg(name="")] = field(
        default_factory=lambda: EmbeddingOptions(num_workers="auto")
    )

    def __post_init__(self) -> None:
        check_seed(self.bootstrap_seed)
