"""A sequential test on the mean of a weighted, bounded measure: is the quality gap larger than it was.

A measure ``y`` (nats per token, or 0/1 for a defect) is clipped to ``low..high``. The reference requests give an upper
confidence bound ``m`` on its traffic mean, by betting against every larger mean (Waudby-Smith and Ramdas, 2024). For a
request that was sampled with probability ``1 / w`` and weights of at most ``w_max``,
``1 + lambda * (w / w_max) * (y - m)`` has mean at most 1 while the traffic's mean is at most ``m`` (off-policy weights
as in Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro, 2022), so its Shiryaev-Roberts sum is an e-detector (Shin,
Ramdas, Rinaldo, 2023), and so is the mean over bets. Promise: with probability 1 - delta over the reference, alarms
come on average no sooner than after ``run_length`` replayed requests while the mean stays where it was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from moe_watch.detect.common.weighted_estimates import Floats

BETS = 2.0 ** -np.arange(5)  # shares of the largest bet that cannot go broke; tinier ones only count time
_BOUND_BETS = 2.0 ** -np.arange(10)
DELTA = 0.05
FEWEST = 50


class TooFewReferenceRequestsError(ValueError):
    """The reference is too small; the message says how many requests are needed."""


@dataclass(frozen=True)
class Reference:
    """What is normal: the clip limits, the largest weight and the upper bound on the mean (tolerance included)."""

    low: float
    high: float
    weight_max: float
    mean_upper: float
    requests: int


@dataclass(frozen=True)
class AlarmState:
    """Log Shiryaev-Roberts sums for "worse than the reference" and, while alarmed, for "no longer worse"."""

    run_length: float
    worse: Floats  # [bets]
    better: Floats  # [bets]
    climb: Floats  # [bets] log CUSUM, whose last zero estimates the start of the change
    age: Floats  # [bets] requests since that zero
    alarmed: bool = False


@dataclass(frozen=True)
class GapAlarm:
    """The gap rose (``started``) or came back; ``began`` is how many requests before ``at`` it is thought to have."""

    at: int
    started: bool
    began: int


def reference(
    values: Floats, weights: Floats, *, low: float, high: float, tolerance: float = 0.0, delta: float = DELTA
) -> Reference:
    """Return the reference from ``values`` [n] and ``weights`` [n]; raise ``TooFewReferenceRequestsError`` under 50."""
    known = ~np.isnan(values)
    if known.sum() < FEWEST:
        raise TooFewReferenceRequestsError(f"{known.sum()} scored requests, at least {FEWEST} are needed")
    clipped, relative = values[known].clip(low, high), weights[known] / weights.max()
    upper = upper_bound(clipped, relative, low, high, delta)
    return Reference(low, high, float(weights.max()), min(upper + tolerance, high), int(known.sum()))


def upper_bound(values: Floats, relative: Floats, low: float, high: float, delta: float) -> float:
    """Return a mean that the traffic's is below with probability 1 - ``delta``; ``relative`` weights are in 0..1.

    The wealth of a bettor against "the mean is at least m" grows with m; the bound is where it reaches 1 / delta.
    """

    def wealth(m: float) -> float:
        stakes = _BOUND_BETS[:, None] / (high - m) * relative * (values - m)
        with np.errstate(divide="ignore"):
            return float(np.logaddexp.reduce(np.log1p(-stakes).sum(1)) - math.log(len(_BOUND_BETS)))

    under, over = low, high
    for _ in range(50):
        middle = (under + over) / 2
        under, over = (middle, over) if wealth(middle) < -math.log(delta) else (under, middle)
    return over


def start(run_length: float) -> AlarmState:
    """Return the state before the first request."""
    nothing = np.full(len(BETS), -np.inf)
    return AlarmState(run_length, nothing, nothing, np.zeros(len(BETS)), np.zeros(len(BETS)))


def observe(known: Reference, state: AlarmState, values: Floats, weights: Floats) -> tuple[AlarmState, list[GapAlarm]]:
    """Return the state after ``values`` [n] (nan: skipped) with ``weights`` [n], and the alarms in order."""
    alarms: list[GapAlarm] = []
    for at, (value, weight) in enumerate(zip(values, weights, strict=True)):
        if math.isnan(value):
            continue
        state = _step(known, state, min(max(value, known.low), known.high), min(weight / known.weight_max, 1.0))
        if not state.alarmed and evidence(state) >= 1:
            began = int(state.age[int(state.worse.argmax())])
            state = replace(start(state.run_length), alarmed=True)
            alarms.append(GapAlarm(at, True, began))  # noqa: FBT003
        elif state.alarmed and _log_mean(state.better) >= math.log(state.run_length):
            state = start(state.run_length)
            alarms.append(GapAlarm(at, False, 0))  # noqa: FBT003
    return state, alarms


def evidence(state: AlarmState) -> float:
    """Return the log evidence for "worse" over the log threshold: 1 fires; 1 while alarmed."""
    if state.alarmed:
        return 1.0
    return max(_log_mean(state.worse), 0.0) / math.log(state.run_length)


def _step(known: Reference, state: AlarmState, value: float, relative: float) -> AlarmState:
    surplus = relative * (value - known.mean_upper)
    room_below = max(known.mean_upper - known.low, 1e-12)
    room_above = max(known.high - known.mean_upper, 1e-12)
    with np.errstate(divide="ignore"):
        up = np.log1p(np.maximum(BETS / room_below * surplus, -1.0))
        down = np.log1p(np.maximum(-BETS / room_above * surplus, -1.0))
    if state.alarmed:
        return replace(state, better=np.logaddexp(state.better, 0.0) + down)
    climb = np.maximum(state.climb, 0.0) + up
    age = np.where(climb > 0, state.age + 1, 0)
    return replace(state, worse=np.logaddexp(state.worse, 0.0) + up, climb=climb, age=age)


def _log_mean(logs: Floats) -> float:
    return float(np.logaddexp.reduce(logs)) - math.log(len(logs))
