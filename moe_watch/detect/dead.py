"""Dead experts: not chosen for so many requests that it is no accident.

An expert that a normal request chooses with probability q is passed over by n independent normal requests with
probability (1 - q)^n. q is taken over requests, not tokens, from the share of baseline requests that chose the expert,
at its lower 95 % bound. The wait since the last choice is looked at after every request: a wait of n begins at any one
of them with probability q (1 - q)^n at most, so that over all experts a bound of 1 / A on (1 - q)^n times their number
keeps false calls A requests apart or more. Requests of one kind come in rows, so nobody is called dead before
``FEWEST``. Without a baseline nothing is known and nothing is called dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

FEWEST: Final = 250  # requests


@dataclass(frozen=True)
class DeadExperts:
    """``dead [layers, experts]``: waited for too long; ``probability [layers, experts]`` of such a wait if all is well.

    The probability is an upper bound, already multiplied by the number of experts looked at; 1 where nothing is known.
    """

    dead: NDArray[np.bool_]
    probability: NDArray[np.float64]


def use(users: NDArray[np.integer], requests: int) -> NDArray[np.float64]:
    """Return the lower 95 % bound of the share of requests that choose an expert, from ``users`` among ``requests``.

    >>> use(np.array([0, 50, 100]), 100).round(2).tolist()
    [0.0, 0.41, 0.97]
    """
    return np.asarray(np.nan_to_num(beta.ppf(0.05, users, requests - np.asarray(users, np.int64) + 1)))


def dead_experts(
    idle: NDArray[np.integer], used: NDArray[np.float64] | None, run_length: float = 10_000.0
) -> DeadExperts:
    """Judge ``idle [layers, experts]``, the requests since an expert was chosen, by ``used``, what ``use`` returned.

    >>> dead_experts(np.array([[0, 500]]), use(np.array([[90, 60]]), 100)).dead.tolist()
    [[False, True]]
    """
    if used is None:
        return DeadExperts(np.zeros(idle.shape, bool), np.ones(idle.shape))
    probability = np.minimum(idle.size * (1 - used) ** idle, 1.0)
    return DeadExperts((probability < 1 / run_length) & (idle >= FEWEST), probability)
