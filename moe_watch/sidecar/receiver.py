"""Takes frames off the socket, checks and joins them, and holds finished requests until they are judged."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final

import zmq
import zmq.asyncio

from moe_watch import wire
from moe_watch.canary import marks
from moe_watch.domain import memory
from moe_watch.metrics import series
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.intake import HIGH_WATER_FRAMES, Intake
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.waiting import Batch, Waiting

_DRAIN_FRAMES: Final = 512  # taken off the socket before others have their turn
_GATHER_S: Final = 0.02  # frames of this time are taken together: being woken costs more than a frame does
_FULL_S: Final = 0.002  # the same where a connection may hold more than it could hand over


class FrameReceiver:
    """From the socket to finished requests, in bounded memory; used on the event loop alone."""

    def __init__(self, settings: Settings, frames: zmq.Socket[bytes], board: Board) -> None:
        self._parts = memory.Parts(settings.memory_bytes)
        self.intake = Intake(most_cells=self._parts.cells, expires_s=settings.replica_expires_s)
        self.join = Join(settings.join_timeout_s, most_bytes=self._parts.join)
        self.marks = marks.Checker()
        self._expires_s = settings.replica_expires_s
        self._waiting = Waiting(self._parts.waiting)
        self._frames, self._board = frames, board
        self._counted: dict[series.Metric, Counter[str]] = {}

    @property
    def refused(self) -> Counter[str]:
        """Return how many frames and requests were refused, by reason."""
        return self.intake.refused + self.join.refused + self._waiting.refused

    async def take_frames(self) -> None:
        """Drain the socket in pieces, joining as it goes."""
        waiting = zmq.asyncio.Socket.from_socket(self._frames)
        while True:
            taken = self.take()
            if not taken:
                await waiting.poll()
            await asyncio.sleep(_FULL_S if taken >= HIGH_WATER_FRAMES else _GATHER_S)

    def take(self) -> int:
        """Take frames that are there, up to a number of them; return how many."""
        raws = list(_drain(self._frames, _DRAIN_FRAMES, self._parts.taken))
        now, monotonic = time.time(), time.monotonic()
        frames = self.intake.take(raws, monotonic)
        self._waiting.put(self.join.add(self.marks.check(frames), monotonic), frames)
        if frames:
            self._board.set(series.INGEST_LAG, max(0.0, now - frames[-1].sent_at))
        return len(raws)

    def take_up(self, model: wire.Model) -> bool:
        """Take up a replica that the store knows; say whether it is watched and has not announced itself since."""
        age = max(0.0, time.time() - model.sent_at)
        unseen = model.replica not in self.intake.announced
        return unseen and age <= self._expires_s and self.intake.know(model, time.monotonic() - age)

    def finished(self) -> Batch:
        """Return what waits to be judged; it counts until it is ``done``."""
        return self._waiting.take()

    def done(self, batch: Batch) -> None:
        """Take note that ``batch`` was judged."""
        self._waiting.done(batch)

    def give_up_late(self) -> None:
        """Let the requests that were waited for long enough be judged without the frames that never came."""
        self._waiting.put(self.join.expire(time.monotonic()))

    def give_up_all(self) -> None:
        """Let every request be judged with what has come of it."""
        self._waiting.put(self.join.flush())

    def forget_silent(self) -> list[str]:
        """Forget the replicas that have been silent for too long; return which."""
        gone = self.intake.expire(time.monotonic())
        for replica in gone:
            self.join.forget(replica)
        return gone

    def count(self, refused: Counter[str]) -> Counter[str]:
        """Put the counts on the board, with all that was ``refused``; return the frames lost since, by replica."""
        for metric, counts in ((series.FRAMES_RECEIVED, self.intake.received), (series.FRAMES_REFUSED, refused)):
            before = self._counted.get(metric, Counter())
            for label, number in (counts - before).items():
                self._board.add(metric, number, label)
            self._counted[metric] = Counter(counts)
        before = self._counted.get(series.FRAMES_DROPPED, Counter())
        self._counted[series.FRAMES_DROPPED] = Counter(self.intake.lost)
        self._board.set(series.JOIN_PENDING, len(self.join))
        return self.intake.lost - before


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
