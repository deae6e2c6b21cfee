"""Balanced targets by Sinkhorn-Knopp as a whole, of what the losses take in two steps."""

import torch

from timm_mvhybrid.ssl.centering import column_potentials
from timm_mvhybrid.ssl.prototype_scores import PrototypeScores


@torch.no_grad()
def sinkhorn_knopp(scores, temperature, **options):
    """(M, K) scores to targets of the same shape, in float32 or float64; each row sums to 1."""
    rows = PrototypeScores(rows=scores)
    potentials = column_potentials(rows, temperature, **options)
    return torch.softmax(rows.scores(slice(None), temperature).sub_(potentials), dim=1)
