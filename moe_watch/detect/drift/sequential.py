"""Sequential detection of a change in any channel, with a bound on the average run length between false alarms.

An *event* is a channel exceeding one of its calibration quantiles. Normal traffic has events of level u at a rate of at
most ``bound``, the Clopper-Pearson upper limit for the calibration set at hand: a finite set says only so much about
rare events. Betting a share lambda on an event gives the e-value ``1 - lambda + lambda 1[event] / bound``, of
expectation at most 1 under normal traffic. Its Shiryaev-Roberts sum ``M <- (M + 1) e`` is an e-detector, and so is any
weighted mean of such sums; an alarm where the mean reaches A comes on average after A normal requests or more (Shin,
Ramdas and Rinaldo, "E-detectors", arXiv 2203.03532). Averaging needs no correction for the number of channels.

Three things that real traffic does and independent draws do not:

- Requests of one session are alike, and so events come in clusters. ``session`` r is the number of requests in a row
  over which the calibration set is seen to depend. A bet that an event has won rests for the next r - 1 requests, so a
  session pays once. Two payments keep the expectation of a session's product at 1 or less. With the rate of events, if
  the requests of a session are positively associated: an event after none before it is then no more likely than any.
  With the share p of sessions that have an event, ``p up + (1 - p)(1 - lambda)^r = 1``; shorter sessions lose less, as
  1 - (1 - lambda)^l is concave in l. A count of clustered events has the upper limit of the number of clusters.
- Traffic has a day. Where a channel varies within the baseline in slow waves by more than chance, ``bound`` is that of
  the baseline's own most eventful stretch, for every event: what is usual at noon is no drift at noon.
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
_MANY: Final = 20  # events above which the error of their bound shrinks
_LAGS: Final = 20  # calibration requests apart at which a session may still show
_SURE: Final = 2.5  # standard errors of the correlation of neighbours above which there are sessions
_LIKELY: Final = 1.0  # and of requests further apart, below which the session has ended
_WAVES: Final = 8  # waves in the calibration set at most, by which a day is seen
_UNEVEN_ERROR: Final = 0.01  # chance to see a day where there is none
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
    weight: Array  # [J] sum 1
    session: int  # requests in a row that may be alike: after an event a bet rests for so many, less one


def bank(
    scores: NDArray[np.floating], kinds: Sequence[str], run_length: float, kept: float = 1.0, tolerance: float = 0.0
) -> Bank:
    """Return the bets for calibration scores ``[n, channels]`` in the order of time, nan where a channel says nothing.

    ``kinds`` are the channels' keys in ``STAKES``; ``run_length`` is the promise, in requests; ``kept`` is the share of
    the traffic that became calibration scores.
    """
    columns: list[tuple[float, ...]] = []
    near = _session(scores, kinds)
    # Of the calibration set's neighbours only a share ``kept`` were neighbours in the traffic.
    session = 1 + int(np.ceil((near - 1) / kept))
    steady = not _uneven(scores, kinds, near)
    for kind in dict.fromkeys(kinds):
        stake = STAKES[kind]
        known = {c: known for c, k in enumerate(kinds) if k == kind and len(known := _known(scores[:, c])) > 1}
        common = {channel: _event(values, max(stake.levels))[1] for channel, values in known.items()}
        share = stake.weight / max(len(known), 1) / len(stake.levels) / len(stake.bets)
        for channel, values in known.items():
            busiest, alike = 1.0 if steady else _busiest(common[channel], near), _alike(common[channel], near)
            for level in stake.levels:
                threshold, happened = _event(values, level)
                rates = _bounds(happened, near, alike, run_length)
                rate, sessions = (busiest * bound + tolerance for bound in rates)
                rate, sessions = min(1.0, rate), min(1.0, session * sessions)
                columns += [
                    (channel, threshold, rate, _payoff(bet, rate, sessions, session), 1 - bet, share)
                    for bet in stake.bets
                ]
    channels, threshold, bound, up, down, weight = np.array(columns).T
    return Bank(channels.astype(np.int64), threshold, bound, up, down, weight / weight.sum(), session)


def _bounds(happened: NDArray[np.bool_], near: int, clustered: float, run_length: float) -> tuple[float, float]:
    """Return upper limits of the rate of events and of the rate of their clusters, a request."""
    n, alike = len(happened), _alike(happened, near)
    clusters = happened.sum() / alike
    alike = max(clustered, alike)  # rare events are too few to say how they cluster
    return _upper(happened.sum() / alike, n / alike, run_length), _upper(clusters, n, run_length)


def _payoff(bet: float, rate: float, sessions: float, session: int) -> float:
    """Return what an event pays at most, for events of at most ``rate`` in at most a share ``sessions`` of sessions.

    Two e-values of a session, the larger of which is paid: that of positively associated requests, and that of one
    event at most with every other request of the session lost.
    """
    return max(1 - bet + bet / rate, (1 - (1 - sessions) * (1 - bet) ** session) / sessions)


def _known(column: NDArray[np.floating]) -> Array:
    return np.asarray(column[~np.isnan(column)], np.float64)


def _event(values: Array, level: float) -> tuple[float, NDArray[np.bool_]]:
    """Return the threshold of the event of one level and where in the calibration set it happened."""
    threshold = float(np.sort(values)[len(values) - 1 - int(level * len(values))])
    return threshold, values > threshold


def _upper(events: float, n: float, run_length: float) -> float:
    """Return the upper confidence limit of the rate of events; surer the longer the promise for the n at hand.

    And the more events: where they are many, a limit that fails feeds its bet for good, and a surer one costs little.
    """
    error = min(MOST_ERROR, n / 9000, 0.5 * n / run_length) / (1 + events / _MANY)
    return float(beta.ppf(1 - error, events + 1, max(n - events, 1e-9)))


def _session(scores: NDArray[np.floating], kinds: Sequence[str]) -> int:
    """Return over how many calibration requests in a row something is alike, 1 where that is chance.

    By the rank correlation of requests some places apart, kind by kind: what a session shares (its topic) shows in
    one, what it does not in another. Correlation of far requests is the day's, not a session's: it is taken off.
    """
    longest = 1
    for kind in dict.fromkeys(kinds):
        columns = [_known(scores[:, c]) for c, k in enumerate(kinds) if k == kind]
        lags = [_correlations(values) * np.sqrt(len(values)) for values in columns if len(values) > 8 * _LAGS]
        if not lags:
            continue
        excess = np.mean(lags, 0)
        excess = excess[:_LAGS] - max(excess[2 * _LAGS :].mean(), 0)
        if excess[0] > _SURE:
            ends = np.flatnonzero(excess < _LIKELY)
            longest = max(longest, 1 + (int(ends[0]) if ends.size else _LAGS))
    return longest


def _correlations(values: Array) -> Array:
    """Return the rank correlation of requests 1 to 4 ``_LAGS`` places apart."""
    ranks = rankdata(values)
    centred = ranks - ranks.mean()
    power = max(float(centred @ centred), 1e-9)
    return np.array([centred[:-lag] @ centred[lag:] / power for lag in range(1, 4 * _LAGS + 1)])


def _alike(happened: NDArray[np.bool_], session: int) -> float:
    """Return the events in a cluster, on average: those of fewer than ``session`` requests from its first."""
    clusters, last = 0, -session
    events = np.flatnonzero(happened)
    for at in events.tolist():
        if at - last >= session:
            clusters, last = clusters + 1, at
    return max(len(events), 1) / max(clusters, 1)


def _stretches(happened: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of events in each stretch of the calibration set."""
    return np.array([part.sum() for part in np.array_split(happened, max(1, len(happened) // _STRETCH))])


def _uneven(scores: NDArray[np.floating], kinds: Sequence[str], session: int) -> bool:
    """Say whether a channel varies over time by more than chance: then no channel is taken for steady.

    A regular wave, of a day or so, is all in one slow frequency of the periodogram of ranks, each exponential of mean 1
    where requests are exchangeable (Fisher, Proc. R. Soc. A 125, 1929; here by Bonferroni). Anything less regular shows
    in the counts of common events by stretch.
    """
    channels = [(_known(scores[:, c]), max(STAKES[kind].levels)) for c, kind in enumerate(kinds)]
    channels = [(values, level) for values, level in channels if len(values) >= 8 * _LAGS]
    loudest = max((float(_waves(values, session).max()) for values, _ in channels), default=0.0)
    if loudest > np.log(_WAVES * max(len(channels), 1) / _UNEVEN_ERROR):
        return True
    return any(_bunched(_event(values, level)[1], session) for values, level in channels)


def _bunched(happened: NDArray[np.bool_], session: int) -> bool:
    """Say whether the counts of an event by stretch vary by more than chance."""
    counts, rate = _stretches(happened), float(happened.mean())
    size = len(happened) / len(counts)
    if len(counts) < 4 or rate * size < 5:
        return False
    excess = float(((counts - size * rate) ** 2).sum() / (size * rate * (1 - rate) * _alike(happened, session)))
    return excess > float(chi2.ppf(0.999, len(counts) - 1))


def _waves(values: Array, session: int) -> Array:
    """Return the power of the slowest frequencies over what they have by chance, sessions of requests included."""
    ranks = rankdata(values)
    centred = (ranks - ranks.mean()) / max(float(ranks.std()), 1e-9)
    near = _correlations(values)
    near = near[: session - 1] - max(float(near[2 * _LAGS :].mean()), 0.0)
    clustered = 1 + 2 * max(float(near.sum()), 0.0)
    power = np.abs(np.fft.rfft(centred)[1 : _WAVES + 1]) ** 2 / len(values) / clustered
    return np.asarray(power, np.float64)


def _busiest(happened: NDArray[np.bool_], session: int) -> float:
    """Return the upper limit of the rate of events in the busiest stretch, over the overall rate."""
    counts = _stretches(happened)
    alike = _alike(happened, session)
    size, most = len(happened) / len(counts) / alike, float(counts.max()) / alike
    return max(1.0, float(beta.ppf(1 - MOST_ERROR, most + 1, max(size - most, 1e-9)) / happened.mean()))


def factors(bank_: Bank, scores: NDArray[np.floating], rest: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64]]:
    """Return e-values ``[n, J]`` of scores ``[n, channels]``, and for how many requests each bet rests after each.

    ``rest [J]`` is how many requests the bets still rest for; a score that is nan bets nothing.
    """
    mine = scores[:, bank_.channel]
    event = mine > bank_.threshold
    worth = np.where(event, bank_.up, bank_.down)
    worth[np.isnan(mine)] = 1.0
    rests = np.zeros(worth.shape, np.int64)
    if bank_.session == 1:
        return worth, rests
    for at, happened in enumerate(event):
        resting = rest > 0
        worth[at, resting] = 1.0
        rest = rests[at] = np.where(resting, rest - 1, happened * (bank_.session - 1))
    return worth, rests


@dataclass(frozen=True)
class Sums:
    """Where J bets stand: evidence, and since when it has been rising."""

    mass: Array  # [J] Shiryaev-Roberts sums
    climb: Array  # [J] log e-values since their running sum was lowest
    age: NDArray[np.int64]  # [J] requests since then
    rest: NDArray[np.int64]  # [J] requests for which the bet rests

    @classmethod
    def zero(cls, bets: int) -> Sums:
        """Return the state before the first request."""
        return cls(np.zeros(bets), np.zeros(bets), np.zeros(bets, np.int64), np.zeros(bets, np.int64))

    def after(self, worth: Array, mass: Array, rest: NDArray[np.int64]) -> Sums:
        """Return the state after n requests with e-values ``worth [n, J]`` that led to ``mass [J]``, ``rest [J]``."""
        path = self.climb + np.cumsum(np.log(worth), 0)
        low = path.min(0)
        age = np.where(low <= 0, path[::-1].argmin(0), self.age + len(worth))
        return Sums(mass, path[-1] - np.minimum(low, 0), age, rest)


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
