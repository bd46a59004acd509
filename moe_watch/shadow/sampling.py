"""Which sampled requests go to the dense model: by a hash of their id, so that every process chooses the same.

Unusual requests are over-sampled. A request's probability is known before it is looked at, so ``weight`` undoes the
choice (Horvitz and Thompson, 1952). Load is shed by lowering the probability of requests to come, never by turning away
a chosen one for what it is: the weights stay right when the budget is short.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import blake2b

_SPAN = 2.0**64
LEAST_THINNING = 2.0**-10


@dataclass(frozen=True)
class Rates:
    """Probabilities of ordinary and out-of-distribution requests, and the factor on both while load is shed."""

    base: float
    ood: float
    alpha: float  # a request is out of distribution at a p-value up to this
    thinning: float = 1.0

    def probability(self, ood_p: float | None) -> float:
        """Return the probability of a request with this p-value; without one it is ordinary."""
        unusual = ood_p is not None and ood_p <= self.alpha
        return (self.ood if unusual else self.base) * self.thinning

    def adapt(self, fill: float) -> Rates:
        """Return the rates for the next requests when the queue is ``fill`` (0..1) full: halve high, recover low."""
        if fill > 0.5:
            return replace(self, thinning=max(self.thinning / 2, LEAST_THINNING))
        if fill < 0.25:
            return replace(self, thinning=min(self.thinning * 1.1, 1.0))
        return self


def place(request_id: str, choice: int) -> float:
    """Return the place of one output in 0..1, uniform and independent of the tap's own sampling.

    >>> 0 <= place("chatcmpl-1", 0) < 1
    True
    """
    digest = blake2b(f"{request_id}\0{choice}".encode(), digest_size=8, person=b"moe-watch shadow")
    return int.from_bytes(digest.digest(), "big") / _SPAN


def chosen(request_id: str, choice: int, probability: float) -> bool:
    """Tell whether this output is among the share ``probability``; a smaller share is part of a larger one."""
    return place(request_id, choice) < probability
