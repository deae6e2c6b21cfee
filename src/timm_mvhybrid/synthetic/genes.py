"""Genes that follow known morphology: options → a panel with its ground truth; morphology → counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .morphology import FACTORS, HIGH_FREQUENCY, LOW_FREQUENCY
from .options import PhantomOptions

_NUM_GRADIENTS = 3


@dataclass(frozen=True, kw_only=True)
class GenePanel:
    """The genes of a cohort.

    Attributes:
        names: Symbols that say what drives the gene: ``LOW-GLANDS-01``, ``HIGH-CHROMATIN-02``, ``BAND1-07``, ``NONE-03``.
        bands: ``low``, ``high``, the name of a frequency band, or ``none``.
        drivers: One of ``factors``, or an empty string.
        effects: Change of the logarithm of the expected count per standard unit of the driver, (G,).
        log_level: Logarithm of the expected count in a typical spot, (G,).
        gradients: Loadings on each slide's smooth fields, (3, G).
        factors: What can drive genes, in the order of the columns of the morphology.
        facts: What else is known of each gene: name → values, (G,).
    """

    names: tuple[str, ...]
    bands: tuple[str, ...]
    drivers: tuple[str, ...]
    effects: NDArray[np.float64]
    log_level: NDArray[np.float64]
    gradients: NDArray[np.float64]
    factors: tuple[str, ...] = FACTORS
    facts: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @property
    def loadings(self) -> NDArray[np.float64]:
        """Effects as a matrix, factors × genes."""
        matrix = np.zeros((len(self.factors), len(self.names)))
        for gene, driver in enumerate(self.drivers):
            if driver:
                matrix[self.factors.index(driver), gene] = self.effects[gene]
        return matrix


def draw_panel(options: PhantomOptions, generator: np.random.Generator) -> GenePanel:
    """Draws the genes of a cohort."""
    if options.bands:
        return _draw_band_panel(options, generator)
    num_low = round(options.low_share * options.num_genes)
    num_high = min(round(options.high_share * options.num_genes), options.num_genes - num_low)
    num_none = options.num_genes - num_low - num_high
    drivers = [LOW_FREQUENCY[index % len(LOW_FREQUENCY)] for index in range(num_low)]
    drivers += [HIGH_FREQUENCY[index % len(HIGH_FREQUENCY)] for index in range(num_high)]
    drivers += [""] * num_none
    bands = ["low"] * num_low + ["high"] * num_high + ["none"] * num_none
    effect_of = {"low": options.low_effect, "high": options.high_effect, "none": 0.0}
    counter: dict[str, int] = {}
    names = []
    for band, driver in zip(bands, drivers, strict=True):
        stem = f"{band}-{driver}".upper().rstrip("-")
        counter[stem] = counter.get(stem, 0) + 1
        names.append(f"{stem}-{counter[stem]:02d}")
    strength = generator.uniform(0.7, 1.3, len(names)) * np.where(
        generator.uniform(size=len(names)) < 0.7, 1, -1
    )
    return GenePanel(
        names=tuple(names),
        bands=tuple(bands),
        drivers=tuple(drivers),
        effects=strength * np.array([effect_of[band] for band in bands]),
        log_level=math.log(options.depth) + 0.6 * generator.standard_normal(len(names)),
        gradients=generator.standard_normal((_NUM_GRADIENTS, len(names))) / math.sqrt(_NUM_GRADIENTS),
    )


def matched_genes(options: PhantomOptions) -> NDArray[np.int64]:
    """Numbers the genes so that those of one number have the same effect, levels and gradients, (G,).

    Of tissue each gene has a number of its own. Of bands the first gene of each has the number 0, and so on: what differs
    between the bands is then the band alone.
    """
    order = np.arange(options.num_genes)
    return order % options.num_band_genes if options.bands else order


def _draw_band_panel(options: PhantomOptions, generator: np.random.Generator) -> GenePanel:
    bands, num_each = options.frequency_bands, options.num_band_genes
    num_none = options.num_genes - len(bands) * num_each
    width = max(len(str(max(num_each, num_none))), 2)
    band_of = np.repeat(np.arange(len(bands) + 1), [*[num_each] * len(bands), num_none])
    stems = [*(f"BAND{number}" for number in range(1, len(bands) + 1)), "NONE"]
    names = [
        f"{stems[band]}-{number:0{width}d}"
        for band in range(len(stems))
        for number in range(1, (band_of == band).sum() + 1)
    ]
    matched = matched_genes(options)
    sign = np.where(generator.uniform(size=num_each) < 0.7, 1, -1)
    strength = options.band_effect * generator.uniform(0.7, 1.3, num_each) * sign
    level = math.log(options.depth) + 0.6 * generator.standard_normal(num_each)
    gradients = generator.standard_normal((_NUM_GRADIENTS, num_each)) / math.sqrt(_NUM_GRADIENTS)

    def of_bands(values: Sequence[float]) -> NDArray[np.float64]:
        return np.array([*values, math.nan])[band_of]

    return GenePanel(
        names=tuple(names),
        bands=tuple([*(band.name for band in bands), "none"][band] for band in band_of),
        drivers=tuple([*(band.driver for band in bands), ""][band] for band in band_of),
        effects=np.where(band_of < len(bands), strength[matched], 0.0),
        log_level=level[matched],
        gradients=gradients[:, matched],
        factors=tuple(band.driver for band in bands),
        facts={
            "low_cycles_per_patch": of_bands([band.low for band in bands]),
            "high_cycles_per_patch": of_bands([band.high for band in bands]),
            "shortest_wavelength_um": of_bands([band.wavelengths_um[0] for band in bands]),
            "longest_wavelength_um": of_bands([band.wavelengths_um[1] for band in bands]),
        },
    )


def draw_counts(
    panel: GenePanel,
    morphology: NDArray[np.float64],
    positions_um: NDArray[np.float64],
    study_level: NDArray[np.float64],
    options: PhantomOptions,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Draws the counts of one sample, (N, G), for a morphology, (N, factors), in standard units.

    log μ = level + effect · driver + study + gradient + noise + log size; the count is negative binomial with mean μ
    and variance μ + dispersion · μ², then lost with the probability ``dropout``. ``study_level`` is the study's shift of
    each gene's log level, (G,).
    """
    num_spots, num_genes = len(morphology), len(panel.names)
    log_mean = panel.log_level + study_level + morphology @ panel.loadings
    log_mean += options.gradient * (_gradients(positions_um, generator) @ panel.gradients)
    log_mean += options.noise * generator.standard_normal((num_spots, num_genes))
    log_mean += 0.2 * generator.standard_normal((num_spots, 1))
    # e^9 is beyond what a spot can hold; without the limit an extreme option would overflow
    mean = np.exp(np.clip(log_mean, -9, 9))
    if options.dispersion > 0:
        mean = generator.gamma(1 / options.dispersion, mean * options.dispersion)
    counts = generator.poisson(mean)
    counts[generator.uniform(size=counts.shape) < options.dropout] = 0
    return counts.astype(np.int64)


def _gradients(positions_um: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """Smooth fields at the spots: plane waves longer than the slide is wide, of unit variance over their phases."""
    angle = generator.uniform(0, 2 * math.pi, _NUM_GRADIENTS)
    wavelength_um = generator.uniform(900, 1800, _NUM_GRADIENTS)
    phase = generator.uniform(0, 2 * math.pi, _NUM_GRADIENTS)
    along = positions_um @ np.stack([np.cos(angle), np.sin(angle)])
    waves: NDArray[np.float64] = math.sqrt(2) * np.sin(2 * math.pi * along / wavelength_um + phase)
    return waves
