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
    return Rate(hits / n if n else float("nan"), *exact_interval(hits, n, confidence))


def exact_interval(hits: float, n: float, confidence: float) -> tuple[float, float]:
    """Return Clopper and Pearson's interval; effective numbers of a weighted sample need not be whole.

    Quantiles of the beta distribution, since ``scipy.stats.binomtest`` takes whole numbers only and twenty times as
    long: gauges are set at each tick.
    """
    tail = (1 - confidence) / 2
    lower = float(beta.ppf(tail, hits, n - hits + 1)) if hits > 0 else 0.0
    upper = float(beta.ppf(1 - tail, hits + 1, n - hits)) if hits < n else 1.0
    return lower, upper
