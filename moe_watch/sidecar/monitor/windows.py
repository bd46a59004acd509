"""The current window of one replica and the one before it, and when they are written."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moe_watch.domain.window import Clock, Window
from moe_watch.domain.window_sums import Vectors
from moe_watch.sidecar.monitor.snapshot import LatestRouting
from moe_watch.store.records import windows
from moe_watch.store.write.batch import NewWindow

_PARTIAL_S: Final = 5.0  # how much of a window a kill may lose


class Windows:
    """Cuts the sums of one replica into windows of time."""

    def __init__(self, shape: tuple[int, int], window_s: float, now: float) -> None:
        self._shape = shape
        self._clock = Clock(window_s)
        self._clock.open(now)
        self.current, self._previous = Window(*shape), Window(*shape)
        self._written_at = now
        self._changed = False

    def change(self) -> Window:
        """Return the current window for sums to be added to it."""
        self._changed = True
        return self.current

    def collect(self, identity: str, replica: str, now: float, *, last: bool = False) -> list[NewWindow]:
        """Return the window to be written: when it is over, every few seconds, and at the ``last``."""
        out = []
        over = self._clock.is_over(now)
        if self._changed and (over or last or not 0 <= now - self._written_at < _PARTIAL_S):
            seconds = self._clock.end - self._clock.start
            out.append(windows.row(identity, replica, self._clock.start, seconds, self.current))
            self._written_at, self._changed = now, False
        if over:
            self._clock.open(now)
            self._previous, self.current = self.current, Window(*self._shape)
        return out

    def latest(self) -> LatestRouting:
        """Return the routing of the window before and the current one, added up into arrays of its own."""
        both, vectors = (self._previous, self.current), Vectors()
        for window in both:
            vectors.add(window.vectors)
        return LatestRouting(
            sum(window.routed_requests for window in both),
            both[0].counts.sum(0) + both[1].counts.sum(0),
            _mean(vectors.entropy, vectors.entropy_n),
            _mean(vectors.margin, vectors.margin_n),
        )


def _mean(total: NDArray[np.float64] | None, n: NDArray[np.float64] | None) -> NDArray[np.float64] | None:
    """Return the mean per layer, nan where nothing is known; None where no request came with it."""
    return None if total is None or n is None else np.asarray(total / np.where(n > 0, n, np.nan))
