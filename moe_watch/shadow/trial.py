"""The sequential test of one measure over the life of a process: it learns what is normal, then tests."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np

from moe_watch.detect.common.weighted_estimates import Floats
from moe_watch.detect.quality import gap_alarm

Kind = Literal["quality", "garbled"]
# Gaps beyond these say nothing more about how bad an output is, nats per token; a defect is there or not.
CLIP: dict[Kind, tuple[float, float]] = {"quality": (-1.0, 3.0), "garbled": (0.0, 1.0)}


@dataclass
class Trial:
    """The test of one ``kind`` of measure at one replica; ``wanted`` requests are its reference."""

    kind: Kind
    run_length: float
    tolerance: float
    wanted: int
    known: gap_alarm.Reference | None = None
    state: gap_alarm.AlarmState = field(init=False)
    began_at: float = 0.0  # of the last alarm, seconds since the epoch
    _values: list[float] = field(default_factory=list)
    _weights: list[float] = field(default_factory=list)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=20_000))

    def __post_init__(self) -> None:
        """Start without evidence."""
        self.state = gap_alarm.start(self.run_length)

    def feed(self, values: Floats, weights: Floats, at: Floats) -> bool:
        """Take new requests (nan values are passed over); return whether the alarm started or ended."""
        rows = ~np.isnan(values)
        values, weights, at = values[rows], weights[rows], at[rows]
        if self.known is None:
            taken = self.wanted - len(self._values)
            self._values += values[:taken].tolist()
            self._weights += weights[:taken].tolist()
            values, weights, at = values[taken:], weights[taken:], at[taken:]
            if len(self._values) < self.wanted:
                return False
            self.known = self._learned()
        before = self.state.alarmed
        self._times.extend(at.tolist())
        self.state, alarms = gap_alarm.observe(self.known, self.state, values, weights)
        for alarm in alarms:
            back = len(values) - 1 - alarm.at + alarm.began
            since = islice(self._times, max(len(self._times) - 1 - back, 0), None)
            self.began_at = float(min(since))  # the first of them, unless the clock was set back since
        return self.state.alarmed != before

    def _learned(self) -> gap_alarm.Reference:
        low, high = CLIP[self.kind]
        values, weights = np.array(self._values), np.array(self._weights)
        return gap_alarm.reference(values, weights, low=low, high=high, tolerance=self.tolerance)
