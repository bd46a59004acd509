"""Long streams out of scored pools, and what the drift detector says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from bench.detection.traffic.pools import HOURS, Scored
from moe_watch.detect import online
from moe_watch.detect.drift import sequential

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]
Rng = np.random.Generator
PROMISE: Final = 10_000.0
STEP: Final = 64  # requests at once, as in the live path


def apart(pool: int, n: int, rng: Rng) -> Rows:
    """Return rows of n requests, each drawn by itself."""
    return rng.integers(0, pool, n)


def by_session(pool: int, n: int, rng: Rng, *, session: int) -> Rows:
    """Return rows of n requests, drawn by whole sessions of ``session`` neighbours."""
    first = rng.integers(0, pool // session, -(-n // session)) * session
    return (first[:, None] + np.arange(session)).ravel()[:n]


def by_day(pool: int, n: int, rng: Rng, *, requests: int) -> Rows:
    """Return rows of n requests from midnight on, ``requests`` a day, each drawn from its own hour's."""
    hour = np.arange(n) * HOURS // requests % HOURS
    return hour * (pool // HOURS) + rng.integers(0, pool // HOURS, n)


def by_group(start: Rows, n: int, rng: Rng) -> Rows:
    """Return rows of n requests, drawn by whole groups of neighbours; ``start [g + 1]`` is where each begins."""
    size = np.diff(start)
    chosen = rng.integers(0, len(size), max(1, int(2 * n / size.mean()) + 50))
    rows = np.concatenate([np.arange(start[g], start[g + 1]) for g in chosen])
    return rows[:n]


@dataclass(frozen=True)
class Found:
    """An alarm after so many requests, and since how many of them the change is said to have lasted."""

    after: int
    lasted: int


def detector(scored: Scored, promise: float = PROMISE, tolerance: float = 0.0) -> online.LiveState:
    """Return the live path's detector before its first request."""
    bank = sequential.bank(scored.calibration, scored.kinds, promise, scored.kept, tolerance)
    return online.begin(bank, scored.kinds, (None,) * len(scored.kinds), promise)


def until_alarm(state: online.LiveState, scores: Scores) -> tuple[online.LiveState, Found | None]:
    """Follow requests ``[n, channels]`` up to the first alarm."""
    for start in range(0, len(scores), STEP):
        state, alarms = online.follow(state, scores[start : start + STEP])
        if alarms:
            return state, Found(start + alarms[0].at + 1, alarms[0].began)
    return state, None


def alarms(fresh: online.LiveState, scores: Scores) -> int:
    """Return how many alarms there are when the detector starts anew after each."""
    count = done = 0
    while (found := until_alarm(fresh, scores[done:])[1]) is not None:
        done += found.after
        count += 1
    return count


def run_length(alarms: int, requests: int) -> tuple[float, float]:
    """Return the average run length and its lower 95 % limit (exact, alarms being rare and apart).

    >>> [round(x) for x in run_length(0, 30_000)]
    [30000, 10014]
    """
    return requests / max(alarms, 1), requests / float(chi2.ppf(0.95, 2 * (alarms + 1)) / 2)


def median(found: list[int | None]) -> float | None:
    """Return the median of delays of which some are unknown, being longer than was watched."""
    value = float(np.median([np.inf if delay is None else delay for delay in found]))
    return value if np.isfinite(value) else None


def delay(fresh: online.LiveState, before: Scores, after: Scores) -> Found | None:
    """Return when a change is found that comes after the normal requests ``before``, counted from the change.

    An alarm in ``before`` is a false one: the detector starts anew at the change.
    """
    state, false = until_alarm(fresh, before)
    return until_alarm(fresh if false else state, after)[1]
