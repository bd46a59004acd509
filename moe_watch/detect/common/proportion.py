"""The share of out-of-distribution requests, with Clopper and Pearson's interval (Biometrika 26, 1934).

It holds for one look at a number of requests that was fixed beforehand, not for all looks at once. An alert on the
lower end of a gauge therefore asks for more than the expected share, and for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

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
