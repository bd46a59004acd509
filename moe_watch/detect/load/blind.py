"""Is the tap blind? Without routing there is no verdict, and least of all "healthy"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Reason = Literal["", "no_requests", "no_routing", "all_zero", "one_route", "coverage"]


@dataclass(frozen=True)
class Sight:
    """``reason`` is empty when the tap sees; ``coverage`` is the share of requests with routing, nan without any."""

    blind: bool
    reason: Reason
    coverage: float


def sight(counts: NDArray[np.integer], routed: int, finished: int, floor: float = 0.5) -> Sight:
    """Judge ``counts [n, layers, experts]`` of the requests with routing among ``finished`` ones.

    "all_zero": every token of every layer went to expert 0, or there are no counts, which is what an unfilled record
    looks like (vLLM 44116); "one_route": all requests have the very same shares, as dummy runs have.

    >>> sight(np.zeros((0, 1, 2), int), 0, 40).reason
    'no_routing'
    """
    if finished == 0:
        return Sight(blind=True, reason="no_requests", coverage=float("nan"))
    coverage = routed / finished
    reason: Reason = ""
    if routed == 0:
        reason = "no_routing"
    elif not counts[:, :, 1:].any():
        reason = "all_zero"
    elif _one_route(counts):
        reason = "one_route"
    elif coverage < floor:
        reason = "coverage"
    return Sight(blind=reason != "", reason=reason, coverage=coverage)


def _one_route(counts: NDArray[np.integer]) -> bool:
    """Say whether at least 20 requests of different lengths have the same shares everywhere."""
    total = counts.sum(-1, keepdims=True)
    if len(counts) < 20 or len(np.unique(total)) < 2:
        return False
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    return bool(np.ptp(share, axis=0).max() < 1e-9)
