"""Does the MoE still pay: its tokens per second over the dense model's at the same concurrency.

At a concurrency of c requests a server gives c / (time per output token) tokens per second, so at equal concurrency the
advantage is the dense model's time per output token over the MoE's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moe_watch.detect.common.weighted_estimates import Estimate, Floats, mean

BUCKETS = {"1": 1.5, "2-4": 4.5, "5-16": 16.5, "17-64": 64.5, "65+": math.inf}  # label -> upper bound of concurrency
FEWEST = 10


@dataclass(frozen=True)
class Advantage:
    """Ratios above 1 say that the MoE pays; ``overall`` weighs the buckets by the MoE's own traffic in them."""

    by_concurrency: dict[str, Estimate]
    overall: Estimate


def rounds(moe: Floats, dense: Floats, confidence: float = 0.95) -> Estimate:
    """Return the ratio of two servers' tokens per second over paired rounds [n] (geometric mean, t on the logs)."""
    return _exponent(mean(np.log(moe) - np.log(dense), np.ones(len(moe)), confidence))


def begins(concurrency: Sequence[int], ratios: Sequence[float]) -> int | None:
    """Return the lowest measured concurrency from which on the ratio stays above 1; None where it never does.

    >>> begins([1, 4, 16, 64], [0.7, 0.9, 1.1, 1.4])
    16
    """
    found = None
    for level, ratio in sorted(zip(concurrency, ratios, strict=True), reverse=True):
        if ratio <= 1:
            break
        found = level
    return found


def nearest(levels: Sequence[int], concurrency: float) -> int:
    """Return the place of the measured concurrency nearest to ``concurrency``, by ratio.

    >>> nearest([1, 4, 16, 64], 9.0)
    2
    """
    return min(range(len(levels)), key=lambda i: abs(math.log(levels[i] / max(concurrency, 1.0))))


def live(
    moe_tpot: Floats, moe_concurrency: Floats, dense_tpot: Floats, dense_concurrency: Floats, weights: Floats
) -> Advantage:
    """Return the advantage from requests [n] that both served, compared where both had the same concurrency.

    Each side's requests are put in the bucket of the concurrency that it had; the mean logs of time per output token
    are compared within a bucket. Buckets with fewer than 10 requests on a side say nothing: dense replays are few
    at a time, so high concurrency needs ``moe-watch bench-servers``.
    """
    moe, dense = buckets(moe_concurrency, moe_tpot), buckets(dense_concurrency, dense_tpot)
    found, mass = {}, {}
    for k, name in enumerate(BUCKETS):
        ours, theirs = moe == k, dense == k
        if min(ours.sum(), theirs.sum()) >= FEWEST:
            found[name] = _difference(
                mean(np.log(dense_tpot[theirs]), weights[theirs]), mean(np.log(moe_tpot[ours]), weights[ours])
            )
            mass[name] = float(weights[ours].sum())
    overall = _pool(found, mass)
    return Advantage({name: _exponent(e) for name, e in found.items()}, _exponent(overall))


def buckets(concurrency: Floats, tpot: Floats) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the bucket of each request, -1 where concurrency or time is unknown."""
    known = (concurrency > 0) & (tpot > 0)
    return np.where(known, np.searchsorted(list(BUCKETS.values()), concurrency), -1)


def _difference(first: Estimate, second: Estimate) -> Estimate:
    value = first.value - second.value
    half = math.hypot(first.upper - first.value, second.upper - second.value)
    return Estimate(
        value, value - half, value + half, first.requests + second.requests, first.effective + second.effective
    )


def _pool(found: dict[str, Estimate], mass: dict[str, float]) -> Estimate:
    if not found:
        return Estimate(math.nan, math.nan, math.nan, 0, 0.0)
    shares = {name: mass[name] / sum(mass.values()) for name in found}
    value = sum(shares[name] * e.value for name, e in found.items())
    half = math.hypot(*(shares[name] * (e.upper - e.value) for name, e in found.items()))
    requests = sum(e.requests for e in found.values())
    return Estimate(value, value - half, value + half, requests, sum(e.effective for e in found.values()))


def _exponent(logs: Estimate) -> Estimate:
    return Estimate(math.exp(logs.value), math.exp(logs.lower), math.exp(logs.upper), logs.requests, logs.effective)
