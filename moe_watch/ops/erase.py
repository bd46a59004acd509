"""Deletes a request or a person from every place that keeps rows, and reads each place again to show that it did."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from moe_watch.ops import archive
from moe_watch.servers.urls import shown
from moe_watch.settings import Settings
from moe_watch.store import batches
from moe_watch.store.engine import empty_log
from moe_watch.store.lifecycle import forget as kept
from moe_watch.store.lifecycle.forget import Mine, Who
from moe_watch.store.spool import Spool, spool_folder, waiting

_POLL_S: Final = 0.2


@dataclass(frozen=True)
class Place:
    """One place that was searched: what was deleted, by kind, and how much a second look still found."""

    name: str
    gone: dict[str, int]
    left: int
    problem: str = ""  # why it is not known to be clean
    note: str = ""


def everywhere(
    settings: Settings, engine: Engine, who: Who, addresses: Sequence[str], wait_s: float
) -> Iterator[Place]:
    """Yield each place when it is done: the spool first, so that nothing of it is written to the store afterwards."""
    ids = set(kept.find(engine, who).ids)
    yield from _spool(spool_folder(settings), settings.spool_max_bytes, who, ids, wait_s)
    found = kept.find(engine, who)
    mine = Mine(found.keys, found.ids | ids)
    yield _store(f"store {shown(settings.store.url)}", engine, who, mine)
    named = [archive.absolute(address) for address in addresses]
    for address in dict.fromkeys([*named, *kept.exports(engine)]):
        yield _export(address, who, must_be=address in named)


def _store(name: str, engine: Engine, who: Who, mine: Mine) -> Place:
    gone = kept.forget(engine, mine)
    try:
        in_files = kept.erase(engine, who, mine)
    except (OperationalError, OSError) as error:
        why = str(getattr(error, "orig", None) or error)
        return Place(name, gone, kept.left(engine, who, mine), f"its files could not be written anew: {why}")
    log = "" if empty_log(engine) else "a reader keeps SQLite's log: its next checkpoint overwrites the deleted bytes"
    return Place(name, gone, kept.left(engine, who, mine) + in_files, log)


def _spool(folder: Path, most_bytes: int, who: Who, ids: set[str], wait_s: float) -> Iterator[Place]:
    name = f"spool {folder}"
    if not folder.exists():
        return
    try:
        spool = Spool(folder, most_bytes)
    except BlockingIOError:
        yield _held(name, folder, who, ids, wait_s)
        return
    except OSError as error:
        yield Place(name, {}, 0, f"cannot be opened: {error.strerror}")
        return
    gone = 0

    def strip(payload: bytes) -> bytes:
        nonlocal gone
        writes = batches.unpack(payload)
        gone += kept.without(writes, who, ids)
        return batches.pack(writes)

    try:
        spool.rewrite(strip)
        yield Place(name, {"rows": gone}, sum(_count(spool.payloads(), who, ids)))
    except (OSError, msgspec.MsgspecError) as error:
        yield Place(name, {"rows": gone}, 0, f"cannot be read and written again: {error}")
    finally:
        spool.close()


def _held(name: str, folder: Path, who: Who, ids: set[str], wait_s: float) -> Place:
    """Wait until a running sidecar has written what waits of ``who``: the store is searched after that."""
    until = time.monotonic() + wait_s
    while (left := sum(_count(waiting(folder), who, ids))) and time.monotonic() < until:
        time.sleep(_POLL_S)
    problem = (
        "a running sidecar has not written it yet: is its store away? Run this again once it is back" if left else ""
    )
    return Place(name, {}, left, problem)


def _count(payloads: Iterator[bytes], who: Who, ids: set[str]) -> Iterator[int]:
    return (kept.without(batches.unpack(payload), who, ids) for payload in payloads)


def _export(address: str, who: Who, *, must_be: bool) -> Place:
    name = f"export {shown(address)}"
    try:
        if not must_be and not archive.exists(address):
            return Place(name, {}, 0, note="not there any more: if it was moved, name its new place with --export")
        gone = archive.forget(address, who)
        return Place(name, {"rows": gone}, archive.count(address, who))
    except (archive.HistoryError, ImportError, OSError) as error:
        return Place(name, {}, 0, f"cannot be searched: {error}")
