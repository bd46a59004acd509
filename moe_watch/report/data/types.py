"""What every section of a report is made of: a period, an estimate with its interval, or why there is none.

Times are seconds since the epoch, shares are of 1, durations in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Missing:
    """A section that cannot be written: ``why``, and ``remedy``, what would change that."""

    why: str
    remedy: str


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval, over ``requests`` requests; bounds are None where none is known."""

    value: float
    low: float | None
    high: float | None
    requests: int


@dataclass(frozen=True)
class Period:
    """From ``since`` up to, not including, ``until``."""

    since: float
    until: float

    @property
    def seconds(self) -> float:
        """Length of the period."""
        return self.until - self.since
