"""The pipeline of the sidecar: starts the parts that take frames, judge and write, and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import structlog
import zmq
import zmq.asyncio
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from moe_watch import __version__
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
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor_thread import MonitorThread
from moe_watch.sidecar.opening import Opening, normals
from moe_watch.sidecar.receiver import FrameReceiver
from moe_watch.sidecar.writer import Writer, open_spool
from moe_watch.store import engine
from moe_watch.store.records import baselines

_BASELINE_S: Final = 2.0
_LAST_S: Final = 5.0  # for what has come before the end
_BACKGROUND_S: Final = 3.0
_OPEN_S: Final = 5.0  # between two tries to open the store
_FIRST_S: Final = 10.0  # how long the first try may keep the frames waiting
_END_S: Final = 10.0  # how long a stop waits for the store to take what is left; the spool takes it then

_log = structlog.get_logger()
Work = Callable[[], Coroutine[Any, Any, None]]


class Sidecar:
    """Everything between the socket and the store, on one event loop."""

    def __init__(self, settings: Settings, store: Engine, frames: zmq.Socket[bytes], opening: Opening) -> None:
        self.settings = settings
        self.board = Board(started_at=time.time())
        self._store = store
        self._opening = opening
        self._tried, self._opened = asyncio.Event(), asyncio.Event()
        self._frames = frames
        self._receiver = FrameReceiver(settings, frames, self.board)
        written = memory.Parts(settings.memory_bytes).written
        self._writer = Writer(store, self.board, open_spool(settings), written)
        self._monitors = MonitorThread(settings, self.board, self._receiver, self._writer)
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
        parts = (self._receiver.take_frames, self._monitors.judge_often, self._monitors.tick_often)
        tasks = [asyncio.create_task(part()) for part in (*parts, self._follow_baselines)]
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
            finally:  # what the monitors cannot finish costs nothing that waits for the store
                await self._finish_writing(writing)
            await asyncio.gather(writing, *beside, return_exceptions=True)
            self._monitors.close()
        for task in ended:
            task.result()
            raise RuntimeError("a part of the pipeline ended by itself")

    def _kept(self, name: str, work: Work) -> Coroutine[Any, Any, None]:
        return supervise.keep(name, work, self.board)

    def _beside(self) -> Iterator[tuple[str, Work]]:
        """Yield what runs beside the pipeline by name: it may fail without ending it, and is started again."""
        settings, store = self.settings, self._store
        yield "connections", lambda: descriptors.guard(self._frames)
        yield "companions", self._follow_background
        yield "otlp", lambda: otlp.export_forever(self.board, settings.otlp)
        yield "spans", lambda: spans.export_forever(self.board.spans, settings.otlp)
        yield "canaries", self._once_open(lambda: canaries.run(settings, store))
        yield "retention", self._once_open(lambda: retention.run(settings, store))
        yield "fleet", self._once_open(lambda: siblings.run(settings, store, self._identities))
        if settings.shadow.inside:
            yield "shadow", self._once_open(lambda: shadow.run(settings, store, self._monitors.replicas))

    def _identities(self) -> list[str]:
        return [one.identity for one in self._monitors.served()]

    def _once_open(self, work: Work) -> Work:
        async def waited() -> None:
            await self._opened.wait()
            await work()

        return waited

    async def _follow_background(self) -> None:
        """Tell the monitors what shadow, canaries and fleet have found."""
        reader = BackgroundReader(self._store, self.settings, self.board)
        while True:
            await asyncio.sleep(_BACKGROUND_S)
            news = await asyncio.to_thread(reader.news, self._monitors.served(), time.time())
            if news:
                await self._monitors.learn(news)

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
        unseen = [model for model in known.announced if self._receiver.take_up(model)]
        await self._monitors.take_up(unseen, known.dropped)
        self._writer.release()
        self._opened.set()
        self._tried.set()

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
        if not self._receiver.marks.key:
            self._receiver.marks.key = marks.secret(self.settings.canary, self._store)

    def _measure_store(self) -> None:
        self._store_bytes = engine.size_bytes(self._store)
        self.board.set(series.STORE_BYTES, self._store_bytes)

    async def _use(self, active: dict[str, baselines.Active], of: dict[str, Normal]) -> None:
        self._active = active
        await self._monitors.use(of)
        _log.info("baselines", active={normal.active.version for normal in of.values()})

    async def _finish(self) -> None:
        """Take what has come, judge everything, write the windows."""
        until = time.monotonic() + _LAST_S  # a sender may never end
        while self._receiver.take() and time.monotonic() < until:
            await self._monitors.judge_waiting()
        await self._monitors.finish()

    async def _finish_writing(self, writing: asyncio.Task[None]) -> None:
        """Let the writer end, and every query with it: a store that hangs must not keep the process."""
        self._writer.stop()
        await asyncio.wait({writing}, timeout=_END_S)
        self._writer.leave()
        engine.give_up(self._store)

    def ready(self) -> str:
        """Return why the sidecar takes no frames; empty when it does.

        A store that is away is no reason: the spool holds what comes, and a pod that is not ready takes vLLM with it.
        """
        return self._ready

    async def status(self) -> Status:
        """Return what is seen now."""
        now = time.time()
        intake = self._receiver.intake
        return Status(
            version=__version__,
            now=now,
            started_at=self.board.started_at,
            endpoint=self.settings.endpoint,
            store=Store(shown(self.settings.store.url), self._writer.up, self._store_bytes, self._writer.spool_bytes),
            frames_received=dict(intake.received),
            frames_refused=dict(self._monitors.refused),
            impossible=dict(intake.impossible),
            frames_lost=dict(intake.lost),
            pending=len(self._receiver.join),
            replicas=await self._monitors.describe(now),
        )

    async def matrix(self, replica: str) -> Matrix | None:
        """Return the expert shares of one replica."""
        return await self._monitors.matrix(replica)
