"""How quality depends on how unusual the routing was: the gap by OOD decile, a monotone band, and the trend."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from moe_watch.detect.common.weighted_estimates import Estimate, Floats, mean


@dataclass(frozen=True)
class Curve:
    """The gap along the OOD score, from the most ordinary to the most unusual tenth of the traffic.

    ``band_lower`` and ``band_upper`` [deciles] hold for all deciles together and assume that the gap does not fall as
    requests get more unusual; where the deciles contradict that beyond chance the band is empty (``monotone`` False).
    """

    deciles: tuple[Estimate, ...]  # intervals hold for each decile alone
    edges: Floats  # [deciles - 1] OOD scores between the deciles
    band_lower: Floats
    band_upper: Floats
    monotone: bool


@dataclass(frozen=True)
class Trend:
    """The gap's rise from the most ordinary to the most unusual request, in the unit of the gap; ``p`` is one-sided."""

    rise: float
    lower: float
    upper: float
    p: float
    requests: int


def deciles(ood: Floats, weights: Floats, parts: int = 10) -> tuple[NDArray[np.int64], Floats]:
    """Return the tenth of the *traffic* (0..parts-1, -1 for nan) that each request is in, and the scores between them.

    The traffic's quantiles are weighted ones: over-sampled unusual requests do not drag the edges upwards.
    """
    known = ~np.isnan(ood)
    if not known.any():
        return np.full(len(ood), -1), np.full(parts - 1, np.nan)
    order = np.argsort(ood[known], kind="stable")
    upto = np.cumsum(weights[known][order])
    wanted = upto[-1] * np.arange(1, parts) / parts
    edges = ood[known][order][np.searchsorted(upto, wanted).clip(max=len(order) - 1)]
    return np.where(known, np.searchsorted(edges, ood, side="left"), -1), edges


def curve(gap: Floats, ood: Floats, weights: Floats, parts: int = 10, confidence: float = 0.95) -> Curve:
    """Return the gap [n] by ``parts`` quantiles of the traffic's OOD score [n].

    The band is Bonferroni over the parts, then tightened by monotonicity: a curve that does not fall and is inside the
    band is also above every lower limit to its left and below every upper limit to its right.
    """
    part, edges = deciles(ood, weights, parts)
    inside = [part == k for k in range(parts)]
    alone = tuple(mean(gap[rows], weights[rows], confidence) for rows in inside)
    together = [mean(gap[rows], weights[rows], 1 - (1 - confidence) / parts) for rows in inside]
    lower = np.array([-math.inf if math.isnan(e.lower) else e.lower for e in together])
    upper = np.array([math.inf if math.isnan(e.upper) else e.upper for e in together])
    lower, upper = np.maximum.accumulate(lower), np.minimum.accumulate(upper[::-1])[::-1]
    return Curve(alone, edges, lower, upper, monotone=bool((lower <= upper).all()))


def trend(gap: Floats, ood: Floats, weights: Floats, confidence: float = 0.95) -> Trend:
    """Return the slope of the gap on the traffic percentile (0..1) of the OOD score, with a robust (HC1) interval.

    Weighted least squares; the variance is the linearised one of a weighted slope (Binder, 1983). nan below 10
    requests or when all scores are equal.
    """
    known = ~(np.isnan(gap) | np.isnan(ood))
    gap, weights = gap[known], weights[known]
    place = percentile(ood[known], weights)
    n = len(gap)
    centred = place - np.average(place, weights=weights) if n else place
    spread = float((weights * centred**2).sum())
    if n < 10 or spread <= 0:
        return Trend(math.nan, math.nan, math.nan, math.nan, n)
    rise = float((weights * centred * gap).sum() / spread)
    residual = gap - np.average(gap, weights=weights) - rise * centred
    error = math.sqrt(n / (n - 2) * float(np.square(weights * centred * residual).sum())) / spread
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 2)) * error
    p = float(stats.t.sf(rise / error, n - 2)) if error > 0 else float(rise <= 0)
    return Trend(rise, rise - half, rise + half, p, n)


def percentile(ood: Floats, weights: Floats) -> Floats:
    """Return the share of the traffic (0..1) below each score [n], ties at the middle of their place."""
    values, inverse = np.unique(ood, return_inverse=True)
    mass = np.bincount(inverse, weights=weights, minlength=len(values))
    middle = np.cumsum(mass) - mass / 2
    place: Floats = (middle / mass.sum())[inverse] if len(values) else np.empty(0)
    return place
