"""Conformal p-values, calibrated within bins of length (Mondrian).

With m calibration scores in a bin, ``p = (1 + #{calibration >= score}) / (m + 1)``. If the request and the calibration
requests of its bin are exchangeable, ``P(p <= a) <= a`` for every a: on average over calibration sets (marginal), bin
by bin. Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, chapter 4.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SMALLEST_BIN = 100  # calibration requests in a bin of length, so that p can fall to 1 %


@dataclass(frozen=True)
class Calibration:
    """Sorted calibration scores by bin of length: bin b holds ``scores[start[b]:start[b + 1]]``.

    ``edges`` are the inner bounds of the bins, in tokens.
    """

    edges: NDArray[np.float64]
    start: NDArray[np.int64]
    scores: NDArray[np.float32]


def calibrate(scores: NDArray[np.floating], tokens: NDArray[np.floating], most_bins: int = 8) -> Calibration:
    """Return the calibration of ``scores [n]`` in bins of equally many requests by ``tokens [n]``.

    >>> calibrate(np.arange(400.0), np.arange(400.0)).edges.tolist()
    [100.0, 200.0, 300.0]
    """
    bins = max(1, min(most_bins, len(scores) // SMALLEST_BIN))
    ordered = np.sort(tokens)
    edges = np.unique(ordered[[len(scores) * b // bins for b in range(1, bins)]]).astype(np.float64)
    where = np.searchsorted(edges, tokens, side="right")
    parts = [np.sort(scores[where == b]) for b in range(len(edges) + 1)]
    start = np.cumsum([0, *(len(part) for part in parts)])
    return Calibration(edges, start.astype(np.int64), np.concatenate(parts).astype(np.float32))


def p_values(
    calibration: Calibration, scores: NDArray[np.floating], tokens: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return p ``[n]``; nan where the score is nan.

    >>> p_values(calibrate(np.arange(99.0), np.ones(99)), np.array([98.0, 200.0, np.nan]), np.ones(3)).tolist()
    [0.02, 0.01, nan]
    """
    p = np.full(len(scores), np.nan)
    where = np.searchsorted(calibration.edges, tokens, side="right")
    for b in np.unique(where):
        part = calibration.scores[calibration.start[b] : calibration.start[b + 1]]
        rows = np.flatnonzero((where == b) & ~np.isnan(scores))
        above = len(part) - np.searchsorted(part, scores[rows].astype(np.float32), side="left")
        p[rows] = (1 + above) / (1 + len(part))
    return p
