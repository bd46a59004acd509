"""Sequential detection of a change in any channel, with a bound on the average run length between false alarms.

An *event* is a channel exceeding one of its calibration quantiles. Normal traffic has events of level u at a rate of at
most ``bound``, the Clopper-Pearson upper limit for the calibration set at hand: a finite set says only so much about
rare events. Betting a share lambda on an event gives the e-value ``1 - lambda + lambda 1[event] / bound``, of
expectation at most 1 under normal traffic. Its Shiryaev-Roberts sum ``M <- (M + 1) e`` is an e-detector, and so is any
weighted mean of such sums; an alarm where the mean reaches A comes on average after A normal requests or more (Shin,
Ramdas and Rinaldo, "E-detectors", arXiv 2203.03532). Averaging needs no correction for the number of channels.

Three things that real traffic does and independent draws do not:

- Requests of one session are alike. ``memory`` m is the number of requests that count as one; e-values are taken to the
  power 1 / m, which for requests that depend on no more than m - 1 neighbours keeps the expectation of products at most
  1 (Hoelder's inequality), whatever the dependence.
- Traffic has a day. Where the rate of an event varies within the baseline by more than chance, ``bound`` is that of the
  baseline's own most eventful stretch: what is usual at noon is no drift at noon.
- Some shifts do not matter. ``tolerance`` is a share of requests: up to so many may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, chi2, rankdata

Array = NDArray[np.float64]
MOST_ERROR: Final = 0.1  # of each bound on a rate of events; see _upper
_LAGS: Final = 20  # requests later in the calibration set at which a session may still show
_STRETCH: Final = 120  # calibration requests in a stretch of the day


@dataclass(frozen=True)
class Stake:
    """How one kind of channel is bet on: its share of the evidence, levels of events, shares lambda to bet."""

    weight: float
    levels: tuple[float, ...]
    bets: tuple[float, ...]


STAKES: Final = {
    "ood": Stake(0.4, (0.0006, 0.003, 0.02, 0.15), (0.015, 0.05, 0.2)),
    "part": Stake(0.05, (0.003, 0.02), (0.05, 0.2)),
    "layer": Stake(0.1, (0.005, 0.1), (0.06, 0.3)),
    "mix": Stake(0.3, (0.08, 0.2), (0.1,)),
    "confidence": Stake(0.075, (0.005, 0.1), (0.06, 0.3)),
    "expert": Stake(0.075, (0.003, 0.05), (0.05, 0.2)),
}


@dataclass(frozen=True)
class Bank:
    """J bets: on events ``scores[:, channel] > threshold``, worth ``up`` when it happens and ``down`` when not."""

    channel: NDArray[np.int64]  # [J]
    threshold: Array  # [J]
    bound: Array  # [J] largest normal rate of the event, tolerance included
    up: Array  # [J]
    down: Array  # [J]
    memory: Array  # [J] requests that count as one
    weight: Array  # [J] sum 1


def bank(
    scores: NDArray[np.floating], kinds: Sequence[str], run_length: float, kept: float = 1.0, tolerance: float = 0.0
) -> Bank:
    """Return the bets for calibration scores ``[n, channels]`` in the order of time, nan where a channel says nothing.

    ``kinds`` are the channels' keys in ``STAKES``; ``run_length`` is the promise, in requests; ``kept`` is the share of
    the traffic that became calibration scores.
    """
    columns: list[tuple[float, ...]] = []
    for kind in dict.fromkeys(kinds):
        stake = STAKES[kind]
        known = {c: known for c, k in enumerate(kinds) if k == kind and len(known := _known(scores[:, c])) > 1}
        repeats = _repeats(list(known.values()))
        uneven = any(_uneven(_event(values, max(stake.levels))[1], repeats) for values in known.values())
        share = stake.weight / max(len(known), 1) / len(stake.levels) / len(stake.bets)
        # Of the calibration set's neighbours only a share ``kept`` were neighbours in the traffic.
        memory = 1 + (repeats - 1) / kept
        for channel, values in known.items():
            busiest = _busiest(_event(values, max(stake.levels))[1], repeats) if uneven else 1.0
            for level in stake.levels:
                threshold, happened = _event(values, level)
                bound = min(
                    1.0, busiest * _upper(happened.sum() / repeats, len(happened) / repeats, run_length) + tolerance
                )
                columns += [(channel, threshold, bound, bet, memory, share) for bet in stake.bets]
    channels, threshold, bound, bet, memory, weight = np.array(columns).T
    up, down = (1 - bet + bet / bound) ** (1 / memory), (1 - bet) ** (1 / memory)
    return Bank(channels.astype(np.int64), threshold, bound, up, down, memory, weight / weight.sum())


def _known(column: NDArray[np.floating]) -> Array:
    return np.asarray(column[~np.isnan(column)], np.float64)


def _event(values: Array, level: float) -> tuple[float, NDArray[np.bool_]]:
    """Return the threshold of the event of one level and where in the calibration set it happened."""
    threshold = float(np.sort(values)[len(values) - 1 - int(level * len(values))])
    return threshold, values > threshold


def _upper(events: float, n: float, run_length: float) -> float:
    """Return the upper confidence limit of the rate of events; surer the longer the promise for the n at hand."""
    error = min(MOST_ERROR, n / 9000, 0.5 * n / run_length)
    return float(beta.ppf(1 - error, events + 1, max(n - events, 1e-9)))


def _repeats(channels: list[Array]) -> float:
    """Return how many requests in a row say the same thing: 1 + 2 (sum of rank correlations), 1 where that is chance.

    Channels of a kind are taken together. Correlation of far requests is the day's, not a session's: it is taken off.
    """
    excess = []
    for values in channels:
        ranks = rankdata(values)
        centred, n = ranks - ranks.mean(), len(ranks)
        if n < 20 * _LAGS:
            return 1.0
        power = max(float(centred @ centred), 1e-9)
        lags = np.array([centred[:-lag] @ centred[lag:] / power for lag in range(1, 4 * _LAGS + 1)])
        excess.append((lags[:_LAGS].sum() - _LAGS * max(lags[2 * _LAGS :].mean(), 0)) / np.sqrt(_LAGS / n))
    if not excess or np.mean(excess) < 2.5 / len(excess) ** 0.25:
        return 1.0
    return float(1 + 2 * np.mean(excess) * np.sqrt(_LAGS / len(channels[0])))


def _stretches(happened: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of events in each stretch of the calibration set."""
    return np.array([part.sum() for part in np.array_split(happened, max(1, len(happened) // _STRETCH))])


def _uneven(happened: NDArray[np.bool_], repeats: float) -> bool:
    """Say whether the rate of events varies over time by more than chance."""
    counts, rate = _stretches(happened), float(happened.mean())
    size = len(happened) / len(counts)
    if len(counts) < 4 or rate * size < 5:
        return False
    excess = float(((counts - size * rate) ** 2).sum() / (size * rate * (1 - rate) * repeats))
    return excess > float(chi2.ppf(0.999, len(counts) - 1))


def _busiest(happened: NDArray[np.bool_], repeats: float) -> float:
    """Return the upper limit of the rate of events in the busiest stretch, over the overall rate."""
    counts = _stretches(happened)
    size = len(happened) / len(counts) / repeats
    most = float(counts.max()) / repeats
    return max(1.0, float(beta.ppf(1 - MOST_ERROR, most + 1, max(size - most, 1e-9)) / happened.mean()))


def factors(bank_: Bank, scores: NDArray[np.floating]) -> Array:
    """Return e-values ``[n, J]`` of scores ``[n, channels]``; a score that is nan bets nothing."""
    mine = scores[:, bank_.channel]
    worth = np.where(mine > bank_.threshold, bank_.up, bank_.down)
    return np.where(np.isnan(mine), 1.0, worth)


@dataclass(frozen=True)
class Sums:
    """Where J bets stand: evidence, and since when it has been rising."""

    mass: Array  # [J] Shiryaev-Roberts sums
    climb: Array  # [J] log e-values since their running sum was lowest
    age: NDArray[np.int64]  # [J] requests since then

    @classmethod
    def zero(cls, bets: int) -> Sums:
        """Return the state before the first request."""
        return cls(np.zeros(bets), np.zeros(bets), np.zeros(bets, np.int64))

    def after(self, worth: Array, mass: Array) -> Sums:
        """Return the state after n requests with e-values ``worth [n, J]`` that led to ``mass [J]``."""
        path = self.climb + np.cumsum(np.log(worth), 0)
        low = path.min(0)
        age = np.where(low <= 0, path[::-1].argmin(0), self.age + len(worth))
        return Sums(mass, path[-1] - np.minimum(low, 0), age)


def accumulate(mass: Array, worth: Array) -> Array:
    """Return the Shiryaev-Roberts sums ``[n, J]`` after each of n requests, from ``mass [J]`` before them.

    The recursion unrolled: with P_t the product of the first t e-values, M_t = P_t (M_0 + sum over s <= t of
    1 / P_(s-1)). Meant for batches of at most a few hundred requests, within which products stay representable.

    >>> accumulate(np.zeros(1), np.array([[2.0], [0.5], [4.0]])).ravel().tolist()
    [2.0, 1.5, 10.0]
    """
    product = np.cumprod(worth, 0)
    before = np.concatenate([np.ones((1, worth.shape[1])), product[:-1]])
    return np.asarray(product * (mass + np.cumsum(1 / before, 0)))
