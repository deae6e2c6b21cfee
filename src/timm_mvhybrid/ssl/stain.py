"""Stain jitter: an image's haematoxylin, eosin and residue, each made stronger or weaker.

Source: Tellez et al., IEEE Transactions on Medical Imaging 37 (2018), "Whole-slide mitosis detection in H&E breast
histology using PHH3 as a reference": each stain's amount c becomes α · c + β with α from 1 − σ to 1 + σ and β from −σ to
σ. The amounts are natural optical densities, −ln(intensity), unmixed by the stain vectors of Ruifrok and Johnston,
Analytical and Quantitative Cytology and Histology 23 (2001).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
"""Optical density of red, green, blue for a unit of haematoxylin, eosin, residue."""

_DARKEST = 1 / 255


def jitter_stains(images: Tensor, scales: Tensor, shifts: Tensor) -> Tensor:
    """Changes the amounts of the stains.

    Unmixing, change and mixing are linear in the optical density, so they are one 3 × 3 matrix and one shift an image.

    Args:
        images: (n, 3, H, W), 0 to 1.
        scales: α of haematoxylin, eosin and residue, (n, 3).
        shifts: β of the same, (n, 3), in natural optical density.

    Returns:
        (n, 3, H, W), 0 to 1; with scales 1 and shifts 0 the image, but for values below 1 / 255.
    """
    mixing = np.array(_STAINS)
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    # on the CPU in float64: these are 12 numbers an image, and TensorFloat-32 would show
    scales64, shifts64 = scales.detach().cpu().double(), shifts.detach().cpu().double()
    mix = torch.from_numpy(mixing)
    matrices = (torch.linalg.inv(mix) @ (scales64[:, :, None] * mix)).to(images)
    offsets = (shifts64 @ mix).to(images)
    density = images.clamp(min=_DARKEST).log_().neg_()
    output = torch.empty_like(images)
    for channel in range(3):
        column = matrices[:, :, channel, None, None]
        total = density[:, 0] * column[:, 0] + offsets[:, channel, None, None]
        for source in (1, 2):
            total.addcmul_(density[:, source], column[:, source])
        torch.exp(total.neg_(), out=output[:, channel])
    return output.clamp_(0, 1)
