"""Means and shares of a sampled stream of requests, with intervals that respect the sampling weights.

The unit is the request. Request ``i`` was observed with a known probability ``pi_i`` and stands for ``w_i = 1 / pi_i``
requests of the traffic (Horvitz and Thompson, 1952). The mean of the traffic is the ratio of two Horvitz-Thompson
totals, ``sum(w y) / sum(w)`` (Hajek, 1971); its variance is linearised,
``n / (n - 1) * sum(w^2 (y - mean)^2) / sum(w)^2``, which holds for the traffic as a process, not only for the requests
that happened to come (Saerndal, Swensson, Wretman, 1992, section 5.7).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; all three are nan when ``requests`` are too few to say anything."""

    value: float
    lower: float
    upper: float
    requests: int
    effective: float  # requests of equal weight that would say as much (Kish)

    def __bool__(self) -> bool:
        """Tell whether there is anything to report."""
        return not math.isnan(self.value)


def mean(values: Floats, weights: Floats, confidence: float = 0.95) -> Estimate:
    """Return the weighted mean of ``values`` [n] (nan values are left out) with a t interval; nan below two requests.

    >>> round(mean(np.array([0.0, 0.2]), np.array([10.0, 1.0])).value, 3)
    0.018
    """
    values, weights = _known(values, weights)
    effective = kish(weights)
    if len(values) < 2:
        return Estimate(math.nan, math.nan, math.nan, len(values), effective)
    centre = float(np.average(values, weights=weights))
    half = _t(confidence, effective) * math.sqrt(_variance(values, weights, centre))
    return Estimate(centre, centre - half, centre + half, len(values), effective)


def share(flags: Floats, weights: Floats, confidence: float = 0.95) -> Estimate:
    """Return the weighted share of ``flags`` [n] (0, 1, or nan) with the Korn-Graubard (1998) interval.

    Clopper-Pearson at the number of equally weighted requests that would have the linearised variance, so it stays
    inside 0..1 and is not empty at zero observed.
    """
    flags, weights = _known(flags, weights)
    effective = kish(weights)
    if not len(flags):
        return Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    p = float(np.average(flags, weights=weights))
    n = effective
    if 0 < p < 1 and len(flags) > 1:
        n = p * (1 - p) / _variance(flags, weights, p)
        n *= (_t(confidence, len(flags)) / _t(confidence, effective)) ** 2
        n = min(n, len(flags))
    tail = (1 - confidence) / 2
    x = p * n
    lower = float(stats.beta.ppf(tail, x, n - x + 1)) if p > 0 else 0.0
    upper = float(stats.beta.ppf(1 - tail, x + 1, n - x)) if p < 1 else 1.0
    return Estimate(p, lower, upper, len(flags), effective)


def by_group(values: Floats, weights: Floats, groups: Sequence[str], *, shares: bool = False) -> dict[str, Estimate]:
    """Return ``mean`` (or ``share``) for each name in ``groups`` [n], in the order of the names."""
    names = np.asarray(groups, dtype=str)
    estimate = share if shares else mean
    return {str(name): estimate(values[names == name], weights[names == name]) for name in np.unique(names)}


def kish(weights: Floats) -> float:
    """Return the effective number of requests ``sum(w)^2 / sum(w^2)``; 0 for none."""
    return float(weights.sum() ** 2 / np.square(weights).sum()) if len(weights) else 0.0


def _known(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(values)
    return values[known].astype(np.float64), weights[known].astype(np.float64)


def _variance(values: Floats, weights: Floats, centre: float) -> float:
    n = len(values)
    return float(n / (n - 1) * np.square(weights * (values - centre)).sum() / weights.sum() ** 2)


def _t(confidence: float, requests: float) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, max(requests - 1, 1)))
