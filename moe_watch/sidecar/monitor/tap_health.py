"""The health of a replica's tap, from the health frames of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from moe_watch import wire
from moe_watch.store.losses import MOST_SOURCES, Counts

TAP_SILENT_S: Final = 30.0
_MOST_SOURCES: Final = 256  # processes of one replica that are kept apart


@dataclass(frozen=True)
class TapState:
    """The state of the tap of one replica at one moment."""

    up: bool
    state: str
    reason: str
    age_s: float | None  # since it spoke last; None when it never did
    skew_s: float | None  # of its clock


@dataclass
class TapHealth:
    """The latest health frame of each process of the replica's tap."""

    health: dict[str, tuple[wire.Health, float]] = field(default_factory=dict)  # by source, with when it came
    at: float | None = None
    skew_s: float | None = None
    dropped: Counts = field(default_factory=dict)  # of each process, by reason, as it counts itself

    def record(self, health: wire.Health, now: float) -> None:
        """Take note of ``health``; what was silent for long is forgotten."""
        self.health.pop(health.source, None)
        self.health[health.source] = (health, now)
        latest = list(self.health.items())[-_MOST_SOURCES:]
        self.health = {source: last for source, last in latest if abs(now - last[1]) <= 2 * TAP_SILENT_S}
        self.at, self.skew_s = now, now - health.sent_at

    def engines(self, now: float) -> list[wire.Health]:
        """Return what the engine processes said that spoke lately."""
        return [h for h, at in self.health.values() if h.role == "engine" and abs(now - at) <= TAP_SILENT_S]

    def increase(self, source: str, counted: Mapping[str, int]) -> dict[str, int]:
        """Return by how much the counts of one process of the tap grew since they were last known, by reason."""
        before = self.dropped.pop(source, {})
        grown = {reason: n - before.get(reason, 0) for reason, n in counted.items() if n > before.get(reason, 0)}
        self.dropped[source] = before | {reason: counted[reason] for reason in grown}
        while len(self.dropped) > MOST_SOURCES:
            del self.dropped[next(iter(self.dropped))]
        return grown

    def state(self, now: float) -> TapState:
        """Return whether the tap is up, its state, and why."""
        age = None if self.at is None else now - self.at
        return TapState(*self._of_engines(now), age, self.skew_s)

    def _of_engines(self, now: float) -> tuple[bool, str, str]:
        if self.at is None:
            return False, "unknown", "the tap of the engine has not spoken yet"
        engines = self.engines(now)
        if not engines:
            return False, "silent", f"the tap of the engine has been silent for more than {TAP_SILENT_S:.0f} s"
        worst = next((health for health in engines if health.state not in {"on", "dense"}), engines[0])
        return worst.state == "on", worst.state, worst.reason
