"""Writes what the sidecar learnt to the store, in order and exactly once; a store that is away costs nothing else.

While the store is away, batches go to the spool; once it is back they are replayed before anything newer is written.
So do those that wait behind a write that takes long: they and what is being written, which is older, go to the spool.
Whether that write was done in the end does not matter, since every row has a key.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog
from sqlalchemy import Engine

from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.store import batches
from moe_watch.store.spool import Spool, SpoolFullError, spool_folder
from moe_watch.store.write.batch import NewModel, Writes, is_away, write

_AT_ONCE: Final = 512  # requests in one transaction
_MOST_QUEUED: Final = 4000  # requests in memory; more go to the spool
_MOST_BYTES: Final = 64 << 20  # of them, where the settings say nothing; what is being written comes on top
_RETRY_S: Final = 1.0

_log = structlog.get_logger()


def open_spool(settings: Settings) -> Spool | None:
    """Return the spool of ``settings``; None, with a warning, where it cannot be."""
    folder = spool_folder(settings)
    try:
        return Spool(folder, settings.spool_max_bytes)
    except OSError as error:
        _log.warning(
            "no spool: what cannot be written while the store is away is lost", folder=str(folder), why=str(error)
        )
        return None


@dataclass
class _UnderWay:
    """A batch that is being written."""

    batch: Writes
    records: int  # of the spool that hold it, the oldest ones there


class Writer:
    """Takes ``Writes`` from the loop and puts them into the store from a thread."""

    def __init__(self, engine: Engine, board: Board, spool: Spool | None, most_bytes: int = _MOST_BYTES) -> None:
        self._engine, self._board, self._spool, self._most_bytes = engine, board, spool, most_bytes
        self._queue: deque[tuple[Writes, int]] = deque()  # with their weight
        self._wake, self._crowded = asyncio.Event(), asyncio.Event()
        self._lock = threading.Lock()  # of spool and queue; it is free while a batch is being written
        self._under_way: _UnderWay | None = None
        self._stopping = self._leaving = self._held = False
        self._models: dict[str, NewModel] = {}
        self._began_at = time.time()
        self.up = True

    def put(self, writes: Writes) -> None:
        """Take ``writes``; never blocks."""
        if writes:
            self._models |= {model.identity: model for model in writes.models}
            self._queue.append((writes, writes.weight()))
            self._wake.set()
            if self._too_much():
                self._crowded.set()

    @property
    def spool_bytes(self) -> int:
        """Return what waits on disk."""
        return self._spool.size if self._spool is not None else 0

    async def run(self) -> None:
        """Write until ``stop``; then write or spool what is left and return."""
        while not self._leaving and (not self._stopping or self._queue):
            if not self._queue and not self._spool:
                self._wake.clear()
                await self._wake.wait()
            done = await self._watched()
            if not done and not self._stopping:
                await asyncio.sleep(_RETRY_S)
            elif not done:
                break
        await asyncio.to_thread(self._save_rest)

    def hold(self) -> None:
        """Write nothing until ``release``: the store is not ready for it."""
        self._held = True
        self._set_up(up=False)

    def release(self) -> None:
        """Write what comes and what was kept meanwhile."""
        self._held = False
        self._set_up(up=True)

    def stop(self) -> None:
        """Let ``run`` finish what it has and return."""
        self._stopping = True
        self._wake.set()

    def leave(self) -> None:
        """Let ``run`` put into the spool what it has and return."""
        self._leaving = True

    async def _watched(self) -> bool:
        """Make one step; put what comes meanwhile into the spool when it is too much for memory."""
        step = asyncio.ensure_future(asyncio.to_thread(self._step))
        while not step.done():
            crowded = asyncio.ensure_future(self._crowded.wait())
            await asyncio.wait((step, crowded), return_when=asyncio.FIRST_COMPLETED)
            crowded.cancel()
            if self._crowded.is_set():
                self._crowded.clear()
                await asyncio.to_thread(self._relieve)
        return await step

    def _step(self) -> bool:
        """Write the oldest batch, from the spool before memory; return False when the store is away."""
        with self._lock:
            self._board.set(series.SPOOL_BYTES, self.spool_bytes)
            if self._held:
                self._shelve()
                return False
            self._under_way = self._next()
        if self._under_way is None:
            return True
        done = self._write(self._under_way.batch)
        with self._lock:
            self._settle(self._under_way, done=done)
            self._under_way = None
        return done

    def _next(self) -> _UnderWay | None:
        """Return the oldest batch; None when there is none."""
        try:
            while self._spool is not None and (payload := self._spool.peek()) is not None:
                try:
                    return _UnderWay(batches.ended(batches.unpack(payload), self._began_at), 1)
                except msgspec.MsgspecError:
                    _log.exception("a batch in the spool is of another version and was passed over")
                    self._spool.pop()
        except OSError:
            _log.exception("the spool cannot be read: going on without it")
            self._spool = None
        return _UnderWay(self._take(), 0) if self._queue else None

    def _settle(self, under_way: _UnderWay, *, done: bool) -> None:
        """Forget a batch that is written; keep one that is not."""
        if done and self._spool is not None:
            self._forget(self._spool, under_way.records)
        if not done and not under_way.records:
            self._queue.appendleft((under_way.batch, under_way.batch.weight()))
        if not done:
            self._shelve()

    def _forget(self, spool: Spool, records: int) -> None:
        try:
            for _ in range(records):
                spool.pop()
        except OSError:
            _log.exception("the spool cannot be read: going on without it")
            self._spool = None

    def _relieve(self) -> None:
        """Put what waits into the spool, after what is being written: that is older."""
        with self._lock:
            under_way = self._under_way
            if self._spool is not None and under_way is not None and not under_way.records:
                with contextlib.suppress(SpoolFullError):
                    under_way.records = self._append(self._spool, under_way.batch)
            if under_way is None or under_way.records:
                self._shelve()
            else:  # nothing may come before it
                self._lose_newest()

    def _too_much(self) -> bool:
        """Say whether more waits in memory than may; the loop may append meanwhile, hence the copy."""
        waiting = list(self._queue)
        requests = sum(len(writes.requests) for writes, _ in waiting)
        return requests > _MOST_QUEUED or sum(weight for _, weight in waiting) > self._most_bytes

    def _take(self) -> Writes:
        """Return the oldest batches as one, up to a size."""
        batch, _ = self._queue.popleft()
        while self._queue and len(batch.requests) + len(self._queue[0][0].requests) <= _AT_ONCE:
            batch.extend(self._queue.popleft()[0])
        return batch

    def _write(self, batch: Writes) -> bool:
        """Write ``batch``; rows that the store refuses are left out and counted. Return False when it is away."""
        began = time.monotonic()
        try:
            fresh = write(self._engine, batch)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a row, the others are to be written
            if not is_away(error):
                return self._write_in_halves(batch, error)
            if self.up:
                _log.error("the store is away", why=str(getattr(error, "orig", error)))
            self._set_up(up=False)
            return False
        self._board.observe(series.STORE_WRITE, [time.monotonic() - began])
        self._board.add(series.STORE_ROWS, fresh)
        if not self.up:
            _log.info("the store is back")
        self._set_up(up=True)
        return True

    def _write_in_halves(self, batch: Writes, error: Exception) -> bool:
        halves = batch.halves()
        if halves is None:
            self._refuse(batch, error)
            return True
        return all(self._write(half) for half in halves)

    def _refuse(self, row: Writes, error: Exception) -> None:
        kind = next((name for name in row.__struct_fields__ if getattr(row, name)), "nothing")
        why = str(getattr(error, "orig", error))
        _log.error("a row can be neither written nor kept and is left out", of=kind, why=why)
        self._board.add(series.STORE_REFUSED, 1)

    def _shelve(self) -> None:
        """Put what waits on disk; where there is no spool, the newest is lost beyond what memory may hold."""
        if self._spool is None:
            self._lose_newest()
            return
        while self._queue:
            batch = self._take()
            try:
                self._append(self._spool, batch)
            except SpoolFullError as error:
                self._lose(batch, why=str(error))
        self._board.set(series.SPOOL_BYTES, self._spool.size)

    def _append(self, spool: Spool, batch: Writes) -> int:
        """Put ``batch`` into the spool; return the number of its records there."""
        records = list(batches.whole(batch, self._models, self._refuse))
        for record in records:
            spool.append(record)
        return len(records)

    def _save_rest(self) -> None:
        """Write what is left at the end, or leave it in the spool for the next start."""
        with self._lock:
            away = self._held or self._leaving
            while self._queue and not away and not self._spool:
                batch = self._take()
                away = not self._write(batch)
                if away:
                    self._queue.appendleft((batch, 0))
            if self._spool is not None:
                self._shelve()
                self._spool.close()
            while self._queue:
                self._lose(self._take(), why="no spool")

    def _lose_newest(self) -> None:
        while self._too_much():
            self._lose(self._queue.pop()[0])

    def _lose(self, batch: Writes, why: str = "memory is full") -> None:
        _log.error("requests could neither be written nor kept", requests=len(batch.requests), why=why)
        self._board.add(series.SPOOL_DROPPED, len(batch.requests))

    def _set_up(self, *, up: bool) -> None:
        self.up = up
        self._board.set(series.STORE_UP, float(up))
