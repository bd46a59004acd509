"""How many files and connections the process may have open, and who gets how many of them.

Every connection costs a file descriptor, whoever makes it. With none left the store cannot be opened, and libzmq ends
the process when a tap connects. So connections stop well before.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Final

import structlog
import zmq

from moe_watch.sidecar.intake import bind_again

_OWN: Final = 128  # for the store, the spool, libzmq itself and the servers that are asked
_MOST_CALLERS: Final = 256
_MOST_OPEN: Final = 2048
_LOOK_S: Final = 0.2
_OPEN: Final = Path("/proc/self/fd")

_log = structlog.get_logger()


def raise_limit() -> int:
    """Allow this process as many descriptors as it may have without asking; return how many those are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard or hard == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard


def callers(limit: int) -> int:
    """Return how many HTTP connections there may be at once.

    >>> callers(1 << 20), callers(1024), callers(100)
    (256, 224, 8)
    """
    return min(_MOST_CALLERS, max(8, (limit - _OWN) // 4))


def most_open(limit: int) -> int:
    """Return the number of open descriptors from which on no further tap may connect.

    >>> most_open(1 << 20), most_open(1024)
    (2048, 512)
    """
    return min(_MOST_OPEN, limit // 2)


def _used() -> int:
    """Return how many descriptors are open; more than any limit where none is left to look."""
    try:
        return len(os.listdir(_OPEN))  # noqa: PTH208 - no path is made of them
    except OSError:
        return sys.maxsize


async def guard(frames: zmq.Socket[bytes]) -> None:
    """Close the door to further taps while too many descriptors are open; libzmq itself takes every connection.

    Taps that are connected stay so, the others try again; connections that say nothing end by themselves.
    """
    most, is_open = most_open(raise_limit()), True
    endpoint = str(frames.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
    while True:
        await asyncio.sleep(_LOOK_S)
        used = _used()
        if is_open and used > most:
            with contextlib.suppress(zmq.ZMQError):  # it is closed already where this was started again
                frames.unbind(endpoint)
            _log.error("no further tap can connect: too many connections are open", open=used, most=most)
            is_open = False
        elif not is_open and used <= most:
            is_open = bind_again(frames, endpoint)
