"""Gives finished requests to the monitors in a thread of their own, and what they found to the writer."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, TypeVar

import structlog

from moe_watch import wire
from moe_watch.domain.status import Matrix, Replica
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.background import News, Served
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.sidecar.receiver import FrameReceiver
from moe_watch.sidecar.waiting import Batch
from moe_watch.sidecar.writer import Writer
from moe_watch.store import losses
from moe_watch.store.write.batch import Writes

_CADENCE_S: Final = 0.2  # how often finished requests are judged
_TICK_S: Final = 1.0

_log = structlog.get_logger()
T = TypeVar("T")


class MonitorThread:
    """The monitors of all replicas and the one thread that they are used from."""

    def __init__(self, settings: Settings, board: Board, receiver: FrameReceiver, writer: Writer) -> None:
        self._monitors = ReplicaMonitors(settings, board)
        self._receiver, self._writer = receiver, writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="monitors")

    @property
    def refused(self) -> Counter[str]:
        """Return how many frames and requests were refused, by reason, here and before."""
        return self._receiver.refused + self._monitors.refused

    def replicas(self) -> list[str]:
        """Return the replicas that are watched."""
        return list(self._monitors.by_replica)

    def served(self) -> list[Served]:
        """Return which models with experts are served where."""
        return self._monitors.served()

    async def judge_often(self) -> None:
        """Judge what has finished, again and again."""
        while True:
            await asyncio.sleep(_CADENCE_S)
            self._receiver.give_up_late()
            await self.judge_waiting()

    async def judge_waiting(self) -> None:
        """Judge what has finished and write it."""
        batch = self._receiver.finished()
        if batch:
            try:
                await self._write_down(lambda: self._judge(batch))
            finally:
                self._receiver.done(batch)

    async def tick_often(self) -> None:
        """Renew verdicts and gauges, again and again, and forget who is gone."""
        while True:
            await asyncio.sleep(_TICK_S)
            gone = self._receiver.forget_silent()
            await self._write_down(partial(self._tick, gone, self._receiver.count(self.refused)))

    async def take_up(self, known: Sequence[wire.Model], dropped: dict[str, losses.Counts]) -> None:
        """Take up replicas that the store knows, with what their taps dropped before."""
        await self._in_thread(lambda: self._announce(known, dropped))

    async def learn(self, news: Sequence[News]) -> None:
        """Take in what shadow, canaries and fleet have found."""
        await self._in_thread(lambda: self._monitors.learn(news, time.time()))

    async def use(self, normals: dict[str, Normal]) -> None:
        """Judge by other baselines, given by identity of the model."""
        await self._in_thread(lambda: self._monitors.use(normals, time.time()))

    async def describe(self, now: float) -> list[Replica]:
        """Return what is seen now, replica by replica."""
        return await self._in_thread(lambda: self._monitors.describe(now))

    async def matrix(self, replica: str) -> Matrix | None:
        """Return the expert shares of one replica."""
        return await self._in_thread(lambda: self._monitors.matrix(replica, time.time()))

    async def finish(self) -> None:
        """Judge every request with what has come of it, and write the windows."""
        self._receiver.give_up_all()
        await self.judge_waiting()
        self._writer.put(await self._in_thread(partial(self._last, self._receiver.count(self.refused))))

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown()

    async def _write_down(self, work: Callable[[], Writes]) -> None:
        """Give the writer what ``work`` returns in the thread, also when it is cancelled meanwhile: by a stop."""
        working = asyncio.get_running_loop().run_in_executor(self._thread, work)
        working.add_done_callback(self._put)  # in the order of the thread
        await asyncio.shield(working)

    def _put(self, working: asyncio.Future[Writes]) -> None:
        if not working.cancelled() and working.exception() is None:
            self._writer.put(working.result())

    def _announce(self, known: Sequence[wire.Model], dropped: dict[str, losses.Counts]) -> None:
        self._monitors.remember(dropped)
        for model in known:
            self._monitors.announce(model, time.time(), heard_at=model.sent_at)

    def _judge(self, batch: Batch) -> Writes:
        now = time.time()
        for note in batch.notes:
            if isinstance(note, wire.Model):
                self._monitors.announce(note, now)
            else:
                self._monitors.hear(note, now)
        return self._monitors.process(batch.joined, now)

    def _tick(self, gone: Sequence[str], lost: Mapping[str, int]) -> Writes:
        now = time.time()
        self._monitors.lose(lost)
        for replica in gone:
            self._monitors.forget(replica, now)
            _log.info("a replica is gone and was forgotten; its history stays", replica=replica)
        return self._monitors.tick(now)

    def _last(self, lost: Mapping[str, int]) -> Writes:
        self._monitors.lose(lost)
        return self._monitors.collect(time.time(), last=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
