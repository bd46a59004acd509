"""Holds the connections to the HTTP port to a number, and ends those whose clients keep it waiting.

Whoever reaches the port can connect to it without a token, and each connection costs a file descriptor. Uvicorn bounds
requests, which a silent connection never becomes; and with TLS it sees connections only after their handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

_ASK_S: Final = 10.0  # from connecting, or from the last answer, to the end of the next request's head
_ANSWER_S: Final = 120.0  # to make an answer, and for the client to take it
_LOOK_S: Final = 1.0
_AT_ONCE: Final = 8  # of so many callers, one is ended to make room


@dataclass
class _Caller:
    """One connection: since when it waits for its client, or for its answer."""

    connection: socket.socket
    since: float
    asked: bool = False
    transport: asyncio.Transport | None = None  # None before the TLS handshake

    def end(self) -> None:
        """End the connection; what it waits for is not waited for, and one that its client has reset is over."""
        if self.transport is not None:
            self.transport.abort()
        elif self.connection.fileno() != -1:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class Callers:
    """The open connections; the one that has kept the server waiting longest makes room for the newest."""

    most: int
    clock: Callable[[], float] = time.monotonic
    _open: dict[int, _Caller] = field(default_factory=dict)  # by file descriptor

    def __len__(self) -> int:
        """Return the number of connections."""
        return len(self._open)

    def add(self, connection: socket.socket) -> None:
        """Take note of a new connection."""
        self._open[connection.fileno()] = _Caller(connection, self.clock())

    def meet(self, number: int, transport: asyncio.Transport) -> None:
        """Take note that the connection of descriptor ``number`` can be spoken to."""
        if number in self._open:
            self._open[number].transport = transport

    def turn(self, number: int, *, asked: bool) -> None:
        """Take note that a connection has ``asked``, or has been answered."""
        caller = self._open.get(number)
        if caller is not None:
            caller.asked, caller.since = asked, self.clock()

    def forget(self, number: int) -> None:
        """Take note that a connection is over."""
        self._open.pop(number, None)

    def has_room(self) -> bool:
        """Say whether there may be one more; otherwise make room, which takes a moment."""
        if len(self._open) >= self.most:
            self._forget_closed()
        if len(self._open) < self.most:
            return True
        waiting = sorted(self._open.values(), key=lambda caller: (caller.asked, caller.since))
        for caller in waiting[: max(1, self.most // _AT_ONCE)]:
            caller.end()
        return False

    def end_overdue(self) -> None:
        """End the connections that have waited too long."""
        self._forget_closed()
        now = self.clock()
        for caller in list(self._open.values()):
            if now - caller.since > (_ANSWER_S if caller.asked else _ASK_S):
                caller.end()

    def _forget_closed(self) -> None:
        for number in [number for number, caller in self._open.items() if caller.connection.fileno() == -1]:
            del self._open[number]

    async def watch(self) -> None:
        """End what is overdue, until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.end_overdue()


class Door(socket.socket):
    """A listening socket that takes no more connections than there may be."""

    def __init__(self, listening: socket.socket, callers: Callers) -> None:
        kind = listening.family, listening.type, listening.proto
        super().__init__(*kind, fileno=socket.dup(listening.fileno()))
        self._callers = callers

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a new connection and its address; raise ``BlockingIOError`` while there is no room."""
        if not self._callers.has_room():
            raise BlockingIOError
        made, address = super().accept()
        self._callers.add(made)
        return made, address


def protocol(callers: Callers) -> type[H11Protocol]:
    """Return uvicorn's protocol, which tells ``callers`` whose turn it is."""

    class Attended(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.number: int = transport.get_extra_info("socket").fileno()
            callers.meet(self.number, transport)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:
                callers.turn(self.number, asked=not self.cycle.response_complete)

        def on_response_complete(self) -> None:
            callers.turn(self.number, asked=False)
            before = self.cycle
            super().on_response_complete()  # begins with the next request where that is here already
            if self.cycle is not before:
                callers.turn(self.number, asked=True)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            callers.forget(self.number)

    return Attended
