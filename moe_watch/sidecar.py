"""The pipeline of the sidecar: takes frames, joins, judges and writes, until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, TypeVar

import structlog
import zmq
import zmq.asyncio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch import __version__, fleet, retention, wire
from moe_watch.addresses import shown
from moe_watch.canary import marks
from moe_watch.canary import schedule as canaries
from moe_watch.companions import Companions
from moe_watch.export import metrics, otel, traces
from moe_watch.export.snapshot import Board
from moe_watch.ingest import Intake
from moe_watch.join import Join, Joined
from moe_watch.judge import Judge
from moe_watch.settings import Settings
from moe_watch.shadow import worker as shadow
from moe_watch.status import Matrix, Status, Store
from moe_watch.store import baselines, engine, episodes, served
from moe_watch.store.engine import StoreError
from moe_watch.store.write import Writes
from moe_watch.watch import Normal
from moe_watch.writer import Writer, open_spool

_DRAIN_FRAMES: Final = 512  # taken off the socket before others have their turn
_CADENCE_S: Final = 0.2  # how often finished requests are judged
_TICK_S: Final = 1.0
_GATHER_S: Final = 0.02  # frames of this time are taken together: being woken costs more than a frame does
_BASELINE_S: Final = 2.0
_COMPANIONS_S: Final = 3.0
_MOST_WAITING: Final = 8192  # finished requests that wait for the judge; beyond it the socket is left alone

_log = structlog.get_logger()
T = TypeVar("T")


class Sidecar:
    """Everything between the socket and the store, on one event loop."""

    def __init__(self, settings: Settings, store: Engine, frames: zmq.Socket[bytes]) -> None:
        self.settings = settings
        self.board = Board(started_at=time.time())
        self.judge = Judge(settings, self.board)
        self._store = store
        self._frames = frames
        self._intake = Intake()
        self._marks = marks.Checker()
        self._join = Join(settings.join_timeout_s)
        self._joined: list[Joined] = []
        self._notes: list[wire.Model | wire.Health | wire.Event] = []
        self._writer = Writer(store, self.board, open_spool(settings))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge")
        self._counted: dict[metrics.Metric, Counter[str]] = {}
        self._store_bytes = 0
        self._active: dict[str, baselines.Active] = {}
        self._ready = "starting"
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Work until ``stopping`` is set; then take what has already come, judge and write it, and return."""
        self._begin()
        writing = asyncio.create_task(self._writer.run())
        tasks = [
            asyncio.create_task(work())
            for work in (self._take_frames, self._judge_often, self._tick_often, self._follow_baselines)
        ]
        beside = [asyncio.create_task(work) for work in self._beside()]
        for task in beside:
            task.add_done_callback(_tell)
        self._ready = ""
        try:
            stop = asyncio.create_task(self.stopping.wait())
            await asyncio.wait([stop, writing, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._ready = "stopping"
            failed = [task for task in (writing, *tasks) if task.done() and not task.cancelled() and task.exception()]
            for task in (*tasks, *beside):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._finish()
            self._writer.stop()
            await asyncio.gather(writing, *beside, return_exceptions=True)
            self._thread.shutdown()
        for task in failed:
            task.result()

    def _beside(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield what runs beside the pipeline and may fail without ending it."""
        yield self._follow_companions()
        yield otel.export_forever(self.board, self.settings.otlp)
        yield traces.export_forever(self.board.spans, self.settings.otlp)
        yield canaries.run(self.settings, self._store)
        yield retention.run(self.settings, self._store)
        yield fleet.run(self.settings, self._store, lambda: [one.identity for one in self.judge.served()])
        if self.settings.shadow.inside:
            yield shadow.run(self.settings, self._store, lambda: list(self.judge.watches))

    async def _follow_companions(self) -> None:
        companions = Companions(self._store, self.settings, self.board)
        while True:
            await asyncio.sleep(_COMPANIONS_S)
            news = await asyncio.to_thread(companions.news, self.judge.served(), time.time())
            if news:
                await self._in_thread(partial(self.judge.learn, news, time.time()))

    def _begin(self) -> None:
        """Take up what the store knows: what is served, which baselines are active."""
        now = time.time()
        self.board.set(metrics.BUILD_INFO, 1, __version__)
        self.board.set(metrics.STORE_UP, 1)
        for reason in metrics.REFUSAL_REASONS:
            self.board.add(metrics.FRAMES_REFUSED, 0, reason)
        self.board.add(metrics.SPOOL_DROPPED, 0)
        known = served.announced(self._store, self.settings.sidecar)
        episodes.close_open(self._store, [model.replica for model in known], now)
        self._load_baselines(now)
        with contextlib.suppress(SQLAlchemyError, OSError):
            self._learn_key()
        for model in known:
            self._intake.announced[model.replica] = model
            self.judge.announce(model, now)

    async def _take_frames(self) -> None:
        """Drain the socket in pieces, joining as it goes."""
        waiting = zmq.asyncio.Socket.from_socket(self._frames)
        while True:
            if len(self._joined) > _MOST_WAITING:
                await asyncio.sleep(_CADENCE_S)
                continue
            await waiting.poll()
            taken = self._take(_DRAIN_FRAMES)
            await asyncio.sleep(0 if taken == _DRAIN_FRAMES else _GATHER_S)

    def _take(self, most: int) -> int:
        """Take up to ``most`` frames that are there; return how many."""
        raws = list(_drain(self._frames, most))
        now, monotonic = time.time(), time.monotonic()
        frames = self._intake.take(raws, monotonic)
        self._joined += self._join.add(self._marks.check(frames), monotonic)
        self._notes += [frame for frame in frames if isinstance(frame, wire.Model | wire.Health | wire.Event)]
        if frames:
            self.board.set(metrics.INGEST_LAG, max(0.0, now - frames[-1].sent_at))
        return len(raws)

    async def _judge_often(self) -> None:
        while True:
            await asyncio.sleep(_CADENCE_S)
            self._joined += self._join.expire(time.monotonic())
            await self._judge_waiting()

    async def _judge_waiting(self) -> None:
        joined, self._joined = self._joined, []
        notes, self._notes = self._notes, []
        if joined or notes:
            await self._write_down(lambda: self._judge(joined, notes))

    async def _write_down(self, work: Callable[[], Writes]) -> None:
        """Give the writer what ``work`` returns in the thread, also when it is cancelled meanwhile: by a stop."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        working.add_done_callback(self._put)  # in the order of the thread
        await asyncio.shield(working)

    def _put(self, working: asyncio.Future[Writes]) -> None:
        if not working.cancelled() and working.exception() is None:
            self._writer.put(working.result())

    def _judge(self, joined: list[Joined], notes: list[wire.Model | wire.Health | wire.Event]) -> Writes:
        now = time.time()
        for note in notes:
            if isinstance(note, wire.Model):
                self.judge.announce(note, now)
            else:
                self.judge.hear(note, now)
        return self.judge.process(joined, now)

    async def _tick_often(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._intake.expire(time.monotonic())
            self._count()
            await self._write_down(lambda: self.judge.tick(time.time()))

    def _count(self) -> None:
        """Put the counts of intake and join on the board."""
        refused = self._intake.refused + self._join.refused + self.judge.refused
        for metric, counts in ((metrics.FRAMES_RECEIVED, self._intake.received), (metrics.FRAMES_REFUSED, refused)):
            before = self._counted.get(metric, Counter())
            for label, count in (counts - before).items():
                self.board.add(metric, count, label)
            self._counted[metric] = Counter(counts)
        before = self._counted.get(metrics.FRAMES_DROPPED, Counter())
        for replica, count in (self._intake.lost - before).items():
            model = self._intake.announced.get(replica)
            self.board.add(metrics.FRAMES_DROPPED, count, model.model if model else "unknown", replica, "lost")
        self._counted[metrics.FRAMES_DROPPED] = Counter(self._intake.lost)
        self.board.set(metrics.JOIN_PENDING, len(self._join))

    async def _follow_baselines(self) -> None:
        """Notice promotions; a store that is away leaves the baselines as they are."""
        while True:
            await asyncio.sleep(_BASELINE_S)
            with contextlib.suppress(SQLAlchemyError, OSError):
                await asyncio.to_thread(self._measure_store)
                await asyncio.to_thread(self._learn_key)
                found = await asyncio.to_thread(baselines.active, self._store)
                if found != self._active:
                    await self._in_thread(lambda: self._load_baselines(time.time()))

    def _learn_key(self) -> None:
        """Learn what canaries are signed with; until then they count as traffic."""
        if not self._marks.key:
            self._marks.key = marks.secret(self.settings.canary, self._store)

    def _measure_store(self) -> None:
        self._store_bytes = engine.size_bytes(self._store)
        self.board.set(metrics.STORE_BYTES, self._store_bytes)

    def _load_baselines(self, now: float) -> None:
        found = baselines.active(self._store)
        normals: dict[str, Normal] = {}
        for identity, active in found.items():
            try:
                normals[identity] = Normal(active, baselines.load(self._store, active.id))
            except StoreError as error:
                _log.error("a baseline cannot be used", why=str(error))
        self._active = found
        self.judge.use(normals, now)
        _log.info("baselines", active={normal.active.version for normal in normals.values()})

    async def _finish(self) -> None:
        """Take what has come, judge everything, write the windows."""
        while self._take(_DRAIN_FRAMES):
            pass
        self._joined += self._join.flush()
        await self._judge_waiting()
        self._count()
        self._writer.put(await self._in_thread(lambda: self.judge.collect(time.time(), last=True)))

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
        replicas = await self._in_thread(lambda: self.judge.describe(now))
        refused = self._intake.refused + self._join.refused + self.judge.refused
        return Status(
            version=__version__,
            now=now,
            started_at=self.board.started_at,
            endpoint=self.settings.endpoint,
            store=Store(shown(self.settings.store.url), self._writer.up, self._store_bytes, self._writer.spool_bytes),
            frames_received=dict(self._intake.received),
            frames_refused=dict(refused),
            frames_lost=dict(self._intake.lost),
            pending=len(self._join),
            replicas=replicas,
        )

    async def matrix(self, replica: str) -> Matrix | None:
        """Return the expert shares of one replica."""
        return await self._in_thread(lambda: self.judge.matrix(replica))


def _tell(task: asyncio.Task[None]) -> None:
    """Log that what ran beside the pipeline has failed: nobody waits for it."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a part beside the pipeline has ended", exc_info=error)


def _drain(frames: zmq.Socket[bytes], most: int) -> Iterator[bytes]:
    """Yield the frames that are there without waiting."""
    for _ in range(most):
        try:
            yield frames.recv(zmq.NOBLOCK)
        except zmq.Again:
            return
