"""What a phantom cohort is made of: one frozen set of options → the same cohort everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any

from tyro.conf import arg

from ..runtime.errors import EvaluationError
from ..runtime.option_words import word
from .frequency_bands import FrequencyBand, frequency_bands

_OF_TISSUE = ("low_share", "high_share", "low_effect", "high_effect", "capture_um")
_OF_BANDS = ("band_share", "band_effect", "band_contrast")


def _edges(text: str) -> tuple[float, ...]:
    return () if text == "none" else tuple(float(part) for part in text.split(","))


def _written(edges: tuple[float, ...]) -> str:
    return ",".join(f"{edge:g}" for edge in edges) or "none"


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
        bands: Draws a test chart in place of tissue: edges of bands of spatial frequency, in cycles per patch of 112 µm,
            such as 1,2,4,8,16 for four octaves. In each band genes follow how gratings are aligned, with the same
            signal-to-noise ratio. none draws tissue, to which alone low_share, high_share, low_effect, high_effect and
            capture_um belong.
        band_share: Fraction of genes that follow bands, as many in each; the remaining genes follow nothing.
        band_effect: Effect of a band's alignment on the genes it drives.
        band_contrast: Standard deviation of each band's gratings, relative to the mean of the stains.
        seed: Seed of everything.

    Raises:
        EvaluationError: If a value is outside its range, or does not belong to what is drawn.
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
    bands: Annotated[tuple[float, ...], word("none|CYCLES,CYCLES[,CYCLES...]", _edges, _written)] = ()
    band_share: Annotated[float, arg(metavar="FRACTION")] = 0.8
    band_effect: float = 0.7
    band_contrast: Annotated[float, arg(metavar="FRACTION")] = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "bands":
                continue
            if name.startswith("num_"):
                fits, wanted = value >= 1, "be at least 1"
            elif name in ("low_share", "high_share", "band_share", "dropout"):
                fits, wanted = 0 <= value <= 1, "lie between 0 and 1"
            elif name in ("depth", "capture_um", "band_contrast"):
                fits, wanted = 0 < value < math.inf, "be above 0"
            else:
                fits, wanted = 0 <= value < math.inf, "be at least 0"
            if not fits:
                raise EvaluationError(f"`{name}` must {wanted}, not {value}")
        if self.low_share + self.high_share > 1:
            raise EvaluationError(
                f"`low_share` and `high_share` must add up to at most 1, not {self.low_share + self.high_share:g}"
            )
        self._check_bands()

    def _check_bands(self) -> None:
        strangers = _OF_TISSUE if self.bands else _OF_BANDS
        default = {field.name: field.default for field in fields(self)}
        for name in strangers:
            if getattr(self, name) != default[name]:
                remedy = (
                    "is of tissue, and `bands` draw none"
                    if self.bands
                    else "belongs to `bands`, and there are none"
                )
                raise EvaluationError(f"`{name}` {remedy}; leave one of them out")
        if not self.bands:
            return
        num_bands = len(frequency_bands(self.bands))
        if self.num_band_genes < 1:
            raise EvaluationError(
                f"`num_genes` of {self.num_genes} with a `band_share` of {self.band_share:g} leaves no gene for each of "
                f"{num_bands} bands; raise one of them"
            )
        # the gratings' highest sum is 2 · contrast · bands; beyond 1 a stain would be negative and had to be clipped
        if 2 * self.band_contrast * num_bands >= 1:
            raise EvaluationError(
                f"`band_contrast` must be below {1 / (2 * num_bands):g} for {num_bands} bands, not {self.band_contrast:g}: "
                "where gratings meet, a stain would be negative"
            )

    @property
    def frequency_bands(self) -> tuple[FrequencyBand, ...]:
        """The bands; empty where tissue is drawn."""
        return frequency_bands(self.bands) if self.bands else ()

    @property
    def num_band_genes(self) -> int:
        """Genes of each band."""
        return int(self.band_share * self.num_genes / max(len(self.bands) - 1, 1) + 1e-9)

    @property
    def applied(self) -> dict[str, Any]:
        """What the cohort depends on: all options but those of what is not drawn."""
        strangers = _OF_TISSUE if self.bands else ("bands", *_OF_BANDS)
        return {name: value for name, value in vars(self).items() if name not in strangers}
