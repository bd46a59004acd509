"""The alarms of one model at one replica, from their start to their end, and what is to be written of them."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any, Final

import structlog

from moe_watch.domain.alarm_endings import Ending
from moe_watch.domain.plain import plain
from moe_watch.store.write.batch import NewAlarm

_MOST_ENDED: Final = 5

_log = structlog.get_logger()


class RaisedAlarms:
    """At most one open alarm of each kind; every value of an alarm is a plain one, whatever found it."""

    def __init__(self, identity: str, replica: str) -> None:
        self.open: dict[str, NewAlarm] = {}
        self.ended: deque[dict[str, Any]] = deque(maxlen=_MOST_ENDED)  # values of the latest that ended
        self._identity, self._replica = identity, replica
        self._pending: list[NewAlarm] = []
        self._begun: Counter[str] = Counter()

    def begin(self, kind: str, began_at: float, now: float, **told: Any) -> None:
        """Open an alarm of ``kind`` unless one is open; ``told`` are summary, evidence and baseline_id."""
        if kind in self.open:
            return
        values = {
            "replica": self._replica,
            "kind": kind,
            "began_at": min(began_at, now),
            "flagged_at": now,
            "ended_at": None,
            "ending": None,
            **told,
        }
        self._keep(kind, values)
        self._begun[kind] += 1
        _log.warning("alarm", kind=kind, summary=told["summary"])

    def add_evidence(self, kind: str, more: dict[str, Any]) -> None:
        """Add what became known of an open alarm."""
        if kind in self.open:
            values = self.open[kind].values
            self._keep(kind, {**values, "evidence": {**values["evidence"], **more}})

    def end(self, kind: str, now: float, ending: Ending) -> None:
        """Close the alarm of ``kind``, if one is open."""
        alarm = self.open.pop(kind, None)
        if alarm is None:
            return
        values = {**alarm.values, "ended_at": now, "ending": ending}
        self._pending.append(NewAlarm(self._identity, values))
        self.ended.appendleft(values)
        _log.info("alarm is over", kind=kind, ending=ending, summary=values["summary"])

    def end_all(self, now: float, ending: Ending) -> None:
        """Close every open alarm."""
        for kind in list(self.open):
            self.end(kind, now, ending)

    def collect(self) -> list[NewAlarm]:
        """Return what is to be written."""
        out, self._pending = self._pending, []
        return out

    def begun(self) -> Counter[str]:
        """Return how many alarms were raised, by kind, since this was asked last."""
        out, self._begun = self._begun, Counter()
        return out

    def _keep(self, kind: str, values: dict[str, Any]) -> None:
        self.open[kind] = NewAlarm(self._identity, plain(values))
        self._pending.append(self.open[kind])
