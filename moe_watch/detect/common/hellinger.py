"""Hellinger features: the square root of each layer's expert shares.

The square root stabilises the variance of a share (about 1 / (4 n) for n independent draws whatever the share is), and
Euclidean distance between two such vectors is the Hellinger distance up to a constant.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def hellinger(counts: NDArray[np.integer], scale: NDArray[np.float32] | float = 1.0) -> NDArray[np.float32]:
    """Return square-root shares, same shape ``[..., layers, experts]``; every layer has length 1, or 0 without counts.

    ``scale [layers]`` multiplies each layer.

    >>> hellinger(np.array([[9, 16, 0], [0, 0, 0]])).round(2).tolist()
    [[0.6000000238418579, 0.800000011920929, 0.0], [0.0, 0.0, 0.0]]
    """
    roots: NDArray[np.float32] = np.sqrt(counts, dtype=np.float32)
    total = np.einsum("...e,...e->...", roots, roots)  # the counts again, summed over experts
    roots *= np.asarray(scale / np.sqrt(np.maximum(total, 1)), np.float32)[..., None]
    return roots
