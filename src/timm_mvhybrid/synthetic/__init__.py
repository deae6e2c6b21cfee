"""Generated cohorts with known truth: options → tissue → stains → scanner → slides, patches, counts.

Nothing here was measured. A phantom is for tests, demonstrations, and for probing what a backbone can see: its genes
follow morphology of low or of high spatial frequency, and its studies differ in stain, focus and resolution. With
``bands`` it is an instrument: gratings in bands of spatial frequency in place of tissue, each with the same
signal-to-noise ratio.
"""

from .cohort import TASK, PhantomSummary, draw_montage, write_phantom
from .frequency_bands import FrequencyBand, frequency_bands
from .gratings import grating_energies
from .morphology import FACTORS, HIGH_FREQUENCY, LOW_FREQUENCY
from .options import PhantomOptions
from .sample import PhantomSample, draw_sample
from .scanner import MARK

__all__ = [
    "FACTORS",
    "HIGH_FREQUENCY",
    "LOW_FREQUENCY",
    "MARK",
    "TASK",
    "FrequencyBand",
    "PhantomOptions",
    "PhantomSample",
    "PhantomSummary",
    "draw_montage",
    "draw_sample",
    "frequency_bands",
    "grating_energies",
    "write_phantom",
]
