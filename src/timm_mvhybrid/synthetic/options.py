"""What a phantom cohort is made of: one frozen set of options → the same cohort everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import arg

from ..runtime.errors import EvaluationError

SPOT_PITCH_UM = 100.0
PATCH_SIZE_PX = 224
PATCH_RESOLUTION_UM_PER_PX = 0.5
# half a patch is 56 µm; the rest keeps the tissue's edge out of most patches
MARGIN_UM = 72.0


@dataclass(frozen=True, kw_only=True)
class PhantomOptions:
    """Size, genes and study effects of a phantom cohort.

    Effects are standard deviations of the natural logarithm of a gene's expected count, per standard deviation of
    the morphology that drives it.

    Attributes:
        num_studies: Studies, each with its own stain, scanner and laboratory effects.
        num_samples: Samples of each study; two successive ones are of one patient.
        num_spots: Spots of each sample, on a hexagonal grid of 100 µm.
        num_genes: Genes.
        low_share: Fraction of genes (0 to 1) driven by tissue architecture, which survives blurring.
        high_share: Fraction of genes driven by detail within nuclei, which does not. The remaining genes follow no
            morphology at all.
        low_effect: Effect of architecture on the genes it drives.
        high_effect: Effect of nuclear detail on the genes it drives.
        noise: Variation of each spot and gene that nothing explains.
        gradient: Variation over each slide that is smooth and independent of morphology, so that neighbours resemble
            each other.
        study_effect: Variation between studies of each gene's level, the batch effect.
        dispersion: Variance of the negative binomial beyond Poisson's, as a multiple of the squared mean.
        dropout: Probability (0 to 1) that a count is lost.
        depth: Median count of a gene in a spot.
        image_shift: Strength of the studies' differences in stain, focus and resolution; 0 makes all alike, 1 is what
            laboratories show.
        capture_um: Diameter in µm of the disc around a spot whose morphology drives its genes. Visium's spots are
            55 µm wide; the default fills most of the patch, so that what is counted can be seen.
        seed: Seed of everything.

    Raises:
        EvaluationError: If a value is outside its range.
    """

    num_studies: Annotated[int, arg(aliases=("--studies",), metavar="N")] = 8
    num_samples: Annotated[int, arg(aliases=("--samples",), metavar="N")] = 3
    num_spots: Annotated[int, arg(aliases=("--spots",), metavar="N")] = 60
    num_genes: Annotated[int, arg(aliases=("--genes",), metavar="N")] = 120
    low_share: Annotated[float, arg(metavar="FRACTION")] = 0.4
    high_share: Annotated[float, arg(metavar="FRACTION")] = 0.4
    low_effect: float = 0.7
    high_effect: float = 0.7
    noise: float = 0.25
    gradient: float = 0.3
    study_effect: float = 0.6
    dispersion: float = 0.1
    dropout: Annotated[float, arg(metavar="FRACTION")] = 0.05
    depth: float = 12.0
    image_shift: float = 1.0
    capture_um: Annotated[float, arg(metavar="UM")] = 100.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_studies", "num_samples", "num_spots", "num_genes"):
            if getattr(self, name) < 1:
                raise EvaluationError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("low_share", "high_share", "dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise EvaluationError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if self.low_share + self.high_share > 1:
            raise EvaluationError(
                f"low_share and high_share must add up to at most 1, not {self.low_share + self.high_share:g}"
            )
        effects = (
            "low_effect",
            "high_effect",
            "noise",
            "gradient",
            "study_effect",
            "dispersion",
            "image_shift",
        )
        for name in effects:
            if not 0 <= getattr(self, name) < float("inf"):
                raise EvaluationError(f"{name} must be at least 0, not {getattr(self, name)}")
        for name in ("depth", "capture_um"):
            if not 0 < getattr(self, name) < float("inf"):
                raise EvaluationError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.seed < 0:
            raise EvaluationError(f"seed must be at least 0, not {self.seed}")
