"""What one process of the tap knows of itself; written where things happen, read by the sender's thread."""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

log = logging.getLogger("moe_watch.tap")

State = Literal["on", "off", "refused", "dense", "blind"]
_RECENT = 16  # finished requests that decide whether the tap is blind
_TOO_MANY = 8  # frames in a row that could not be made


@dataclass
class Status:
    """State, reason and counts since the start of this process, as ``wire.Health`` has them."""

    state: State = "on"
    reason: str = ""
    errors: int = 0
    steps: int = 0
    routed_tokens: int = 0
    requests_finished: int = 0
    requests_unrouted: int = 0
    requests_open: int = 0
    _recent: deque[bool] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _streaks: Counter[str] = field(default_factory=Counter)  # exceptions in a row, by what they spoilt
    _told: set[str] = field(default_factory=set)

    def switch(self, state: State, reason: str) -> None:
        """Change the state for good, and log it once."""
        if self.state == state:
            return
        self.state, self.reason = state, reason
        level = logging.INFO if state in {"on", "dense"} else logging.ERROR
        log.log(level, "moe-watch tap: %s%s", state, f" ({reason})" if reason else "")

    def fail(self, where: str, error: Exception) -> bool:
        """Count an exception of the tap and switch it off; return whether it was on before."""
        self.errors += 1
        was_on = self.state in {"on", "blind"}
        if was_on:
            log.error(
                "moe-watch tap failed in %s and is off; serving goes on",
                where,
                exc_info=error,
            )
            self.state, self.reason = "off", f"{where}: {type(error).__name__}: {error}"[:500]
        return was_on

    def spoil(self, what: str, error: Exception) -> bool:
        """Count an exception that cost one frame, or its text, and log the first one of its kind.

        After some in a row switch the tap off; return whether that is now.
        """
        self.errors += 1
        self._streaks[what] += 1
        if what not in self._told:
            self._told.add(what)
            log.error("moe-watch tap could not make %s; serving goes on", what, exc_info=error)
        if self._streaks[what] < _TOO_MANY or self.state not in {"on", "blind"}:
            return False
        self.switch("off", f"{what}: {type(error).__name__}: {error}"[:500])
        return True

    def recover(self, what: str) -> None:
        """Note that one of this kind went well."""
        self._streaks.pop(what, None)

    def judge(self, complaint: str) -> bool:
        """Note one finished request, with why its routing is of no use or ""; return whether the tap became blind."""
        self.requests_finished += 1
        self.requests_unrouted += bool(complaint)
        self._recent.append(not complaint)
        blind = 2 * sum(self._recent) < len(self._recent)
        if blind and self.state == "on":
            self.switch("blind", complaint)
            return True
        if not blind and self.state == "blind":
            self.switch("on", "")
        return False
