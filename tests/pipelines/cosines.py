"""How alike two lists of features are."""

import numpy as np


def smallest_cosine(ours, theirs):
    """Returns the smallest cosine between rows (..., dim) of two arrays of one shape, after checks of both.

    Rows of zeros, rows that are all alike and values that are not finite prove nothing and are refused.
    """
    ours, theirs = (np.asarray(one, dtype=np.float64) for one in (ours, theirs))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    ours, theirs = (one.reshape(-1, one.shape[-1]) for one in (ours, theirs))
    assert np.isfinite(ours).all()
    assert np.isfinite(theirs).all()
    assert len(ours) > 1
    assert np.ptp(ours, axis=0).max() > 1e-3, "all rows are alike"
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
    assert lengths.min() > 0
    return float(((ours * theirs).sum(1) / lengths).min())
