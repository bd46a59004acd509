"""The pipeline of the sidecar: takes frames, joins, judges and writes, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import structlog
import zmq
import zmq.asyncio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch import __version__, wire
from moe_watch.canary import marks
from moe_watch.canary import schedule as canaries
from moe_watch.domain import memory
from moe_watch.domain.status import Matrix, Status, Store
from moe_watch.fleet import siblings
from moe_watch.metrics import otlp, series, spans
from moe_watch.metrics.board import Board
from moe_watch.servers.urls import shown
from moe_watch.settings import Settings
from moe_watch.shadow import worker as shadow
from moe_watch.sidecar import descriptors, retention, supervise
from moe_watch.sidecar.background import BackgroundReader
from moe_watch.sidecar.intake import HIGH_WATER_FRAMES, Intake
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.sidecar.opening import Opening, normals
from moe_watch.sidecar.waiting import Batch, Waiting
from moe_watch.sidecar.writer import Writer, open_spool
from moe_watch.store import engine, losses
from moe_watch.store.records import baselines
from moe_watch.store.write.batch import Writes

_DRAIN_FRAMES: Final = 512  # taken off the socket before others have their turn
_CADENCE_S: Final = 0.2  # how often finished requests are judged
_TICK_S: Final = 1.0
_GATHER_S: Final = 0.02  # frames of this time are taken together: being woken costs more than a frame does
_FULL_S: Final = 0.002  # the same where a connection may hold more than it could hand over
_BASELINE_S: Final = 2.0
_LAST_S: Final = 5.0  # for what has come before the end
_COMPANIONS_S: Final = 3.0
_OPEN_S: Final = 5.0  # between two tries to open the store
_FIRST_S: Final = 10.0  # how long the first try may keep the frames waiting
_END_S: Final = 10.0  # how long a stop waits for the store to take what is left; the spool takes it then

_log = structlog.get_logger()
T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, None]]


class Sidecar:
    """Everything between the socket and the store, on one event loop."""

    def __init__(self, settings: Settings, store: Engine, frames: zmq.Socket[bytes], opening: Opening) -> None:
        self.settings = settings
        self.board = Board(started_at=time.time())
        self.monitors = ReplicaMonitors(settings, self.board)
        self._store = store
        self._opening = opening
        self._tried, self._opened = asyncio.Event(), asyncio.Event()
        self._frames = frames
        self._parts = memory.Parts(settings.memory_bytes)
        self._intake = Intake(most_cells=self._parts.cells, expires_s=settings.replica_expires_s)
        self._marks = marks.Checker()
        self._join = Join(settings.join_timeout_s, most_bytes=self._parts.join)
        self._waiting = Waiting(self._parts.waiting)
        self._writer = Writer(store, self.board, open_spool(settings), self._parts.written)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._counted: dict[series.Metric, Counter[str]] = {}
        self._store_bytes = 0
        self._active: dict[str, baselines.Active] = {}
        self._ready = "starting"
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until ``stopping`` is set; then take what has already come, judge and write it, and return."""
        self._begin()
        opening = asyncio.create_task(self._kept("opening", self._open_store))
        stop = asyncio.create_task(self.stopping.wait())
        tried = asyncio.create_task(self._tried.wait())
        await asyncio.wait([stop, tried], timeout=_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
        tried.cancel()
        writing = asyncio.create_task(self._writer.run())
        tasks = [
            asyncio.create_task(work())
            for work in (self._take_frames, self._judge_often, self._tick_often, self._follow_baselines)
        ]
        beside = [opening, *(asyncio.create_task(self._kept(name, work)) for name, work in self._beside())]
        self._ready = ""
        try:
            await asyncio.wait([stop, writing, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ready = "stopping"
            ended = [task for task in (writing, *tasks) if task.done()]  # none of them may
            for task in (*tasks, *beside):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            try:
                await self._finish()
            finally:  # what the judge cannot finish costs nothing that waits for the store
                await self._finish_writing(writing)
            await asyncio.gather(writing, *beside, return_exceptions=True)
            self._thread.shutdown()
        for task in ended:
            task.result()
            raise RuntimeError("a part of the pipeline ended by itself")

    def _kept(self, name: str, work: Work) -> Coroutine[Any, Any, None]:
        return supervise.keep(name, work, self.board)

    def _beside(self) -> Iterator[tuple[str, Work]]:
        """Yield what runs beside the pipeline by name: it may fail without ending it, and is started again."""
        settings, store = self.settings, self._store
        yield "connections", lambda: descriptors.guard(self._frames)
        yield "companions", self._follow_companions
        yield "otlp", lambda: otlp.export_forever(self.board, settings.otlp)
        yield "spans", lambda: spans.export_forever(self.board.spans, settings.otlp)
        yield "canaries", self._once_open(lambda: canaries.run(settings, store))
        yield "retention", self._once_open(lambda: retention.run(settings, store))
        yield "fleet", self._once_open(lambda: siblings.run(settings, store, self._identities))
        if settings.shadow.inside:
            yield "shadow", self._once_open(lambda: shadow.run(settings, store, lambda: list(self.monitors.by_replica)))

    def _identities(self) -> list[str]:
        return [one.identity for one in self.monitors.served()]

    def _once_open(self, work: Work) -> Work:
        async def waited() -> None:
            await self._opened.wait()
            await work()

        return waited

    async def _follow_companions(self) -> None:
        companions = BackgroundReader(self._store, self.settings, self.board)
        while True:
            await asyncio.sleep(_COMPANIONS_S)
            news = await asyncio.to_thread(companions.news, self.monitors.served(), time.time())
            if news:
                await self._in_thread(partial(self.monitors.learn, news, time.time()))

    def _begin(self) -> None:
        """Show what is known before anything has come; nothing is written before the store is open."""
        self.board.set(series.BUILD_INFO, 1, __version__)
        for reason in series.REFUSAL_REASONS:
            self.board.add(series.FRAMES_REFUSED, 0, reason)
        for kind in series.FRAME_TYPES:
            self.board.add(series.FRAMES_RECEIVED, 0, kind)
        self.board.add(series.SPOOL_DROPPED, 0)
        self._writer.hold()

    async def _open_store(self) -> None:
        """Take up what the store knows, again and again until it can be written; frames are kept meanwhile."""
        while True:
            try:
                known = await asyncio.to_thread(self._opening.open)
            except Exception as error:  # noqa: BLE001 - whatever it is, the frames are to be kept
                _log.error("waiting for the store", why=str(getattr(error, "orig", None) or error))
                _log.debug("why the store is waited for", exc_info=error)
            else:
                break
            self._tried.set()
            await asyncio.sleep(_OPEN_S)
        with contextlib.suppress(SQLAlchemyError, OSError):
            await asyncio.to_thread(self._learn_key)
        await self._use(known.active, known.normals)
        unseen = [model for model in known.announced if self._take_up(model)]
        await self._in_thread(lambda: self._announce(unseen, known.dropped))
        self._writer.release()
        self._opened.set()
        self._tried.set()

    def _take_up(self, model: wire.Model) -> bool:
        """Take up a replica that the store knows; say whether it is watched and has not announced itself since."""
        age = max(0.0, time.time() - model.sent_at)
        unseen = model.replica not in self._intake.announced
        return unseen and age <= self.settings.replica_expires_s and self._intake.know(model, time.monotonic() - age)

    def _announce(self, known: list[wire.Model], dropped: dict[str, losses.Counts]) -> None:
        self.monitors.remember(dropped)
        for model in known:
            self.monitors.announce(model, time.time(), heard_at=model.sent_at)

    async def _take_frames(self) -> None:
        """Drain the socket in pieces, joining as it goes."""
        waiting = zmq.asyncio.Socket.from_socket(self._frames)
        while True:
            taken = self._take(_DRAIN_FRAMES)
            if not taken:
                await waiting.poll()
            await asyncio.sleep(_FULL_S if taken >= HIGH_WATER_FRAMES else _GATHER_S)

    def _take(self, most: int) -> int:
        """Take up to ``most`` frames that are there; return how many."""
        raws = list(_drain(self._frames, most, self._parts.taken))
        now, monotonic = time.time(), time.monotonic()
        frames = self._intake.take(raws, monotonic)
        self._waiting.put(self._join.add(self._marks.check(frames), monotonic), frames)
        if frames:
            self.board.set(series.INGEST_LAG, max(0.0, now - frames[-1].sent_at))
        return len(raws)

    async def _judge_often(self) -> None:
        while True:
            await asyncio.sleep(_CADENCE_S)
            self._waiting.put(self._join.expire(time.monotonic()))
            await self._judge_waiting()

    async def _judge_waiting(self) -> None:
        batch = self._waiting.take()
        if batch:
            try:
                await self._write_down(lambda: self._judge(batch))
            finally:
                self._waiting.done(batch)

    async def _write_down(self, work: Callable[[], Writes]) -> None:
        """Give the writer what ``work`` returns in the thread, also when it is cancelled meanwhile: by a stop."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        working.add_done_callback(self._put)  # in the order of the thread
        await asyncio.shield(working)

    def _put(self, working: asyncio.Future[Writes]) -> None:
        if not working.cancelled() and working.exception() is None:
            self._writer.put(working.result())

    def _judge(self, batch: Batch) -> Writes:
        now = time.time()
        for note in batch.notes:
            if isinstance(note, wire.Model):
                self.monitors.announce(note, now)
            else:
                self.monitors.hear(note, now)
        return self.monitors.process(batch.joined, now)

    async def _tick_often(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            gone = self._intake.expire(time.monotonic())
            for replica in gone:
                self._join.forget(replica)
            await self._write_down(partial(self._tick, gone, self._count()))

    def _tick(self, gone: Sequence[str], lost: Counter[str]) -> Writes:
        now = time.time()
        self.monitors.lose(lost)
        for replica in gone:
            self.monitors.forget(replica, now)
            _log.info("a replica is gone and was forgotten; its history stays", replica=replica)
        return self.monitors.tick(now)

    def _refused(self) -> Counter[str]:
        return self._intake.refused + self._join.refused + self._waiting.refused + self.monitors.refused

    def _count(self) -> Counter[str]:
        """Put the counts of intake and join on the board; return the frames lost since, by replica."""
        refused = self._refused()
        for metric, counts in ((series.FRAMES_RECEIVED, self._intake.received), (series.FRAMES_REFUSED, refused)):
            before = self._counted.get(metric, Counter())
            for label, count in (counts - before).items():
                self.board.add(metric, count, label)
            self._counted[metric] = Counter(counts)
        before = self._counted.get(series.FRAMES_DROPPED, Counter())
        self._counted[series.FRAMES_DROPPED] = Counter(self._intake.lost)
        self.board.set(series.JOIN_PENDING, len(self._join))
        return self._intake.lost - before

    def _last(self, lost: Counter[str]) -> Writes:
        self.monitors.lose(lost)
        return self.monitors.collect(time.time(), last=True)

    async def _follow_baselines(self) -> None:
        """Notice promotions; a store that is away leaves the baselines as they are."""
        while True:
            await asyncio.sleep(_BASELINE_S)
            with contextlib.suppress(SQLAlchemyError, OSError):
                await asyncio.to_thread(self._measure_store)
                await asyncio.to_thread(self._learn_key)
                found = await asyncio.to_thread(baselines.active, self._store)
                if found != self._active:
                    await self._use(found, await asyncio.to_thread(normals, self._store, found))

    def _learn_key(self) -> None:
        """Learn what canaries are signed with; until then they count as traffic."""
        if not self._marks.key:
            self._marks.key = marks.secret(self.settings.canary, self._store)

    def _measure_store(self) -> None:
        self._store_bytes = engine.size_bytes(self._store)
        self.board.set(series.STORE_BYTES, self._store_bytes)

    async def _use(self, active: dict[str, baselines.Active], of: dict[str, Normal]) -> None:
        self._active = active
        await self._in_thread(lambda: self.monitors.use(of, time.time()))
        _log.info("baselines", active={normal.active.version for normal in of.values()})

    async def _finish(self) -> None:
        """Take what has come, judge everything, write the windows."""
        until = time.monotonic() + _LAST_S  # a sender may never end
        while self._take(_DRAIN_FRAMES) and time.monotonic() < until:
            await self._judge_waiting()
        self._waiting.put(self._join.flush())
        await self._judge_waiting()
        self._writer.put(await self._in_thread(partial(self._last, self._count())))

    async def _finish_writing(self, writing: asyncio.Task[None]) -> None:
        """Let the writer end, and every query with it: a store that hangs must not keep the process."""
        self._writer.stop()
        await asyncio.wait({writing}, timeout=_END_S)
        self._writer.leave()
        engine.give_up(self._store)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def ready(self) -> str:
        """Return why the sidecar takes no frames; empty when it does.

        A store that is away is no reason: the spool holds what comes, and a pod that is not ready takes vLLM with it.
        """
        return self._ready

    async def status(self) -> Status:
        """Return what is seen now."""
        now = time.time()
        replicas = await self._in_thread(lambda: self.monitors.describe(now))
        return Status(
            version=__version__,
            now=now,
            started_at=self.board.started_at,
            endpoint=self.settings.endpoint,
            store=Store(shown(self.settings.store.url), self._writer.up, self._store_bytes, self._writer.spool_bytes),
            frames_received=dict(self._intake.received),
            frames_refused=dict(self._refused()),
            impossible=dict(self._intake.impossible),
            frames_lost=dict(self._intake.lost),
            pending=len(self._join),
            replicas=replicas,
        )

    async def matrix(self, replica: str) -> Matrix | None:
        """Return the expert shares of one replica."""
        return await self._in_thread(lambda: self.monitors.matrix(replica, time.time()))


def _drain(frames: zmq.Socket[bytes], most: int, most_bytes: int) -> Iterator[bytes]:
    """Yield the frames that are there without waiting, up to a number and a size."""
    size = 0
    while most and size < most_bytes:
        try:
            frame = frames.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield frame
        most, size = most - 1, size + len(frame)
