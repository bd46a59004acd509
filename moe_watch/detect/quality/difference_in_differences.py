"""Difference in differences: tells an MoE that got worse from traffic that got harder for any model.

The dense shadow is the control group. Both models answer the same requests, so a harder mix moves both and a fault of
the MoE moves one (Card and Krueger, 1994, with paired units). vLLM issue 41306 is the case in point: time per output
token of Mixtral rose by 21 %, dense models did not move.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.common.weighted_estimates import Estimate, Floats, mean

Cause = Literal["none", "moe", "traffic", "both", "unknown"]
FEWEST_ALIKE = 5


@dataclass(frozen=True)
class Pairs:
    """The same requests through both models: a measure where more is worse, and the sampling weights, each [n]."""

    moe: Floats
    dense: Floats
    weights: Floats


@dataclass(frozen=True)
class Difference:
    """How each model's measure changed, and the part of the MoE's change that the dense model did not share."""

    moe: Estimate
    dense: Estimate
    effect: Estimate
    cause: Cause


def difference(before: Pairs, after: Pairs, *, tolerance: float = 0.0, confidence: float = 0.95) -> Difference:
    """Return the changes from ``before`` to ``after``; ``tolerance`` is the smallest change that matters.

    ``effect`` is the change of the mean paired difference: what both models share in a request cancels before anything
    is estimated. A cause is named only where the interval is beyond the tolerance.
    """
    moe = _change(before.moe, before.weights, after.moe, after.weights, confidence)
    dense = _change(before.dense, before.weights, after.dense, after.weights, confidence)
    effect = _change(before.moe - before.dense, before.weights, after.moe - after.dense, after.weights, confidence)
    return Difference(moe, dense, effect, _cause(dense, effect, tolerance))


def ratio(before: Pairs, after: Pairs, *, tolerance: float = 0.0, confidence: float = 0.95) -> Difference:
    """Return ``difference`` of positive measures (latencies) as factors minus one: +0.21 is 21 % slower."""
    logs = [Pairs(np.log(pairs.moe), np.log(pairs.dense), pairs.weights) for pairs in (before, after)]
    found = difference(logs[0], logs[1], tolerance=math.log1p(tolerance), confidence=confidence)
    return Difference(_factor(found.moe), _factor(found.dense), _factor(found.effect), found.cause)


def alike(
    before: Pairs, strata_before: NDArray[np.int64], after: Pairs, strata_after: NDArray[np.int64]
) -> tuple[Pairs, Pairs]:
    """Return both periods with the mix of strata that ``before`` has, so that what changed *within* strata is left.

    Strata are numbers [n] of requests alike; those with fewer than 5 requests on a side, and negative ones, are left
    out. The weights of ``after`` are scaled (direct standardisation); intervals come out a little too wide.
    """
    old, new = (~np.isnan(pairs.moe - pairs.dense) for pairs in (before, after))
    common = [
        k
        for k in np.intersect1d(strata_before[old], strata_after[new])
        if k >= 0 and min((strata_before[old] == k).sum(), (strata_after[new] == k).sum()) >= FEWEST_ALIKE
    ]
    old, new = old & np.isin(strata_before, common), new & np.isin(strata_after, common)
    weights = after.weights[new].astype(np.float64)
    for k in common:
        inside = strata_after[new] == k
        weights[inside] *= before.weights[old & (strata_before == k)].sum() / weights[inside].sum()
    return (
        Pairs(before.moe[old], before.dense[old], before.weights[old]),
        Pairs(after.moe[new], after.dense[new], weights),
    )


def _change(
    before: Floats, weights_before: Floats, after: Floats, weights_after: Floats, confidence: float
) -> Estimate:
    """Return the difference of two independent weighted means, normal interval from their two t intervals."""
    first, second = mean(before, weights_before, confidence), mean(after, weights_after, confidence)
    value = second.value - first.value
    half = math.hypot(second.upper - second.value, first.upper - first.value)
    return Estimate(
        value, value - half, value + half, first.requests + second.requests, first.effective + second.effective
    )


def _factor(change: Estimate) -> Estimate:
    value, lower, upper = (math.expm1(x) for x in (change.value, change.lower, change.upper))
    return Estimate(value, lower, upper, change.requests, change.effective)


def _cause(dense: Estimate, effect: Estimate, tolerance: float) -> Cause:
    if not (dense and effect):
        return "unknown"
    moved, own = dense.lower > tolerance, effect.lower > tolerance
    if own:
        return "both" if moved else "moe"
    return "traffic" if moved else "none"
