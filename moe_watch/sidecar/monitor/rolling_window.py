"""The latest requests of one replica, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moe_watch.detect.common.batch import Batch
from moe_watch.detect.ood.baseline import FEWEST_TOKENS

LATEST: Final = 1000  # requests behind shares such as the OOD ratio
FINGERPRINTS: Final = 256  # requests behind load balance and its intervals
_TIMES: Final = 10_000  # requests behind the estimate of when a change began
_SUSPECTS: Final = 20


class Ring:
    """The last ``size`` rows that were pushed, oldest first.

    >>> ring = Ring(2, (), np.int64)
    >>> ring.push([1, 2, 3])
    >>> ring.rows().tolist()
    [2, 3]
    """

    def __init__(self, size: int, shape: tuple[int, ...], dtype: type[np.generic]) -> None:
        self._rows = np.zeros((size, *shape), dtype)
        self._pushed = 0

    def __len__(self) -> int:
        """Return the number of rows held."""
        return min(self._pushed, len(self._rows))

    def push(self, rows: ArrayLike) -> None:
        """Put ``rows`` in, over the oldest ones."""
        new = np.asarray(rows, self._rows.dtype)[-len(self._rows) :]
        self._rows[(self._pushed + np.arange(len(new))) % len(self._rows)] = new
        self._pushed += len(new)

    def rows(self) -> NDArray[np.generic]:
        """Return a copy of the rows."""
        if self._pushed <= len(self._rows):
            return self._rows[: self._pushed].copy()
        return np.roll(self._rows, -(self._pushed % len(self._rows)), axis=0)

    def clear(self) -> None:
        """Forget everything."""
        self._pushed = 0


@dataclass(frozen=True)
class Suspicion:
    """A request that was flagged as out of distribution."""

    request_id: str
    p: float
    at: float  # seconds since the epoch


@dataclass(frozen=True)
class Shares:
    """Shares of the latest requests; nan without any."""

    requests: int
    joined: float
    routed: float
    scored: int
    flagged: int  # out of distribution, among the scored ones

    @property
    def ood(self) -> float:
        """Return the share of the scored requests that are out of distribution."""
        return self.flagged / self.scored if self.scored else math.nan


class RollingWindow:
    """The latest requests of one replica; ``flags`` are rows of (joined, routed)."""

    def __init__(self, layers: int, experts: int) -> None:
        self.flags = Ring(LATEST, (2,), np.bool_)
        self.ood = Ring(LATEST, (), np.bool_)  # of the scored ones: flagged
        self.finished_at = Ring(_TIMES, (), np.float64)  # of the routed ones
        self.counts = Ring(FINGERPRINTS if layers else 1, (layers, experts), np.uint16)
        self.idle = np.zeros((layers, experts), np.int64)  # requests since the expert was chosen, at least
        self.passed = np.zeros((layers, experts), np.int64)  # choices of its layer in them
        self.suspects: deque[Suspicion] = deque(maxlen=_SUSPECTS)

    def add_routing(self, batch: Batch) -> None:
        """Remember the fingerprints of ``batch``; a count above 65,535 is kept as that."""
        latest = batch.total[-FINGERPRINTS:]
        self.counts.push(np.minimum(latest, np.iinfo(np.uint16).max))
        chosen = batch.total.sum(0, dtype=np.int64)
        self.idle = np.where(chosen > 0, 0, self.idle + int((batch.tokens >= FEWEST_TOKENS).sum()))
        self.passed = np.where(chosen > 0, 0, self.passed + chosen.sum(1, keepdims=True))
        if batch.finished_at is not None:
            self.finished_at.push(batch.finished_at)

    def add_scores(self, request_ids: list[str], p: NDArray[np.float64], at: NDArray[np.float64], alpha: float) -> None:
        """Remember which of the scored requests are out of distribution: ``p <= alpha``."""
        scored = np.isfinite(p)
        self.ood.push(p[scored] <= alpha)
        for index in np.flatnonzero(scored & (p <= alpha)):
            self.suspects.append(Suspicion(request_ids[index], float(p[index]), float(at[index])))

    def forget_scores(self) -> None:
        """Forget what another baseline said."""
        self.ood.clear()
        self.suspects.clear()

    def began_at(self, requests_ago: int) -> float | None:
        """Return when the request finished that came ``requests_ago`` before the latest; None when none is known."""
        times = self.finished_at.rows()
        return float(times[max(0, len(times) - 1 - requests_ago)]) if len(times) else None

    def shares(self) -> Shares:
        """Return what is known of the latest requests in shares."""
        flags, ood = self.flags.rows(), self.ood.rows()
        joined, routed = flags.mean(0, dtype=np.float64) if len(flags) else (math.nan, math.nan)
        return Shares(len(flags), float(joined), float(routed), len(ood), int(ood.sum()))
