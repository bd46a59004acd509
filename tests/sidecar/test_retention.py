"""A month of traffic through the judge into the store, while the sidecar's own pruning runs: sizes and sums hold."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import structlog
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from moe_watch import wire
from moe_watch.domain.request import Joined
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings, StoreSettings
from moe_watch.sidecar import retention
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.store import engine, migrate, schema
from moe_watch.store.lifecycle.prune import DAY_S
from moe_watch.store.records import served_models, windows
from moe_watch.store.write.batch import Writes, write
from tests.support.frames import Tap

START = 1_790_000_000.0 // 86_400 * 86_400
STEP_S = 7200.0  # what passes in a pause
EACH = 28  # requests in a minute, and three such minutes in a step: 1,008 a day
PER_DAY = int(3 * EACH * DAY_S / STEP_S)


class Month:
    """Days that pass in the pauses of the pruning."""

    def __init__(self, store: Engine, days: int, keep: StoreSettings) -> None:
        self.store, self.settings, self.end = store, Settings(store=keep), START + days * DAY_S
        self.monitors, self.now, self.sent = ReplicaMonitors(self.settings, Board(START)), START, 0
        self.sizes: list[int] = []  # at the end of each day
        tap, join = Tap(), Join(5.0)
        sample = wire.Sample(prompt="what is it? " * 20, outputs=["it is"])
        frames: list[wire.AnyFrame] = []
        for index in range(EACH):
            routing, latency, _ = tap.whole(f"cmpl-{index}")
            text = {"sample": sample, "sample_rate": 0.25} if index % 4 == 0 else {}
            frames += [routing, latency, tap.request(f"cmpl-{index}", domain=("chat", "code")[index % 2], **text)]
        self.requests = join.add(frames, 0.0)
        self.monitors.announce(tap.announce(), self.now)

    async def pass_by(self, _: float) -> None:
        """Let some hours pass, with three busy minutes, and end when it is time."""
        made = Writes()
        for minute in range(3):
            at = self.now + 60 * minute
            made.extend(self.monitors.process(list(self._fresh(at)), at))
            made.extend(self.monitors.tick(at + 60))
        await asyncio.to_thread(write, self.store, made)
        self.now += STEP_S
        if self.now % DAY_S == 0:
            self.sizes.append(engine.size_bytes(self.store))
        if self.now >= self.end:
            raise asyncio.CancelledError

    def _fresh(self, at: float) -> Iterator[Joined]:
        """Yield the same requests again under new names, finished ``at``."""
        for number, one in zip(itertools.count(self.sent), self.requests, strict=False):
            parts = {
                name: msgspec.structs.replace(part, request_id=f"cmpl-{number}", finished_at=at)
                for name in ("routing", "latency", "request")
                if (part := getattr(one, name)) is not None
            }
            yield replace(one, request_id=f"cmpl-{number}", **parts)
        self.sent += EACH

    def run(self) -> None:
        """Let all of it pass, under the sidecar's own loop."""
        with structlog.testing.capture_logs(), pytest.raises(asyncio.CancelledError):
            asyncio.run(retention.run(self.settings, self.store, lambda: self.now, self.pass_by))

    def count(self, what: object) -> int:
        """Return how many rows there are of a table."""
        with Session(self.store) as session:
            return int(session.scalar(select(func.count()).select_from(what)) or 0)  # type: ignore[arg-type]


def _holds(month: Month, days: int, kept_days: int) -> None:
    """Check what is left of single requests, and that the sums are those of everything that was sent."""
    assert month.sent == days * PER_DAY
    with Session(month.store) as session:
        oldest = session.scalar(select(func.min(schema.Request.finished_at)))
    assert oldest is not None
    assert oldest >= month.now - STEP_S - kept_days * DAY_S  # pruned one step ago
    assert kept_days * PER_DAY <= month.count(schema.Request) <= kept_days * PER_DAY + 3 * EACH
    assert month.count(schema.Fingerprint) == month.count(schema.Request)
    assert PER_DAY / 4 <= month.count(schema.Sample) <= PER_DAY / 4 + 3 * EACH
    assert month.count(schema.Window) <= days * DAY_S / STEP_S + 3 * (DAY_S / STEP_S + 1)  # hours, and a day of minutes
    (model,) = served_models.by_name(month.store)
    total = windows.pooled(month.store, model, 0, 4e9)
    assert (total.requests, total.routed_requests) == (month.sent, month.sent)
    assert total.counts.sum() == month.sent * 64 * 2 * 3  # tokens x top-k x layers
    assert total.sums.prompt_tokens == month.sent * 48.0
    assert total.tallies.domains == {"chat": month.sent // 2, "code": month.sent // 2}


def test_a_month_stays_in_bounds_and_adds_up(tmp_path: Path) -> None:
    """Thirty thousand requests in thirty days: those before the last five go, the file stops growing, the sums stay."""
    store = engine.connect(f"sqlite:///{tmp_path}/month.db")
    migrate.upgrade(store)
    month = Month(store, 30, StoreSettings(keep_requests_days=5, keep_samples_days=1))
    month.run()
    _holds(month, days=30, kept_days=5)
    tenth, *after = month.sizes[9:]
    assert max(after) < 1.1 * tenth
    store.dispose()


def test_a_week_in_any_store_stays_in_bounds_and_adds_up(store: Engine) -> None:
    """The same on Postgres, and shorter; its files are its own vacuum's business."""
    week = Month(store, 7, StoreSettings(keep_requests_days=2, keep_samples_days=1))
    week.run()
    _holds(week, days=7, kept_days=2)
