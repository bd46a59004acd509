"""A connection to Postgres that does not wait for ever: of a server that stands still TCP notices nothing.

psycopg asks ten times a second whether a statement is to be waited for any longer; here it is not, when the server was
silent for too long or the engine was given up. The connection is closed then, so what the statement did is unknown.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")
_silence_s: ContextVar[float] = ContextVar("_silence_s", default=math.inf)


@dataclass
class Patience:
    """How long the connections of one engine wait for a silent server, seconds."""

    seconds: float
    over: bool = False  # nothing is waited for any more

    def left(self, heard: float) -> float:
        """Return the seconds that are left when the server was heard last at ``heard`` (monotonic)."""
        return 0.0 if self.over else min(self.seconds, _silence_s.get()) - (time.monotonic() - heard)


class Connection(psycopg.Connection[Any]):
    """A connection that gives up a server which says nothing."""

    patience = Patience(math.inf)

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        """Consume ``gen`` as psycopg does; raise ``psycopg.OperationalError`` when the server says nothing."""
        return super().wait(self._watched(gen), *args, **kwargs)

    def _watched(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        heard, ready = time.monotonic(), None
        while True:
            try:
                wanted = gen.send(ready)
            except StopIteration as end:
                result: T = end.value
                return result
            ready = yield wanted
            if ready:
                heard = time.monotonic()
            elif self.patience.left(heard) <= 0:
                self.pgconn.finish()
                raise psycopg.OperationalError("the server says nothing: given up")


def connect(patience: Patience, *args: Any, **kwargs: Any) -> Connection:
    """Return a connection whose waits ``patience`` bounds."""
    if patience.over:
        raise psycopg.OperationalError("given up")
    made = Connection.connect(*args, **kwargs)
    made.patience = patience
    return made


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let this thread wait no longer than ``seconds`` for a silent server meanwhile."""
    before = _silence_s.set(seconds)
    try:
        yield
    finally:
        _silence_s.reset(before)
