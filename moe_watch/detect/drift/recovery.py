"""When is a drift over? When its event has become rare again and the evidence for any drift has gone.

While the drift lasts, the event that raised the alarm happens at a rate of at least ``rate``, a third of the way from
normal to what was seen up to the alarm. A bet of lambda against the event is the e-value
``1 - lambda + lambda 1[no event] / (1 - rate)``, of expectation at most 1 as long as that is so; a drift that goes on
is declared over no sooner than after ``PATIENCE`` requests on average (e-detector, as in drift.py). The rate is an
estimate made at an extreme moment, so the bank's own evidence, capped at the alarm's threshold, must have fallen to a
tenth of it as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.drift.sequential import Bank, Sums, factors

Array = NDArray[np.float64]
PATIENCE: Final = 1000.0
_BESIDE: Final = 20  # requests without an event that the estimate of a drift's rate adds: alarms come at its heights
_BETS: Final = np.array([0.1, 0.5, 0.99])


@dataclass(frozen=True)
class Recovery:
    """What is watched while a drift is on: events ``scores[channel] > threshold`` of the bet that raised the alarm."""

    bet: int
    channel: int
    threshold: float
    rate: float
    against: Array  # [bets against the event] Shiryaev-Roberts sums, capped
    calm: int  # requests since there was no evidence for an end
    mass: Array  # [J] the bank's sums, capped together
    rest: NDArray[np.int64]  # [J] requests for which each bet rests


def begin(bank: Bank, sums: Sums, bet: int) -> Recovery:
    """Return the watch for the end of a drift that ``bet`` has found."""
    up, down, bound = np.log(bank.up[bet]), np.log(bank.down[bet]), float(bank.bound[bet])
    requests = max(int(sums.age[bet]), 1)
    events = (float(sums.climb[bet]) - requests * down) / (up - down)
    seen = events / (requests + _BESIDE)
    rate = min(bound + max(seen - bound, 0) / 3, 0.99)
    channel, threshold = int(bank.channel[bet]), float(bank.threshold[bet])
    return Recovery(bet, channel, threshold, rate, np.zeros(len(_BETS)), 0, sums.mass, sums.rest)


def observe(
    recovery: Recovery, bank: Bank, alarm_at: float, scores: NDArray[np.floating]
) -> tuple[Recovery, int, bool]:
    """Feed channel scores ``[n, channels]``; return the state, how many requests it took, and whether it is over."""
    against, mass, calm = recovery.against, recovery.mass, recovery.calm
    worth, rests = factors(bank, scores, recovery.rest)
    for used, odds in enumerate(_odds(recovery, bank.session, scores[:, recovery.channel]), 1):
        against = np.minimum((against + 1) * odds, len(_BETS) * PATIENCE)
        calm = calm + 1 if against.mean() >= 1 else 0
        mass = (mass + 1) * worth[used - 1]
        evidence = float(mass @ bank.weight)
        if evidence > alarm_at:
            mass *= alarm_at / evidence
        elif evidence <= alarm_at / 10 and against.mean() >= PATIENCE:
            return replace(recovery, against=against, calm=calm, mass=mass, rest=rests[used - 1]), used, True
    return replace(recovery, against=against, calm=calm, mass=mass, rest=rests[-1]), len(scores), False


def _odds(recovery: Recovery, session: int, mine: NDArray[np.floating]) -> Array:
    """Return the e-values ``[n, bets]`` against the drift's event; a score that is nan bets nothing.

    Requests of a session may all lack the event at once: to the power 1 / session the product of their e-values keeps
    an expectation of at most 1, whatever the dependence (Hoelder's inequality).
    """
    quiet = np.where(mine > recovery.threshold, 0.0, 1 / (1 - recovery.rate))[:, None]
    odds = (1 - _BETS + _BETS * quiet) ** (1 / session)
    return np.asarray(np.where(np.isnan(mine)[:, None], 1.0, odds))


def progress(recovery: Recovery) -> float:
    """Return how near the end of the drift is, from 0 to 1 (logarithm of the evidence for it)."""
    return float(np.clip(np.log1p(recovery.against.mean()) / np.log(PATIENCE), 0, 1))
