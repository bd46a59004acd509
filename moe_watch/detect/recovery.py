"""When is a drift over? A test in the other direction, of the event that raised the alarm.

While the drift lasts, its event happens at a rate of at least ``rate``, a third of the way from normal to what was seen
up to the alarm. A bet of lambda against the event is the e-value ``1 - lambda + lambda 1[no event] / (1 - rate)``, of
expectation at most 1 as long as that is so; a drift that goes on is declared over no sooner than after ``PATIENCE``
requests on average (e-detector, as in drift.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.detect.drift import Bank, Sums, accumulate

PATIENCE: Final = 1000.0
_BETS: Final = np.array([0.1, 0.5, 0.99])


@dataclass(frozen=True)
class Recovery:
    """What is watched while a drift is on: events ``scores[channel] > threshold`` of the bet that raised the alarm."""

    bet: int
    channel: int
    threshold: float
    rate: float
    memory: float
    sums: Sums


def begin(bank: Bank, sums: Sums, bet: int) -> Recovery:
    """Return the watch for the end of a drift that ``bet`` has found."""
    up, down, bound = np.log(bank.up[bet]), np.log(bank.down[bet]), float(bank.bound[bet])
    requests = max(int(sums.age[bet]), 1)
    seen = (float(sums.climb[bet]) - requests * down) / (up - down) / requests
    rate = bound + max(seen - bound, 0) / 3
    zero = Sums.zero(len(_BETS))
    return Recovery(bet, int(bank.channel[bet]), float(bank.threshold[bet]), rate, float(bank.memory[bet]), zero)


def observe(recovery: Recovery, scores: NDArray[np.floating]) -> tuple[Recovery, int, bool]:
    """Feed channel scores ``[n, channels]``; return the state, how many requests it took, and whether it is over."""
    mine = scores[:, recovery.channel]
    quiet = np.where(mine > recovery.threshold, 0.0, 1 / (1 - min(recovery.rate, 0.99)))[:, None]
    odds = (1 - _BETS + _BETS * quiet) ** (1 / recovery.memory)
    worth = np.where(np.isnan(mine)[:, None], 1.0, odds)
    mass = accumulate(recovery.sums.mass, worth)
    over = np.flatnonzero(mass.mean(1) >= PATIENCE)
    used = int(over[0]) + 1 if over.size else len(scores)
    return replace(recovery, sums=recovery.sums.after(worth[:used], mass[used - 1])), used, bool(over.size)


def progress(recovery: Recovery) -> float:
    """Return how near the end of the drift is, from 0 to 1 (logarithm of the evidence for it)."""
    return float(np.clip(np.log1p(recovery.sums.mass.mean()) / np.log(PATIENCE), 0, 1))
