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
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moe_watch.detect.common.proportion import exact_interval

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


@dataclass(frozen=True)
class Sums:
    """What ``from_sums`` needs of any set of requests; sums of disjoint sets add up, so SQL can group them."""

    n: int = 0
    w: float = 0.0
    wy: float = 0.0
    w2: float = 0.0
    w2y: float = 0.0
    w2y2: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        """Return the sums of both sets together."""
        return Sums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def sums(values: Floats, weights: Floats) -> Sums:
    """Return the sums over requests whose value is known (not nan)."""
    y, w = _known(values, weights)
    w2 = np.square(w)
    return Sums(len(y), *(float(x.sum()) for x in (w, w * y, w2, w2 * y, w2 * y * y)))


def from_sums(s: Sums, confidence: float = 0.95) -> Estimate:
    """Return the weighted mean with a t interval; nan below two requests."""
    effective = s.w**2 / s.w2 if s.w2 else 0.0
    if s.n < 2:
        return Estimate(math.nan, math.nan, math.nan, s.n, effective)
    centre = s.wy / s.w
    half = _t(confidence, effective) * math.sqrt(_variance(s))
    return Estimate(centre, centre - half, centre + half, s.n, effective)


def mean(values: Floats, weights: Floats, confidence: float = 0.95) -> Estimate:
    """Return the weighted mean of ``values`` [n] (nan values are left out) with a t interval; nan below two requests.

    >>> round(mean(np.array([0.0, 0.2]), np.array([10.0, 1.0])).value, 3)
    0.018
    """
    return from_sums(sums(values, weights), confidence)


def share(flags: Floats, weights: Floats, confidence: float = 0.95) -> Estimate:
    """Return the weighted share of ``flags`` [n] (0, 1, or nan) with the Korn-Graubard (1998) interval.

    Clopper-Pearson at the number of equally weighted requests that would have the linearised variance, so it stays
    inside 0..1 and is not empty at zero observed.
    """
    s = sums(flags, weights)
    if not s.n:
        return Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    p = s.wy / s.w
    n = effective = s.w**2 / s.w2
    if 0 < p < 1 and s.n > 1:
        n = p * (1 - p) / _variance(s)
        n *= (_t(confidence, s.n) / _t(confidence, effective)) ** 2
        n = min(n, s.n)
    return Estimate(p, *exact_interval(p * n, n, confidence), s.n, effective)


def by_group(values: Floats, weights: Floats, groups: Sequence[str], *, shares: bool = False) -> dict[str, Estimate]:
    """Return ``mean`` (or ``share``) for each name in ``groups`` [n], in the order of the names."""
    names = np.asarray(groups, dtype=str)
    estimate = share if shares else mean
    return {str(name): estimate(values[names == name], weights[names == name]) for name in np.unique(names)}


def _known(values: Floats, weights: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(values)
    return values[known].astype(np.float64), weights[known].astype(np.float64)


def _variance(s: Sums) -> float:
    centre = s.wy / s.w
    squares = s.w2y2 - 2 * centre * s.w2y + centre**2 * s.w2
    return s.n / (s.n - 1) * max(squares, 0.0) / s.w**2


def _t(confidence: float, requests: float) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2, max(requests - 1, 1)))
