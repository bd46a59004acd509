"""Dead experts: not chosen for so long that it is no accident.

Two bounds must both say so, since traffic of shorter requests chooses fewer experts a request, and traffic of longer
ones does not make a rare expert common.

By requests: an expert that a normal request chooses with probability q is passed over by n independent ones with
probability (1 - q)^n. q is the share of baseline requests that chose the expert, at its lower 95 % bound. By choices:
of c choices of its layer a share s would have been the expert's; tokens of a request are alike, so pooled counts vary
some hundred times more than a multinomial and c s expected choices weigh like c s / ``ALIKE`` independent ones.

The wait since the last choice is looked at after every request: a wait of n begins at any one of them with probability
q (1 - q)^n at most, so that over all experts a bound of 1 / A on (1 - q)^n times their number keeps false calls A
requests apart or more. Requests of one kind come in rows, so nobody is called dead before ``FEWEST``. Without a
baseline nothing is known and nothing is called dead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

FEWEST: Final = 250  # requests
ALIKE: Final = 130.0  # how much more than a multinomial pooled counts vary, at most as measured


@dataclass(frozen=True)
class Use:
    """How normal traffic uses every expert ``[layers, experts]``."""

    requests: NDArray[np.float64]  # lower bound of the share of requests that choose it
    choices: NDArray[np.float64]  # share of the layer's choices


@dataclass(frozen=True)
class DeadExperts:
    """``dead [layers, experts]``: waited for too long; ``probability [layers, experts]`` of such a wait if all is well.

    The probability is an upper bound, already multiplied by the number of experts looked at; 1 where nothing is known.
    """

    dead: NDArray[np.bool_]
    probability: NDArray[np.float64]


def use(users: NDArray[np.integer], requests: int, counts: NDArray[np.integer]) -> Use:
    """Return how experts are used that ``users [layers, experts]`` of ``requests`` chose, ``counts`` times in all.

    >>> use(np.array([[0, 50, 100]]), 100, np.array([[0, 10, 30]])).requests.round(2).tolist()
    [[0.0, 0.41, 0.97]]
    """
    lower = np.nan_to_num(beta.ppf(0.05, users, requests - np.asarray(users, np.int64) + 1))
    return Use(np.asarray(lower), np.asarray(counts / np.maximum(counts.sum(1, keepdims=True), 1), np.float64))


def dead_experts(
    idle: NDArray[np.integer], choices: NDArray[np.integer], normal: Use | None, run_length: float = 10_000.0
) -> DeadExperts:
    """Judge ``idle [layers, experts]``, requests since an expert was chosen, and ``choices`` of its layer in them.

    >>> normal = use(np.array([[90, 60]]), 100, np.array([[70, 30]]))
    >>> dead_experts(np.array([[0, 500]]), np.array([[0, 64_000]]), normal).dead.tolist()
    [[False, True]]
    >>> dead_experts(np.array([[0, 500]]), np.array([[0, 640]]), normal).dead.tolist()
    [[False, False]]
    """
    if normal is None:
        return DeadExperts(np.zeros(idle.shape, bool), np.ones(idle.shape))
    by_requests = (1 - normal.requests) ** idle
    by_choices = np.exp(-choices * normal.choices / ALIKE)
    probability = np.minimum(idle.size * np.maximum(by_requests, by_choices), 1.0)
    return DeadExperts((probability < 1 / run_length) & (idle >= FEWEST), probability)
