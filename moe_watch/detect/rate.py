"""The share of out-of-distribution requests, with an interval.

Clopper and Pearson's interval (Biometrika 26, 1934) for one look at a number of requests fixed beforehand; for a gauge
that is looked at all the time a confidence sequence: the betting (beta-binomial mixture) interval of Robbins (1970),
which holds at all times at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import betaln
from scipy.stats import beta


@dataclass(frozen=True)
class Rate:
    """A share with its interval."""

    value: float
    lower: float
    upper: float


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Rate:
    """Return ``hits / n`` with its exact interval, for a look that was fixed beforehand; 0 to 1 and nan without data.

    >>> clopper_pearson(0, 100).upper < 0.04
    True
    """
    if n == 0:
        return Rate(float("nan"), 0.0, 1.0)
    tail = (1 - confidence) / 2
    lower = float(beta.ppf(tail, hits, n - hits + 1)) if hits else 0.0
    upper = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return Rate(hits / n, lower, upper)


def anytime(hits: int, n: int, confidence: float = 0.95) -> Rate:
    """Return ``hits / n`` with an interval that holds at every n at once, so that one may look after each request.

    >>> anytime(5, 100).lower < clopper_pearson(5, 100).lower
    True
    """
    if n == 0:
        return Rate(float("nan"), 0.0, 1.0)
    shares = np.linspace(0, 1, 4001)[1:-1]
    # Likelihood of a uniform mixture of shares against each single share: an e-value against that share.
    evidence = betaln(hits + 1, n - hits + 1) - hits * np.log(shares) - (n - hits) * np.log1p(-shares)
    inside = shares[evidence < -np.log(1 - confidence)]
    value = hits / n
    if inside.size == 0:
        return Rate(value, value, value)
    lower = 0.0 if hits == 0 else min(value, float(inside[0]))
    upper = 1.0 if hits == n else max(value, float(inside[-1]))
    return Rate(value, lower, upper)
