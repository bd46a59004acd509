"""How the demo waits: for facts, told to whoever watches, and given up only when nothing has changed for long."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape

PATIENCE_S = 600.0
"""How long what is waited for may stay as it is: ten times what the slowest step takes on two free cores."""
_TOLD_EVERY_S = 15.0
_POLL_S = 0.25


class NotShown(RuntimeError):  # noqa: N818 - the message reads as a sentence
    """Something that the demo claims did not happen."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"The demo does not show what it claims.\n  Expected: {expected}\n  Seen:     {seen}")


@dataclass
class Clock:
    """The time and how to let some of it pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


@dataclass
class Wait:
    """One wait for ``expected``; where no terminal shows it, a line now and then says what is seen meanwhile."""

    console: Console
    expected: str
    clock: Clock = field(default_factory=Clock)
    _seen: str | None = None
    _changed_at: float = 0.0
    _began_at: float = field(init=False)
    _told_at: float = field(init=False)

    def __post_init__(self) -> None:
        """Begin without a line: most waits are short."""
        self._began_at = self._told_at = self.clock.now()

    def still(self, seen: str) -> None:
        """Take note of what is ``seen``; raise ``NotShown`` when that has been the same for ``PATIENCE_S``."""
        now = self.clock.now()
        if seen != self._seen:
            self._seen, self._changed_at = seen, now
        if now - self._changed_at > PATIENCE_S:
            raise NotShown(self.expected, f"{seen}; that has not changed for {PATIENCE_S / 60:.0f} minutes")
        if now - self._told_at > _TOLD_EVERY_S and not self.console.is_terminal:
            self._told_at = now
            self.console.print(f"  [dim]{self.told()}", soft_wrap=True)

    def told(self) -> str:
        """Return the line."""
        past = self.clock.now() - self._began_at
        return f"Waiting until {escape(self.expected)}, {past:.0f} s so far: {escape(self._seen or '')} …"

    def pause(self) -> None:
        """Let the little time pass after which it is worth looking again."""
        self.clock.sleep(_POLL_S)


def claim(expected: str, seen: str, *, true: bool) -> None:
    """Raise ``NotShown`` unless ``true``."""
    if not true:
        raise NotShown(expected, seen)
