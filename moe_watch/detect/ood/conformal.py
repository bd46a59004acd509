"""Conformal p-values, calibrated within bins of length (Mondrian).

With m calibration scores in a bin, ``p = (1 + #{calibration >= score}) / (m + 1)``. Two guarantees, both for requests
that are exchangeable with the calibration requests of their bin, whatever the score is:

- Marginal, bin by bin: ``P(p <= a) <= a`` for every a, on average over calibration sets. Any m will do, but p cannot
  fall below 1 / (m + 1). Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random World", 2005, chapter 4.5.
- Given the calibration set at hand, the share of normal requests with ``p <= a`` is a constant that no later traffic
  averages out. Over sets it has a beta distribution; ``realised`` bounds it. For a = 1 % and an error of 5 %, a bin of
  100 realises up to 3.0 %, one of 1,000 up to 1.6 %, one of 10,000 up to 1.2 %. Vovk, ACML 2012; Bates, Candes, Lei,
  Romano and Sesia, "Testing for outliers with conformal p-values", Annals of Statistics 51, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

_APART = 1e6  # scores are standard deviations
SMALLEST_BIN = 100  # calibration requests in a bin of length, so that p can fall to 1 %


@dataclass(frozen=True)
class Calibration:
    """Calibration scores by bin of length: bin b holds ``keys[start[b]:start[b + 1]]``, sorted.

    ``edges`` are the inner bounds of the bins, in tokens. A key is a score plus b times a constant larger than scores
    are, so that one search serves all bins.
    """

    edges: NDArray[np.float64]
    start: NDArray[np.int64]
    keys: NDArray[np.float64]


def calibrate(scores: NDArray[np.floating], tokens: NDArray[np.floating], most_bins: int = 8) -> Calibration:
    """Return the calibration of ``scores [n]`` in bins of equally many requests by ``tokens [n]``.

    >>> calibrate(np.arange(400.0), np.arange(400.0)).edges.tolist()
    [100.0, 200.0, 300.0]
    """
    bins = max(1, min(most_bins, len(scores) // SMALLEST_BIN))
    ordered = np.sort(tokens)
    edges = np.unique(ordered[[len(scores) * b // bins for b in range(1, bins)]]).astype(np.float64)
    where = np.searchsorted(edges, tokens, side="right")
    start = np.cumsum([0, *np.bincount(where, minlength=len(edges) + 1)])
    return Calibration(edges, start.astype(np.int64), np.sort(_keys(scores, where)))


def p_values(
    calibration: Calibration, scores: NDArray[np.floating], tokens: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Return p ``[n]``; nan where the score is nan.

    >>> p_values(calibrate(np.arange(99.0), np.ones(99)), np.array([98.0, 200.0, np.nan]), np.ones(3)).tolist()
    [0.02, 0.01, nan]
    """
    where = np.searchsorted(calibration.edges, tokens, side="right")
    end = calibration.start[where + 1]
    above = end - np.searchsorted(calibration.keys, _keys(scores, where), side="left")
    p = (1 + above) / (1 + end - calibration.start[where])
    return np.where(np.isnan(scores), np.nan, p)


def realised(level: float, size: int, error: float = 0.05) -> float:
    """Return what the share of normal requests with ``p <= level`` is at most, given the calibration set of a bin.

    It holds for all but a share ``error`` of calibration sets of ``size`` independent requests: of their order
    statistics, the one at rank k from above leaves a Beta(k, size + 1 - k) share of normal requests above it. Invert it
    for a corrected level: the largest ``level`` whose bound is still tolerable.

    >>> [round(realised(0.01, size), 3) for size in (50, 100, 1000, 10_000)]
    [0.0, 0.03, 0.016, 0.012]
    """
    rank = int(np.floor(level * (size + 1) + 1e-9))
    return 0.0 if rank == 0 else float(beta.ppf(1 - error, rank, size + 1 - rank)) if rank <= size else 1.0


def _keys(scores: NDArray[np.floating], where: NDArray[np.integer]) -> NDArray[np.float64]:
    return np.clip(scores.astype(np.float64), -_APART / 3, _APART / 3) + _APART * where
