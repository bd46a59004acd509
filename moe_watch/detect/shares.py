"""Hellinger features: the square root of each layer's expert shares.

The square root stabilises the variance of a share (about 1 / (4 n) for n independent draws whatever the share is), and
Euclidean distance between two such vectors is the Hellinger distance up to a constant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hellinger(counts: NDArray[np.integer]) -> NDArray[np.float32]:
    """Return square-root shares, same shape ``[..., layers, experts]``; every layer has length 1, or 0 without counts.

    >>> hellinger(np.array([[9, 16, 0], [0, 0, 0]])).round(2).tolist()
    [[0.6000000238418579, 0.800000011920929, 0.0], [0.0, 0.0, 0.0]]
    """
    values = counts.astype(np.float32)
    total = values.sum(-1, keepdims=True)
    np.divide(values, total, out=values, where=total > 0)
    return np.sqrt(values, out=values)
