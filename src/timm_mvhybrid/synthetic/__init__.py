"""Generated cohorts with known truth: options → tissue → stains → scanner → slides, patches, counts.

Nothing here was measured. A phantom is for tests, demonstrations, and for probing what a backbone can see: its genes
follow morphology of low or of high spatial frequency, and its studies differ in stain, focus and resolution.
"""

from .cohort import TASK, PhantomSummary, draw_montage, write_phantom
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
    "PhantomOptions",
    "PhantomSample",
    "PhantomSummary",
    "draw_montage",
    "draw_sample",
    "write_phantom",
]
