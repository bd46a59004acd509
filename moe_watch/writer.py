"""Writes what the sidecar learnt to the store, in order and exactly once; a store that is away costs nothing else.

While the store is away, batches go to the spool; once it is back they are replayed before anything newer is written.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec
import structlog
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch.export import metrics
from moe_watch.export.snapshot import Board
from moe_watch.plain import encodable
from moe_watch.settings import Settings
from moe_watch.spool import Spool, SpoolFullError
from moe_watch.store.engine import sqlite_path
from moe_watch.store.write import NewModel, Writes, is_away, write

_AT_ONCE: Final = 512  # requests in one transaction
_MOST_QUEUED: Final = 4000  # requests in memory; more go to the spool
_RETRY_S: Final = 1.0

_log = structlog.get_logger()
_encoder = msgspec.msgpack.Encoder(enc_hook=encodable)
_decoder: msgspec.msgpack.Decoder[Writes] = msgspec.msgpack.Decoder(Writes)


def spool_folder(settings: Settings) -> Path:
    """Return where batches wait: as set, else beside the SQLite file."""
    path = sqlite_path(settings.store.url)
    return settings.spool_dir or (path.with_name(path.name + ".spool") if path else Path("moe-watch.spool"))


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


class Writer:
    """Takes ``Writes`` from the loop and puts them into the store from a thread."""

    def __init__(self, engine: Engine, board: Board, spool: Spool | None) -> None:
        self._engine, self._board, self._spool = engine, board, spool
        self._queue: deque[Writes] = deque()
        self._wake = asyncio.Event()
        self._stopping = False
        self._models: dict[str, NewModel] = {}
        self._began_at = time.time()
        self.up = True

    def put(self, writes: Writes) -> None:
        """Take ``writes``; never blocks."""
        if writes:
            self._models |= {model.identity: model for model in writes.models}
            self._queue.append(writes)
            self._wake.set()

    @property
    def spool_bytes(self) -> int:
        """Return what waits on disk."""
        return self._spool.size if self._spool is not None else 0

    async def run(self) -> None:
        """Write until ``stop``; then write or spool what is left and return."""
        while not self._stopping or self._queue:
            if not self._queue and not self._spool:
                self._wake.clear()
                await self._wake.wait()
            done = await asyncio.to_thread(self._step)
            if not done and not self._stopping:
                await asyncio.sleep(_RETRY_S)
            elif not done:
                break
        await asyncio.to_thread(self._save_rest)

    def stop(self) -> None:
        """Let ``run`` finish what it has and return."""
        self._stopping = True
        self._wake.set()

    def _step(self) -> bool:
        """Write the oldest batch, from the spool before memory; return False when the store is away."""
        self._board.set(metrics.SPOOL_BYTES, self.spool_bytes)
        try:
            if self._spool is not None and self._spool:
                return self._replay(self._spool)
        except OSError:
            _log.exception("the spool cannot be read: going on without it")
            self._spool = None
        if not self._queue:
            return True
        batch = self._take()
        if self._write(batch):
            return True
        self._keep(batch)
        return False

    def _replay(self, spool: Spool) -> bool:
        payload = spool.peek()
        if payload is not None:
            try:
                batch = _ended(_decoder.decode(payload), self._began_at)
            except msgspec.MsgspecError:
                _log.exception("a batch in the spool is of another version and was passed over")
                batch = Writes()
            if not self._write(batch):
                self._spool_queue()
                return False
            spool.pop()
        if self._queued() > _MOST_QUEUED:
            self._spool_queue()
        return True

    def _queued(self) -> int:
        """Return the number of requests in memory; the loop may append meanwhile, hence the copy."""
        return sum(len(writes.requests) for writes in list(self._queue))

    def _take(self) -> Writes:
        """Return the oldest batches as one, up to a size."""
        batch = self._queue.popleft()
        while self._queue and len(batch.requests) + len(self._queue[0].requests) <= _AT_ONCE:
            batch.extend(self._queue.popleft())
        return batch

    def _write(self, batch: Writes) -> bool:
        """Write ``batch``; rows that the store refuses are left out and counted. Return False when it is away."""
        began = time.monotonic()
        try:
            fresh = write(self._engine, batch)
        except (SQLAlchemyError, OverflowError, LookupError, ValueError, TypeError) as error:
            if not is_away(error):
                return self._write_in_halves(batch, error)
            if self.up:
                _log.error("the store is away", why=str(getattr(error, "orig", error)))
            self._set_up(up=False)
            return False
        self._board.observe(metrics.STORE_WRITE, [time.monotonic() - began])
        self._board.add(metrics.STORE_ROWS, fresh)
        if not self.up:
            _log.info("the store is back")
        self._set_up(up=True)
        return True

    def _write_in_halves(self, batch: Writes, error: Exception) -> bool:
        halves = batch.halves()
        if halves is None:
            _log.error("the store refused a row, which is left out", why=str(getattr(error, "orig", error)))
            self._board.add(metrics.STORE_REFUSED, 1)
            return True
        return all(self._write(half) for half in halves)

    def _keep(self, batch: Writes) -> None:
        """Put ``batch`` on disk, or at the front of the queue where there is no spool."""
        if self._spool is None:
            self._queue.appendleft(batch)
            while self._queued() > _MOST_QUEUED:
                self._lose(self._queue.pop())
            return
        self._to_disk(self._spool, batch)
        self._spool_queue()

    def _spool_queue(self) -> None:
        if self._spool is None:
            return
        while self._queue:
            self._to_disk(self._spool, self._take())
        self._board.set(metrics.SPOOL_BYTES, self._spool.size)

    def _to_disk(self, spool: Spool, batch: Writes) -> None:
        """Put ``batch`` into the spool; a row that cannot be encoded is left out and counted, as in a store."""
        try:
            payload = self._packed(batch)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a row, the writer goes on
            halves = batch.halves()
            if halves is None:
                _log.error("a row cannot be put on disk and is left out", why=str(error))
                self._board.add(metrics.STORE_REFUSED, 1)
            for half in halves or ():
                self._to_disk(spool, half)
            return
        try:
            spool.append(payload)
        except SpoolFullError as error:
            self._lose(batch, why=str(error))

    def _packed(self, batch: Writes) -> bytes:
        """Return ``batch`` for the spool, with its models: their own batch may be lost, or the store another one."""
        needed = batch.identities() - {model.identity for model in batch.models}
        known = [self._models[identity] for identity in needed & self._models.keys()]
        return _encoder.encode(msgspec.structs.replace(batch, models=known + batch.models))

    def _save_rest(self) -> None:
        """Write what is left at the end, or leave it in the spool for the next start."""
        while self._queue:
            batch = self._take()
            if (self._spool is not None and self._spool) or not self._write(batch):
                if self._spool is None:
                    self._lose(batch, why="no spool")
                    continue
                self._keep(batch)
        if self._spool is not None:
            self._spool.close()

    def _lose(self, batch: Writes, why: str = "memory is full") -> None:
        _log.error("requests could neither be written nor kept", requests=len(batch.requests), why=why)
        self._board.add(metrics.SPOOL_DROPPED, len(batch.requests))

    def _set_up(self, *, up: bool) -> None:
        self.up = up
        self._board.set(metrics.STORE_UP, float(up))


def _ended(batch: Writes, now: float) -> Writes:
    """End the alarms that were flagged before ``now``, as those in the store are at a start: detectors begin anew."""
    for episode in batch.episodes:
        episode.values.setdefault("ending", None)  # spooled by a version that did not tell
        if episode.values["ended_at"] is None and episode.values["flagged_at"] < now:
            episode.values.update(ended_at=now, ending="sidecar_stopped")
    return batch
