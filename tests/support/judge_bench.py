"""The monitor of one replica, fed by hand."""

from __future__ import annotations

from typing import Any

import pytest

from moe_watch.detect.fit.baseline_fit import BaselineBuilder
from moe_watch.domain.request import Joined
from moe_watch.metrics import series as metrics
from moe_watch.metrics.board import Board
from moe_watch.settings import Settings
from moe_watch.sidecar.join import Join
from moe_watch.sidecar.monitor.detectors import Normal
from moe_watch.sidecar.monitor.fingerprints import batch_of
from moe_watch.sidecar.monitor.replicas import ReplicaMonitors
from moe_watch.store.records.baselines import Active
from moe_watch.store.write.batch import Writes
from tests.support.frames import Tap

NOW = 1_000_000.0


class Bench:
    """The monitor of one replica, fed by hand."""

    def __init__(self, **settings: Any) -> None:
        self.board = Board()
        self.monitors = ReplicaMonitors(Settings(**settings), self.board)
        self.tap = Tap()
        self.join = Join(5.0)
        self.now = NOW
        self.written = Writes()
        self.monitors.announce(self.tap.announce(), self.now)
        self.beat()

    def beat(self, state: str = "on", **more: Any) -> None:
        self.monitors.hear(self.tap.health(state, **more), self.now)

    def joined(self, n: int, *, unseen: bool = False, parts: slice = slice(None)) -> list[Joined]:
        frames = [frame for _ in range(n) for frame in self.tap.whole(unseen=unseen)[parts]]
        return [*self.join.add(frames, 0.0), *self.join.flush()]

    def send(self, n: int, **more: Any) -> None:
        for at in range(0, n, 50):
            self.written.extend(self.monitors.process(self.joined(min(50, n - at), **more), self.now))
            self.tick(1.0)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.beat()
        self.written.extend(self.monitors.tick(self.now))

    def learn(self, n: int = 600, version: int = 1) -> None:
        monitor = self.monitors.by_replica["r0"]
        builder = BaselineBuilder(minimum=300)
        builder.add(batch_of(monitor.model, self.joined(n))[0])
        active = Active(version, monitor.identity, version, self.now, n)
        self.monitors.use({monitor.identity: Normal(active, builder.build())}, self.now)

    @property
    def verdict(self) -> str:
        self.tick(6.0)
        (replica,) = self.monitors.describe(self.now)
        return replica.verdict

    def value(self, metric: metrics.Metric, *rest: str) -> Any:
        for family in self.board.read():
            for series in family.series:
                if family.metric is metric and series.labels[2:] == rest:
                    return series.value
        return None


@pytest.fixture
def bench() -> Bench:
    """Return the monitors of a sidecar that has heard of one replica."""
    return Bench()
