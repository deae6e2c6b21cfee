"""What drives the genes: tissue + cells + spots → morphology in standard units.

Low spatial frequencies are what a picture keeps when it is blurred to 8 µm: how much gland, how many lymphocytes, how
much collagen, how malignant. High ones are detail within nuclei, a few µm wide and at most faintly visible in
averages: the chromatin's grain, nucleoli, the fraction of dividing cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .cells import EPITHELIAL, FIBROBLAST, LYMPHOCYTE, MITOSIS, Cells
from .tissue import EPITHELIUM, LUMEN, STROMA, Tissue

LOW_FREQUENCY = ("glands", "lymphocytes", "fibrosis", "tumour")
"""Factors of tissue architecture, which survives blurring."""
HIGH_FREQUENCY = ("chromatin", "nucleoli", "mitoses")
"""Factors of detail within nuclei, which does not."""
FACTORS = LOW_FREQUENCY + HIGH_FREQUENCY
"""All factors, in the order of the columns of the morphology."""

# mean and deviation over the spots of 40 slides of 40 studies at the default options: constants, so that a sample's
# values do not depend on which others were drawn with it
_CENTRE = np.array([0.31, 1.11, 0.32, 0.0, 0.37, 0.40, 0.030])
_SCALE = np.array([0.27, 0.98, 0.25, 0.83, 0.155, 0.24, 0.030])
# nuclei added to each spot's own, all of the typical kind: where few are seen, an average says little
_TYPICAL_NUCLEI = 5.0


def measure_morphology(
    tissue: Tissue, cells: Cells, x: NDArray[np.floating], y: NDArray[np.floating], radius_px: float
) -> NDArray[np.float64]:
    """Measures the morphology around spots, in a disc around each.

    ``glands``: fraction of the area within glands. ``lymphocytes``: square root of their number per 1000 µm².
    ``fibrosis``: fraction of the area under stroma, times its density. ``tumour``: the smooth field of malignancy.
    ``chromatin``: amplitude of the grain in epithelial and fibroblast nuclei. ``nucleoli``: their contrast in
    epithelial nuclei. ``mitoses``: fraction of the epithelial cells that divide.

    Returns:
        Values in standard units within ±3, (N, 7), in the order of ``FACTORS``, for centres x and y in px, (N,).
    """
    spacing = max(radius_px / 16, 1.0)
    offset = np.arange(-radius_px, radius_px + spacing / 2, spacing)
    down, right = (axis.ravel() for axis in np.meshgrid(offset, offset, indexing="ij"))
    within = down**2 + right**2 <= radius_px**2
    sample_x = (x[:, None] + right[within]).ravel()
    sample_y = (y[:, None] + down[within]).ravel()
    label = tissue.label_at(sample_x, sample_y).reshape(len(x), -1)
    fibrosis = tissue.at("fibrosis", sample_x, sample_y).reshape(label.shape)
    tumour = tissue.at("tumour", sample_x, sample_y).reshape(label.shape)

    outline = cells.outline
    distance2 = (outline.x[None] - x[:, None]) ** 2 + (outline.y[None] - y[:, None]) ** 2
    near = (distance2 <= radius_px**2).astype(np.float64)
    area_um2 = np.pi * (radius_px / tissue.px_per_um) ** 2
    epithelial = (cells.kind == EPITHELIAL).astype(np.float64)
    dividing = (cells.kind == MITOSIS).astype(np.float64)
    grainy = epithelial + (cells.kind == FIBROBLAST)
    grain = np.where(cells.kind == FIBROBLAST, cells.chromatin / 0.6, cells.chromatin)

    def average(
        value: NDArray[np.floating], weight: NDArray[np.floating], typical: float
    ) -> NDArray[np.float64]:
        total = near @ (value * weight) + _TYPICAL_NUCLEI * typical
        mean: NDArray[np.float64] = total / (near @ weight + _TYPICAL_NUCLEI)
        return mean

    raw = np.stack(
        [
            np.isin(label, (EPITHELIUM, LUMEN)).mean(1),
            np.sqrt(1000 * (near @ (cells.kind == LYMPHOCYTE)) / area_um2),
            ((label == STROMA) / (1 + np.exp(-1.6 * fibrosis))).mean(1),
            tumour.mean(1),
            average(grain, grainy, _CENTRE[4]),
            average(cells.nucleolus, epithelial, _CENTRE[5]),
            average(dividing, epithelial + dividing, _CENTRE[6]),
        ],
        axis=1,
    )
    return np.clip((raw - _CENTRE) / _SCALE, -3, 3)
