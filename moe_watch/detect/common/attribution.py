"""Dates a change against what happened to the deployment: "began 3 requests after the rebalance".

A restart, a rebalance or a new baseline that shortly precedes a change is its most likely cause; how near is counted in
requests, the unit in which a change point is estimated, because quiet hours have no change points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Happening:
    """Something that may explain a change, ``at`` seconds since the epoch."""

    at: float
    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Dating:
    """The event nearest to a change: ``requests`` finished between the two (negative: the change was first)."""

    event: Happening
    requests: int
    seconds: float  # from the event to the change

    @property
    def words(self) -> str:
        """Say it the way that a person would.

        >>> Dating(Happening(0.0, "eplb_rebalance"), 3, 1.5).words
        'began 3 requests after the rebalance'
        """
        name = named(self.event)
        if self.requests == 0:
            return f"began with {name}"
        count = abs(self.requests)
        plural = "request" if count == 1 else "requests"
        return f"began {count} {plural} {'after' if self.requests > 0 else 'before'} {name}"


_NAMES = {
    "engine_start": "the start of the engine",
    "eplb_rebalance": "the rebalance",
    "model_changed": "the change of the configuration",
    "baseline_promoted": "the promotion of the baseline",
    "tap_off": "the tap's end",
}
TELLING = ("model_changed", "eplb_rebalance", "engine_start")  # of events at one moment, the first says most


def named(event: Happening) -> str:
    """Return what an event is called in a sentence.

    >>> named(Happening(0.0, "model_changed", "vLLM 0.33.0 instead of 0.32.0"))
    'the change of the configuration (vLLM 0.33.0 instead of 0.32.0)'
    """
    name = _NAMES.get(event.kind, event.kind.replace("_", " "))
    return f"{name} ({event.detail})" if event.kind == "model_changed" and event.detail else name


def _telling(event: Happening) -> int:
    return TELLING.index(event.kind) if event.kind in TELLING else len(TELLING)


def date(
    began_at: float,
    events: Sequence[Happening],
    finished_at: NDArray[np.float64],
    *,
    most_requests: int = 2000,
    slack: int = 50,
) -> Dating | None:
    """Return the last event before a change that began at ``began_at``, or None when none is near.

    ``finished_at [n]`` are the times at which requests finished, ascending. An estimated start may lie a little before
    the true one: an event up to ``slack`` requests later still counts when there is none before within
    ``most_requests``.
    """
    begins = int(np.searchsorted(finished_at, began_at))
    dated = [
        Dating(event, begins - int(np.searchsorted(finished_at, event.at)), began_at - event.at) for event in events
    ]
    before = [d for d in dated if d.seconds >= 0 and d.requests <= most_requests]
    if before:
        return min(before, key=lambda d: (d.requests, _telling(d.event), d.seconds))
    after = [d for d in dated if d.seconds < 0 and -d.requests <= slack]
    return max(after, key=lambda d: d.seconds, default=None)
