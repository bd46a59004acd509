"""What keeps the shadow small: a budget in requests and tokens per second, and a breaker for a dense server in trouble.

Neither has a clock of its own: ``now`` is any clock in seconds that does not go back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal


@dataclass
class Allowance:
    """A token bucket that may go into debt: a request larger than the bucket runs, and the next ones wait for it."""

    per_s: float
    burst_s: float = 5.0
    level: float = 0.0
    at: float | None = None

    def wait(self, now: float) -> float:
        """Return the seconds until something may be spent, 0 for at once."""
        self._fill(now)
        return max(-self.level / self.per_s, 0.0)

    def spend(self, amount: float, now: float) -> None:
        """Take ``amount``, which may be more than there is."""
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        elapsed = 0.0 if self.at is None else max(now - self.at, 0.0)
        self.at = now
        self.level = min(self.level + elapsed * self.per_s, self.burst_s * self.per_s)


@dataclass
class Breaker:
    """Stops calling a server after failures in a row; tries again with one request after a growing, jittered pause."""

    random: random.Random
    failures_at_most: int = 5
    pause_s: float = 2.0
    longest_pause_s: float = 120.0
    failures: int = 0
    trips: int = 0
    open_until: float | None = None  # None: closed
    probing: bool = False

    def state(self, now: float) -> Literal["closed", "open", "half_open"]:
        """Return whether requests flow, none does, or one may try."""
        if self.open_until is None:
            return "closed"
        return "open" if now < self.open_until or self.probing else "half_open"

    def admit(self, now: float) -> bool:
        """Tell whether a request may go now; in the half-open state only the first one may."""
        state = self.state(now)
        if state == "half_open":
            self.probing = True
        return state != "open"

    def succeeded(self) -> None:
        """Close the breaker."""
        self.failures, self.trips, self.open_until, self.probing = 0, 0, None, False

    def failed(self, now: float) -> None:
        """Count a failure; open after too many in a row, or at once when it was the one that tried."""
        self.failures += 1
        if self.probing or self.failures >= self.failures_at_most:
            pause = min(self.pause_s * 2**self.trips, self.longest_pause_s)
            self.open_until = now + pause * self.random.uniform(0.5, 1.0)
            self.trips, self.probing = self.trips + 1, False
