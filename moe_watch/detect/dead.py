"""Dead experts: never chosen, and why that is no accident.

An expert with normal share s is chosen at least once by a normal request with some probability q; n independent normal
requests all pass it over with probability (1 - q)^n. q is taken over requests, not tokens, from the share of baseline
requests that chose the expert, at its lower 95 % bound. Without a baseline an expert that was never chosen is only
called unused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta


@dataclass(frozen=True)
class DeadExperts:
    """``unused [layers, experts]``: never chosen; ``dead``: and when healthy that is improbable enough.

    ``probability [layers, experts]`` bounds the probability of no choice in this many requests when all is normal (1
    for experts that were chosen or of which nothing is known), already multiplied by the number of experts looked at.
    """

    unused: NDArray[np.bool_]
    dead: NDArray[np.bool_]
    probability: NDArray[np.float64]


def dead_experts(
    counts: NDArray[np.integer], users: NDArray[np.integer] | None = None, requests: int = 0, error: float = 0.01
) -> DeadExperts:
    """Judge counts ``[n, layers, experts]``; ``users [layers, experts]`` of ``requests`` normal ones chose an expert.

    >>> counts = np.zeros((500, 1, 2), int); counts[:, :, 0] = 8
    >>> dead_experts(counts, np.array([[90, 60]]), 100).dead.tolist()
    [[False, True]]
    """
    unused = counts.sum(0) == 0
    if users is None or requests < 1:
        return DeadExperts(unused, np.zeros_like(unused), np.ones(unused.shape))
    lower = np.nan_to_num(beta.ppf(0.05, users, requests - users + 1))
    probability = np.where(unused, np.minimum(unused.size * (1 - lower) ** len(counts), 1), 1.0)
    return DeadExperts(unused, unused & (probability < error), probability)
